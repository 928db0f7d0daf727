"""Where a small run starts from: the exact denoiser of one Gaussian per class and side, fitted to training latents.

A new DiT predicts nothing, and a few hundred steps are too few to learn even how a brain varies linearly. Probabilistic
PCA knows that in closed form, so the network starts from it and learns what a Gaussian misses.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from diffusion.config import NO_SIDE
from diffusion.process import Process


class LinearStart(nn.Module):
    """The best prediction from a noised latent, for z ~ N(m_y, U diag(variance - rest) U^T + rest I) in class y.

    Source of the model: Tipping and Bishop 1999 (https://doi.org/10.1111/1467-9868.00196), equations 2 and 8. With
    z_t = alpha z + sigma eps, and s the variance along an axis, the centred z_t - alpha m_y says about the centred z
    E[z] = alpha s / (alpha^2 s + sigma^2) of it and about the noise E[eps] = sigma / (alpha^2 s + sigma^2) of it. The
    target is linear in z and eps, so the same combination of these gains is its best prediction.

    There are `rank` principal axes U. The null class, `classes` itself, has the mean of all latents. With `sides`,
    a class's latents of a known side have a mean of their own, m_L or m_R; the mean of the class, which those of
    unknown side get, is that of the mixture.
    """

    def __init__(
        self, rank: int, latent_shape: tuple[int, int, int, int], classes: int, process: Process, *, sides: bool = False
    ) -> None:
        super().__init__()
        size = math.prod(latent_shape)
        self.process, self.classes, self.sides = process, classes, sides
        self.register_buffer("axes", torch.zeros(rank, size))
        self.register_buffer("variances", torch.zeros(rank + 1))  # the last is the rest
        self.register_buffer("means", torch.zeros(classes + 1 + (NO_SIDE if sides else 0), size))  # classes, null, L, R

    def rows(self, y: torch.Tensor, side: torch.Tensor | None) -> torch.Tensor:
        """Which of the means belong to classes y (B,) and sides (B,) as `DiT.forward` takes them: (B,)."""
        if side is None or not self.sides:
            return y
        return torch.where(side == NO_SIDE, y, self.classes + 1 + side)

    @torch.no_grad()
    def fit(self, z: torch.Tensor, y: torch.Tensor, side: torch.Tensor | None = None) -> None:
        """Fits to training latents z (N, C, D, H, W) in the network's space, N > rank, classes and sides (N,), int64.

        With `sides`, the training latents must hold both.
        """
        rank, size = self.axes.shape
        flat, rows = z.flatten(1).double(), self.rows(y, side)
        self.means.copy_(class_means(flat, y, len(self.means)))
        if self.sides:
            self.means[self.classes + 1 :] = class_means(flat, rows, len(self.means))[self.classes + 1 :]
        _, singular, axes = torch.linalg.svd(flat - self.means.double()[rows], full_matrices=False)
        variances = singular.square() / len(flat)
        rest = variances[rank:].sum() / (size - rank)
        self.axes.copy_(axes[:rank])
        self.variances.copy_(torch.cat([variances[:rank], rest[None]]))

    def forward(
        self, z_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor, side: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Prediction in the shape of z_t (B, C, D, H, W), for times t, classes y and sides, (B,) each."""
        with torch.autocast(z_t.device.type, enabled=False):  # bfloat16 would round what is known exactly
            alpha, sigma = self.process.coefficients(t)  # each (B, 1, 1, 1, 1)
            variances = self.variances.view(1, -1, 1, 1, 1)
            spread = alpha**2 * variances + sigma**2
            gains = self.process.wanted(alpha * variances / spread, sigma / spread, t).flatten(1)  # (B, rank + 1)
            m = self.means[self.rows(y, side)].view_as(z_t)
            centred = (z_t - alpha * m).flatten(1)
            scores = (centred @ self.axes.T) * (gains[:, :-1] - gains[:, -1:])  # (B, rank)
            prediction = gains[:, -1:] * centred + scores @ self.axes
            return prediction.view_as(z_t) + self.process.wanted(m, torch.zeros_like(m), t)


def class_means(z: torch.Tensor, y: torch.Tensor, rows: int) -> torch.Tensor:
    """Mean of each class, and of all latents for rows without members, the null class among them: (rows, size).

    The means as they are, not shrunk towards each other: an effect spread over a region is far below the noise at each
    of its positions, so that any threshold by position removes it, while its mean over the region stays unbiased. The
    noise this costs is 1 / (members of a class) of the variance. z is (N, size) float64, y (N,) int64 in [0, rows).
    """
    members = F.one_hot(y, rows).to(z)  # (N, rows)
    counts = members.sum(0)[:, None]
    return torch.where(counts > 0, members.T @ z / counts.clamp(min=1), z.mean(0))
