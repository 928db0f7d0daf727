"""Latents as batches: resident on the device, drawn by step without any state, classes in balance; and their space.

Diffusion happens on latents normalised per channel and, if asked, per position too. The mean latent holds most of a
registered cohort's variance: what every brain shares. Centred, the network starts from the mean brain and its whole
capacity goes to how people differ; scaled by each position's own spread, background (which never varies) gets no noise,
and folded cortex as much as it varies. Centre and spread are computed from the training latents, stored in the
checkpoint, and undone before decoding.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from diffusion.config import NO_SIDE, SIDE_CODES
from runtime.checkpoints import plain_fields
from runtime.device import Device
from runtime.errors import InputError
from VAE.latents import Statistics, read_split, statistics_from_dict

LEAST_SPREAD = 0.05
"""Least spread of a position, in standard deviations of its channel: few subjects vary at the rim of the head, and a
new one there would otherwise be many standard deviations away."""


@dataclass(frozen=True)
class Batch:
    """Latents (B, C, d, h, w), classes (B,), standardised covariates (B, K), NaN where unknown, and sides (B,)."""

    z: torch.Tensor
    y: torch.Tensor
    covariates: torch.Tensor
    side: torch.Tensor
    """By `config.SIDE_CODES`."""


class Latents:
    """All posteriors of one split: mu, logvar (N, C, d, h, w) on the device, labels and sides (N,).

    No class may lack any.
    """

    def __init__(self, folder: Path, split: str, classes: int, device: Device) -> None:
        records = read_split(folder, split)
        self.vae = records[0].vae
        self.subjects = [record.subject for record in records]
        self.mirrored = [record.mirrored for record in records]
        self.labels = torch.tensor([record.label for record in records])
        self.sides = torch.tensor([SIDE_CODES[record.side] for record in records])
        counts = torch.bincount(self.labels.clamp(min=0), minlength=classes)
        if self.labels.min() < 0 or self.labels.max() >= classes or (counts[:classes] == 0).any():
            found = sorted(set(self.labels.tolist()))
            raise InputError(f"{folder / split}: labels {found}, expected each of 0 to {classes - 1} at least once")
        self.device = device
        self.mu, self.logvar = (
            torch.stack([torch.from_numpy(getattr(record, name)) for record in records]).to(device.kind)
            for name in ("mu", "logvar")
        )
        self.covariates = torch.zeros(len(records), 0, device=device.kind)
        """Conditions besides the class, standardised (N, K)."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, d, h, w) of one latent."""
        return tuple(self.mu.shape[1:])  # type: ignore[return-value]

    @property
    def has_sides(self) -> bool:
        """Whether some latents are known to be of a left, and some of a right TLE."""
        return set(range(NO_SIDE)) <= set(self.sides.tolist())

    def batch(self, rows: torch.Tensor, eps: torch.Tensor) -> Batch:
        """Samples of the posteriors of the given rows (B,) by the noise `eps` (B, C, d, h, w)."""
        index = rows.to(self.device.kind, non_blocking=True)
        z = self.mu[index] + torch.exp(0.5 * self.logvar[index]) * eps
        y, side = (column[rows].to(self.device.kind, non_blocking=True) for column in (self.labels, self.sides))
        return Batch(z, y, self.covariates[index], side)


@dataclass(frozen=True)
class LatentSpace:
    """An affine map between raw latents (B, C, d, h, w) and the network's."""

    statistics: Statistics
    centre: torch.Tensor
    """Mean normalised training latent (C, d, h, w); zeros when diffusion is not centred."""
    spread: torch.Tensor
    """Standard deviation around the centre (C, d, h, w); ones when diffusion is not centred."""
    _moved: dict[torch.device, tuple[torch.Tensor, ...]] = field(default_factory=dict, init=False, compare=False)

    def enter(self, z: torch.Tensor) -> torch.Tensor:
        """Raw latents to the network's space."""
        mean, std, centre, spread = self._on(z.device)
        return ((z - mean) / std - centre) / spread

    def leave(self, z: torch.Tensor) -> torch.Tensor:
        """The network's latents to raw ones, ready for the VAE's decoder."""
        mean, std, centre, spread = self._on(z.device)
        return (z * spread + centre) * std + mean

    def _on(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """The map's four tensors on a device, moved once: a copy at every step would wait for the step before."""
        if device not in self._moved:
            held = (*self.statistics.columns(), self.centre, self.spread)
            self._moved[device] = tuple(value.to(device) for value in held)
        return self._moved[device]

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        return {"statistics": plain_fields(self.statistics), "centre": self.centre, "spread": self.spread}


def space_from_dict(record: dict[str, Any], path: Path | str) -> LatentSpace:
    """Inverse of `LatentSpace.to_dict`."""
    return LatentSpace(statistics_from_dict(record["statistics"], path), record["centre"], record["spread"])


def fit_space(mu: torch.Tensor, logvar: torch.Tensor, statistics: Statistics, *, centred: bool) -> LatentSpace:
    """The space for a training set with raw mu and logvar (N, C, d, h, w) and the statistics of their folder."""
    if not centred:
        return LatentSpace(statistics, torch.zeros(mu.shape[1:]), torch.ones(mu.shape[1:]))
    mean, std = statistics.columns()
    normalised = (mu - mean) / std
    centre = normalised.mean(0)
    # Variance of posterior samples around the centre: of the means, plus the posterior's own.
    variance = (normalised - centre).square().mean(0) + (logvar.exp() / std**2).mean(0)
    return LatentSpace(statistics, centre, variance.sqrt().clamp(min=LEAST_SPREAD))
