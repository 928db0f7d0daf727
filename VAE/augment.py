"""Augmentation of training volumes: small affine maps, intensity curves, bias fields, all on the device.

Each volume's parameters come from one generator on the CPU, so that a draw depends on (seed, step) and not on the
device. Left-right flips are off by default: the side of a sclerosis is what the data are about.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from VAE.config import AugmentConfig

BIAS_POINTS = 3
"""Control points of the bias field along each axis; the field is as smooth as a coil's sensitivity."""


def augment(x: torch.Tensor, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Random variants of volumes.

    Args:
        x: (B, 1, D, H, W) in [0, 1], background 0.
        config: strengths; all zero returns `x` itself.
        generator: on the CPU; a given state gives the same variants.

    Returns:
        volumes like `x`, in [0, 1], background 0 outside the moved head.
    """
    if config.is_off:
        return x
    B = len(x)
    flips = torch.rand(B, generator=generator) < config.flip
    x = torch.where(flips.to(x.device).view(-1, 1, 1, 1, 1), x.flip(2), x)
    theta = affine(B, x.shape[2:], config, generator).to(x)
    if config.rotate_degrees or config.scale or config.shift_voxels:
        x = F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
    gamma = torch.exp(config.gamma * uniform((B, 1, 1, 1, 1), generator)).to(x)
    field = config.bias * uniform((B, 1, *(BIAS_POINTS,) * 3), generator)
    bias = F.interpolate(field.to(x), size=x.shape[2:], mode="trilinear", align_corners=True).exp()
    return (x.clamp(0.0, 1.0) ** gamma * bias).clamp(0.0, 1.0)


def affine(count: int, shape: torch.Size, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Random maps from output to input positions as `torch.nn.functional.affine_grid` takes them.

    Args:
        count: B, maps.
        shape: (D, H, W) of the volumes, equal spacing along the axes.
        config: strengths.
        generator: on the CPU.

    Returns:
        (B, 3, 4) float32, in coordinates of [-1, 1] ordered (W, H, D).
    """
    angles = math.radians(config.rotate_degrees) * uniform((count, 3), generator)
    matrix = torch.eye(3).repeat(count, 1, 1)
    for axis, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        turn = torch.eye(3).repeat(count, 1, 1)
        cosine, sine = angles[:, axis].cos(), angles[:, axis].sin()
        turn[:, i, i], turn[:, j, j], turn[:, i, j], turn[:, j, i] = cosine, cosine, -sine, sine
        matrix = matrix @ turn
    matrix = matrix * torch.exp(math.log1p(config.scale) * uniform((count, 1, 3), generator))
    sizes = torch.tensor(list(shape)[::-1], dtype=torch.float32)
    matrix = matrix * sizes[None, None, :] / sizes[None, :, None]  # a rotation in voxels, not in [-1, 1]
    shift = config.shift_voxels * uniform((count, 3, 1), generator) * 2.0 / sizes.view(1, 3, 1)
    return torch.cat([matrix, shift], dim=2)


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Uniform numbers in [-1, 1)."""
    return 2.0 * torch.rand(shape, generator=generator) - 1.0
