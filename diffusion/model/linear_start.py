"""Where a small run starts from: the exact denoiser of a Gaussian fitted to the training latents.

A new DiT predicts nothing, and a few hundred steps are too few to learn even how a brain varies linearly. Probabilistic
PCA knows that in closed form, so the network starts from it and learns what a Gaussian misses.
"""

from __future__ import annotations

import torch
from torch import nn

from diffusion.process import Process


class LinearStart(nn.Module):
    """The best linear prediction from a noised latent, for z ~ N(0, U diag(variance - rest) U^T + rest I).

    Source of the model: Tipping and Bishop 1999 (https://doi.org/10.1111/1467-9868.00196), equations 2 and 8. Along a
    principal axis with variance s, E[z | z_t] = alpha s / (alpha^2 s + sigma^2) z_t; the table `gains` holds what this
    means for the prediction target at every timestep.

    Args:
        rank: principal axes.
        size: numbers in one latent.
        timesteps: of the schedule.
    """

    def __init__(self, rank: int, size: int, timesteps: int) -> None:
        super().__init__()
        self.register_buffer("axes", torch.zeros(rank, size))
        self.register_buffer("gains", torch.zeros(timesteps, rank + 1))

    @torch.no_grad()
    def fit(self, z: torch.Tensor, process: Process) -> None:
        """Fits the axes to training latents in the network's space.

        Args:
            z: (N, C, d, h, w), zero mean and about unit variance at each position, N > rank.
            process: schedule and target.
        """
        rank, size = self.axes.shape
        flat = z.flatten(1).double()
        _, singular, axes = torch.linalg.svd(flat, full_matrices=False)
        variances = singular.square() / len(flat)
        rest = (flat.square().mean(0).sum() - variances[:rank].sum()) / (size - rank)
        self.axes.copy_(axes[:rank])
        self.gains.copy_(gain_table(torch.cat([variances[:rank], rest[None]]), process))

    def forward(self, z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Prediction in the shape of z_t (B, C, d, h, w), for timesteps t (B,)."""
        flat, gains = z_t.flatten(1), self.gains[t]
        along = (flat @ self.axes.T) * (gains[:, :-1] - gains[:, -1:])  # (B, rank)
        return (gains[:, -1:] * flat + along @ self.axes).view_as(z_t)


def gain_table(variances: torch.Tensor, process: Process) -> torch.Tensor:
    """Factor from z_t to the best linear prediction of the target, for each timestep and variance: (T, n)."""
    signal = process.alphas_bar[:, None]
    noise = 1.0 - signal
    spread = signal * variances + noise  # variance of z_t along the axis
    if process.target == "x0":
        return signal.sqrt() * variances / spread
    if process.target == "noise":
        return noise.sqrt() / spread
    return (signal * noise).sqrt() * (1.0 - variances) / spread
