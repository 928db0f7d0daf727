"""The network that labels regions: from a scan to the share of each voxel in each region; and its checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cohort.atlas import REGIONS
from cohort.grids import Grid
from runtime import checkpoints
from runtime.errors import InputError

KIND = "labels"


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of the network; travels in the checkpoint."""

    channels: tuple[int, ...] = (16, 32, 64)
    """Width of each resolution level, finest first; each level but the last ends in a halving."""


class LabelNetwork(nn.Module):
    """A U-Net (MONAI's DynUNet: instance norm, leaky ReLU) over volumes of any size, padded to its stride.

    It also sees the place of each voxel in the box: scans are registered, and of a border without contrast its place is
    what is known.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        from monai.networks.nets import DynUNet  # slow to import

        levels = len(config.channels)
        if levels < 3:
            raise InputError(f"--model.channels {config.channels}: expected 3 levels or more")
        self.config, self.stride = config, 2 ** (levels - 1)
        self.unet = DynUNet(
            3, 1 + 3, 1 + len(REGIONS), kernel_size=[3] * levels, strides=[1] + [2] * (levels - 1),
            upsample_kernel_size=[2] * (levels - 1), filters=list(config.channels),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1 + regions, D, H, W), background first, of volumes x (B, 1, D, H, W) in [0, 1]."""
        size = x.shape[2:]
        missing = [-extent % self.stride for extent in size]
        lines = [torch.linspace(-1, 1, extent, device=x.device, dtype=x.dtype) for extent in size]
        places = torch.stack(torch.meshgrid(*lines, indexing="ij")).expand(len(x), 3, *size)
        x = F.pad(torch.cat([x, places], dim=1), [n for extent in reversed(missing) for n in (0, extent)])
        return self.unet(x)[..., : size[0], : size[1], : size[2]]


@dataclass(frozen=True)
class LoadedLabels:
    """A network in evaluation mode, with what else its file says."""

    model: LabelNetwork
    grid: Grid
    hash: str
    limits: dict[str, float]
    """Largest value of each of `reading.QUALITY` among held-out anatomies: a scan far beyond has failed."""
    step: int


def save_labels(path: Path, model: LabelNetwork, *, grid: Grid, **state: Any) -> None:
    """Writes a checkpoint; `state` holds ``ema``, ``step``, ``limits`` and whatever else the run wants back."""
    own = {**_origin(model, grid), "regions": list(REGIONS), "weights": model.state_dict()}
    checkpoints.save_checkpoint(path, KIND, {**own, **state})


def load_labels(path: Path | str) -> LoadedLabels:
    """Rebuilds the network from nothing but its file, strictly, with the averaged (EMA) weights."""
    record = checkpoints.load_checkpoint(path, KIND)
    if record["regions"] != list(REGIONS):
        raise InputError(f"{path}: labels other regions than this version's; train it anew")
    model = LabelNetwork(checkpoints.config_from(ModelConfig, record["model_config"], path))
    checkpoints.load_weights(model, record["ema"], path)
    model.eval().requires_grad_(False)
    grid, name = Grid.from_dict(record["grid"]), checkpoints.checkpoint_hash(path)
    return LoadedLabels(model, grid, name, record["limits"], record["step"])


def resume_labels(path: Path, model: LabelNetwork, grid: Grid) -> dict[str, Any]:
    """Loads the raw weights into `model` for further training; the contents. Refuses another grid or architecture."""
    return checkpoints.resume(path, checkpoints.load_checkpoint(path, KIND), model, _origin(model, grid))


def _origin(model: LabelNetwork, grid: Grid) -> dict[str, Any]:
    return {"model_config": checkpoints.plain_fields(model.config), "grid": grid.to_dict()}
