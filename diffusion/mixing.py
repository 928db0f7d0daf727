"""Training latents that are nobody: mixtures of two people of one class and side, whose shares vary smoothly in space.

A generator trained on a few hundred people can learn each of them by heart, and the covariance of so few has thousands
of chance correlations between distant places. Here no training latent is a person's: near any place it is a mixture of
two, and elsewhere of the same two in other shares. At every position it has the mean and the variance of its class;
between positions, covariances are those of people times a factor that falls with distance. That is the localisation
of covariances of ensemble forecasting (Houtekamer and Mitchell 2001,
https://doi.org/10.1175/1520-0493(2001)129<0123:ASEKFF>2.0.CO;2), here by the draws instead of by the matrix.

What it costs: true correlations between distant places fall too, for example of the volumes of both hemispheres.
"""

import torch
import torch.nn.functional as F

from diffusion.dataset import Latents

SPREAD = 3.0
"""Standard deviation of the angle at each node, radians. Its cosine and sine are the shares of the two people, so that
their squares sum to 1; beyond about pi, distant places have independent shares."""


class Mixer:
    """Draws mixtures of the latents of one split."""

    def __init__(self, latents: Latents, spacing_mm: tuple[float, float, float], distance_mm: float) -> None:
        """`spacing_mm`: of latent positions; `distance_mm`: between the nodes of the angle, which is linear between."""
        self.latents = latents
        sizes = zip(latents.shape[1:], spacing_mm, strict=True)
        self.nodes = tuple(max(2, 1 + round((size - 1) * spacing / distance_mm)) for size, spacing in sizes)
        _, group = torch.unique(torch.stack([latents.labels, latents.sides]), dim=1, return_inverse=True)
        self.group = group
        self.counts = torch.bincount(group)
        self.order = torch.argsort(group, stable=True)
        self.first = self.counts.cumsum(0) - self.counts
        self.place = torch.empty_like(group)
        self.place[self.order] = torch.arange(len(group)) - self.first[group[self.order]]
        self.means = torch.stack([latents.mu[group == each].mean(0) for each in range(len(self.counts))])

    def partners(self, rows: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
        """For each row (B,) another of its class and side, itself where there is none, by a draw (B,) in [0, 1)."""
        group = self.group[rows]
        others = self.counts[group] - 1
        step = 1 + (draw.cpu() * others).long().clamp(max=others - 1).clamp(min=0)
        return self.order[self.first[group] + (self.place[rows] + step) % self.counts[group]]

    def noise(self, count: int, draw: torch.Generator) -> tuple[torch.Tensor, ...]:
        """All that is random about `count` mixtures: partners (B,), noise of their posteriors, nodes of the angle."""
        shapes = (self.latents.shape, (1, *self.nodes))
        normal = [torch.randn((count, *shape), generator=draw, device=draw.device) for shape in shapes]
        return torch.rand(count, generator=draw, device=draw.device), *normal

    def mix(
        self, rows: torch.Tensor, z: torch.Tensor, chance: torch.Tensor, posterior: torch.Tensor, nodes: torch.Tensor
    ) -> torch.Tensor:
        """Raw latents z (B, C, D, H, W) of some rows (B,), mixed with their partners' by what `noise` gave."""
        partner = self.latents.batch(self.partners(rows, chance), posterior).z
        angle = SPREAD * F.interpolate(nodes, size=z.shape[2:], mode="trilinear", align_corners=True)
        alone = (self.counts[self.group[rows]] == 1).to(z.device).view(-1, 1, 1, 1, 1)
        angle = angle.masked_fill(alone, 0.0)  # with oneself, the squares would not sum to 1
        m = self.means[self.group[rows].to(z.device)]
        return m + angle.cos() * (z - m) + angle.sin() * (partner - m)


def spacing_of(grid: dict, shape: tuple[int, ...]) -> tuple[float, float, float]:
    """Millimetres between latent positions along each axis, of a grid as its files state it and latents of `shape`."""
    extents = zip(grid["shape"], shape[1:], strict=True)
    # Rounded up: the last position of an axis that does not divide stands for fewer voxels than the others.
    return tuple(grid["spacing_mm"] * -(-voxels // size) for voxels, size in extents)  # type: ignore[return-value]
