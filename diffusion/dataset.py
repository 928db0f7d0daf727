"""Latents as batches: resident on the device, drawn by step without any state, classes in balance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from runtime.device import Device
from runtime.errors import InputError
from VAE.latents import read_split


@dataclass(frozen=True)
class Batch:
    """Latents (B, C, d, h, w), classes (B,) and standardised covariates (B, K), NaN where not told."""

    z: torch.Tensor
    y: torch.Tensor
    covariates: torch.Tensor


class Latents:
    """All posteriors of one split: mu, logvar (N, C, d, h, w) and labels (N,), on the device.

    Raises:
        InputError: a class without latents, or a label outside the classes.
    """

    def __init__(self, folder: Path, split: str, classes: int, device: Device) -> None:
        records = read_split(folder, split)
        self.vae, self.grid = records[0].vae, records[0].grid
        self.subjects = [record.subject for record in records]
        self.labels = torch.tensor([record.label for record in records])
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

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, d, h, w) of one latent."""
        return tuple(self.mu.shape[1:])  # type: ignore[return-value]

    def set_covariates(self, standardised: torch.Tensor) -> None:
        """Conditions besides the class, (N, K), in the order of the latents."""
        self.covariates = standardised.to(self.device.kind)

    def batch(self, rows: torch.Tensor, eps: torch.Tensor) -> Batch:
        """Samples of the posteriors of the given rows (B,) by the noise `eps` (B, C, d, h, w)."""
        index = rows.to(self.device.kind)
        z = self.mu[index] + torch.exp(0.5 * self.logvar[index]) * eps
        return Batch(z, self.labels[rows].to(self.device.kind), self.covariates[index])
