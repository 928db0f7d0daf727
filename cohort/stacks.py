"""The scans of a table: decoded once into a cache, memory-mapped from it, given to networks as batches on a device."""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tqdm import tqdm

from cohort.decoding import ending_and_hash, naming, of_each
from cohort.grids import Grid
from cohort.reading.place import place_of, refuse_misplaced
from cohort.scans import PIPELINE, decode_scan
from cohort.tables import write_csv
from runtime.device import Device
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write

MAX_SKIPPED = 0.02
"""Largest share of a table that `skip_bad` leaves out. More means that something is wrong with the data as a whole."""
CHUNK = 64
"""Scans that are copied to a device at once."""
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
    """In [0, 1]."""
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

    def measured(self, name: str, measure: Callable[[np.ndarray], Sequence[float]], *, what: str) -> np.ndarray:
        """The same numbers of each volume, float64 (N, F), one volume per core at a time; `what` they are is said while
        it lasts.

        Kept beside the decoded scan, whose name is its content and the grid: scans that tables share are measured once.
        `name` stands for what `measure` computes, its version included; other numbers need another.
        """
        places = [file.with_suffix(f".{name}.npy") for file in self.volumes.files]

        def row(index: int) -> np.ndarray:
            if not places[index].is_file():
                found = np.asarray(measure(self.volumes[index]), dtype=np.float64)
                with atomic_write(places[index]) as temporary:
                    np.save(temporary, found, allow_pickle=False)
            with _HEADER:
                return np.load(places[index], allow_pickle=False)  # whole: it was renamed into place

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # filters and medians run without the interpreter's lock
            rows = pool.map(row, range(len(self)))
            return np.array(list(tqdm(rows, total=len(self), desc=f"measuring {what}", unit="scan", delay=2)))


class Volumes:
    """The scans of one table as (B, 1, D, H, W) float32 batches on a device: resident in a GPU's memory where they fit,
    else read from the memory-mapped cache, whose pages all processes of a machine share.
    """

    def __init__(self, scans: ScanStack, device: Device) -> None:
        self.scans, self.device = scans, device
        self.frame, self.grid = scans.frame, scans.grid
        self._resident = self._filled() if self._fits() else None

    def _fits(self) -> bool:
        if self.device.kind.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(self.device.kind)
        return 4 * math.prod(self.scans.volumes.shape) < RESIDENT_SHARE * free

    def _filled(self) -> torch.Tensor:
        """All scans on the device (N, D, H, W), by way of a few at a time: the host never holds the whole cohort."""
        resident = torch.empty(self.scans.volumes.shape, device=self.device.kind)
        for start in range(0, len(self), CHUNK):
            resident[start : start + CHUNK] = torch.from_numpy(self.scans.volumes[start : start + CHUNK])
        return resident

    def __len__(self) -> int:
        return len(self.scans)

    def batch(self, index: torch.Tensor) -> torch.Tensor:
        """Volumes of the given rows (B,), as (B, 1, D, H, W)."""
        if self._resident is not None:
            rows = self._resident[index.to(self._resident.device, non_blocking=True)]
        else:
            rows = torch.from_numpy(self.scans.volumes[index.tolist()])
            if self.device.kind.type == "cuda":
                rows = rows.pin_memory()  # else the copy to the device blocks
        return self.device.tensor(rows[:, None])


def move(
    x: torch.Tensor, linear: torch.Tensor, shift: torch.Tensor, *, spacing: float = 1.0, padding: str = "zeros"
) -> torch.Tensor:
    """Volumes (B, 1, D, H, W) resampled after affine maps about their middle.

    `torch.nn.functional.affine_grid` works in coordinates from -1 to 1 along each axis, W first. A rotation in them
    would shear a grid that is no cube, so maps are given in the unit of `spacing` (edge of a voxel) and converted.
    `linear` (B, 3, 3) and `shift` (B, 3) lead from output to input positions, axes (W, H, D).
    """
    half = torch.tensor(x.shape[:1:-1], dtype=torch.float32) * spacing / 2
    linear = linear * half[None, None, :] / half[None, :, None]
    theta = torch.cat([linear, (shift / half)[:, :, None]], dim=2).to(x, non_blocking=True)
    places = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, places, padding_mode=padding, align_corners=False)


def load_scans(
    frame: pd.DataFrame, grid: Grid, *, cache_dir: Path | str | None = None, skip_bad: Path | None = None
) -> ScanStack:
    """Loads the scans of a table through a cache of decoded arrays that any number of processes may share.

    Each scan is one uncompressed file named by the content of its source, the grid and the version of this pipeline, so
    that tables which share scans share them here, and a changed source is never mistaken for the old one.

    Args:
        frame: a table (`cohort.tables.read_table`).
        grid: where the voxels are wanted.
        cache_dir: by default ``data/cache/<grid>`` in the repository. It may be deleted at any time.
        skip_bad: leave out scans that are refused, at most MAX_SKIPPED, and list them in this CSV; without it, or with
            more, an InputError lists them.
    """
    cache = Path(cache_dir) if cache_dir is not None else ROOT / "data" / "cache" / grid.name
    found = of_each(frame["file"], lambda path: _cached(path, grid, cache), cache, f"scans ({grid.name})")
    refused = np.array([isinstance(result, InputError) for result in found], dtype=bool)
    reasons = [str(result) for result in found if isinstance(result, InputError)]
    if reasons and (skip_bad is None or len(reasons) > MAX_SKIPPED * len(found)):
        more = "" if skip_bad is None else f", more than the {MAX_SKIPPED:.0%} of {len(found)} that may be skipped"
        raise InputError.of(f"scans were refused{more}", reasons)
    if skip_bad is not None:
        write_csv(skip_bad, frame.loc[refused, ["subject", "file"]].assign(reason=reasons))
    kept = [result for result in found if not isinstance(result, InputError)]
    if odd := [note for _, _, note in kept if note]:
        warnings.warn(f"intensities of {len(odd)} scans (cohort.check lists them); the first: {odd[0]}", stacklevel=2)
    volumes = VolumeStack([place for place, _, _ in kept], grid.shape)
    return ScanStack(frame[~refused].reset_index(drop=True), volumes, grid, tuple(digest for _, digest, _ in kept))


def _cached(path: Path, grid: Grid, cache: Path) -> tuple[Path, str, str]:
    """The place of a scan in the cache, decoded by now, the hash of its file, and what was odd when it was decoded."""
    ending, digest = ending_and_hash(path)
    recipe = json.dumps([PIPELINE, ending, grid.to_dict()], sort_keys=True)
    place = cache / f"{digest[:32]}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.npy"
    if _is_whole(place, grid):
        return place, digest, ""
    scan, notes, moved = decode_scan(path, grid)
    if moved:
        with naming(path):
            refuse_misplaced(place_of(scan, grid.affine))
    with atomic_write(place) as temporary:
        np.save(temporary, scan, allow_pickle=False)
    return place, digest, f"{path}: {'; '.join(notes)}" if notes else ""


_HEADER = threading.Lock()
"""numpy parses headers with ast.literal_eval, which several threads of CPython 3.11 at once can break (SystemError)."""


def _is_whole(place: Path, grid: Grid) -> bool:
    """Whether a cached scan is there and complete; a file system that lost its end gets it again."""
    try:
        with _HEADER:
            scan = np.load(place, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return scan.shape == grid.shape and scan.dtype == np.float32
