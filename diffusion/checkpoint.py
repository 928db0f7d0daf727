"""The diffusion checkpoint: network, process, latent space and origin, in one file; and older programs' files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from diffusion.config import ModelConfig, ProcessConfig
from diffusion.covariates import Scales
from diffusion.model import DiT
from diffusion.process import Process, build_process
from diffusion.space import LatentSpace, space_from_dict
from diffusion.upstream import read_upstream
from runtime.checkpoints import (
    checkpoint_hash,
    load_tensors,
    load_weights,
    plain_fields,
    refuse_other,
    require_kind,
    save_checkpoint,
)
from runtime.errors import InputError
from VAE.latents import Statistics

KIND = "diffusion"
Weights = Literal["ema", "raw"]
Tracks = dict[str, dict[str, torch.Tensor]]
"""Averaged weights by the name of their length, for example ``0.05``."""


@dataclass(frozen=True)
class LoadedDiffusion:
    """A DiT in evaluation mode, with all that is needed to sample and decode."""

    model: DiT
    process: Process
    space: LatentSpace
    hash: str
    ledger: list[str]
    step: int
    label_dropout: float
    """Chance of the null class in training; 0: there is none to guide against."""
    covariates: Scales
    model_config: ModelConfig
    process_config: ProcessConfig


def save_diffusion(path: Path, model: DiT, process: ProcessConfig, space: LatentSpace, **state: Any) -> None:
    """Writes a checkpoint.

    Args:
        path: ends in ``.pt``.
        model: its weights are saved as they are.
        process: configuration of the noising process.
        space: of the latents.
        state: ``ema`` (Tracks), ``track`` (name of the one that loaders return), ``step``, ``ledger``,
            ``label_dropout``, ``covariates`` (Scales), and what the training run wants back.
    """
    contents = {**_identity(model, process), "space": space.to_dict(), "weights": model.state_dict(), **state}
    save_checkpoint(path, KIND, contents)


def load_diffusion(path: Path | str, *, weights: Weights = "ema") -> LoadedDiffusion:
    """Rebuilds the network from nothing but its file, strictly; returns averaged (EMA) weights unless asked.

    Files of NeuroLDM-3D (``model_state`` and ``ema_state``) are read too: see `diffusion.upstream`. Their latents were
    not normalised, and which VAE they came from is not recorded.

    Raises:
        InputError: not a diffusion checkpoint, damaged, or weights that do not fit its own configuration.
    """
    record = load_tensors(path)
    if "model_state" in record:
        return _load_upstream(path, weights)
    require_kind(record, path, KIND)
    try:
        model_config = ModelConfig(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in record["model_config"].items()}
        )
        process_config = ProcessConfig(**record["process_config"])
    except TypeError as error:
        raise InputError(f"{path}: its configuration is not one of this version: {error}") from None
    process = build_process(process_config)
    model = DiT(model_config, tuple(record["latent_shape"]), process)
    load_weights(model, record["ema"][record["track"]] if weights == "ema" else record["weights"], path)
    return LoadedDiffusion(
        model.eval().requires_grad_(False), process, space_from_dict(record["space"]), checkpoint_hash(path),
        record["ledger"], record["step"], record["label_dropout"],
        {name: tuple(scale) for name, scale in record["covariates"].items()}, model_config, process_config,
    )  # fmt: skip


def _load_upstream(path: Path | str, weights: Weights) -> LoadedDiffusion:
    """A file of NeuroLDM-3D: noise prediction on the linear schedule, raw latents of 4x28x34x28, labels dropped."""
    shape = (4, 28, 34, 28)
    config, state = read_upstream(path, latent_shape=shape, weights=weights)
    process_config = ProcessConfig()
    process = build_process(process_config)
    model = DiT(config, shape, process)
    load_weights(model, state, path)
    raw = Statistics(mean=(0.0,) * 4, std=(1.0,) * 4, count=0, split="", vae="", grid={}, ledger=[])
    space = LatentSpace(raw, torch.zeros(shape), torch.ones(shape))
    model.eval().requires_grad_(False)
    return LoadedDiffusion(model, process, space, checkpoint_hash(path), [], 0, 0.1, {}, config, process_config)


def start_from(path: Path, model: DiT, process: ProcessConfig) -> LatentSpace:
    """Gives `model` the averaged weights of a finished run and returns the latent space they know.

    Raises:
        InputError: another architecture or process; names each field with both values.
    """
    loaded = load_diffusion(path)
    record = {"model": plain_fields(loaded.model_config), "process": asdict(loaded.process_config)}
    refuse_other(path, record, {"model": plain_fields(model.config), "process": asdict(process)}, "another network")
    load_weights(model, loaded.model.state_dict(), path)
    return loaded.space


def resume_diffusion(path: Path, model: DiT, process: ProcessConfig, space: LatentSpace) -> dict[str, Any]:
    """Loads the raw weights into `model` for further training and returns the file's contents.

    Raises:
        InputError: the checkpoint is of another architecture, process, grid or VAE; names each field with both values.
    """
    record = require_kind(load_tensors(path), path, KIND)
    identity = _identity(model, process)
    latents = space.to_dict()["statistics"]
    found = {**record, "latents": {**record["space"]["statistics"], "shape": record["latent_shape"]}}
    wanted = {
        "model_config": identity["model_config"],
        "process_config": identity["process_config"],
        "latents": {
            "shape": identity["latent_shape"],
            **{name: latents[name] for name in ("vae", "grid", "count", "mean", "std")},
        },
    }
    refuse_other(path, found, wanted, "another network or other latents")
    load_weights(model, record["weights"], path)
    return record


def _identity(model: DiT, process: ProcessConfig) -> dict[str, Any]:
    return {
        "model_config": plain_fields(model.config),
        "process_config": asdict(process),
        "latent_shape": list(model.latent_shape),
    }
