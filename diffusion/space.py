"""The space in which diffusion happens: latents normalised per channel and, if asked, per position too.

The mean latent holds most of a registered cohort's variance: what every brain shares. Centred, the network starts from
the mean brain and its whole capacity goes to how people differ; scaled by each position's own spread, background (which
never varies) gets no noise, and folded cortex as much as it varies. Centre and spread are computed from the training
latents, stored in the checkpoint, and undone before decoding.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from VAE.latents import Statistics, statistics_from_dict

LEAST_SPREAD = 0.05
"""Least spread of a position, in standard deviations of its channel: few subjects vary at the rim of the head, and a
new one there would otherwise be many standard deviations away."""


@dataclass(frozen=True)
class LatentSpace:
    """An affine map between raw latents (B, C, d, h, w) and the network's."""

    statistics: Statistics
    centre: torch.Tensor
    """Mean normalised training latent (C, d, h, w); zeros when diffusion is not centred."""
    spread: torch.Tensor
    """Standard deviation around the centre (C, d, h, w); ones when diffusion is not centred."""

    def enter(self, z: torch.Tensor) -> torch.Tensor:
        """Raw latents to the network's space."""
        return (self.statistics.normalise(z) - self.centre.to(z.device)) / self.spread.to(z.device)

    def leave(self, z: torch.Tensor) -> torch.Tensor:
        """The network's latents to raw ones, ready for the VAE's decoder."""
        return self.statistics.denormalise(z * self.spread.to(z.device) + self.centre.to(z.device))

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        statistics = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.statistics).items()}
        return {"statistics": statistics, "centre": self.centre, "spread": self.spread}


def space_from_dict(record: dict[str, Any]) -> LatentSpace:
    """Inverse of `LatentSpace.to_dict`."""
    return LatentSpace(statistics_from_dict(record["statistics"]), record["centre"], record["spread"])


def fit_space(mu: torch.Tensor, logvar: torch.Tensor, statistics: Statistics, *, centred: bool) -> LatentSpace:
    """The space for a training set.

    Args:
        mu: posterior means (N, C, d, h, w), raw.
        logvar: posterior log variances, same shape.
        statistics: of the folder they came from.
        centred: subtract the mean latent.
    """
    if not centred:
        return LatentSpace(statistics, torch.zeros(mu.shape[1:]), torch.ones(mu.shape[1:]))
    normalised = statistics.normalise(mu)
    centre = normalised.mean(0)
    std = torch.tensor(statistics.std).view(-1, 1, 1, 1)
    # Variance of posterior samples around the centre: of the means, plus the posterior's own.
    variance = (normalised - centre).square().mean(0) + (logvar.exp() / std**2).mean(0)
    return LatentSpace(statistics, centre, variance.sqrt().clamp(min=LEAST_SPREAD))
