"""What the classifier makes of a table's scans: labels, sides, counts by origin, random variants drawn by step."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch

from classifier.config import AugmentConfig
from cohort import stacks
from cohort.stacks import ScanStack, move
from cohort.tables import CLASS_NAMES
from runtime import distributed, seeding
from runtime.device import Device

EPOCHS = "epoch:"
"""Purpose of the draws of `runtime.training.balanced_rows`."""


class Volumes(stacks.Volumes):
    """Batches of one table's scans, with their labels (N,) and `sides` (N,)."""

    def __init__(self, scans: ScanStack, device: Device) -> None:
        super().__init__(scans, device)
        self.labels = torch.from_numpy(scans.labels.copy())
        self.sides = torch.from_numpy(sides(scans.frame).copy())

    def constants(self) -> tuple[float, float]:
        """Mean and standard deviation of all voxels of all scans: what the network subtracts and divides by."""
        sums = np.zeros(2)
        for volume in self.scans.volumes:
            sums += volume.mean(dtype=np.float64), np.square(volume, dtype=np.float64).mean()
        mean, square = sums / len(self)
        return float(mean), float(math.sqrt(square - mean**2))

    def mean_volume(self, label: int) -> torch.Tensor:
        """Voxel-wise mean (D, H, W) over the scans of one class: a neutral image for attributions to start from."""
        total = np.zeros(self.grid.shape)
        rows = np.flatnonzero(self.labels.numpy() == label)
        for row in rows:
            total += self.scans.volumes[int(row)]
        return torch.from_numpy((total / len(rows)).astype(np.float32))


def sides(frame: pd.DataFrame) -> np.ndarray:
    """The side of each scan's epilepsy, int64 (N,): 0 left, 1 right, -1 where it is unknown or there is none."""
    return frame["side"].map({"L": 0, "R": 1}).fillna(-1).to_numpy(dtype=np.int64)


def without_repeats(scans: ScanStack) -> ScanStack:
    """The training scans, each once: what is fitted in closed form gains nothing from a repeated row."""
    return scans.take(np.flatnonzero(~scans.frame["repeated"].to_numpy(dtype=bool)))


def origins(frame: pd.DataFrame) -> pd.Series:
    """What each row of a table of scans is, such as ``real_HC``, ``repeated_TLE`` or ``synthetic_HC``."""
    flags = {name: frame.get(name, pd.Series(False, index=frame.index)) for name in ("repeated", "synthetic")}
    origin = np.where(flags["synthetic"], "synthetic", np.where(flags["repeated"], "repeated", "real"))
    return pd.Series(origin, index=frame.index) + "_" + frame["label"].map(lambda label: CLASS_NAMES[label])


def counts(stack: ScanStack, weights: np.ndarray | None = None) -> dict[str, int]:
    """Scans of a stack by origin and class; each counted as often as `weights` (N,) says, by default once."""
    totals = pd.Series(1 if weights is None else weights, index=stack.frame.index).groupby(origins(stack.frame)).sum()
    names = (f"{origin}_{name}" for origin in ("real", "repeated", "synthetic") for name in CLASS_NAMES)
    return {name: int(totals.get(name, 0)) for name in names}


def counts_text(stack: ScanStack) -> str:
    """Counts for people."""
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts(stack).items() if count)


def draws_per_row(labels: np.ndarray, batch_size: int, steps: int, seed: int) -> np.ndarray:
    """How often each row was in a global batch after so many steps of `runtime.training.balanced_rows`, int64 (N,).

    Whole epochs use every row of a class once; only the last, begun one depends on its permutation.
    """
    drawn = np.zeros(len(labels), dtype=np.int64)
    for label in (0, 1):
        members = np.flatnonzero(labels == label)
        epochs, rest = divmod(steps * (batch_size // 2), len(members))
        order = torch.randperm(len(members), generator=seeding.generator(seed, f"{EPOCHS}{label}", epochs)).numpy()
        drawn[members] += epochs
        drawn[members[order[:rest]]] += 1
    return drawn


def augment(x: torch.Tensor, config: AugmentConfig, spacing_mm: float, seed: int, step: int) -> torch.Tensor:
    """Small random rotation, shift, scale, exponent and noise for each volume of a batch.

    Draws are made for the global batch, so that several processes see what one would.

    Args:
        x: this process's share (B, 1, D, H, W), in [0, 1].
        config: standard deviations.
        spacing_mm: edge of a voxel.
        seed: the run's.
        step: from 1.

    Returns:
        (B, 1, D, H, W); noise may leave [0, 1] a little.
    """
    B = x.shape[0] * distributed.world_size()
    draws = torch.randn((B, 8), generator=seeding.generator(seed, "augment", step))
    draws = distributed.local(draws).clamp(-2.5, 2.5)  # no rare extremes: a scan twice as far off is no scan
    angles, shift, scale = torch.deg2rad(config.rotate_degrees * draws[:, :3]), draws[:, 3:6], draws[:, 6]
    turns = torch.zeros(len(draws), 3, 3)
    for axis, (i, j) in enumerate(((1, 2), (0, 2), (0, 1))):
        turns[:, i, j], turns[:, j, i] = -angles[:, axis], angles[:, axis]
    linear = torch.linalg.matrix_exp(turns) * torch.exp(config.scale * scale).view(-1, 1, 1)
    x = move(x, linear, config.shift_mm * shift, spacing=spacing_mm, padding="border")
    gamma = torch.exp(config.gamma * draws[:, 7]).to(x.device).view(-1, 1, 1, 1, 1)
    x = x.clamp(min=0) ** gamma
    if config.noise > 0:
        source = seeding.generator(seed, "noise", step, device=x.device)
        x = x + config.noise * distributed.local(torch.randn((B, *x.shape[1:]), generator=source, device=x.device))
    return x
