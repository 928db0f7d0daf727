"""The Gaussian noising process in discrete time: schedule, noising, and the three things a network may predict.

z_t = alpha_t z + sigma_t eps with alpha_t^2 + sigma_t^2 = 1. All functions are pure; the process holds only arrays.
Sources: Ho et al. 2020 (DDPM, https://arxiv.org/abs/2006.11239), equations 4 and 12; Salimans and Ho 2022
(https://arxiv.org/abs/2202.00512), appendix D, for the velocity v = alpha eps - sigma z.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusion.config import ProcessConfig


@dataclass(frozen=True)
class Process:
    """Schedule and prediction target; float64 arrays over timesteps 0 ... T - 1."""

    target: str
    alphas_bar: torch.Tensor
    """alpha_t^2: the share of the signal's variance left at each timestep."""

    @property
    def timesteps(self) -> int:
        """T, the length of the schedule."""
        return len(self.alphas_bar)

    def coefficients(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha_t and sigma_t for timesteps (B,), float32, shaped (B, 1, 1, 1, 1)."""
        squared = self.alphas_bar.to(t.device)[t].view(-1, 1, 1, 1, 1)
        return squared.sqrt().float(), (1.0 - squared).sqrt().float()

    def noised(self, z: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """z_t (B, C, D, H, W) from clean latents, standard normal noise and timesteps (B,); DDPM equation 4."""
        alpha, sigma = self.coefficients(t)
        return alpha * z + sigma * eps

    def wanted(self, z: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the network should predict."""
        if self.target == "noise":
            return eps
        if self.target == "x0":
            return z
        alpha, sigma = self.coefficients(t)
        return alpha * eps - sigma * z

    def clean(self, prediction: torch.Tensor, z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The clean latent that a prediction implies."""
        alpha, sigma = self.coefficients(t)
        if self.target == "noise":
            return (z_t - sigma * prediction) / alpha
        if self.target == "x0":
            return prediction
        return alpha * z_t - sigma * prediction

    def loss(self, prediction: torch.Tensor, z: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Mean squared error of each case (B,), in the target's units."""
        return F.mse_loss(prediction, self.wanted(z, eps, t), reduction="none").flatten(1).mean(1)


def linear_alphas_bar(timesteps: int, first: float = 1e-4, last: float = 0.02) -> torch.Tensor:
    """Cumulative product of 1 - beta with beta rising linearly (DDPM, section 4), float64 (timesteps,)."""
    return torch.cumprod(1.0 - torch.linspace(first, last, timesteps, dtype=torch.float64), dim=0)


def build_process(config: ProcessConfig) -> Process:
    """The process of a configuration."""
    return Process(config.target, linear_alphas_bar(config.timesteps))
