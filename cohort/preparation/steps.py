"""One scan, from its file to the grid: the steps of `cohort.prepare`, in memory.

A matrix maps template millimetres to millimetres of the scan. Output voxels are read from the raw scan once, through
the matrix; the bias field and the brain, both smooth, are brought to the same grid and applied there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cohort.decoding import RefusedError, read_voxels
from cohort.preparation import brain as brain_extraction
from cohort.preparation import registration
from cohort.preparation.intensity import bias_field, rescale
from cohort.preparation.quality import measure
from cohort.preparation.registration import Working
from cohort.resampling import extent_mm, is_flat, resample, to_ras
from cohort.scans import MIN_OVERLAP, Grid, head_mask
from runtime.errors import InputError

PREPARATION = 1
"""Version of what `prepare` computes. Raise it with any change: prepared scans are then made anew."""
WORKING_MM = 2.0
"""Voxel of the copy of a scan that registration and bias correction work on."""
SMALLEST_BRAIN_ML = 300.0
"""Below, what was found is no brain of a child or an adult."""
EXTENT_LIMITS_MM = (100.0, 700.0)
"""Longest side of a field of view; beyond these it is no head's, or not in mm."""


@dataclass(frozen=True)
class Steps:
    """Which steps are taken; all True is the default of `cohort.prepare`."""

    bias: bool = True
    register: bool = True
    warp: bool = True
    strip: bool = True
    rescale: bool = True


AS_IT_IS = Steps(bias=False, register=False, warp=False, strip=False, rescale=False)
"""For scans that another pipeline has prepared."""


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


def prepare(path: Path | str, grid: Grid, steps: Steps, mask: Path | str | None = None) -> Prepared:
    """Prepares one scan.

    Args:
        path: ``.nii``, ``.nii.gz`` or a volume pickle with an affine.
        grid: where the output is wanted.
        steps: what is done.
        mask: a brain mask in the scan's space (any grid, above 0 inside), used instead of the template's brain.

    Raises:
        InputError: names the file and the reason.
    """
    scan = _read(Path(path), grid)
    given = _read_mask(Path(mask), grid) if mask else None
    try:
        return _prepared(scan, grid, steps, given)
    except (RefusedError, InputError) as refusal:
        raise InputError(f"{path}: {refusal}") from None


def _read(path: Path, grid: Grid) -> Scan:
    try:
        image, affine = read_voxels(path)
        if affine is None:
            if image.shape != grid.shape:
                raise RefusedError(f"no affine, and its shape {image.shape} is not that of {grid.name}, {grid.shape}")
            affine = grid.affine
        if not np.isfinite(affine).all() or is_flat(affine):
            raise RefusedError("the determinant of the affine is zero (or not finite)")
        low, high = extent_mm(image.shape, affine)
        longest = max(b - a for a, b in zip(low, high, strict=True))
        if not EXTENT_LIMITS_MM[0] <= longest <= EXTENT_LIMITS_MM[1]:
            raise RefusedError(f"it reaches from {low} to {high} mm: no head; are its voxel sizes in mm?")
    except RefusedError as refusal:
        raise InputError(f"{path}: {refusal}") from None
    return Scan(*to_ras(image, affine))


def _read_mask(path: Path, grid: Grid) -> Scan:
    mask = _read(path, grid)
    return Scan((mask.image > 0).astype(np.float32), mask.affine)


def _prepared(scan: Scan, grid: Grid, steps: Steps, given: Scan | None) -> Prepared:
    matrix, brain, warp, field = _spatial(scan, steps, given)
    onto = matrix @ grid.affine
    whole, covered = resample(scan.image, scan.affine, onto, grid.shape)
    if covered < MIN_OVERLAP:
        low, high = extent_mm(scan.image.shape, scan.affine)
        raise RefusedError(f"no overlap with the grid {grid.name}: it reaches from {low} to {high} mm")
    if field is not None:
        there = field.onto(onto, grid.shape)
        whole = np.where(there > 0, whole / np.maximum(there, 1e-3), 0).astype(np.float32)
    inside = brain.onto(onto, grid.shape) > 0.5
    if not steps.strip and not steps.register and given is None:
        inside &= whole != 0
    seen = scan.field_of_view().onto(onto, grid.shape) > 0.5
    if not (inside & seen).any() or np.ptp(whole[inside & seen]) == 0:
        raise RefusedError("nothing of the brain is left on the grid (an empty mask, or one of another scan)")
    if steps.rescale:
        whole = rescale(whole, inside & seen)
    image = np.where(inside & seen, whole, 0).astype(np.float32) if steps.strip else whole
    volume = inside.sum() * abs(np.linalg.det(onto[:3, :3])) / 1000
    measures = measure(whole, inside, seen, grid) | {"brain_ml": float(volume)} | _jacobians(matrix, warp, steps)
    return Prepared(image, whole, inside, matrix, measures)


def _spatial(scan: Scan, steps: Steps, given: Scan | None) -> tuple[np.ndarray, Scan, np.ndarray | None, Scan | None]:
    """Matrix, brain, displacement of the demons and bias field; None for what was not asked for."""
    matrix, warp, field = np.eye(4), None, None
    brain = given or _template_brain(matrix, None)
    if not steps.bias and not steps.register:
        return matrix, brain, warp, field
    working = _working(scan)
    field = np.ones_like(working.image)
    if steps.bias:
        field = bias_field(working.image, _tissue(working, given), WORKING_MM)
    if steps.register:
        matrix, brain, warp, field = _registered(working, field, steps, given)
    return matrix, brain, warp, Scan(field, working.affine)


def _working(scan: Scan) -> Working:
    """A copy of the scan with its axes along the world's, as fine as registration needs it."""
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in scan.image.shape], indexing="ij")).reshape(3, -1)
    world = scan.affine[:3, :3] @ corners + scan.affine[:3, 3:]
    low, high = world.min(axis=1), world.max(axis=1)
    shape = tuple(int(size) for size in np.maximum(np.ceil((high - low) / WORKING_MM), 8))
    affine = np.diag([WORKING_MM] * 3 + [1.0])
    affine[:3, 3] = low + WORKING_MM / 2
    image = scan.onto(affine, shape)
    # Negative voxels are what some filters leave of zero; mutual information, N4 and thresholds want none.
    image = np.maximum(image, 0)
    high = float(np.percentile(image[image > 0], 99.5)) if (image > 0).any() else 0.0
    if high == 0:
        raise RefusedError("no voxel is above 0")
    return Working(image / np.float32(high), affine, scan.field_of_view().onto(affine, shape) > 0.5)


def _tissue(working: Working, given: Scan | None) -> np.ndarray:
    """Where the first bias field is fitted: the given brain, or all that is brighter than air."""
    if given is not None:
        return given.onto(working.affine, working.image.shape) > 0.5
    return head_mask(np.clip(working.image, 0, 1)) & (working.image > 0.05)


def _registered(
    working: Working, field: np.ndarray, steps: Steps, given: Scan | None
) -> tuple[np.ndarray, Scan, np.ndarray | None, np.ndarray]:
    """Matrix, brain, displacement of the demons (or None) and bias field.

    The whole head gives a first affine, and the demons the brain. Inside the brain the bias field is fitted again, now
    without scalp and marrow, whose intensities say little about it; what that changes refines the affine.
    """
    plain = _divided(working, field)
    if given is not None:
        plain = _inside(plain, given)
    matrix, _ = registration.register_affine(plain)
    warp = brain_extraction.register_warp(plain, matrix) if steps.warp and given is None else None
    brain = given or _template_brain(matrix, warp)
    inside = brain.onto(working.affine, working.image.shape) > 0.5
    if inside.sum() * WORKING_MM**3 / 1000 < SMALLEST_BRAIN_ML:
        raise RefusedError(f"the brain found has less than {SMALLEST_BRAIN_ML:g} ml: a part of a head, or not in mm")
    if steps.bias:
        field = field * bias_field(plain.image, inside, WORKING_MM)
    corrected = _divided(working, field)
    matrix, _ = registration.refine_affine(corrected if given is None else _inside(corrected, given), matrix)
    return matrix, brain, warp, field


def _divided(working: Working, field: np.ndarray) -> Working:
    return Working((working.image / field).astype(np.float32), working.affine, working.seen)


def _inside(working: Working, brain: Scan) -> Working:
    """The scan with nothing left around the brain."""
    share = brain.onto(working.affine, working.image.shape)
    return Working((working.image * np.clip(share, 0, 1)).astype(np.float32), working.affine, working.seen)


def _template_brain(matrix: np.ndarray, warp: np.ndarray | None) -> Scan:
    """The template's brain where the scan lies."""
    grid = registration.target(WORKING_MM).grid
    return Scan(brain_extraction.brain_in(grid, warp).astype(np.float32), matrix @ grid.affine)


def _jacobians(matrix: np.ndarray, warp: np.ndarray | None, steps: Steps) -> dict[str, float | None]:
    low, high = brain_extraction.jacobian_range(warp) if warp is not None else (None, None)
    affine = float(np.linalg.det(matrix[:3, :3])) if steps.register else None
    return {"affine_jacobian": affine, "warp_jacobian_min": low, "warp_jacobian_max": high}
