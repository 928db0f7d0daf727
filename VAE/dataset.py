"""Batches of scans: which rows a step takes, and their random variants (affine maps, intensity curves, bias fields)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from cohort.stacks import move
from runtime import distributed
from runtime.training import epoch_rows
from VAE.config import AugmentConfig

BIAS_POINTS = 3
"""Control points of the bias field along each axis; the field is as smooth as a coil's sensitivity."""


def batch_rows(count: int, batch_size: int, step: int, seed: int) -> torch.Tensor:
    """This process's share of the global batch of a step (from 1): epochs of fresh permutations, end to end."""
    places = torch.arange((step - 1) * batch_size, step * batch_size)
    return distributed.local(epoch_rows(count, places, seed, "epoch"))


def augment(x: torch.Tensor, config: AugmentConfig, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Random variants of volumes x (B, 1, D, H, W) in [0, 1], background 0; x itself where all strengths are zero.

    Each volume has a generator of its own, on the CPU: a variant depends neither on the device nor on what else is in
    the batch, and so not on how many processes share it.
    """
    if config == AugmentConfig():
        return x
    drawn = [_draw(config, generator) for _, generator in zip(x, generators, strict=True)]
    flips, linear, shift, gamma, field = (torch.stack(part) for part in zip(*drawn, strict=True))
    x = torch.where(flips.to(x.device, non_blocking=True).view(-1, 1, 1, 1, 1), x.flip(2), x)
    if config.rotate_degrees or config.scale or config.shift_voxels:
        x = move(x, linear, shift)
    gamma = gamma.to(x, non_blocking=True).view(-1, 1, 1, 1, 1)
    bias = F.interpolate(field.to(x, non_blocking=True), size=x.shape[2:], mode="trilinear", align_corners=True).exp()
    return (x.clamp(0.0, 1.0) ** gamma * bias).clamp(0.0, 1.0)


def cut(x: torch.Tensor, size: int, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """A cube of `size` voxels per side, or the whole of shorter axes, out of each volume (B, 1, D, H, W), at a place
    drawn evenly by its own generator.
    """
    sizes = [min(size, extent) for extent in x.shape[2:]]
    parts = []
    for volume, generator in zip(x, generators, strict=True):
        for axis, (extent, kept) in enumerate(zip(x.shape[2:], sizes, strict=True), start=1):
            start = int(torch.randint(extent - kept + 1, (), generator=generator))
            volume = volume.narrow(axis, start, kept)
        parts.append(volume)
    return torch.stack(parts)


def _draw(config: AugmentConfig, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """One volume's flip (), linear map (3, 3), shift (3,), exponent (), and log bias field at its control points."""
    flip = torch.rand((), generator=generator) < config.flip
    linear = rotations(1, config.rotate_degrees, generator)[0]
    linear = linear * torch.exp(math.log1p(config.scale) * uniform((1, 3), generator))
    shift = config.shift_voxels * uniform((3,), generator)
    gamma = torch.exp(config.gamma * uniform((), generator))
    return flip, linear, shift, gamma, config.bias * uniform((1, *(BIAS_POINTS,) * 3), generator)


def rotations(count: int, degrees: float, generator: torch.Generator) -> torch.Tensor:
    """Products (count, 3, 3) of rotations about the three axes, each by at most so many degrees."""
    angles = math.radians(degrees) * uniform((count, 3), generator)
    matrix = torch.eye(3).repeat(count, 1, 1)
    for axis, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        turn = torch.eye(3).repeat(count, 1, 1)
        cosine, sine = angles[:, axis].cos(), angles[:, axis].sin()
        turn[:, i, i], turn[:, j, j], turn[:, i, j], turn[:, j, i] = cosine, cosine, -sine, sine
        matrix = matrix @ turn
    return matrix


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Uniform numbers in [-1, 1)."""
    return 2.0 * torch.rand(shape, generator=generator) - 1.0
