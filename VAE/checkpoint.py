"""The VAE's checkpoint: what a training run needs to go on, and what everybody else needs to encode and decode."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from cohort.grids import GRIDS, Grid, refuse_other_grid
from runtime import checkpoints
from runtime.errors import InputError
from VAE import tiles
from VAE.config import ModelConfig
from VAE.model import Autoencoder
from VAE.monai_weights import read_weights, translate

KIND = "vae"
MONAI_GROUPS = 32  # AutoencoderKL's default, and that of the published models
RECIPE_GROUPS = {"vae_state_dict": 16}  # of the recipe with 32, 64 and 128 channels, known by its file's entry


@dataclass(frozen=True)
class LoadedVAE:
    """An autoencoder in evaluation mode, with what else its file says."""

    model: Autoencoder
    grid: Grid
    hash: str
    ledger: list[str]
    """Hashes of the subjects and groups it was trained on or selected with."""
    step: int

    def encode(self, x: torch.Tensor, tile: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """`Autoencoder.encode`; with `tile` in slabs of so many voxels, which is the same to rounding (`VAE.tiles`)."""
        return tiles.encode(self.model, x, tile, x.device) if tile else self.model.encode(x)

    def decode(self, z: torch.Tensor, tile: int = 0) -> torch.Tensor:
        """`Autoencoder.decode` to volumes of the grid; `tile` as for `encode`."""
        shape = self.grid.shape
        return tiles.decode(self.model, z, shape, tile, z.device) if tile else self.model.decode(z, shape)

    def refuse_tile(self, tile: int) -> None:
        """InputError where slabs of so many voxels do not fit the levels of the network."""
        if tile < 0 or tile % (2 * self.model.factor):
            raise InputError(f"--tile {tile}: this VAE needs a multiple of {2 * self.model.factor}")


def save_vae(path: Path, model: Autoencoder, *, grid: Grid, ledger: list[str], **state: Any) -> None:
    """Writes a checkpoint; `state` holds ``ema``, ``step`` and whatever the training run wants back."""
    own = {**_origin(model, grid), "weights": model.state_dict(), "ledger": ledger}
    checkpoints.save_checkpoint(path, KIND, {**own, **state})


def load_vae(path: Path | str, *, weights: Literal["ema", "raw"] = "ema") -> LoadedVAE:
    """Rebuilds the network from nothing but its file, strictly; returns the averaged (EMA) weights unless asked."""
    record = checkpoints.load_checkpoint(path, KIND)
    model = Autoencoder(checkpoints.config_from(ModelConfig, record["model_config"], path))
    checkpoints.load_weights(model, record["ema" if weights == "ema" else "weights"], path)
    model.eval().requires_grad_(False)
    grid, name = Grid.from_dict(record["grid"]), checkpoints.checkpoint_hash(path)
    return LoadedVAE(model, grid, name, record["ledger"], record["step"])


def import_monai(
    path: Path | str, *, grid: Grid = GRIDS["paper"], groups: int | None = None, upsampling: str | None = None
) -> LoadedVAE:
    """An autoencoder trained with MONAI (AutoencoderKL, MAISI's, or the older Generative Models') as one of ours.

    The file says nothing about the scans: whoever uses it vouches for the orientation, spacing and intensities ([0, 1])
    that it was trained on, and for its subjects, as the ledger is empty.

    Args:
        path: a state dict, alone or in one of the usual containers (see `VAE.monai_weights`).
        grid: the voxel grid to use it on.
        groups: of the GroupNorms, which the file does not state. By default 32, or 16 in files whose state dict is
            called ``vae_state_dict``.
        upsampling: nearest, linear or transposed, for files of MAISI and of the older package, which do not tell.
    """
    tensors, container = read_weights(path)
    if groups is None:
        groups = RECIPE_GROUPS.get(container or "", MONAI_GROUPS)
    config, weights = translate(tensors, groups, upsampling, path)
    model = Autoencoder(config)
    checkpoints.load_weights(model, weights, path)
    model.eval().requires_grad_(False)
    return LoadedVAE(model, grid, checkpoints.checkpoint_hash(path), ledger=[], step=0)


def start_from(path: Path, model: Autoencoder, grid: Grid, *, other_grid: bool = False) -> list[str]:
    """Gives `model` the averaged weights of another run, or imported ones; the ledger that comes with them.

    A model with a second output goes on from one that has none: that output then starts undecided. Weights of another
    grid than `grid` are refused, unless `other_grid` allows it.
    """
    loaded = load_vae(path)
    refuse_other_grid(path, loaded.grid.to_dict(), grid.to_dict(), allowed=other_grid)
    record = {**_origin(loaded.model, grid), "weights": loaded.model.state_dict()}
    if model.config.support and not loaded.model.config.support:
        record["model_config"]["support"], own = True, model.state_dict()
        for leaf in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
            first = record["weights"][leaf]
            record["weights"][leaf] = torch.cat([first, torch.zeros_like(own[leaf][len(first) :])])
        record["weights"] |= {name: value for name, value in own.items() if name.startswith("output.")}
    checkpoints.resume(path, record, model, _origin(model, grid))
    return loaded.ledger


def resume_vae(path: Path, model: Autoencoder, grid: Grid) -> dict[str, Any]:
    """Loads the raw weights into `model` for further training; the contents. Refuses another grid or architecture."""
    record = checkpoints.load_checkpoint(path, KIND)
    fields = checkpoints.config_from(ModelConfig, record["model_config"], path)  # an older file has fewer
    record["model_config"] = checkpoints.plain_fields(fields)
    return checkpoints.resume(path, record, model, _origin(model, grid))


def _origin(model: Autoencoder, grid: Grid) -> dict[str, Any]:
    return {"model_config": checkpoints.plain_fields(model.config), "grid": grid.to_dict()}
