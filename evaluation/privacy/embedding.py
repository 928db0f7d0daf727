"""Spaces in which volumes of the same person are near: down-sampled voxels, and a small encoder trained for it.

Both are to be fitted to training and held-out scans alike (or to neither): an encoder that has learned to tell training
subjects apart would hold new volumes at another distance from them than from held-out subjects, and every comparison of
these distances would be of the encoder, not of the generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cohort.scans import head_mask
from runtime import seeding
from runtime.device import Device
from runtime.layers.group_norm import GroupNorm
from runtime.layers.windows import over_windows
from runtime.training import epoch_rows

COARSE_MM = 8.0
"""Voxels of the down-sampled space: coarse enough that noise and a misalignment of a few mm matter little."""
FINE_MM = 4.0
"""Voxels that the encoder sees; finer scans are averaged to about this."""
_BLOCK = 32
_PERSON_NODES, _VIEW_NODES = 5, 7  # nodes along each axis of the displacements that make persons and views
_BLUR_SIDE = 5  # voxels of the mean by which views are smoothed


def shrink(volumes: Sequence[np.ndarray], spacing_mm: float, wanted_mm: float) -> np.ndarray:
    """Averages volumes to about `wanted_mm`; finer than they are they do not get.

    N of (D, H, W), an array or a stack that is read as it is sliced, to float32 (N, d, h, w). Windows lie
    symmetrically, so that a mirrored volume becomes the mirror image.
    """
    shape = volumes[0].shape
    size = tuple(max(1, round(extent * min(1.0, spacing_mm / wanted_mm))) for extent in shape)
    parts = []
    for start in range(0, len(volumes), _BLOCK):
        block = torch.from_numpy(np.ascontiguousarray(volumes[start : start + _BLOCK], dtype=np.float32))
        parts.append(F.adaptive_avg_pool3d(block.unsqueeze(1), size)[:, 0].numpy())
    return np.concatenate(parts)


def mirrored(volumes: np.ndarray) -> np.ndarray:
    """Left and right exchanged, (N, D, H, W); the grids of `cohort.grids` are symmetric."""
    return volumes[:, ::-1]


@dataclass(frozen=True)
class VoxelSpace:
    """Down-sampled voxels of the head, z-scored: squared distance is 2 (1 - correlation)."""

    inside: np.ndarray
    """bool (d, h, w), symmetric: the head of the average scan."""
    spacing_mm: float
    """Of the volumes that will be given."""

    @classmethod
    def fit(cls, volumes: Sequence[np.ndarray], spacing_mm: float) -> VoxelSpace:
        """The head of the mean of N volumes (D, H, W) in [0, 1]; without one, the whole field of view."""
        mean = shrink(volumes, spacing_mm, COARSE_MM).mean(axis=0)
        inside = head_mask((mean + mean[::-1]) / 2)
        return cls(inside if inside.any() else np.ones_like(inside), spacing_mm)

    def __call__(self, volumes: Sequence[np.ndarray]) -> np.ndarray:
        """Volumes (N, D, H, W) to unit vectors (N, F), float32; a constant one becomes zeros."""
        values = shrink(volumes, self.spacing_mm, COARSE_MM)[:, self.inside].astype(np.float64)
        values -= values.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(values, axis=1, keepdims=True)
        return np.divide(values, norm, out=np.zeros_like(values), where=norm > 0).astype(np.float32)


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder and what it learns to overlook; lengths in voxels of about FINE_MM, sd: standard deviation."""

    features: int = 128  # length of the vectors
    channels: tuple[int, ...] = (16, 32, 64)  # of the convolutions, each of which halves the resolution
    steps: int = 80  # of its training
    batch_size: int = 24  # virtual subjects per step, two views of each
    lr: float = 2e-3  # at its peak; cosine decay to 0
    temperature: float = 0.1  # of the contrast: how much the nearest of the others count
    person: float = 1.0  # sd of the smooth displacement that makes a new person of a scan
    deformation: float = 0.25  # sd of the smooth displacement between two views of one person
    shift: float = 1.2  # the largest, of a view along each axis
    noise: float = 0.04  # largest sd of white noise, where intensities span 0 to 1
    gamma: float = 0.25  # largest change of the log of the intensity's exponent
    bias: float = 0.15  # largest value of the log of a bias field with 3 nodes along each axis
    blur: float = 1.0  # largest weight of a 5x5x5 mean, by which a view is smoothed


class Encoder(nn.Module):
    """Volumes (B, 1, d, h, w) to unit vectors (B, features): strided convolutions, then one linear map of all places.

    Places are not averaged: who somebody is lies in where things are.
    """

    def __init__(self, config: EncoderConfig, shape: tuple[int, int, int]) -> None:
        super().__init__()
        widths = (1, *config.channels)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv3d(before, after, 3, stride=2, padding=1), GroupNorm(4, after), nn.GELU()]
        self.convolutions = nn.Sequential(*layers)
        places = math.prod(-(-side // 2 ** len(config.channels)) for side in shape)
        self.out = nn.Linear(widths[-1] * places, config.features)
        self.register_buffer("mean", torch.zeros(1, 1, *shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The mean scan is taken away first, so that what people share does not have to be unlearned."""
        h = self.convolutions(standardised(x) - self.mean)  # (B, C, d/8, h/8, w/8)
        return F.normalize(self.out(h.flatten(1)), dim=1)  # (B, features)


def standardised(x: torch.Tensor) -> torch.Tensor:
    """Each volume (B, 1, d, h, w) to zero mean and unit variance over its voxels."""
    centred = x - x.mean(dim=(2, 3, 4), keepdim=True)
    return centred / centred.square().mean(dim=(2, 3, 4), keepdim=True).sqrt().clamp(min=1e-6)


def fit_encoder(
    volumes: Sequence[np.ndarray], spacing_mm: float, device: Device, *, seed: int, config: EncoderConfig | None = None
) -> Encoder:
    """Trains an encoder to know a person again after small deformation, shift, noise, blur and change of intensity.

    In every step each scan is first deformed strongly, perhaps mirrored, into a virtual person whom no other step
    sees, so that the encoder learns to compare people, not to list the subjects it was given.

    Args:
        volumes: N of (D, H, W) in [0, 1], training and held-out scans alike; 8 or more.
        spacing_mm: their voxels' edge.
        device: 32-bit precision; with as many threads and one seed the result is the same to the bit.

    Source: NT-Xent loss of Chen et al. 2020 (SimCLR, https://arxiv.org/abs/2002.05709), equation 1; a self-supervised
    embedding as detector of copies: Dar et al. 2025, https://doi.org/10.1038/s41551-025-01468-8.
    """
    config = config or EncoderConfig()
    stack = torch.from_numpy(shrink(volumes, spacing_mm, FINE_MM)).unsqueeze(1)  # (N, 1, d, h, w)
    if len(stack) < 8:
        raise ValueError(f"{len(stack)} volumes, an encoder is trained on 8 or more")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.address(seed, "encoder weights"))
        encoder = Encoder(config, tuple(stack.shape[2:]))
    encoder.mean.copy_(sum(standardised(part).sum(0, keepdim=True) for part in stack.split(_BLOCK)) / len(stack))
    encoder = device.module(encoder)
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=config.lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    size = min(config.batch_size, len(stack))
    for step in range(config.steps):
        draw = seeding.generator(seed, "encoder step", step)
        rows = epoch_rows(len(stack), torch.arange(step * size, (step + 1) * size), seed, "encoder epochs")
        first, second = (device.tensor(view) for view in two_views(stack[rows], config, draw))
        loss = nt_xent(encoder(first), encoder(second), config.temperature)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return encoder.eval().requires_grad_(False)


@torch.inference_mode()
def embed(encoder: Encoder, volumes: Sequence[np.ndarray], spacing_mm: float, device: Device) -> np.ndarray:
    """Volumes (N, D, H, W) in [0, 1] to float32 unit vectors (N, features)."""
    parts = []
    for start in range(0, len(volumes), _BLOCK):
        block = torch.from_numpy(shrink(volumes[start : start + _BLOCK], spacing_mm, FINE_MM)).unsqueeze(1)
        parts.append(encoder(device.tensor(block)).cpu())
    return torch.cat(parts).numpy()


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """Each of the 2B vectors of two views (B, F), of unit length, is to pick its partner out of all others."""
    B = len(first)
    both = torch.cat([first, second])
    similarity = both @ both.T / temperature
    similarity = similarity.masked_fill(torch.eye(2 * B, dtype=torch.bool, device=both.device), -math.inf)
    partners = (torch.arange(2 * B, device=both.device) + B) % (2 * B)
    return F.cross_entropy(similarity, partners)


def two_views(x: torch.Tensor, config: EncoderConfig, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views of as many virtual persons as there are volumes (B, 1, d, h, w) in [0, 1]."""
    B = len(x)
    mirror = torch.rand(B, generator=draw) < 0.5
    x = torch.where(mirror.view(-1, 1, 1, 1, 1), x.flip(2), x)
    person = config.person * torch.randn((B, 3, *(_PERSON_NODES,) * 3), generator=draw)
    person = grow(person, (_VIEW_NODES,) * 3)
    return tuple(_view(x, person, config, draw) for _ in range(2))  # type: ignore[return-value]


def grow(nodes: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Values (B, K, n, n, n) at nodes to all voxels of `shape`, linear between; the outer nodes are the corners.

    Axis by axis, as products with small matrices: `interpolate` takes several times as long on a CPU.
    """
    for axis, size in enumerate(shape, start=2):
        unit = torch.eye(nodes.shape[axis])[None]  # a node's share of every voxel of a line: (n, size)
        shares = F.interpolate(unit, size=size, mode="linear", align_corners=True)[0]
        nodes = torch.tensordot(nodes, shares, ([axis], [0])).movedim(-1, axis)
    return nodes


def _view(x: torch.Tensor, person: torch.Tensor, config: EncoderConfig, draw: torch.Generator) -> torch.Tensor:
    """One look at each virtual person."""
    B = len(x)

    def uniform(*shape: int) -> torch.Tensor:
        return 2.0 * torch.rand((B, *shape), generator=draw) - 1.0

    moved = person + config.deformation * torch.randn(person.shape, generator=draw) + config.shift * uniform(3, 1, 1, 1)
    x = warp(x, moved)
    smooth = over_windows(x, _BLUR_SIDE // 2, torch.add) / _BLUR_SIDE**3
    x = torch.lerp(x, smooth, config.blur * torch.rand((B, 1, 1, 1, 1), generator=draw))
    bias = grow(config.bias * uniform(1, 3, 3, 3), x.shape[2:]).exp()
    x = x.clamp(min=0.0) ** torch.exp(config.gamma * uniform(1, 1, 1, 1)) * bias
    noise = config.noise * uniform(1, 1, 1, 1).abs() * torch.randn(x.shape, generator=draw)
    return x + noise * (x > 0)


def warp(x: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """Reads volumes (B, 1, d, h, w) at other places, linear between voxels, 0 outside.

    `moved` (B, 3, n, n, n): by how many voxels along (d, h, w) the nodes are moved; linear between them.
    """
    shape = x.shape[2:]
    scale = torch.tensor([2.0 / max(side - 1, 1) for side in shape]).view(1, 3, 1, 1, 1)
    line = torch.linspace(-1.0, 1.0, moved.shape[2])
    still = torch.stack(torch.meshgrid(line, line, line, indexing="ij"))
    places = grow((still + moved * scale).flip(1), shape)  # linear between nodes, as the places of rest are
    return F.grid_sample(x, places.movedim(1, -1), align_corners=True)
