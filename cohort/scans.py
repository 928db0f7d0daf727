"""Scans: from a file to a checked, resampled, normalised array. `load_scan` is the only way there.

Axes of every array: (D, H, W) = (left-right, back-front, foot-head), the first voxel at the left, back, bottom (RAS).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage

from cohort.decoding import RefusedError, naming, read_voxels
from cohort.grids import Grid
from cohort.reading.headers import HEAD_MM
from cohort.reading.intensities import plain
from runtime.errors import InputError

MIN_OVERLAP = 0.01
"""Least share of a grid that a scan must cover to be registered. Less is nothing of the brain."""
LEAST_COVERED = 0.5
"""Least share of the grid that a prepared scan must cover. The tightest box around a brain covers 0.7; one without an
affine, whose corner lies at 0, 0.16 at most."""
MAX_COARSENESS = 1.5
"""Largest edge of a scan's voxels, in units of the grid's spacing: what a coarser one lacks, no resampling brings."""
DARKEST = 2**-8
"""Smallest intensity of a normalised scan that is not background; the smallest grey value of 8 bits, about."""
WAY_ON = (
    "cohort.prepare (without --assume-mni) registers it; if it is in template space and its header is wrong, where its "
    "axes point is said by cohort.prepare --assume-mni --reset-affine RAS (or LAS, ...)"
)
"""What to do with a scan that lies elsewhere."""
PIPELINE = 4
"""Version of what `load_scan` computes. Raise it with any change of its output: cached scans are then made anew."""


def load_scan(path: Path | str, grid: Grid) -> np.ndarray:
    """Reads one scan onto a grid: checked, turned to RAS, resampled unless it is there, normalised; InputError if bad.

    Warns where its air was not 0 (`cohort.reading.intensities.plain`).

    Args:
        path: ``.nii``, ``.nii.gz``, ``.mgz``, one of a pair ``.hdr`` and ``.img``, or a volume pickle (``.pkl``). The
            sform counts when its code is above 0 and it is invertible, else the qform. A pickle without an affine must
            have the grid's shape and is taken to be on it.
        grid: where the voxels are wanted.

    Returns:
        float32 (D, H, W) in [0, 1].
    """
    decoded = decode_scan(path, grid)
    for note in decoded.notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    return decoded.scan


class Decoded(NamedTuple):
    """A scan on a grid, and what was found on the way."""

    scan: np.ndarray
    """float32 (D, H, W) in [0, 1]."""
    notes: list[str]
    """What was odd about the intensities (`cohort.reading.intensities.plain`)."""
    moved: bool
    """Whether it was resampled: that it lies on the grid is then only what its affine says."""


def decode_scan(path: Path | str, grid: Grid) -> Decoded:
    """`load_scan`, with what it warns of instead of the warnings."""
    with naming(path):
        image, affine, _ = read_voxels(Path(path))
        image, notes = plain(image)
        image, affine = to_ras(image, affine_on(grid, image, affine))
        moved = image.shape != grid.shape or not np.allclose(affine, grid.affine, rtol=0, atol=1e-3)
        if moved:
            refuse_no_head(image.shape, affine)
            image = onto_grid(image, affine, grid.affine, grid, least=LEAST_COVERED)
        scan = np.ascontiguousarray(normalise(image))
        if scan.min() == scan.max():
            raise RefusedError("constant within the grid")
    return Decoded(scan, notes, moved)


def affine_on(grid: Grid, image: np.ndarray, affine: np.ndarray | None) -> np.ndarray:
    """The affine of a scan; the grid's for one that has none and is of its shape."""
    if affine is None and image.shape != grid.shape:
        raise RefusedError(f"no affine, and its shape {image.shape} is not that of {grid.name}, {grid.shape}")
    return grid.affine if affine is None else affine


def refuse_no_head(shape: tuple[int, ...], affine: np.ndarray) -> None:
    """RefusedError for a field of view that is no head's by its size."""
    low, high = box_mm(shape, affine)
    if not HEAD_MM[0] <= (high - low).max() <= HEAD_MM[1]:
        way = "or say what they are: cohort.prepare --reset-affine RAS --reset-spacing-mm 1"
        raise RefusedError(f"{extent_text(shape, affine)}: no head; are its voxel sizes in mm? Correct them, {way}")


def onto_grid(
    image: np.ndarray, affine: np.ndarray, target: np.ndarray, grid: Grid, *, least: float = MIN_OVERLAP
) -> np.ndarray:
    """`resample` to the shape of a grid; RefusedError for a scan that covers less than `least` or is much coarser.

    `target` is the grid's affine, or another that leads its voxels to where the scan lies.
    """
    coarsest = float(edges_mm(affine).max())
    if coarsest > MAX_COARSENESS * grid.spacing_mm:
        allowed = f"at most {MAX_COARSENESS:g} times the {grid.spacing_mm:g} mm of the grid {grid.name}"
        raise RefusedError(f"voxels of {coarsest:.3g} mm are too coarse: expected {allowed}; choose a coarser grid")
    moved, covered = resample(image, affine, target, grid.shape)
    if covered < least:
        where = f"{extent_text(image.shape, affine)} and covers {covered:.1%} of the grid"
        raise RefusedError(f"it does not lie on the grid {grid.name}: {where}; {WAY_ON}")
    return moved


# Geometry: to RAS, and onto another grid of voxels in world millimetres.


def edges_mm(affine: np.ndarray) -> np.ndarray:
    """Edges of a voxel along the three axes of the array, in mm."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def to_ras(image: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reorders and flips the axes to the nearest of (left-right, back-front, foot-head); no voxel changes its value."""
    turn = nib.orientations.io_orientation(affine)
    turned = nib.orientations.apply_orientation(image, turn)
    return turned, affine @ nib.orientations.inv_ornt_aff(turn, image.shape)


def resample(
    image: np.ndarray, affine: np.ndarray, target: np.ndarray, shape: tuple[int, int, int]
) -> tuple[np.ndarray, float]:
    """Resamples an image and its affine to the grid with the affine `target` and `shape`, linearly in world mm.

    Low-passed where the image is finer.

    Returns:
        float32 (D, H, W), 0 outside the image's field of view; and the share of the grid inside it.
    """
    # Rounded to a ten-thousandth of a voxel: headers store float32, so that the same place written from the left (RAS)
    # and from the right (LAS) differs in the last digits, and both must give one result.
    full = np.linalg.inv(affine) @ target
    steps, offset = np.round(full[:3, :3], 9), np.round(full[:3, 3], 4)
    sigma = np.round(antialias_sigma(edges_mm(target).min(), edges_mm(affine)), 4)
    smooth = ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3.0, output=np.float32)
    inside = _field_of_view(image.shape, steps, offset, shape)
    moved = ndimage.affine_transform(smooth, steps, offset, shape, order=1, mode="nearest", output=np.float32)
    moved[~inside] = 0
    return moved, float(inside.mean())


def box_mm(shape: tuple[int, ...], affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest world coordinates, (3,) each, of an image's field of view."""
    corners = np.array(np.meshgrid(*[(-0.5, size - 0.5) for size in shape], indexing="ij")).reshape(3, -1)
    world = affine[:3, :3] @ corners + affine[:3, 3:]
    return world.min(axis=1), world.max(axis=1)


def extent_text(shape: tuple[int, ...], affine: np.ndarray) -> str:
    """Where an image's field of view reaches, in whole mm, for a message."""
    low, high = (np.round(end).astype(int).tolist() for end in box_mm(shape, affine))
    return f"it reaches from {low} to {high} mm"


def _field_of_view(
    size: tuple[int, ...], steps: np.ndarray, offset: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray:
    """bool (D, H, W): grid points that lie in a voxel of the image, which reaches half a voxel beyond its centre."""
    i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    inside = np.ones(shape, dtype=bool)
    for axis in range(3):
        place = steps[axis, 0] * i + steps[axis, 1] * j + steps[axis, 2] * k + offset[axis]
        # The tolerance keeps points on the very border inside, whatever the last digit of the header.
        inside &= (place > -0.501) & (place < size[axis] - 0.499)
    return inside


def antialias_sigma(spacing_mm: float, source_mm: np.ndarray) -> np.ndarray:
    """Gaussian low-pass, in source voxels per axis, before sampling every `spacing_mm` millimetres.

    A voxel counts as a Gaussian whose full width at half maximum is its edge; the blur turns the source's into the
    grid's (Cardoso et al. 2015, "Scale factor point spread function matching"). It vanishes as the edges become equal.
    """
    fwhm = np.sqrt(np.maximum(spacing_mm**2 - np.asarray(source_mm) ** 2, 0))
    return fwhm / (2 * np.sqrt(2 * np.log(2))) / source_mm


# Intensities.


def normalise(volume: np.ndarray) -> np.ndarray:
    """Scales a volume to [0, 1] by the 0.5 and 99.5 percentiles of its non-zero voxels, clipping beyond them; float32.

    Voxels that are exactly 0 stay 0: they are the background. All others stay apart from it, at DARKEST or above. What
    was normalised before is left as it is, so that a scan and a synthetic volume, which a decoder writes in normalised
    intensities, are alike however often they are read. Where the two percentiles are equal (a mask), what lies at or
    above them becomes 1.
    """
    volume = np.asarray(volume, dtype=np.float32)
    if not np.isfinite(volume).all():
        raise InputError("a volume with non-finite voxels cannot be normalised")
    inside = volume != 0
    if not inside.any():
        return np.zeros_like(volume)
    # Values that occur, not between two: what is clipped to them then has them for percentiles again.
    low = np.float32(np.percentile(volume[inside], 0.5, method="lower"))
    high = np.float32(np.percentile(volume[inside], 99.5, method="higher"))
    if high == low:
        scaled = volume >= high
    elif (low, high) == (DARKEST, 1.0):
        scaled = volume
    else:
        scaled = DARKEST + (1 - DARKEST) * ((volume - low) / (high - low))
    return np.where(inside, np.clip(scaled, DARKEST, 1), 0).astype(np.float32)


def head_mask(volume: np.ndarray) -> np.ndarray:
    """The voxels inside the head (or the brain, where the skull was stripped) of a normalised volume (D, H, W); bool.

    Half of Otsu's threshold, kept within 0.05 and 0.1: above the noise of air and what a decoder leaves there, below
    cerebrospinal fluid. Of what exceeds it the largest connected part; then what that encloses (ventricles, sinuses).
    """
    return fill_holes(largest_part(volume > np.clip(_otsu(volume) / 2, 0.05, 0.1)))


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask."""
    parts, count = ndimage.label(mask)
    return mask if count < 2 else parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """A mask (D, H, W) and what it encloses; `scipy.ndimage.binary_fill_holes` is the same, and far slower."""
    # Holes are what is not joined to the border; one padded layer joins all the outside into the part with number 1.
    outside, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
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
