"""Where the brain of a scan ends: the template's brain mask, carried back by a deformable registration.

Demons (Vercauteren et al. 2009, NeuroImage 45:S61, here with symmetric forces) find what an affine leaves over between
a scan and the ICBM 2009a template. They serve the mask alone: no output voxel is read through them.
"""

from functools import cache

import numpy as np
import SimpleITK as sitk  # noqa: N813, its documentation's own short name
from scipy import ndimage

from cohort.grids import Grid
from cohort.preparation.registration import Target, Working, itk_image, target
from cohort.scans import largest_part, resample
from cohort.simulation import warps

WARP_LEVELS = ((4.0, 60), (2.0, 30))
"""Levels of the demons: voxel in mm, iterations."""
WARP_SMOOTHNESS_MM = 5.0
"""Gaussian standard deviation of the smoothing of the displacement after each iteration."""
WARP_RIM_MM = 8.0
"""How far outside the template's brain the scan's may reach once the affine has laid one on the other."""
BRIDGE_MM = 4.0
"""What hangs on the brain by less than twice this is not of it."""


def register_warp(scan: Working, matrix: np.ndarray) -> np.ndarray:
    """What an affine leaves over: from the scan, laid on the template by `matrix`, to the template.

    Intensities are brought to the template's by their quantiles inside the brain. What is darker than grey matter
    (fluid, bone, air) is raised to one level in both images: the template shows nothing around the brain, the scan
    fluid, and the difference would push the edge outwards.

    Returns:
        Displacement in mm, float32 (3, D, H, W) on ``target(WARP_LEVELS[-1][0]).grid``: template = x + u(x).
    """
    field = None
    for spacing_mm, iterations in WARP_LEVELS:
        goal = target(spacing_mm)
        laid, _ = resample(scan.image, scan.affine, matrix @ goal.grid.affine, goal.grid.shape)
        floor = _floor()
        matched = np.maximum(_connected(_matched(laid, goal), goal, floor), floor)
        method = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        method.SetNumberOfIterations(iterations)
        method.SetStandardDeviations(WARP_SMOOTHNESS_MM / spacing_mm)
        fixed = itk_image(matched, goal.grid.affine)
        moving = itk_image(np.maximum(goal.image, floor), goal.grid.affine)
        if field is None:
            field = method.Execute(fixed, moving)
        else:
            finer = sitk.Resample(field, fixed, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkVectorFloat64)
            field = method.Execute(fixed, moving, finer)
    return sitk.GetArrayFromImage(field).transpose(3, 2, 1, 0).astype(np.float32)


def jacobian_range(displacement: np.ndarray) -> tuple[float, float]:
    """Least and largest Jacobian determinant, inside the template's brain, of a displacement from `register_warp`."""
    goal = target(WARP_LEVELS[-1][0])
    determinant = warps.jacobian_determinant(displacement / np.float32(goal.grid.spacing_mm))
    inside = determinant[goal.brain[:-1, :-1, :-1]]
    return float(inside.min()), float(inside.max())


def _connected(image: np.ndarray, goal: Target, floor: float) -> np.ndarray:
    """The image near the brain, without bright pieces that hang on it by less than twice BRIDGE_MM: marrow, fat, eyes.

    What is above `floor` is eroded; of the parts that leaves, the one with most of the brain is grown back within it.
    """
    bright = (image > floor) & goal.within(WARP_RIM_MM)
    steps = round(BRIDGE_MM / goal.grid.spacing_mm)
    parts, count = ndimage.label(ndimage.binary_erosion(bright, iterations=steps))
    if count == 0:
        return np.where(bright, image, 0)
    core = parts == 1 + np.argmax(np.bincount(parts[goal.brain], minlength=count + 1)[1:])
    return np.where(ndimage.binary_dilation(core, iterations=steps + 1, mask=bright), image, 0)


@cache
def _floor() -> float:
    """Template intensity between fluid and grey matter: a third of the way from the darkest to the median."""
    whole = target(WARP_LEVELS[-1][0])
    low, middle = np.percentile(whole.image[whole.brain], (1, 50))
    return float(low + (middle - low) / 3)


def _matched(image: np.ndarray, goal: Target) -> np.ndarray:
    """An image whose quantiles inside the brain are the template's; linear between them."""
    levels = np.linspace(1, 99, 50)
    own, wanted = (np.percentile(volume[goal.brain], levels) for volume in (image, goal.image))
    own = np.maximum.accumulate(own + 1e-6 * np.arange(len(own)))
    return np.interp(image, own, wanted).astype(np.float32)


def brain_in(grid: Grid, displacement: np.ndarray | None) -> np.ndarray:
    """The template's brain on a grid, bool (D, H, W), carried back through the demons' displacement if there is one."""
    goal = target(WARP_LEVELS[-1][0])
    to_goal = np.linalg.inv(goal.grid.affine) @ grid.affine
    turn, offset = to_goal[:3, :3].astype(np.float32), to_goal[:3, 3].reshape(3, 1, 1, 1).astype(np.float32)
    at = np.tensordot(turn, warps.nodes(grid.shape), axes=1) + offset
    if displacement is not None:
        at = at + warps.sample(displacement / np.float32(goal.grid.spacing_mm), at)
    share = warps.sample(goal.brain[None].astype(np.float32), at)[0]
    return largest_part(share > 0.5)
