"""The diffusion checkpoint: network, process, latent space and origin, in one file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from diffusion.config import ModelConfig, ProcessConfig
from diffusion.model import DiT
from diffusion.process import Process, build_process
from diffusion.space import LatentSpace, space_from_dict
from runtime.checkpoints import checkpoint_hash, load_checkpoint, load_weights, plain_fields, save_checkpoint
from runtime.errors import InputError

KIND = "diffusion"


@dataclass(frozen=True)
class LoadedDiffusion:
    """A DiT in evaluation mode, with all that is needed to sample and decode."""

    model: DiT
    process: Process
    space: LatentSpace
    hash: str
    ledger: list[str]
    step: int


def save_diffusion(path: Path, model: DiT, space: LatentSpace, process: ProcessConfig, **state: Any) -> None:
    """Writes a checkpoint; `state` holds ``ema``, ``step``, ``ledger`` and what the training run wants back."""
    contents = {
        **_identity(model, process),
        "space": space.to_dict(),
        "weights": model.state_dict(),
        **state,
    }
    save_checkpoint(path, KIND, contents)


def load_diffusion(path: Path | str, *, weights: Literal["ema", "raw"] = "ema") -> LoadedDiffusion:
    """Rebuilds the network from nothing but its file, strictly; returns the averaged (EMA) weights unless asked.

    Raises:
        InputError: not a diffusion checkpoint, damaged, or weights that do not fit its own configuration.
    """
    record = load_checkpoint(path, KIND)
    try:
        config = ModelConfig(**{**record["model_config"], "patch": tuple(record["model_config"]["patch"])})
        process = build_process(ProcessConfig(**record["process_config"]))
    except TypeError as error:
        raise InputError(f"{path}: its configuration is not one of this version: {error}") from None
    model = DiT(config, tuple(record["latent_shape"]), process.timesteps)
    load_weights(model, record["ema" if weights == "ema" else "weights"], path)
    model.eval().requires_grad_(False)
    return LoadedDiffusion(
        model, process, space_from_dict(record["space"]), checkpoint_hash(path), record["ledger"], record["step"]
    )


def resume_diffusion(path: Path, model: DiT, space: LatentSpace, process: ProcessConfig) -> dict[str, Any]:
    """Loads the raw weights into `model` for further training and returns the file's contents.

    Raises:
        InputError: the checkpoint is of another architecture, process, grid or VAE; names each field with both values.
    """
    record = load_checkpoint(path, KIND)
    statistics = space.to_dict()["statistics"]
    problems = [
        f"{name}: the checkpoint has {record[name]}, this run {value}"
        for name, value in _identity(model, process).items()
        if record[name] != value
    ]
    problems += [
        f"latents' {name}: the checkpoint has {record['space']['statistics'][name]}, this run {statistics[name]}"
        for name in ("vae", "grid", "count", "mean", "std")
        if record["space"]["statistics"][name] != statistics[name]
    ]
    if problems:
        raise InputError.of(f"{path}: another network or other latents", problems)
    load_weights(model, record["weights"], path)
    return record


def _identity(model: DiT, process: ProcessConfig) -> dict[str, Any]:
    return {
        "model_config": plain_fields(model.config),
        "process_config": asdict(process),
        "latent_shape": list(model.latent_shape),
    }


def average(ema: dict[str, torch.Tensor], model: DiT, share: float, step: int) -> None:
    """One step of the weight average, in place, over a window that grows with the run.

    The decay 1 - 1 / (share * step) remembers about the last `share` of the steps so far, whatever the run's length: a
    fixed 0.9999 would still hold the random start of a run of a few thousand steps.
    """
    rate = min(1.0, 1.0 / max(1.0, share * step))
    state = model.state_dict()
    torch._foreach_lerp_(list(ema.values()), [state[name] for name in ema], rate)
