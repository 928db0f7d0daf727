"""Scans: from a file to a checked, resampled, normalised array. `load_scan` is the only way there.

Axes of every array: (D, H, W) = (left-right, back-front, foot-head), the first voxel at the left, back, bottom (RAS).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage
from tqdm import tqdm

from cohort.decoding import RefusedError, ending_of, read_voxels
from cohort.resampling import extent_mm, is_flat, resample, to_ras
from runtime import distributed
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write, sha256

MIN_OVERLAP = 0.01
"""Least share of the grid that a scan must cover. Less is a scan elsewhere, or one whose units are not mm."""
MAX_SKIPPED = 0.02
"""Largest share of a table that `skip_bad` leaves out. More means that something is wrong with the data as a whole."""
PIPELINE = 1
"""Version of what `load_scan` computes. Raise it with any change of its output: cached scans are then made anew."""


@dataclass(frozen=True)
class Grid:
    """A box of voxels in MNI152 space (NLin2009a), its axes along those of the world."""

    name: str
    """What it is called on the command line and in file names."""
    shape: tuple[int, int, int]
    """Voxels (D, H, W)."""
    spacing_mm: float
    """Edge of a voxel, equal along the three axes."""
    centre_mm: tuple[float, float, float]
    """Middle of the field of view in world millimetres."""

    @property
    def affine(self) -> np.ndarray:
        """float64 (4, 4), from voxel indices to millimetres, RAS."""
        affine = np.diag([self.spacing_mm] * 3 + [1.0])
        affine[:3, 3] = np.array(self.centre_mm) - self.spacing_mm * (np.array(self.shape) - 1) / 2
        return affine

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints, latents and JSON."""
        return {**asdict(self), "shape": list(self.shape), "centre_mm": list(self.centre_mm)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Grid:
        """The inverse of `to_dict`; raises InputError where `values` are no grid."""
        try:
            shape = tuple(int(size) for size in values["shape"])
            centre = tuple(float(place) for place in values["centre_mm"])
            grid = cls(str(values["name"]), shape, float(values["spacing_mm"]), centre)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not a grid: {values!r} ({type(error).__name__}: {error})") from None
        if len(shape) != 3 or len(centre) != 3 or min(shape) < 1 or not grid.spacing_mm > 0:
            raise InputError(f"not a grid: {values!r}")
        return grid


# The middle of the template's brain, stem included. `paper` (168 x 204 x 168 mm) holds it with 3 mm to spare at the
# foot and 7 mm or more elsewhere; in the 160 x 192 x 160 mm of the others the lowest end of the brain stem touches the
# foot of the field of view.
_CENTRE_MM = (0.0, -17.0, 8.0)
GRIDS = {
    grid.name: grid
    for grid in (
        Grid("paper", (112, 136, 112), 1.5, _CENTRE_MM),
        Grid("demo", (40, 48, 40), 4.0, _CENTRE_MM),
        Grid("smoke", (20, 24, 20), 8.0, _CENTRE_MM),
    )
}


def load_scan(path: Path | str, grid: Grid) -> np.ndarray:
    """Reads one scan onto a grid.

    The file is read to its end (so that a gzip checksum is compared), checked, turned to RAS, resampled linearly in
    world millimetres unless it is on the grid already, and normalised.

    Args:
        path: ``.nii``, ``.nii.gz``, or a volume pickle (``.pkl``). The sform counts when its code is above 0, else the
            qform. A pickle without an affine must have the grid's shape and is taken to be on it.
        grid: where the voxels are wanted.

    Returns:
        float32 (D, H, W) in [0, 1].

    Raises:
        InputError: names the file and the reason.
    """
    path = Path(path)
    try:
        image, affine = read_voxels(path)
        scan = np.ascontiguousarray(normalise(_onto(image, affine, grid)))
        if scan.min() == scan.max():
            raise RefusedError("constant within the grid")
    except RefusedError as refusal:
        raise InputError(f"{path}: {refusal}") from None
    return scan


def _onto(image: np.ndarray, affine: np.ndarray | None, grid: Grid) -> np.ndarray:
    """Turns voxels to RAS and brings them onto the grid."""
    if affine is None:
        if image.shape != grid.shape:
            raise RefusedError(f"no affine, and its shape {image.shape} is not that of {grid.name}, {grid.shape}")
        return image
    if not np.isfinite(affine).all() or is_flat(affine):
        raise RefusedError("the determinant of the affine is zero (or not finite)")
    image, affine = to_ras(image, affine)
    if image.shape == grid.shape and np.allclose(affine, grid.affine, rtol=0, atol=1e-3):
        return image
    moved, covered = resample(image, affine, grid.affine, grid.shape)
    if covered < MIN_OVERLAP:
        low, high = extent_mm(image.shape, affine)
        where = f"it reaches from {low} to {high} mm and covers {covered:.1%} of the grid"
        raise RefusedError(f"no overlap with the grid {grid.name}: {where}")
    return moved


def normalise(volume: np.ndarray) -> np.ndarray:
    """Scales a volume to [0, 1] by the 0.5 and 99.5 percentiles of its non-zero voxels, clipping beyond them.

    Voxels that are exactly 0 stay 0: they are the background of a skull-stripped scan. Where the two percentiles are
    equal (a mask), what lies at or above them becomes 1. Synthetic volumes go through the same function, so that
    intensity gives no cue of origin.

    Args:
        volume: any shape, finite.

    Returns:
        float32 of the same shape.

    Raises:
        InputError: voxels that are not finite.
    """
    volume = np.asarray(volume, dtype=np.float32)
    if not np.isfinite(volume).all():
        raise InputError("a volume with non-finite voxels cannot be normalised")
    inside = volume != 0
    if not inside.any():
        return np.zeros_like(volume)
    low, high = (float(value) for value in np.percentile(volume[inside], (0.5, 99.5)))
    scaled = (volume - low) / (high - low) if high > low else volume >= high
    return np.where(inside, np.clip(scaled, 0, 1), 0).astype(np.float32)


def head_mask(volume: np.ndarray) -> np.ndarray:
    """The voxels inside the head (or the brain, where the skull was stripped) of a normalised volume.

    Half of Otsu's threshold, kept within 0.05 and 0.1: above the noise of air and what a decoder leaves there, below
    cerebrospinal fluid. Of what exceeds it the largest connected part; then what that encloses (ventricles, sinuses).

    Args:
        volume: (D, H, W) in [0, 1].

    Returns:
        bool (D, H, W); all False for an empty volume.
    """
    above = volume > np.clip(_otsu(volume) / 2, 0.05, 0.1)
    parts, count = ndimage.label(above)
    if count == 0:
        return above
    head = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    # Holes are what is not joined to the border; one padded layer joins all the outside into the part with number 1.
    outside, _ = ndimage.label(np.pad(~head, 1, constant_values=True))
    return (outside != 1)[1:-1, 1:-1, 1:-1]


def _otsu(volume: np.ndarray, bins: int = 256) -> float:
    """The middle between the means of the two classes that Otsu's threshold separates (Otsu 1979, equation 12).

    The middle, because over a gap in the histogram all thresholds are equally good, and the first is next to air.
    """
    counts, edges = np.histogram(volume, bins=bins, range=(0, 1))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    sums = np.cumsum(counts * centres)
    above = below[-1] - below
    split = (below > 0) & (above > 0)
    if not split.any():
        return 0.0
    low, high = sums[split] / below[split], (sums[-1] - sums[split]) / above[split]
    best = np.argmax(below[split] * above[split] * (high - low) ** 2)
    return float(low[best] + high[best]) / 2


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

    def resident(self) -> np.ndarray:
        """All scans in memory, one contiguous, writable float32 (N, D, H, W)."""
        return self.volumes[:]


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
    results = list(_decode_all([Path(file) for file in frame["file"]], grid, cache))
    bad = [(row, result) for row, result in enumerate(results) if isinstance(result, InputError)]
    if bad and (skip_bad is None or len(bad) > MAX_SKIPPED * len(results)):
        more = "" if skip_bad is None else f", more than the {MAX_SKIPPED:.0%} of {len(results)} that may be skipped"
        raise InputError.of(f"scans were refused{more}", [str(error) for _, error in bad])
    if skip_bad is not None:
        _write_quarantine(Path(skip_bad), frame, bad)
    kept = [row for row, result in enumerate(results) if not isinstance(result, InputError)]
    return ScanStack(
        frame=frame.iloc[kept].reset_index(drop=True),
        volumes=VolumeStack([results[row][0] for row in kept], grid.shape),
        grid=grid,
        hashes=tuple(results[row][1] for row in kept),
    )


def _decode_all(files: list[Path], grid: Grid, cache: Path) -> Iterator[tuple[Path, str] | InputError]:
    """For each file its place in the cache and its hash, or why it was refused; in the order of `files`.

    Threads, not processes: hashing, inflating, filtering and interpolating all release the interpreter's lock.
    """
    # Every process of a distributed run comes here. Each begins at its own place and finds the others' work done.
    start = len(files) * distributed.rank() // distributed.world_size()
    order = [*range(start, len(files)), *range(start)]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        futures: dict[int, Future] = {row: pool.submit(_cached, files[row], grid, cache) for row in order}
        try:
            bar = {"desc": f"scans ({grid.name})", "unit": "scan", "delay": 1, "disable": not distributed.is_main()}
            for row in tqdm(order, **bar):
                futures[row].exception()
            outcomes = [futures[row].exception() or futures[row].result() for row in range(len(files))]
        finally:
            pool.shutdown(cancel_futures=True)
    for outcome in outcomes:
        if isinstance(outcome, OSError):  # reading was guarded, so this is the cache
            raise InputError(f"{cache}: the cache of decoded scans cannot be written: {outcome.strerror}")
        if isinstance(outcome, BaseException) and not isinstance(outcome, InputError):
            raise outcome
        yield outcome


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


def _write_quarantine(path: Path, frame: pd.DataFrame, bad: list[tuple[int, InputError]]) -> None:
    rows = [(frame["subject"].iloc[row], frame["file"].iloc[row], str(error)) for row, error in bad]
    with atomic_write(path) as temporary:
        pd.DataFrame(rows, columns=["subject", "file", "reason"]).to_csv(temporary, index=False)
