"""Near-duplicates: scans of different people that are one image, also mirrored, re-sampled, scaled or with noise.

Each scan is compared with every other one at 8 mm, and what stands out there once more at 4 mm. What "stands out" means
is taken from the cohort itself, because distinct scans resemble each other more where they were registered, smoothed or
simulated. Found are copies of one acquisition, and often repeated scans of one person. Not found are copies that were
turned by more than about 2 degrees (prepared scans no longer are), or blurred until little of the person is left. Exact
copies are found by their voxels besides, however their headers were changed (`cohort.checking.faults`).

What is compared are thumbnails: scans at 4 mm about the middle of the head. The frame is the head's own and not the
world's: prepared scans lie in MNI space, raw ones anywhere, and a copy whose header lost its origin should still meet
its original. Turning the head is not undone.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from cohort.scans import edges_mm, head_mask, normalise, resample, to_ras
from runtime import distributed
from runtime.seeding import rng

VERSION, THUMBNAIL_VERSION = 3, 1
"""Of what `find_pairs` and `thumbnail` compute. Raise them with any change: what was cached is then made anew."""

SHAPE = (40, 48, 40)
"""Voxels (D, H, W) of a thumbnail: 160 x 192 x 160 mm, a brain with some of the head around it."""
SPACING_MM = 4.0

COARSE_SHAPE = tuple(size // 2 for size in SHAPE)
COARSE_FLOOR, FINE_FLOOR = 0.55, 0.90
"""Least correlation of a duplicate. Small cohorts, which cannot be calibrated on, are judged by it alone."""
COARSE_CEILING, FINE_CEILING = 0.80, 0.95
"""A correlation above it is a duplicate whatever the cohort looks like. With several scanners in one, the deviation is
that between scanners, and would ask for more than a copy of another resolution has: 0.94 and 0.99 on prepared brains,
of which distinct ones reach 0.3 and 0.89 (demo scans 0.44 and 0.93)."""
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


class Pair(NamedTuple):
    """Two scans that are one image."""

    first: int
    second: int
    """Rows of the scans, the smaller one first."""
    correlation: float | None
    """At 4 mm, in [-1, 1]; None where the images are known to be equal and were not compared."""
    mirrored: bool
    """Whether one is the other with left and right exchanged."""

    @property
    def likeness(self) -> str:
        if self.correlation is None:
            return "the same image"
        return f"correlation {self.correlation:.3f}{', left and right exchanged' if self.mirrored else ''}"


class Search(NamedTuple):
    """The outcome of a search: pairs, and the correlations at 8 mm and at 4 mm that had to be exceeded."""

    pairs: tuple[Pair, ...]
    coarse_threshold: float
    fine_threshold: float


def thumbnail(image: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The thumbnail of a scan (float32, finite, axes in any order) and its affine to mm (RAS).

    Returns:
        uint8 SHAPE, axes (left-right, back-front, foot-head): intensities between the scan's own percentiles
        (`cohort.scans.normalise`), 255 the brightest. Its middle is the centre of mass of the head's mask.
    """
    image, affine = block_means(*to_ras(image, affine))
    mask = head_mask(normalise(image))
    middle = ndimage.center_of_mass(mask) if mask.any() else (np.array(image.shape) - 1) / 2
    target = np.diag([SPACING_MM] * 3 + [1.0])
    target[:3, 3] = (affine @ [*middle, 1])[:3] - SPACING_MM * (np.array(SHAPE) - 1) / 2
    small, _ = resample(image, affine, target, SHAPE)
    return np.round(255 * normalise(small)).astype(np.uint8)


def block_means(image: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over blocks of whole voxels whose edges stay within half the spacing: all later steps are then cheap."""
    sizes = np.maximum(1, np.floor(SPACING_MM / 2 / edges_mm(affine) + 1e-3).astype(int))
    sizes = np.minimum(sizes, image.shape)
    counts = np.array(image.shape) // sizes
    whole = image[tuple(slice(0, count * size) for count, size in zip(counts, sizes, strict=True))]
    blocks = whole.reshape(counts[0], sizes[0], counts[1], sizes[1], counts[2], sizes[2])
    step = np.diag([*sizes.astype(float), 1.0])
    step[:3, 3] = (sizes - 1) / 2
    return np.ascontiguousarray(blocks.mean(axis=(1, 3, 5), dtype=np.float32)), affine @ step


def find_pairs(thumbnail_of: Callable[[int], np.ndarray], groups: Sequence[str]) -> Search:
    """Finds near-duplicates among scans of different groups.

    A feature is the thumbnail less its own blur (which takes away bias fields and contrast), standardised. At 8 mm, the
    mean of the cohort and of its mirror image is subtracted too, so that the anatomy which all share does not count.
    Per scan the best NEIGHBOURS partners, the mirrored included, are kept. A pair is called where it is above a
    threshold (`calibrated`) at 8 mm and at 4 mm.

    Time grows with the square of the number of scans, in matrix products; memory is that of two blocks, the features
    themselves (38 KB a scan) lie in a temporary file. `thumbnail_of` is called several times for each row; rows of one
    group are expected to be alike and are not compared.
    """
    count = len(groups)
    if count < 2:
        return Search((), COARSE_FLOOR, FINE_FLOOR)
    codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    with tempfile.TemporaryDirectory(prefix="duplicates-") as folder:
        best = _nearest(_features(Path(folder) / "features.f32", thumbnail_of, count), codes)
    return _confirm(thumbnail_of, best)


def _features(path: Path, thumbnail_of: Callable[[int], np.ndarray], count: int) -> np.ndarray:
    """Features at 8 mm less their mean, standardised: float32 (count, voxels), mapped from a file to cost no memory."""
    total = np.zeros(np.prod(COARSE_SHAPE))
    with path.open("wb") as file:  # written and not mapped yet, so that a full disk is an error and no crash
        for row in tqdm(range(count), desc="comparing: features", unit="scan", **_bar()):
            feature = coarse_feature(thumbnail_of(row))
            total += feature
            file.write(feature.tobytes())
    features = np.memmap(path, np.float32, "r+", shape=(count, total.size))
    mean = ((total + _flip(total[None])[0]) / (2 * count)).astype(np.float32)
    for rows in _blocks(count):
        features[rows] = _unit(features[rows] - mean)
    return features


def _blocks(count: int) -> list[slice]:
    return [slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]


def _bar() -> dict[str, object]:
    """Options of all progress bars of a check."""
    return {"delay": 1, "disable": not distributed.is_main()}


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


class _Best(NamedTuple):
    """The best partners of every scan, best first: correlations (-2 for none), rows, mirrored; (count, NEIGHBOURS)."""

    scores: np.ndarray
    partners: np.ndarray
    mirrored: np.ndarray

    def update(self, rows: slice, columns: slice, scores: np.ndarray, mirrored: np.ndarray) -> None:
        """Merges the correlations of one block of scans with another one."""
        keep = min(NEIGHBOURS, scores.shape[1])
        chosen = np.argpartition(-scores, keep - 1, axis=1)[:, :keep]
        found = np.take_along_axis(scores, chosen, 1), chosen + columns.start, np.take_along_axis(mirrored, chosen, 1)
        merged = [np.concatenate([kept[rows], new], axis=1) for kept, new in zip(self, found, strict=True)]
        order = np.argsort(-merged[0], axis=1, kind="stable")[:, :NEIGHBOURS]
        for kept, values in zip(self, merged, strict=True):
            kept[rows] = np.take_along_axis(values, order, axis=1)


def _nearest(features: np.ndarray, codes: np.ndarray) -> _Best:
    shape = (len(features), NEIGHBOURS)
    best = _Best(np.full(shape, -2.0, np.float32), np.full(shape, -1), np.zeros(shape, bool))
    blocks = _blocks(len(features))
    for place, rows in enumerate(tqdm(blocks, desc="comparing: pairs", unit="block", **_bar())):
        left = np.array(features[rows])
        turned = _flip(left)
        for columns in blocks[place:]:
            right = left if columns == rows else np.array(features[columns])
            plain, flipped = left @ right.T, turned @ right.T
            scores = np.maximum(plain, flipped)
            scores[codes[rows, None] == codes[None, columns]] = -2.0
            best.update(rows, columns, scores, flipped > plain)
            if columns != rows:
                best.update(columns, rows, scores.T, (flipped > plain).T)
    return best


def _confirm(thumbnail_of: Callable[[int], np.ndarray], best: _Best) -> Search:
    """Thresholds, and the pairs that exceed the one at 8 mm and then the one at 4 mm."""

    def fine(row: int, place: int) -> float:
        first, second = (thumbnail_of(i) for i in (row, int(best.partners[row, place])))
        second = second[::-1] if best.mirrored[row, place] else second
        return float(fine_feature(first) @ fine_feature(second))

    usable = np.flatnonzero(best.scores[:, _CALIBRATED] > -1.5)
    coarse = calibrated(best.scores[usable, _CALIBRATED], COARSE_FLOOR, COARSE_CEILING)
    candidates = {}
    for row, place in np.argwhere(best.scores > coarse).tolist():
        candidates.setdefault(tuple(sorted((row, int(best.partners[row, place])))), (row, place))
    if not candidates:
        return Search((), coarse, FINE_FLOOR)
    sample = rng(0, "duplicates").permutation(usable)[:_CALIBRATION_SCANS]
    threshold = calibrated(np.array([fine(row, _CALIBRATED) for row in sample.tolist()]), FINE_FLOOR, FINE_CEILING)
    found = [
        Pair(*ends, correlation, bool(best.mirrored[at]))
        for ends, at in sorted(candidates.items())
        if (correlation := fine(*at)) > threshold
    ]
    return Search(tuple(found), coarse, threshold)


def calibrated(third: np.ndarray, floor: float, ceiling: float) -> float:
    """The threshold of a cohort: the median of `third` plus DEVIATIONS robust standard deviations, in Fisher's z.

    `third` are the correlations of scans with their third-best partners; with fewer than MIN_CALIBRATION it is `floor`.
    """
    if len(third) < MIN_CALIBRATION:
        return floor
    z = np.arctanh(np.clip(third, -0.9999, 0.9999))
    spread = 1.4826 * np.median(np.abs(z - np.median(z)))
    return float(np.clip(np.tanh(np.median(z) + DEVIATIONS * spread), floor, ceiling))
