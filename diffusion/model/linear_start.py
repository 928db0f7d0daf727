"""Where a small run starts from: the exact denoiser of one Gaussian per class, fitted to the training latents.

A new DiT predicts nothing, and a few hundred steps are too few to learn even how a brain varies linearly. Probabilistic
PCA knows that in closed form, so the network starts from it and learns what a Gaussian misses.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from diffusion.process import Process

FALSE_SHARE = 0.05
"""Expected share of false positions among those where classes are taken to differ."""


class LinearStart(nn.Module):
    """The best prediction from a noised latent, for z ~ N(m_y, U diag(variance - rest) U^T + rest I) in class y.

    Source of the model: Tipping and Bishop 1999 (https://doi.org/10.1111/1467-9868.00196), equations 2 and 8. With
    z_t = alpha z + sigma eps, and s the variance along an axis, the centred z_t - alpha m_y says about the centred z
    E[z] = alpha s / (alpha^2 s + sigma^2) of it and about the noise E[eps] = sigma / (alpha^2 s + sigma^2) of it. The
    target is linear in z and eps, so the same combination of these gains is its best prediction.

    Args:
        rank: principal axes U.
        latent_shape: (C, D, H, W).
        classes: the null class, `classes` itself, has the mean of all latents.
        process: noising process and target.
    """

    def __init__(self, rank: int, latent_shape: tuple[int, int, int, int], classes: int, process: Process) -> None:
        super().__init__()
        size = math.prod(latent_shape)
        self.process = process
        self.register_buffer("axes", torch.zeros(rank, size))
        self.register_buffer("variances", torch.zeros(rank + 1))  # the last is the rest
        self.register_buffer("means", torch.zeros(classes + 1, size))

    @torch.no_grad()
    def fit(self, z: torch.Tensor, y: torch.Tensor) -> None:
        """Fits means, axes and variances to training latents in the network's space.

        Args:
            z: (N, C, D, H, W), N > rank.
            y: classes (N,), int64.
        """
        rank, size = self.axes.shape
        flat = z.flatten(1).double()
        overall = flat.mean(0)
        self.means.copy_(overall + class_deviations(flat, y, len(self.means)))
        _, singular, axes = torch.linalg.svd(flat - self.means.double()[y], full_matrices=False)
        variances = singular.square() / len(flat)
        rest = variances[rank:].sum() / (size - rank)
        self.axes.copy_(axes[:rank])
        self.variances.copy_(torch.cat([variances[:rank], rest[None]]))

    def forward(self, z_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Prediction in the shape of z_t (B, C, D, H, W), for times t (B,) and classes y (B,)."""
        with torch.autocast(z_t.device.type, enabled=False):  # bfloat16 would round what is known exactly
            alpha, sigma = self.process.coefficients(t)  # each (B, 1, 1, 1, 1)
            variances = self.variances.view(1, -1, 1, 1, 1)
            spread = alpha**2 * variances + sigma**2
            gains = self.process.wanted(alpha * variances / spread, sigma / spread, t).flatten(1)  # (B, rank + 1)
            m = self.means[y].view_as(z_t)
            centred = (z_t - alpha * m).flatten(1)
            along = (centred @ self.axes.T) * (gains[:, :-1] - gains[:, -1:])  # (B, rank)
            prediction = gains[:, -1:] * centred + along @ self.axes
            return prediction.view_as(z_t) + self.process.wanted(m, torch.zeros_like(m), t)


def class_deviations(z: torch.Tensor, y: torch.Tensor, rows: int) -> torch.Tensor:
    """How far the mean of each class is from that of all, at the positions where classes differ beyond chance.

    With tens of subjects most of a difference of means is noise. A position's deviations are kept when its F test of
    equal means is significant among all positions by the rule of Benjamini and Hochberg 1995
    (https://doi.org/10.1111/j.2517-6161.1995.tb02031.x), and are 0 elsewhere: a threshold that adapts to how many
    positions differ (Abramovich et al. 2006, https://doi.org/10.1214/009053606000000074, section 1). Of a difference of
    one standard deviation at a tenth of the positions, two balanced classes of 40, 60 and 120 cases together keep on
    average 0.58, 0.88 and all.

    Args:
        z: (N, size), float64.
        y: classes (N,), int64 in [0, rows).
        rows: of the result; a class without members deviates by 0.

    Returns:
        (rows, size), float64.
    """
    members = F.one_hot(y, rows).to(z)  # (N, rows)
    counts = members.sum(0)
    groups = int((counts > 0).sum())
    if groups < 2 or len(z) <= groups:
        return z.new_zeros(rows, z.shape[1])
    deviations = (members.T @ (z - z.mean(0))) / counts.clamp(min=1)[:, None]
    between = (counts[:, None] * deviations.square()).sum(0) / (groups - 1)
    within = (z - z.mean(0) - deviations[y]).square().sum(0) / (len(z) - groups)
    ratio = between / within.clamp(min=torch.finfo(z.dtype).eps)  # positions that never vary have a ratio of 0
    p = torch.from_numpy(stats.f.sf(ratio.cpu().numpy(), groups - 1, len(z) - groups)).to(z.device)
    return torch.where(p <= benjamini_hochberg(p, FALSE_SHARE), deviations, 0.0)


def benjamini_hochberg(p: torch.Tensor, share: float) -> float:
    """The largest p-value that is significant at this false discovery rate, or -1 when none is."""
    ordered = p.sort().values
    significant = ordered <= share * torch.arange(1, len(p) + 1, device=p.device) / len(p)
    return float(ordered[significant].max()) if significant.any() else -1.0
