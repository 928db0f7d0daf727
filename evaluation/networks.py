"""Feature networks of other libraries, each an option: loaded from a file of weights that the user brings.

Without weights, or without the package that knows the network, it is reported as skipped with the reason, never as a
number. RadImageNet's rankings of generators were the inconsistent ones in Woodland et al. 2024 (arXiv 2311.13717).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from cohort.grids import Grid
from evaluation.features import FeatureNetwork, RegionIntensities, SliceNetwork, SliceProtocol, efficientnet
from runtime.backbones import IMAGENET_MEAN, medicalnet, resnet, resnet_features
from runtime.checkpoints import load_tensors
from runtime.device import Device
from runtime.errors import InputError
from runtime.files import sha256

OPTIONAL = {
    "inception_v3": "pt_inception-2015-12-05",
    "radimagenet_resnet50": "RadImageNet's ResNet50.pt",
    "medicalnet_resnet10": "MedicalNet's resnet_10_23dataset",
    "medicalnet_resnet50": "MedicalNet's resnet_50_23dataset",
}
"""Networks that need weights, and what their files are called."""
SHORTEST_CHECKSUM = 8
"""Digits of a SHA-256 that are enough to state it: as many as PyTorch puts into the names of its weight files."""


class Weights(NamedTuple):
    """Weights that the user brought, and their SHA-256 in full, which begins as stated."""

    path: Path
    sha256: str


def read_weights(given: tuple[str, ...]) -> dict[str, Weights]:
    """The files of ``NAME=FILE=SHA256``, by name of the network; InputError where any of it is not right."""
    found = {}
    for text in given:
        if text.count("=") != 2:
            raise InputError(f"--weights {text}: expected NAME=FILE=SHA256")
        name, file, stated = text.split("=")
        if name not in OPTIONAL:
            raise InputError(f"weights for {name}: they can be given for {', '.join(OPTIONAL)}")
        if not Path(file).is_file():
            raise InputError(f"{file}: no such file of weights")
        if len(stated) < SHORTEST_CHECKSUM:
            raise InputError(f"{file}: state its SHA-256, {SHORTEST_CHECKSUM} digits or more; got {stated!r}")
        digest = sha256(Path(file))
        if not digest.startswith(stated.lower()):
            raise InputError(f"{file}: SHA-256 {digest}, stated {stated}")
        found[name] = Weights(Path(file), digest)
    return found


class Inception(nn.Module):
    """torch-fidelity's Inception-v3 of the original FID: slices (B, 1, H, W) in [0, 1] to features (B, 2048).

    Raises:
        ImportError: torch-fidelity or torchvision, which it needs, is not installed or does not fit.
        InputError: the file cannot be read as tensors.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
            raise ImportError(f"torch-fidelity with torchvision: {error}") from error
        load_tensors(path)  # refuses anything but tensors; the library itself reads the file without restrictions
        self.network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        """As published: 256 levels, resized to 299 x 299 within."""
        return self.network((255 * slices.expand(-1, 3, -1, -1)).round().clamp(0, 255).to(torch.uint8))[0]


class RadImageNet(nn.Module):
    """MONAI's ResNet-50 with RadImageNet's weights: slices (B, 1, H, W) in [0, 1] to features (B, 2048)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.network = resnet("resnet50", 2, 3, path)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN[::-1]).view(1, 3, 1, 1))  # BGR, as in its training

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        """The last feature map, averaged."""
        return resnet_features(self.network, slices - self.mean).float().mean(dim=(2, 3))


class MedicalNet:
    """A 3D ResNet of MedicalNet on whole volumes, z-scored over their voxels as published; the last map, averaged."""

    views = ("volume",)

    def __init__(self, name: str, weights: Weights) -> None:
        self.name, self.checksum, self.settings = name, weights.sha256, {"scaling": "z-score over all voxels"}
        self._network = medicalnet(name.removeprefix("medicalnet_"), weights.path)

    def features(self, volumes: np.ndarray, device: Device) -> np.ndarray:
        """(N, 1, 512) for resnet10, (N, 1, 2048) for resnet50."""
        network, parts = device.module(self._network), []
        for volume in volumes:  # one at a time: a feature map of one volume already fills the memory that a batch may
            x = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))
            x = (x - x.mean()) / x.std().clamp_min(1e-6)
            with device.autocast():
                maps = resnet_features(network, device.tensor(x[None, None]))
            parts.append(maps.float().mean(dim=(2, 3, 4)).cpu())
        return torch.stack(parts).numpy()


def open_networks(
    grid: Grid, weights: Mapping[str, Weights], *, per_axis: int = 4
) -> tuple[dict[str, FeatureNetwork], dict[str, str]]:
    """Every network that can be had here, the default first, and for each other a sentence: ``skipped``, and why."""
    protocol = SliceProtocol.for_grid(grid.shape, per_axis)
    own: tuple[FeatureNetwork, ...] = (efficientnet(protocol), RegionIntensities(grid))
    networks, skipped = {network.name: network for network in own}, {}
    for name, source in OPTIONAL.items():
        if name not in weights:
            skipped[name] = f"skipped: no weights were given (a file and its SHA-256: {source})"
            continue
        try:
            networks[name] = _open(name, weights[name], protocol)
        except ImportError as error:
            skipped[name] = f"skipped: a package is missing: {error}"
    return networks, skipped


def _open(name: str, weights: Weights, protocol: SliceProtocol) -> FeatureNetwork:
    if name.startswith("medicalnet"):
        return MedicalNet(name, weights)
    network = {"inception_v3": Inception, "radimagenet_resnet50": RadImageNet}[name](weights.path)
    return SliceNetwork(name, weights.sha256, network, protocol)
