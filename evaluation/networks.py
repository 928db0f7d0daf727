"""Several pairs of eyes for volumes: networks, and region intensities, that turn volumes into vectors by views.

Distances in different features rank generators differently, so a finding should hold in more than one (Woodland et al.
2024, arXiv 2311.13717). Two views need no download; the others take a file of weights that the user brings, with its
checksum, and without one are reported as skipped. RadImageNet's rankings were the inconsistent ones in that study: its
distance is for comparison with MAISI, not for choosing a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from cohort.atlas import atlas
from cohort.scans import Grid
from evaluation.features import (
    AXES,
    CACHE,
    WEIGHTS_SHA256,
    FeatureNetwork,
    SliceProtocol,
    content_key,
    extract,
    pool,
)
from evaluation.inception import load_inception
from runtime.backbones import IMAGENET_MEAN, IMAGENET_STD, medicalnet, resnet, resnet_features
from runtime.device import Device
from runtime.errors import InputError
from runtime.files import atomic_write, sha256

INCEPTION_SIDE = 299
"""Pixels to which slices are resized for Inception-v3, the size of its training images."""
CENTRE_SHARE = 0.4
"""Share of an axis, around its middle, whose slices RadImageNet sees: the value in MAISI's published command."""
MIN_VOXELS = 8
"""Regions with fewer voxels on the grid are left out of the region intensities."""
SHORTEST_CHECKSUM = 8
"""Digits of a SHA-256 that are enough to state it: as many as PyTorch puts into the names of its weight files."""

PUBLISHED_POSITION_FID = {
    "citation": (
        "NeuroLDM-3D, per-slice-position FID with torchvision's Inception-v3, up to 477 volumes a side of its own data "
        "(112 x 136 x 112): cited, not measured here, and without a floor real against real"
    ),
    "sagittal": 18.20,
    "coronal": 17.36,
    "axial": 16.93,
    "mean": 17.49,
}
"""What another project reports for the protocol of `InceptionPositions` on other data. To be shown as a citation."""

_BLOCK_VOXELS = 20_000_000
_BATCH_SLICES = 48


class VolumeNetwork(Protocol):
    """Anything that turns volumes into vectors."""

    name: str
    checksum: str
    """SHA-256 of the weights (or of what else defines the features)."""
    views: tuple[str, ...]
    """What each view looks at: an axis, ``volume``, or ``regions``; several views may share a name."""
    settings: dict[str, Any]
    """All other choices the features depend on, as JSON values."""

    def features(self, volumes: np.ndarray, device: Device) -> np.ndarray:
        """Volumes (N, D, H, W) in [0, 1] to float32 (N, views, F)."""


@dataclass(frozen=True)
class WeightsFile:
    """Weights that the user brought."""

    path: Path
    sha256: str
    """As stated by the user: the SHA-256 in hexadecimal, or at least its first 8 digits."""

    def checked(self) -> str:
        """The full SHA-256 of the file.

        Raises:
            InputError: no such file, or its checksum is not the stated one.
        """
        stated = self.sha256.lower()
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such file of weights")
        if len(stated) < SHORTEST_CHECKSUM:
            raise InputError(f"{self.path}: state its SHA-256, {SHORTEST_CHECKSUM} digits or more; got {stated!r}")
        digest = sha256(self.path)
        if not digest.startswith(stated):
            raise InputError(f"{self.path}: SHA-256 {digest}, stated {stated}")
        return digest


class EfficientNetAxes:
    """EfficientNet-Lite0 with its packaged ImageNet weights, slices of the three axes, averaged over each axis."""

    name = "efficientnet_lite0"
    views = AXES

    def __init__(self, grid: Grid, per_axis: int) -> None:
        self._network, self._protocol = FeatureNetwork(), SliceProtocol.for_grid(grid.shape, per_axis)
        self.checksum, self.settings = WEIGHTS_SHA256, asdict(self._protocol)

    def features(self, volumes: np.ndarray, device: Device) -> np.ndarray:
        """(N, 3, 1280)."""
        slices = extract(volumes, self._network, self._protocol, device)
        return np.moveaxis(pool(slices), 0, 1).astype(np.float32)


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
        self._place = place[labels.labels.ravel()]
        self._voxels = counts[codes]
        self.regions = tuple(labels.names[code] for code in codes)
        self.checksum = content_key([self._place], ("regions", self.regions))
        self.settings = {"regions": len(codes), "min_voxels": MIN_VOXELS}

    def features(self, volumes: np.ndarray, device: Device) -> np.ndarray:
        """(N, 1, 2 x regions): the means, then the standard deviations. `device` is not used."""
        out = np.empty((len(volumes), 1, 2 * len(self.regions)), dtype=np.float32)
        for row, volume in zip(out[:, 0], volumes, strict=True):
            values = np.asarray(volume, dtype=np.float64).ravel()
            mean = self._sums(values) / self._voxels
            centred = values - np.concatenate([[0.0], mean])[self._place]
            row[:] = np.concatenate([mean, np.sqrt(self._sums(centred**2) / self._voxels)])
        return out

    def _sums(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self._place, weights=values, minlength=len(self.regions) + 1)[1:]


class InceptionPositions:
    """Inception-v3, each slice position of each axis a view of its own, as in NeuroLDM-3D's per-slice FID.

    Slices are resized to 299 x 299 whatever their proportions and scaled as there: with ImageNet's mean and standard
    deviation for torchvision's weights, to [-1, 1] for those of the original FID. Not followed is the rounding to 256
    grey levels. A view has one vector per subject, so that the distance is one between subjects.
    """

    name = "inception_v3"

    def __init__(self, weights: WeightsFile, grid: Grid, every: int) -> None:
        self.checksum = weights.checked()
        self._network, self._tensorflow = load_inception(weights.path)
        self._positions = [list(range(every // 2, extent, every)) for extent in grid.shape]
        self.views = tuple(axis for axis, chosen in zip(AXES, self._positions, strict=True) for _ in chosen)
        scaling = "[-1, 1]" if self._tensorflow else "ImageNet mean and standard deviation"
        self.settings = {"positions": self._positions, "side": INCEPTION_SIDE, "scaling": scaling}

    def features(self, volumes: np.ndarray, device: Device) -> np.ndarray:
        """(N, positions of the three axes, 2048)."""
        network = device.module(self._network)

        def forward(slices: torch.Tensor) -> torch.Tensor:
            resized = F.interpolate(slices, (INCEPTION_SIDE, INCEPTION_SIDE), mode="bilinear", antialias=True)
            colour = self._scaled(resized.expand(-1, 3, -1, -1))
            with device.autocast():
                return network(colour.contiguous(memory_format=torch.channels_last))

        stacks = [planes(volumes, axis, chosen) for axis, chosen in enumerate(self._positions)]
        return np.concatenate([in_batches(forward, stack, device) for stack in stacks], axis=1)

    def _scaled(self, colour: torch.Tensor) -> torch.Tensor:
        if self._tensorflow:
            return 2.0 * colour - 1.0
        mean, std = (colour.new_tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return (colour - mean) / std


class RadImageNetAxes:
    """ResNet-50 trained on RadImageNet, slices around the middle of each axis, averaged over each axis.

    Preprocessing as in MAISI's 2.5D FID: slices at their own size, scaled to [0, 1] over all slices of a volume and
    axis, less ImageNet's mean in the order BGR. There every slice counts as a sample; here a subject does.
    """

    name = "radimagenet_resnet50"
    views = AXES

    def __init__(self, weights: WeightsFile, grid: Grid, every: int) -> None:
        self.checksum = weights.checked()
        self._network = resnet("resnet50", 2, 3, weights.path).to(memory_format=torch.channels_last)
        share = ((1 - CENTRE_SHARE) / 2, (1 + CENTRE_SHARE) / 2)
        self._positions = [list(range(*(int(part * extent) for part in share), every)) for extent in grid.shape]
        self.settings = {"positions": self._positions, "scaling": "[0, 1] per volume and axis, less the BGR mean"}

    def features(self, volumes: np.ndarray, device: Device) -> np.ndarray:
        """(N, 3, 2048)."""
        network = device.module(self._network)
        mean = torch.tensor(IMAGENET_MEAN[::-1], device=device.kind).view(1, 3, 1, 1)

        def forward(slices: torch.Tensor) -> torch.Tensor:
            with device.autocast():
                maps = resnet_features(network, (slices - mean).contiguous(memory_format=torch.channels_last))
            return maps.float().mean(dim=(2, 3))

        pooled = []
        for axis, chosen in enumerate(self._positions):
            stack = planes(volumes, axis, chosen)
            low, high = (bound(stack, dim=(1, 2, 3), keepdim=True) for bound in (torch.amin, torch.amax))
            pooled.append(in_batches(forward, (stack - low) / (high - low).clamp_min(1e-6), device).mean(axis=1))
        return np.stack(pooled, axis=1)


class MedicalNetVolumes:
    """A 3D ResNet of MedicalNet on whole volumes, z-scored over their voxels as published; the last map, averaged."""

    views = ("volume",)

    def __init__(self, depth: str, weights: WeightsFile) -> None:
        self.name, self.checksum = f"medicalnet_{depth}", weights.checked()
        self._network = medicalnet(depth, weights.path)
        self.settings = {"scaling": "z-score over all voxels"}

    def features(self, volumes: np.ndarray, device: Device) -> np.ndarray:
        """(N, 1, 512) for resnet10, (N, 1, 2048) for resnet50."""
        network, parts = device.module(self._network), []
        for volume in volumes:  # one at a time: a feature map of one volume already fills the memory that a batch may
            x = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))
            x = (x - x.mean()) / x.std().clamp_min(1e-6)
            with device.autocast():
                maps = resnet_features(network, device.tensor(x[None, None]))
            parts.append(maps.float().mean(dim=(2, 3, 4)).cpu())
        return torch.cat(parts).unsqueeze(1).numpy()


def planes(volumes: np.ndarray, axis: int, positions: Sequence[int]) -> torch.Tensor:
    """The slices across an axis at some positions: (N, D, H, W) to float32 (N, positions, rows, columns)."""
    chosen = np.asarray(volumes, dtype=np.float32).take(positions, axis=axis + 1)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(chosen, axis + 1, 1)))


def in_batches(forward: Callable[[torch.Tensor], torch.Tensor], stack: torch.Tensor, device: Device) -> np.ndarray:
    """Applies a function of slices (B, 1, rows, columns) to (N, S, rows, columns), giving float32 (N, S, F)."""
    batches = stack.flatten(0, 1).unsqueeze(1).split(_BATCH_SLICES)
    return torch.cat([forward(device.tensor(batch)).cpu() for batch in batches]).unflatten(0, stack.shape[:2]).numpy()


_NEED_WEIGHTS: dict[str, tuple[Callable[[WeightsFile, Grid, int], VolumeNetwork], str]] = {
    "inception_v3": (InceptionPositions, "torchvision's inception_v3_google or pytorch-fid's pt_inception-2015-12-05"),
    "radimagenet_resnet50": (RadImageNetAxes, "RadImageNet's ResNet50.pt or its conversion from Keras"),
    "medicalnet_resnet10": (lambda file, *_: MedicalNetVolumes("resnet10", file), "MedicalNet's resnet_10_23dataset"),
    "medicalnet_resnet50": (lambda file, *_: MedicalNetVolumes("resnet50", file), "MedicalNet's resnet_50_23dataset"),
}
NETWORKS = (EfficientNetAxes.name, RegionIntensities.name, *_NEED_WEIGHTS)
"""Names of all rows, the default first."""


def open_networks(
    grid: Grid, weights: Mapping[str, WeightsFile], *, per_axis: int = 4, every: int = 4
) -> tuple[dict[str, VolumeNetwork], dict[str, str]]:
    """Every network that can be had here, and why the others cannot.

    Args:
        grid: of the volumes.
        weights: files by name of the network.
        per_axis: slices per axis for EfficientNet.
        every: RadImageNet and Inception see every so many-th slice position; 1 is all of them, as published.

    Returns:
        networks by name, and for each of the others a sentence that begins with ``skipped``.

    Raises:
        InputError: weights for an unknown network, a missing file, a checksum that is not the stated one, or weights
            that do not fit.
    """
    strangers = sorted(weights.keys() - _NEED_WEIGHTS.keys())
    if strangers:
        raise InputError(f"weights for {', '.join(strangers)}: they can be given for {', '.join(_NEED_WEIGHTS)}")
    if min(per_axis, every) < 1:
        raise InputError(f"per_axis {per_axis}, every {every}: expected at least 1")
    networks: dict[str, VolumeNetwork] = {
        EfficientNetAxes.name: EfficientNetAxes(grid, per_axis),
        RegionIntensities.name: RegionIntensities(grid),
    }
    skipped = {}
    for name, (build, source) in _NEED_WEIGHTS.items():
        if name in weights:
            networks[name] = build(weights[name], grid, every)
        else:
            skipped[name] = f"skipped: no weights were given (a file and its SHA-256: {source})"
    return networks, skipped


def describe(network: VolumeNetwork) -> dict[str, Any]:
    """What a result says about its features: name, checksum, views and settings as JSON values."""
    views = {view: network.views.count(view) for view in network.views}
    return {"name": network.name, "checksum": network.checksum, "views": views, "settings": network.settings}


@torch.inference_mode()
def features_of(
    volumes: Sequence[np.ndarray], network: VolumeNetwork, device: Device, cache_dir: Path = CACHE
) -> np.ndarray:
    """Features of any number of volumes, in blocks, kept on disk under a hash of volumes, network and precision.

    Args:
        volumes: N of (D, H, W) in [0, 1]; an array, or a stack that is read as it is sliced: then no more than a block
            of them is in memory at once.

    Returns:
        float32 (N, views, F), mapped from its file and read as it is used.
    """
    settings = (network.name, network.checksum, sorted(network.settings.items()), str(device.precision))
    path = cache_dir / f"{network.name}-{content_key(volumes, settings)}.npy"
    if not path.is_file():
        _write_features(path, volumes, network, device)
    return np.load(path, mmap_mode="r", allow_pickle=False)  # whole: it was renamed into place


def _write_features(path: Path, volumes: Sequence[np.ndarray], network: VolumeNetwork, device: Device) -> None:
    block = max(1, _BLOCK_VOXELS // volumes[0].size)
    with atomic_write(path) as temporary:
        out = None
        for start in range(0, len(volumes), block):
            part = network.features(np.asarray(volumes[start : start + block]), device)
            if out is None:
                shape = (len(volumes), *part.shape[1:])
                out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
            out[start : start + block] = part
        out.flush()
