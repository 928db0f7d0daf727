"""What the classifier makes of a table's scans: labels, sides, counts by origin, random variants drawn by step."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from classifier.config import AugmentConfig
from cohort import stacks
from cohort.stacks import ScanStack, move
from cohort.tables import CLASS_NAMES
from runtime import distributed, seeding
from runtime.device import Device

COUNTS = tuple(f"{origin}_{name}" for origin in ("real", "repeated", "synthetic") for name in CLASS_NAMES)
"""What a training scan can be."""


class Answers(NamedTuple):
    """What a network is to say of some volumes."""

    labels: torch.Tensor
    """int64 (N,), 0 HC, 1 TLE."""
    sides: torch.Tensor
    """int64 (N,), 0 left, 1 right, -1 where it is unknown or there is none."""
    volumes: torch.Tensor
    """float32 (N, S, 2), standardised volumes of S structures at the left and at the right; NaN where unknown."""

    def of(self, rows: torch.Tensor) -> "Answers":
        """Those of some volumes, by their numbers."""
        return Answers(*(column[rows] for column in self))


class Volumes(stacks.Volumes):
    """Batches of one table's scans, with their answers; `volumes` (N, S, 2) are for training alone."""

    def __init__(self, scans: ScanStack, device: Device, volumes: np.ndarray | None = None) -> None:
        super().__init__(scans, device)
        volumes = np.empty((len(scans), 0, 2), np.float32) if volumes is None else volumes
        known = torch.from_numpy(scans.labels.copy()), torch.from_numpy(sides(scans.frame).copy())
        self.answers = Answers(*known, torch.from_numpy(volumes))
        self.labels = self.answers.labels

    def constants(self) -> tuple[float, float]:
        """Mean and standard deviation of all voxels of all scans."""
        sums = np.zeros(2)
        for volume in self.scans.volumes:
            sums += volume.mean(dtype=np.float64), np.square(volume, dtype=np.float64).mean()
        mean, square = sums / len(self)
        return float(mean), float(math.sqrt(square - mean**2))

    def mean_volume(self, label: int) -> torch.Tensor:
        """Voxel-wise mean (D, H, W) over the scans of one class: a neutral image for attributions to start from."""
        rows = np.flatnonzero(self.labels.numpy() == label).tolist()
        total = sum((self.scans.volumes[row] for row in rows), np.zeros(self.grid.shape))
        return torch.from_numpy((total / len(rows)).astype(np.float32))


def sides(frame: pd.DataFrame) -> np.ndarray:
    """The side of each scan's epilepsy, int64 (N,): 0 left, 1 right, -1 where it is unknown or there is none."""
    return frame["side"].map({"L": 0, "R": 1}).fillna(-1).to_numpy(dtype=np.int64)


def counts(stack: ScanStack) -> dict[str, int]:
    """Scans of a stack by COUNTS."""
    frame, names = stack.frame, ["synthetic", "repeated"]
    origin = np.select(list(frame.reindex(columns=names, fill_value=False).to_numpy(bool).T), names, "real")
    kind = pd.Series(origin, frame.index) + "_" + frame["label"].map(dict(enumerate(CLASS_NAMES)))
    return kind.value_counts().reindex(COUNTS, fill_value=0).to_dict()


def counts_text(stack: ScanStack) -> str:
    """Counts that are not 0, for people."""
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts(stack).items() if count)


def mirrored(x: torch.Tensor, answers: Answers, seed: int, step: int) -> tuple[torch.Tensor, Answers]:
    """Half of the volumes (B, 1, D, H, W) left to right, with their answers: left is right, and HC stays HC.

    Every grid here is symmetric about the midline. Draws are made for the global batch, as by `augment`.
    """
    B = x.shape[0] * distributed.world_size()
    turned = distributed.local(torch.rand(B, generator=seeding.generator(seed, "mirror", step)) < 0.5)
    sides = torch.where(turned & (answers.sides >= 0), 1 - answers.sides, answers.sides)
    volumes = torch.where(turned[:, None, None], answers.volumes.flip(2), answers.volumes)
    x = torch.where(turned.to(x.device, non_blocking=True).view(-1, 1, 1, 1, 1), x.flip(2), x)
    return x, Answers(answers.labels, sides, volumes)


def augment(x: torch.Tensor, config: AugmentConfig, spacing_mm: float, seed: int, step: int) -> torch.Tensor:
    """Small random rotation, shift, scale, exponent and noise for each volume (B, 1, D, H, W) in [0, 1].

    Draws are made for the global batch, of which `x` is this process's share. Noise may leave [0, 1] a little.
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
    gamma = torch.exp(config.gamma * draws[:, 7]).to(x.device, non_blocking=True).view(-1, 1, 1, 1, 1)
    x = x.clamp(min=0) ** gamma
    if config.noise > 0:
        source = seeding.generator(seed, "noise", step, device=x.device)
        x = x + config.noise * distributed.local(torch.randn((B, *x.shape[1:]), generator=source, device=x.device))
    return x
