"""One scan, from its file to the grid: the steps of `cohort.prepare`, in memory.

There are two ways to lay a scan on the template. By the brain: a network finds it, and what is around it is gone before
anything is registered. By the head: the whole head is registered, and the template's brain carried back. The second is
tried where the first has no result that meets the fixed limits of `cohort.preparation.quality`.

A matrix maps template millimetres to millimetres of the scan. Output voxels are read from the raw scan once, through
the matrix; the bias field and the brain, both smooth, are brought to the same grid and applied there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813, its documentation's own short name
from scipy import ndimage

from cohort.decoding import RefusedError, naming, read_voxels
from cohort.grids import Grid
from cohort.preparation import brain as brain_extraction
from cohort.preparation import registration
from cohort.preparation.brain_network import network_brain
from cohort.preparation.quality import beyond_limits, measure
from cohort.preparation.registration import Working
from cohort.reading import intensities
from cohort.reading.headers import Placement
from cohort.reading.place import place_of, refuse_misplaced
from cohort.scans import (  # fmt: skip
    LEAST_COVERED,
    MIN_OVERLAP,
    affine_on,
    box_mm,
    edges_mm,
    head_mask,
    onto_grid,
    refuse_no_head,
    resample,
    to_ras,
)

PREPARATION = 3
"""Version of what `prepare` computes. Raise it with any change: prepared scans are then made anew."""
WORKING_MM = 2.0
"""Voxel of the copy of a scan that registration and bias correction work on."""
SMALLEST_BRAIN_ML = 300.0
"""Below, what was found is no brain of a child or an adult."""

CORE_MM = 6.0
"""How far within the brain's edge its floor is looked for: the mask's error and partial volumes lie outside."""
BIAS_MM = 6.0
"""Voxel size at which the bias field is fitted; the field varies over centimetres."""
BIAS_ITERATIONS = (50, 40, 30)
"""Most iterations of N4 at each of its levels, the lattice of control points being doubled from level to level."""
BIAS_LATTICE = 4
BIAS_CONVERGENCE = 5e-4
SCALE = 1000.0
"""What the 99.5th percentile inside the brain becomes."""


@dataclass(frozen=True)
class Scan:
    """A file's voxels, float32 in RAS order, and their affine to mm."""

    image: np.ndarray
    affine: np.ndarray

    def onto(self, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """Resampled, 0 beyond the field of view."""
        return resample(self.image, self.affine, affine, shape)[0]

    def field_of_view(self) -> Scan:
        """Ones everywhere in the same box, in eight voxels."""
        half = np.array(self.image.shape) / 2
        widen = np.diag([*half, 1.0])
        widen[:3, 3] = (half - 1) / 2
        return Scan(np.ones((2, 2, 2), np.float32), self.affine @ widen)


@dataclass(frozen=True)
class Space:
    """Where a scan lies, and what was found on the way; None for what was not looked for."""

    matrix: np.ndarray
    brain: Scan
    warp: np.ndarray | None = None
    """Displacement of the demons."""
    bias: Scan | None = None


@dataclass(frozen=True)
class Prepared:
    """A scan on the grid and what was measured on the way."""

    image: np.ndarray
    """float32 (D, H, W): the output."""
    whole: np.ndarray
    """float32 (D, H, W): the same before the skull was stripped, for the picture."""
    brain: np.ndarray
    """bool (D, H, W)."""
    matrix: np.ndarray
    measures: dict[str, float | None]
    notes: tuple[str, ...] = ()
    """What was odd about the intensities, and what was done (`cohort.reading.intensities.plain`)."""


def prepare(
    path: Path | str, grid: Grid, mask: Path | str | None = None, *, assume_mni: bool = False,
    placement: Placement | None = None,
) -> Prepared:  # fmt: skip
    """Prepares one scan: bias field, registration, brain, intensities; InputError if it cannot be.

    Args:
        path: a scan (`cohort.decoding.ENDINGS`).
        grid: where the output is wanted.
        mask: a brain mask in the scan's space (any grid, above 0 inside), used instead of the one that would be found.
        assume_mni: the scan is prepared and in the template's space already: only check, resample and measure it.
        placement: where the voxels of scan and mask lie, instead of what their headers say.
    """
    scan, notes = read_scan(path, grid, placement)
    given = None
    if mask:
        image, affine = to_ras(*_read(mask, grid, placement))
        given = Scan((image > 0).astype(np.float32), affine)
    with naming(path):
        if assume_mni:
            space = Space(np.eye(4), given or _template_brain(np.eye(4), None))
            prepared = _prepared(scan, grid, space, masked=given is not None)
        else:
            working = working_copy(scan)
            ways = [
                lambda way=way: _prepared(scan, grid, way(working, given), masked=given is not None)
                for way in (by_brain, by_head)
            ]
            prepared = first_within_limits(ways)
    return replace(prepared, notes=tuple(notes))


def first_within_limits(ways: Sequence[Callable[[], Prepared]]) -> Prepared:
    """What the first way makes that meets every fixed limit; else the best of all, by limits and then by correlation.

    Raises:
        RefusedError: of the last way, where every way raises one.
    """
    made: list[tuple[int, float, Prepared]] = []
    refusal = None
    for way in ways:
        try:
            prepared = way()
        except RefusedError as error:
            refusal = error
            continue
        if not (reasons := beyond_limits(prepared.measures)):
            return prepared
        made.append((-len(reasons), prepared.measures["template_correlation"] or -1.0, prepared))
    if not made:
        raise refusal
    return max(made, key=lambda one: one[:2])[2]


def read_scan(path: Path | str, grid: Grid, placement: Placement | None = None) -> tuple[Scan, list[str]]:
    """A scan with air at 0 and without what it was padded with; and what was odd about its intensities."""
    image, affine = _read(path, grid, placement)
    box = intensities.field_of_view(image)
    plain, notes = intensities.plain(image[box])
    shift = np.eye(4)
    shift[:3, 3] = [part.start for part in box]
    return Scan(*to_ras(plain, affine @ shift)), notes


def _read(path: Path | str, grid: Grid, placement: Placement | None) -> tuple[np.ndarray, np.ndarray]:
    """Voxels as stored, and their affine."""
    with naming(path):
        image, affine, _ = read_voxels(Path(path), placement)
        affine = affine_on(grid, image, affine)
        refuse_no_head(image.shape, affine)
    return image, affine


def _prepared(scan: Scan, grid: Grid, space: Space, *, masked: bool) -> Prepared:
    """The scan on the grid and its measures; stripped and rescaled where it has a bias field, else taken as it is."""
    onto = space.matrix @ grid.affine
    as_it_is = space.bias is None
    whole = onto_grid(scan.image, scan.affine, onto, grid, least=LEAST_COVERED if as_it_is else MIN_OVERLAP)
    if as_it_is:
        refuse_misplaced(place_of(whole, onto))
    else:
        there = space.bias.onto(onto, grid.shape)
        whole = np.where(there > 0, whole / np.maximum(there, 1e-3), 0).astype(np.float32)
    brain = space.brain.onto(onto, grid.shape) > 0.5
    if as_it_is and not masked:
        brain &= whole != 0
    seen = scan.field_of_view().onto(onto, grid.shape) > 0.5
    inside = brain & seen
    if not inside.any() or np.ptp(whole[inside]) == 0:
        raise RefusedError("nothing of the brain is left on the grid (an empty mask, or one of another scan)")
    if not as_it_is:
        whole = rescale(whole, inside)
    image = whole if as_it_is else np.where(inside, whole, 0).astype(np.float32)
    low, high = brain_extraction.jacobian_range(space.warp) if space.warp is not None else (None, None)
    measures = measure(whole, brain, seen, grid) | {
        "brain_ml": float(brain.sum() * abs(np.linalg.det(onto[:3, :3])) / 1000),
        "brain_at_floor": at_floor(scan, space.brain, air=not as_it_is),
        "affine_jacobian": None if as_it_is else float(np.linalg.det(space.matrix[:3, :3])),
        "warp_jacobian_min": low,
        "warp_jacobian_max": high,
    }
    return Prepared(image, whole, brain, space.matrix, measures)


def working_copy(scan: Scan) -> Working:
    """A copy of the scan with its axes along the world's, as fine as registration needs it."""
    low, high = box_mm(scan.image.shape, scan.affine)
    shape = tuple(int(size) for size in np.maximum(np.ceil((high - low) / WORKING_MM), 8))
    affine = np.diag([WORKING_MM] * 3 + [1.0])
    affine[:3, 3] = low + WORKING_MM / 2
    # A few negative voxels are what some filters leave of zero; mutual information, N4 and thresholds want none.
    image = np.maximum(scan.onto(affine, shape), 0)
    if not image.any():
        raise RefusedError("no voxel is brighter than its air")
    image /= np.float32(np.percentile(image[image > 0], 99.5))
    return Working(image, affine, scan.field_of_view().onto(affine, shape) > 0.5)


def by_brain(working: Working, given: Scan | None) -> Space:
    """Lays a brain on the template's: the one given, or else the network's. Bias field and affine see nothing else."""
    brain = given or Scan(network_brain(working), working.affine)
    inside = _inside(brain, working)
    field = bias_field(working.image, inside, WORKING_MM)
    share = np.clip(brain.onto(working.affine, working.image.shape), 0, 1)
    matrix = registration.register_affine(_corrected(working, field, share))
    return Space(matrix, brain, None, Scan(field, working.affine))


def by_head(working: Working, given: Scan | None) -> Space:
    """Lays a whole head on the template; the brain is the one given, or what the demons make of the template's.

    The first bias field is fitted to all that is brighter than air. Inside the brain it is fitted again, now without
    scalp and marrow, whose intensities say little about it; what that changes refines the affine.
    """
    tissue = head_mask(np.clip(working.image, 0, 1)) & (working.image > 0.05)
    field = bias_field(working.image, tissue, WORKING_MM)
    plain = _corrected(working, field)
    matrix = registration.register_affine(plain)
    warp = brain_extraction.register_warp(plain, matrix) if given is None else None
    brain = given or _template_brain(matrix, warp)
    field = field * bias_field(plain.image, _inside(brain, working), WORKING_MM)
    matrix = registration.refine_affine(_corrected(working, field), matrix)
    return Space(matrix, brain, warp, Scan(field, working.affine))


def _corrected(working: Working, field: np.ndarray, share: np.ndarray | float = 1.0) -> Working:
    """The scan without a bias field, and of every voxel the share that counts."""
    return replace(working, image=(working.image / field * share).astype(np.float32))


def _inside(brain: Scan, working: Working) -> np.ndarray:
    """The voxels of a brain; RefusedError for one that is too small."""
    inside = brain.onto(working.affine, working.image.shape) > 0.5
    if inside.sum() * WORKING_MM**3 / 1000 < SMALLEST_BRAIN_ML:
        raise RefusedError(f"the brain found has less than {SMALLEST_BRAIN_ML:g} ml: a part of a head, or not in mm")
    return inside


def _template_brain(matrix: np.ndarray, warp: np.ndarray | None) -> Scan:
    """The template's brain where the scan lies."""
    grid = registration.target(WORKING_MM).grid
    return Scan(brain_extraction.brain_in(grid, warp).astype(np.float32), matrix @ grid.affine)


# Intensities.


def bias_field(image: np.ndarray, mask: np.ndarray, spacing_mm: float) -> np.ndarray:
    """The multiplicative field of an image (D, H, W), by N4 (Tustison et al. 2010, IEEE TMI 29:1310).

    Fitted to the tissue in `mask` (bool), where the image is above 0; float32, positive, with geometric mean 1 there.
    """
    step = max(1, round(BIAS_MM / spacing_mm))
    positive = mask & (image > 0)
    small = _means(np.where(positive, image, 0), step)
    filled = _means(positive.astype(np.float32), step)
    inside = filled > 0.5
    if inside.sum() < BIAS_LATTICE**3:
        return np.ones(image.shape, np.float32)
    values = np.where(inside, small / np.maximum(filled, 1e-6), 0).astype(np.float32)
    filter_ = sitk.N4BiasFieldCorrectionImageFilter()
    filter_.SetMaximumNumberOfIterations(BIAS_ITERATIONS)
    filter_.SetConvergenceThreshold(BIAS_CONVERGENCE)
    filter_.SetNumberOfControlPoints([BIAS_LATTICE] * 3)
    coarse = sitk.GetImageFromArray(values)
    filter_.Execute(coarse, sitk.GetImageFromArray(inside.astype(np.uint8)))
    log_small = sitk.GetArrayFromImage(filter_.GetLogBiasFieldAsImage(coarse))
    # The centre of a small voxel lies (step - 1) / 2 voxels beyond that of its first.
    offset = -(step - 1) / 2 / step
    log_field = ndimage.affine_transform(
        log_small, np.full(3, 1 / step), offset, image.shape, order=1, mode="nearest", output=np.float32
    )
    return np.exp(log_field - log_field[positive].mean())


def rescale(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Scales a volume so that the 99.5th percentile inside the brain is SCALE, and rounds it to whole numbers, float32.

    The brightest half per cent are vessels and what is left of fat; nothing is clipped. Inside the brain no voxel
    falls below 1, so that 0 remains the mark of the background.
    """
    high = float(np.percentile(image[brain], 99.5))
    scaled = np.rint(image * (SCALE / high)) if high > 0 else np.zeros_like(image)
    return np.where(brain, np.maximum(scaled, 1), scaled).astype(np.float32)


def at_floor(scan: Scan, brain: Scan, *, air: bool) -> float | None:
    """Share of a brain, CORE_MM within its edge, that has one value of its darkest quarter: tissue was cut off there.

    Of the scan as it was read, since resampling blurs a floor, in voxels of about WORKING_MM. `air`: whether voxels
    of 0 count, as in a head's brain; in a grey-matter map they are other tissue. None without a brain.
    """
    erosions = max(1, round(CORE_MM / edges_mm(brain.affine).min()))
    core = replace(brain, image=ndimage.binary_erosion(brain.image > 0.5, iterations=erosions).astype(np.float32))
    step = max(1, int(WORKING_MM / edges_mm(scan.affine).max()))
    thin = scan.image[::step, ::step, ::step]
    values = thin[core.onto(scan.affine @ np.diag([step, step, step, 1.0]), thin.shape) > 0.5]
    values = values if air else values[values != 0]
    if not values.size:
        return None
    darkest = values[values <= np.percentile(values, 25)]
    return float(np.unique(darkest, return_counts=True)[1].max() / values.size)


def _means(image: np.ndarray, step: int) -> np.ndarray:
    """Means of blocks of `step` voxels along each axis; the last block repeats the border."""
    padded = np.pad(image, [(0, -size % step) for size in image.shape], mode="edge")
    d, h, w = (size // step for size in padded.shape)
    return padded.reshape(d, step, h, step, w, step).mean(axis=(1, 3, 5))
