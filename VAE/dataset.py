"""Scans as batches: resident on the device where they fit, drawn by step without any state."""

from __future__ import annotations

import pandas as pd
import torch

from cohort.scans import ScanStack
from runtime import distributed, seeding
from runtime.device import Device

RESIDENT_SHARE = 0.4
"""Largest share of a GPU's free memory that scans may take; activations need the rest."""


class Volumes:
    """The scans of one table on one grid, as (B, 1, D, H, W) float32 batches on the device."""

    def __init__(self, scans: ScanStack, device: Device) -> None:
        self.frame: pd.DataFrame = scans.frame
        self.device = device
        self._scans = scans
        self._resident = torch.from_numpy(scans.resident()).to(device.kind) if self._fits() else None

    def _fits(self) -> bool:
        if self.device.kind.type != "cuda":
            return True  # the cache is memory-mapped: what does not fit is paged
        free, _ = torch.cuda.mem_get_info(self.device.kind)
        D, H, W = self._scans.grid.shape
        return 4 * D * H * W * len(self) < RESIDENT_SHARE * free

    def __len__(self) -> int:
        return len(self.frame)

    def batch(self, index: torch.Tensor) -> torch.Tensor:
        """Volumes of the given rows (B,), as (B, 1, D, H, W)."""
        if self._resident is not None:
            rows = self._resident[index.to(self._resident.device)]
        else:
            rows = torch.stack([torch.from_numpy(self._scans[int(row)].copy()) for row in index])
        return self.device.tensor(rows[:, None])


def batch_rows(count: int, batch_size: int, step: int, seed: int) -> torch.Tensor:
    """Which rows make this process's share of the global batch of a step: epochs of fresh permutations, end to end.

    Args:
        count: rows in the table.
        batch_size: global batch size.
        step: from 1.
        seed: the run's.
    """
    places = torch.arange((step - 1) * batch_size, step * batch_size)
    return distributed.local(seeding.epoch_rows(count, places, seed, "epoch"))
