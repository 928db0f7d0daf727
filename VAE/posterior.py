"""Health of the latent's posterior, channel by channel: how much of what the decoder gets is signal, how much noise."""

from __future__ import annotations

from typing import Any

import torch

DEAD_NOISE_SHARE = 0.95
"""A channel with more posterior noise than this is dead. At 0.95 signal is 1/19 of the noise: a Gaussian channel then
carries 0.5 ln(1 + 1/19) = 0.026 nats per position. The KL is no such test: a channel that is the same in every scan
at every position has a large KL when it is narrow, and tells the decoder nothing. One whose posterior is the prior
(KL below 0.01 nats) has a noise share above 0.97 and is found."""


class PosteriorHealth:
    """Sums over scans and positions, float64, per channel; processes add theirs with `merge`."""

    def __init__(self, channels: int) -> None:
        self.scans = 0
        self.positions = 0
        self.sums = torch.zeros(4, channels, dtype=torch.float64)
        """Of mu, mu^2, exp(logvar) and KL."""

    def add(self, mu: torch.Tensor, logvar: torch.Tensor) -> None:
        """Takes in scans: mu and logvar (B, C, d, h, w)."""
        scans = len(mu)
        mu, logvar = (value.detach().cpu().double().transpose(0, 1).flatten(1) for value in (mu, logvar))
        variance = logvar.exp()
        kl = 0.5 * (mu**2 + variance - 1 - logvar)  # Kingma & Welling 2014, appendix B
        self.sums += torch.stack([value.sum(1) for value in (mu, mu**2, variance, kl)])
        self.positions += mu.shape[1]
        self.scans += scans

    def merge(self, other: PosteriorHealth) -> None:
        """Takes in what another one has."""
        self.scans += other.scans
        self.positions += other.positions
        self.sums += other.sums

    def report(self) -> dict[str, Any]:
        """Plain values for JSON.

        Returns:
            ``scans``; ``channels``, for each one ``mean`` and ``std`` of mu over scans and positions, ``kl`` to the
            standard normal in nats per position, ``noise_share`` = E[exp(logvar)] / (Var mu + E[exp(logvar)]) and
            ``dead``; ``kl``, their KL added up; and ``dead``, the numbers of dead channels from 0.

        Raises:
            ValueError: nothing was added.
        """
        if not self.positions:
            raise ValueError("no posterior was added")
        mean, square, noise, kl = self.sums / self.positions
        variance = (square - mean**2).clamp(min=0)
        share = noise / (variance + noise)
        names = ("mean", "std", "kl", "noise_share")
        rows = torch.stack([mean, variance.sqrt(), kl, share], dim=1).tolist()
        channels = [{**dict(zip(names, row, strict=True)), "dead": row[3] > DEAD_NOISE_SHARE} for row in rows]
        return {
            "scans": self.scans,
            "channels": channels,
            "kl": float(kl.sum()),
            "dead": [number for number, channel in enumerate(channels) if channel["dead"]],
        }
