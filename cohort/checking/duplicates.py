"""Near-duplicates: scans of different people that are one image, also mirrored, re-sampled, scaled or with noise.

Each scan is compared with every other one at 8 mm, and what stands out there once more at 4 mm. What "stands out" means
is taken from the cohort itself, because distinct scans resemble each other more where they were registered, smoothed or
simulated. Found are copies of one acquisition, and often repeated scans of one person. Not found are copies that were
turned by more than about 2 degrees (prepared scans no longer are), or blurred until little of the person is left. Exact
copies are found by their voxels besides, however their headers were changed (`cohort.checking.faults`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from cohort.checking.thumbnail import SHAPE
from runtime import distributed
from runtime.seeding import rng

VERSION = 1
"""Of what `find_pairs` computes. Raise it with any change: cached searches are then made anew."""

COARSE_SHAPE = tuple(size // 2 for size in SHAPE)
COARSE_FLOOR, FINE_FLOOR = 0.55, 0.93
"""Least correlation of a duplicate. Small cohorts, which cannot be calibrated on, are judged by it alone."""
COARSE_CEILING, FINE_CEILING = 0.95, 0.985
"""A correlation above it is a duplicate whatever the cohort looks like."""
MIN_CALIBRATION = 30
"""Scans from which on the thresholds follow the cohort."""
DEVIATIONS = 8.0
"""How far above the median of third neighbours a duplicate lies, in robust standard deviations (1.4826 MAD)."""
NEIGHBOURS = 8
"""Partners kept per scan."""
_CALIBRATED = 2
"""Rank (from 0) of the neighbour that a cohort is calibrated by: pairs and triplets of copies do not reach it."""
_CALIBRATION_SCANS = 300
_BLOCK = 1024
"""Scans per block: 40 MB of features, and 4 MB of correlations with another block."""


@dataclass(frozen=True)
class Pair:
    """Two scans that are one image."""

    first: int
    second: int
    """Rows of the scans, the smaller one first."""
    correlation: float
    """At 4 mm, in [-1, 1]."""
    mirrored: bool
    """Whether one is the other with left and right exchanged."""


@dataclass(frozen=True)
class Search:
    """The outcome of a search."""

    pairs: tuple[Pair, ...]
    coarse_threshold: float
    fine_threshold: float


def find_pairs(thumbnail_of: Callable[[int], np.ndarray], groups: Sequence[str]) -> Search:
    """Finds near-duplicates among scans of different groups.

    A feature is the thumbnail less its own blur (which takes away bias fields and contrast), standardised. At 8 mm, the
    mean of the cohort and of its mirror image is subtracted too, so that the anatomy which all share does not count.
    Per scan the best NEIGHBOURS partners, the mirrored included, are kept. Thresholds, at 8 mm and at 4 mm: the Fisher
    z of the correlation with the third-best partner, its median over the scans plus DEVIATIONS robust standard
    deviations, kept between floor and ceiling. A pair above both thresholds is called.

    Time grows with the square of the number of scans, in matrix products; memory is that of two blocks, the features
    themselves (38 KB a scan) lie in a temporary file.

    Args:
        thumbnail_of: the thumbnail (`cohort.checking.thumbnail`) of a row, called several times for each.
        groups: per row, whose scan it is; scans of one group are expected to be alike and are not compared.
    """
    count = len(groups)
    if count < 2:
        return Search((), COARSE_FLOOR, FINE_FLOOR)
    codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    with tempfile.TemporaryDirectory(prefix="duplicates-") as folder:
        features = _Features(Path(folder) / "features.f32", count)
        features.write(thumbnail_of)
        scores, partners, mirrored = _nearest(features, codes)
    return _confirm(thumbnail_of, scores, partners, mirrored)


def join(count: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """Joins pairs into sets: int (count,), per row the smallest row of its set, itself where it is in no pair."""
    ends = np.array(list(pairs), dtype=int).reshape(-1, 2)
    edges = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    labels = connected_components(edges, directed=False)[1]
    return np.unique(labels, return_index=True)[1][labels]


class _Features:
    """Standardised features at 8 mm, float32 (count, voxels), in a file: read in blocks, they cost no memory."""

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self.width = int(np.prod(COARSE_SHAPE))

    def blocks(self) -> list[slice]:
        return [slice(start, min(start + _BLOCK, self.count)) for start in range(0, self.count, _BLOCK)]

    def read(self, rows: slice) -> np.ndarray:
        values = np.fromfile(
            self.path, np.float32, (rows.stop - rows.start) * self.width, offset=4 * rows.start * self.width
        )
        return values.reshape(-1, self.width)

    def write(self, thumbnail_of: Callable[[int], np.ndarray]) -> None:
        """Two passes: features and their mean; then the features less the mean."""
        total = np.zeros(self.width)
        with self.path.open("wb") as file:
            bar = {"desc": "comparing: features", "unit": "scan", "delay": 1, "disable": not distributed.is_main()}
            for row in tqdm(range(self.count), **bar):
                feature = coarse_feature(thumbnail_of(row))
                total += feature
                file.write(feature.tobytes())
        mean = ((total + _flip(total[None])[0]) / (2 * self.count)).astype(np.float32)
        with self.path.open("r+b") as file:
            for rows in self.blocks():
                file.seek(4 * rows.start * self.width)
                file.write(_unit(self.read(rows) - mean).tobytes())


def coarse_feature(thumbnail: np.ndarray) -> np.ndarray:
    """The feature at 8 mm, float32 (voxels,): means of 2 x 2 x 2, less their blur (sigma 8 mm), mean 0, length 1."""
    d, h, w = COARSE_SHAPE
    small = thumbnail.reshape(d, 2, h, 2, w, 2).mean(axis=(1, 3, 5), dtype=np.float32)
    detail = small - ndimage.gaussian_filter(small, 1.0)
    return _unit(detail.reshape(1, -1))[0]


def fine_feature(thumbnail: np.ndarray) -> np.ndarray:
    """The feature at 4 mm, float32 (voxels,): between blurs of sigma 2.8 and 8 mm, mean 0, length 1."""
    values = thumbnail.astype(np.float32)
    band = ndimage.gaussian_filter(values, 0.7) - ndimage.gaussian_filter(values, 2.0)
    return _unit(band.reshape(1, -1))[0]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows with mean 0 and length 1; a row without any variation becomes 0."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return (centred / np.where(length > 1e-6, length, np.inf)).astype(np.float32)


def _flip(rows: np.ndarray) -> np.ndarray:
    """Features at 8 mm with left and right exchanged."""
    return np.ascontiguousarray(rows.reshape(-1, *COARSE_SHAPE)[:, ::-1]).reshape(rows.shape)


def _nearest(features: _Features, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best partners of every scan, best first: correlation, row (-1 for none) and whether mirrored, (count, k)."""
    shape = (features.count, NEIGHBOURS)
    best = _Best(np.full(shape, -2.0, np.float32), np.full(shape, -1), np.zeros(shape, bool))
    blocks = features.blocks()
    work = [(one, other) for place, one in enumerate(blocks) for other in blocks[place:]]
    loaded: slice | None = None
    for one, other in tqdm(work, desc="comparing: pairs", unit="block", delay=1, disable=not distributed.is_main()):
        if one != loaded:
            left, loaded = features.read(one), one
            turned = _flip(left)
        right = left if other == one else features.read(other)
        plain, flipped = left @ right.T, turned @ right.T
        scores = np.maximum(plain, flipped)
        scores[codes[one, None] == codes[None, other]] = -2.0
        best.update(one, other, scores, flipped > plain)
        if other != one:
            best.update(other, one, scores.T, (flipped > plain).T)
    return best.scores, best.partners, best.mirrored


@dataclass
class _Best:
    """Running lists of the best partners."""

    scores: np.ndarray
    partners: np.ndarray
    mirrored: np.ndarray

    def update(self, rows: slice, columns: slice, scores: np.ndarray, mirrored: np.ndarray) -> None:
        """Merges the correlations of one block of scans with another one."""
        keep = min(NEIGHBOURS, scores.shape[1])
        chosen = np.argpartition(-scores, keep - 1, axis=1)[:, :keep]
        merged = [
            np.concatenate([self.scores[rows], np.take_along_axis(scores, chosen, axis=1)], axis=1),
            np.concatenate([self.partners[rows], chosen + columns.start], axis=1),
            np.concatenate([self.mirrored[rows], np.take_along_axis(mirrored, chosen, axis=1)], axis=1),
        ]
        order = np.argsort(-merged[0], axis=1, kind="stable")[:, :NEIGHBOURS]
        for kept, values in zip((self.scores, self.partners, self.mirrored), merged, strict=True):
            kept[rows] = np.take_along_axis(values, order, axis=1)


def _confirm(
    thumbnail_of: Callable[[int], np.ndarray], scores: np.ndarray, partners: np.ndarray, mirrored: np.ndarray
) -> Search:
    """Thresholds, and the pairs that exceed the one at 8 mm and then the one at 4 mm."""

    def fine(row: int, place: int) -> float:
        first, second = (thumbnail_of(i) for i in (row, int(partners[row, place])))
        second = second[::-1] if mirrored[row, place] else second
        return float(fine_feature(first) @ fine_feature(second))

    usable = np.flatnonzero(scores[:, _CALIBRATED] > -1.5)
    coarse = calibrated(scores[usable, _CALIBRATED], COARSE_FLOOR, COARSE_CEILING)
    candidates = {}
    for row, place in np.argwhere(scores > coarse):
        ends = tuple(sorted((int(row), int(partners[row, place]))))
        candidates.setdefault(ends, (int(row), int(place)))
    if not candidates:
        return Search((), coarse, FINE_FLOOR)
    sample = rng(0, "duplicates").permutation(usable)[:_CALIBRATION_SCANS]
    third = np.array([fine(int(row), _CALIBRATED) for row in sample])
    threshold = calibrated(third, FINE_FLOOR, FINE_CEILING)
    found = [
        Pair(*ends, correlation, bool(mirrored[at]))
        for ends, at in sorted(candidates.items())
        if (correlation := fine(*at)) > threshold
    ]
    return Search(tuple(found), coarse, threshold)


def calibrated(third: np.ndarray, floor: float, ceiling: float) -> float:
    """The threshold of a cohort.

    Args:
        third: per scan, the correlation with its third-best partner.
        floor: the least threshold; also the one where fewer than MIN_CALIBRATION scans have a third partner.
        ceiling: the largest threshold.
    """
    if len(third) < MIN_CALIBRATION:
        return floor
    z = np.arctanh(np.clip(third, -0.9999, 0.9999))
    spread = 1.4826 * np.median(np.abs(z - np.median(z)))
    return float(np.clip(np.tanh(np.median(z) + DEVIATIONS * spread), floor, ceiling))
