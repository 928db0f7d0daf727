"""The scans of a table: decoded once into a cache, memory-mapped from it, given to networks as batches on a device."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tqdm import tqdm

from cohort.decoding import RefusedError, ending_of
from cohort.scans import PIPELINE, Grid, load_scan
from runtime import distributed
from runtime.device import Device
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write, sha256

MAX_SKIPPED = 0.02
"""Largest share of a table that `skip_bad` leaves out. More means that something is wrong with the data as a whole."""
RESIDENT_SHARE = 0.4
"""Largest share of a GPU's free memory that scans may take; activations need the rest."""


class VolumeStack(Sequence):
    """Scans of one grid, each memory-mapped when it is asked for: any number of them costs no memory.

    ``stack[i]`` is a read-only float32 (D, H, W); ``stack[a:b]`` and ``stack[[3, 1]]`` copy into one array.
    """

    def __init__(self, files: Sequence[Path], shape: tuple[int, int, int]) -> None:
        self.files = list(files)
        self.shape = (len(self.files), *shape)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int | slice | Sequence[int]) -> np.ndarray:
        if isinstance(index, int | np.integer):
            return np.load(self.files[index], mmap_mode="r", allow_pickle=False)
        chosen = range(len(self))[index] if isinstance(index, slice) else [int(i) for i in index]
        out = np.empty((len(chosen), *self.shape[1:]), dtype=np.float32)
        for place, i in enumerate(chosen):
            out[place] = self[i]
        return out


@dataclass(frozen=True)
class ScanStack:
    """A table's scans on a grid."""

    frame: pd.DataFrame
    """The rows that were kept, numbered from 0; row i belongs to volume i."""
    volumes: VolumeStack
    """The scans, float32 (D, H, W) in [0, 1] each."""
    grid: Grid
    hashes: tuple[str, ...]
    """SHA-256 of each scan's file: equal ones are the same scan, whatever its name."""

    def __len__(self) -> int:
        return len(self.volumes)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (N,), class codes."""
        return self.frame["label"].to_numpy(dtype=np.int64)

    def take(self, rows: np.ndarray) -> ScanStack:
        """Some of the scans, by their numbers."""
        files = [self.volumes.files[row] for row in rows]
        hashes = tuple(self.hashes[row] for row in rows)
        frame = self.frame.iloc[rows].reset_index(drop=True)
        return ScanStack(frame, VolumeStack(files, self.grid.shape), self.grid, hashes)


class Volumes:
    """The scans of one table as (B, 1, D, H, W) float32 batches on a device, resident there where they fit."""

    def __init__(self, scans: ScanStack, device: Device) -> None:
        self.scans, self.device = scans, device
        self.frame, self.grid = scans.frame, scans.grid
        self._resident = torch.from_numpy(scans.volumes[:]).to(device.kind) if self._fits() else None

    def _fits(self) -> bool:
        if self.device.kind.type != "cuda":
            return True  # a CPU run is a small one
        free, _ = torch.cuda.mem_get_info(self.device.kind)
        return 4 * math.prod(self.scans.volumes.shape) < RESIDENT_SHARE * free

    def __len__(self) -> int:
        return len(self.scans)

    def batch(self, index: torch.Tensor) -> torch.Tensor:
        """Volumes of the given rows (B,), as (B, 1, D, H, W)."""
        if self._resident is not None:
            rows = self._resident[index.to(self._resident.device)]
        else:
            rows = torch.from_numpy(self.scans.volumes[index.tolist()])
        return self.device.tensor(rows[:, None])


def move(
    x: torch.Tensor, linear: torch.Tensor, shift: torch.Tensor, *, spacing: float = 1.0, padding: str = "zeros"
) -> torch.Tensor:
    """Volumes resampled after affine maps about their middle.

    `torch.nn.functional.affine_grid` works in coordinates from -1 to 1 along each axis, W first. A rotation in them
    would shear a grid that is no cube, so maps are given in the unit of `spacing` and converted.

    Args:
        x: (B, 1, D, H, W).
        linear: (B, 3, 3) from output to input positions, axes (W, H, D).
        shift: (B, 3), likewise.
        spacing: edge of a voxel; 1 for shifts in voxels.
        padding: what lies outside, as `grid_sample` calls it.
    """
    half = torch.tensor(x.shape[:1:-1], dtype=torch.float32) * spacing / 2
    linear = linear * half[None, None, :] / half[None, :, None]
    theta = torch.cat([linear, (shift / half)[:, :, None]], dim=2).to(x)
    places = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, places, padding_mode=padding, align_corners=False)


def load_scans(
    frame: pd.DataFrame, grid: Grid, *, cache_dir: Path | str | None = None, skip_bad: Path | str | None = None
) -> ScanStack:
    """Loads the scans of a table through a cache of decoded arrays that any number of processes may share.

    Each scan is one uncompressed file named by the content of its source, the grid and the version of this pipeline, so
    that tables which share scans share them here, and a changed source is never mistaken for the old one.

    Args:
        frame: a table (`cohort.tables.read_table`).
        grid: where the voxels are wanted.
        cache_dir: by default ``data/cache/<grid>`` in the repository. It may be deleted at any time.
        skip_bad: leave out scans that are refused and list them in this CSV (subject, file, reason). Refused all the
            same when more than 2 % are bad.

    Raises:
        InputError: lists every bad scan with its reason; or the cache cannot be written.
    """
    cache = Path(cache_dir) if cache_dir is not None else ROOT / "data" / "cache" / grid.name
    results = _decode_all([Path(file) for file in frame["file"]], grid, cache)
    bad = [row for row, result in enumerate(results) if isinstance(result, InputError)]
    if bad and (skip_bad is None or len(bad) > MAX_SKIPPED * len(results)):
        more = "" if skip_bad is None else f", more than the {MAX_SKIPPED:.0%} of {len(results)} that may be skipped"
        raise InputError.of(f"scans were refused{more}", [str(results[row]) for row in bad])
    if skip_bad is not None:
        listed = frame.iloc[bad][["subject", "file"]].assign(reason=[str(results[row]) for row in bad])
        with atomic_write(skip_bad) as temporary:
            listed.to_csv(temporary, index=False)
    kept = [row for row, result in enumerate(results) if not isinstance(result, InputError)]
    volumes = VolumeStack([results[row][0] for row in kept], grid.shape)
    hashes = tuple(results[row][1] for row in kept)
    return ScanStack(frame.iloc[kept].reset_index(drop=True), volumes, grid, hashes)


def _decode_all(files: list[Path], grid: Grid, cache: Path) -> list[tuple[Path, str] | InputError]:
    """For each file its place in the cache and its hash, or why it was refused; in the order of `files`.

    Threads, not processes: hashing, inflating, filtering and interpolating all release the interpreter's lock.
    """

    def attempt(row: int) -> tuple[int, tuple[Path, str] | InputError]:
        try:
            return row, _cached(files[row], grid, cache)
        except InputError as error:
            return row, error

    # Every process of a distributed run comes here. Each begins at its own place and finds the others' work done.
    start = len(files) * distributed.rank() // distributed.world_size()
    order = [*range(start, len(files)), *range(start)]
    bar = {"desc": f"scans ({grid.name})", "unit": "scan", "delay": 1, "disable": not distributed.is_main()}
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        try:
            results = dict(tqdm(pool.map(attempt, order), total=len(files), **bar))
        except OSError as error:  # reading is guarded, so this is the cache
            raise InputError(f"{cache}: the cache of decoded scans cannot be written: {error.strerror}") from error
    return [results[row] for row in range(len(files))]


def _cached(path: Path, grid: Grid, cache: Path) -> tuple[Path, str]:
    """The place of a scan in the cache, decoded by now, and the hash of its file."""
    try:
        ending, digest = ending_of(path), sha256(path)
    except (RefusedError, OSError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    # The ending is a part of the key: the same bytes under a false ending are refused, not found in the cache.
    recipe = json.dumps([PIPELINE, ending, grid.to_dict()], sort_keys=True)
    place = cache / f"{digest[:32]}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.npy"
    if not _is_whole(place, grid):
        scan = load_scan(path, grid)
        with atomic_write(place) as temporary:
            np.save(temporary, scan, allow_pickle=False)
    return place, digest


def _is_whole(place: Path, grid: Grid) -> bool:
    """Whether a cached scan is there and complete; a file system that lost its end gets it again."""
    try:
        scan = np.load(place, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return scan.shape == grid.shape and scan.dtype == np.float32
