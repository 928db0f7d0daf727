"""The diffusion checkpoint: network, process, latent space and origin, in one file; and older programs' files."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from cohort.grids import refuse_other_grid
from diffusion.config import ModelConfig, ProcessConfig
from diffusion.covariates import Scales
from diffusion.dataset import LatentSpace, space_from_dict
from diffusion.model import DiT
from diffusion.model.dit import resized
from diffusion.process import Process, build_process
from diffusion.upstream import read_upstream
from runtime import checkpoints
from runtime.errors import InputError
from VAE.checkpoint import LoadedVAE

KIND = "diffusion"
Weights = Literal["ema", "raw"]


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
    process_config: ProcessConfig


def save_diffusion(path: Path, model: DiT, process: ProcessConfig, space: LatentSpace, **state: Any) -> None:
    """Writes a checkpoint with the model's weights as they are.

    `state` holds ``ema`` (averaged weights by the name of their length, for example ``0.05``), ``track`` (name of those
    that loaders return), ``step``, ``ledger``, ``label_dropout``, ``covariates`` (Scales), and what the training run
    wants back.
    """
    network = {"latent_shape": list(model.latent_shape), "space": space.to_dict(), "weights": model.state_dict()}
    checkpoints.save_checkpoint(path, KIND, {**_configs(model, process), **network, **state})


def load_diffusion(path: Path | str, *, weights: Weights = "ema") -> LoadedDiffusion:
    """Rebuilds the network from nothing but its file, strictly; returns averaged (EMA) weights unless asked.

    Files of NeuroLDM-3D (``model_state`` and ``ema_state``) are read too: see `diffusion.upstream`. Their latents were
    not normalised, and which VAE they came from is not recorded.
    """
    record = checkpoints.load_tensors(path)
    record = read_upstream(record, path, weights) if "model_state" in record else _current(record, path)
    process_config = checkpoints.config_from(ProcessConfig, record["process_config"], path)
    process = build_process(process_config)
    config = checkpoints.config_from(ModelConfig, record["model_config"], path)
    model = DiT(config, tuple(record["latent_shape"]), process)
    checkpoints.load_weights(model, record["ema"][record["track"]] if weights == "ema" else record["weights"], path)
    return LoadedDiffusion(
        model.eval().requires_grad_(False), process, space_from_dict(record["space"], path),
        checkpoints.checkpoint_hash(path), record["ledger"], record["step"], record["label_dropout"],
        {name: tuple(scale) for name, scale in record["covariates"].items()}, process_config,
    )  # fmt: skip


def refuse_other_vae(diffusion: LoadedDiffusion, vae: LoadedVAE) -> None:
    """InputError where a diffusion model was not trained on the latents of this VAE."""
    origin = diffusion.space.statistics.vae
    # Files of other programs do not say which VAE their latents came from; the shape is all there is to check.
    if origin not in ("", vae.hash):
        raise InputError(f"the VAE is checkpoint {vae.hash}, the diffusion model was trained on latents of {origin}")
    ours, theirs = tuple(diffusion.model.latent_shape), tuple(vae.model.latent_shape(vae.grid.shape))
    if ours != theirs:
        raise InputError(f"the VAE's latents are {theirs}, those of the diffusion model {ours}")


def refuse_other_space(diffusion: LoadedDiffusion, guide: LoadedDiffusion) -> None:
    """InputError where a guide's latents are not those of the model that it is to guide, in the same units, noised the
    same way and under the same covariates.
    """
    (ours, theirs), spaces = (loaded.process_config for loaded in (diffusion, guide)), (diffusion.space, guide.space)
    pairs = zip(*([*space.statistics.columns(), space.centre, space.spread] for space in spaces), strict=True)
    same = {
        "VAE": diffusion.space.statistics.vae == guide.space.statistics.vae,
        "schedule": (ours.schedule, ours.timesteps) == (theirs.schedule, theirs.timesteps),
        "covariates": diffusion.covariates == guide.covariates,
        # Sums of as many latents by other numbers of threads differ in their last digits.
        "latents": all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in pairs),
    }
    if other := [name for name, equal in same.items() if not equal]:
        raise InputError(
            f"--guide-by: of other {', '.join(other)} than the model that it is to guide; train it on the same "
            "latents with the same --process, with fewer --steps or a smaller --model"
        )


def start_from(
    path: Path, model: DiT, process: ProcessConfig, grid: dict[str, Any], *, other_grid: bool = False
) -> LoadedDiffusion:
    """Gives `model` the averaged weights of a finished run of the same network and process; returns its checkpoint.

    Weights of another grid than `grid` (`Grid.to_dict`) are refused, unless `other_grid` allows it: then positions are
    interpolated, and a linear start keeps what `model` has.
    """
    loaded = load_diffusion(path)
    theirs, weights = loaded.space.statistics.grid, loaded.model.state_dict()
    refuse_other_grid(path, theirs, grid, allowed=other_grid)
    if theirs != grid and other_grid:
        weights |= {name: value for name, value in model.state_dict().items() if name.startswith("start.")}
        if "positions" in weights:
            weights["positions"] = resized(weights["positions"], loaded.model.tokens, model.tokens)
    record = {**_configs(loaded.model, loaded.process_config), "weights": weights}
    checkpoints.resume(path, record, model, _configs(model, process))
    return loaded


def resume_diffusion(path: Path, model: DiT, process: ProcessConfig, space: LatentSpace) -> dict[str, Any]:
    """Loads the raw weights into `model` for further training; the contents. Refuses another network or VAE."""
    record = _current(checkpoints.load_tensors(path), path)
    record["latents"] = {**record["space"]["statistics"], "shape": record["latent_shape"]}
    statistics = space.to_dict()["statistics"]
    latents = {name: statistics[name] for name in ("vae", "grid", "count", "mean", "std")}
    wanted = {**_configs(model, process), "latents": {"shape": list(model.latent_shape), **latents}}
    return checkpoints.resume(path, record, model, wanted)


def _configs(model: DiT, process: ProcessConfig) -> dict[str, Any]:
    return {"model_config": checkpoints.plain_fields(model.config), "process_config": asdict(process)}


def _current(record: dict[str, Any], path: Path | str) -> dict[str, Any]:
    """The contents of a checkpoint, also of one written before sides, or when attention could have windows."""
    checkpoints.require_kind(record, path, KIND)
    if record["model_config"].get("window_blocks"):
        raise InputError(f"{path}: its attention is confined to windows, which this version does not have")
    record["model_config"] = {"sides": False, "means_window": 0.0, **record["model_config"]}
    for name in ("window", "window_blocks", "latent_channels"):
        record["model_config"].pop(name, None)
    covariates = len(record["model_config"]["covariates"])
    for weights in (record["weights"], *record["ema"].values()):
        if "covariates.untold" in weights:
            weights["covariates.unknown"] = weights.pop("covariates.untold")
        if "start.axes" in weights and covariates and "start.slopes" not in weights:  # its means did not follow them
            rows, size = weights["start.means"].shape
            weights["start.slopes"], weights["start.centres"] = (
                torch.zeros(n, m) for n, m in ((covariates, size), (rows, covariates))
            )
        if "start.axes" in weights and "start.spectrum" not in weights:  # its rest was white, the last variance
            *variances, rest = weights["start.variances"]
            weights["start.variances"] = torch.stack(variances)
            weights["start.spectrum"] = rest.expand(tuple(record["latent_shape"])).clone()
    return record
