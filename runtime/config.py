"""Fields that the scripts' configurations share, and a configuration as plain values."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runtime.errors import InputError

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ScriptConfig:
    """What every script has."""

    dry_run: bool = False
    """Print the resolved configuration and stop."""


@dataclass(frozen=True, kw_only=True)
class DeviceConfig(ScriptConfig):
    """What scripts with networks have."""

    precision: Precision = "auto"
    """Matrix precision; auto is bfloat16 where the device has fast kernels for it."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    compile: bool = True
    """Compile the network (torch.compile) on a GPU; a CPU always runs eagerly."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(DeviceConfig):
    """What training runs have; a preset says what has no default."""

    run_dir: Path
    """Run folder. An existing run of the same configuration is continued."""
    steps: int
    """Optimiser steps."""
    batch_size: int
    """Cases per step, over all processes."""
    lr: float
    """Peak learning rate (AdamW, linear warm-up, then decay)."""
    warmup_steps: int
    """Steps of linear warm-up."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    log_every_steps: int = 50
    """Steps between two lines of the log."""
    val_every_steps: int
    """Steps between two validations."""
    save_every_steps: int
    """Steps between two checkpoints."""
    patience: int = 0
    """Stop after so many validations without a better one (small cohorts are memorised); 0 trains all steps."""
    seed: int = 0
    """Seed of every random draw."""

    def __post_init__(self) -> None:
        """Refuses what no training can be run with."""
        if self.batch_size < 1:
            raise InputError(f"--batch-size {self.batch_size}: expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class FitConfig(RunConfig):
    """What training runs have whose step can be made to take less memory."""

    recompute: bool = False
    """Gradient checkpointing: compute activations again in the backward pass. Less memory, about a third slower, the
    same result."""
    micro_batch: int = 0
    """Cases that a process computes at once; the gradients of a batch's parts add up, so that a step is that of the
    whole batch, to rounding. 0: all of them."""
    fit: float | None = None
    """GiB that this process may take (of a GPU's memory, or on a CPU of the machine's): --micro-batch and --recompute
    are then chosen by the predicted peak. Without it, the peak is predicted, and that is all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.micro_batch < 0:
            raise InputError(f"--micro-batch {self.micro_batch}: expected 1 or more, or 0 for the whole batch")
        if self.micro_batch and self.fit is not None:
            raise InputError("--fit chooses --micro-batch; give one of the two")


def plain_config(config: Any) -> dict[str, Any]:
    """A configuration dataclass as JSON values: paths become text, tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def with_defaults(fields: dict[str, Any], config: Any) -> dict[str, Any]:
    """A configuration that an older version wrote (as `plain_config`), with the defaults of fields it did not have."""
    filled = dict(fields)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            filled[field.name] = with_defaults(filled.get(field.name) or {}, value)
        elif field.name not in filled and field.default is not dataclasses.MISSING:
            filled[field.name] = json.loads(json.dumps(field.default, default=str))
    return filled
