"""Registration of a T1-weighted scan, whole head or brain, to the ICBM 2009a template, which shows a brain alone.

A matrix maps template millimetres to millimetres of the scan (both RAS), as what is pulled through it wants it. Two
steps: a search over rotations, shifts and sizes that needs no good start (the strategy of Jenkinson & Smith 2001, Med.
Image Anal. 5:143: coarse grid, then the best few refined); and an affine by Mattes' mutual information (Mattes et al.
2003, IEEE TMI 22:120) from coarse to fine.

The template being dark outside the brain, similarity is measured in the brain and a rim around it. In T1 the rim is
dark too, by fluid and the bone's inner table; what is bright beyond (marrow, fat, muscle) is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np
import SimpleITK as sitk  # noqa: N813, its documentation's own short name
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from cohort.atlas import load_template
from cohort.atlas import resample as onto_grid
from cohort.decoding import RefusedError
from cohort.grids import CENTRE_MM, Grid
from cohort.scans import antialias_sigma, fill_holes, head_mask

_FIELD_MM = (184.0, 220.0, 184.0)
"""Field of view of the target: the brain and 20 mm around it."""

SEARCH_STEP_MM, REFINING_STEP_MM = 12.0, 8.0
"""Lattice of points at which poses are compared, and at which the best are refined."""
SEARCH_BLUR_MM = 4.0
SEARCH_DEGREES = (-30.0, -10.0, 10.0, 30.0)
"""Rotations about each axis: no head within 40 degrees of upright is farther than 10 from one of them."""
SEARCH_SHIFTS_MM = (-30.0, -15.0, 0.0, 15.0, 30.0)
"""Along each axis, from the centre of mass of what may be brain: faces, cut heads and coils draw it away by 2 cm."""
SEARCH_SCALES = (0.84, 0.94)
"""Brains over the template, which is large: those of adults were 0.83 to 1.01 times as long."""
SEARCH_RIM_MM = 4.0
"""A wider rim holds scalp and marrow, and mutual information then prefers the brain laid on the whole head."""
LARGEST_SCALE, SCALE_PENALTY = 1.04, 3.0
"""Scale above which a pose loses, and nats lost for each unit of the logarithm of the scale."""
POSE_STEPS = np.array([10.0, 10.0, 10.0, 8.0, 8.0, 8.0, 0.06])
"""First steps of the refinement: degrees, mm, logarithm of the scale. Closer poses count as one."""
KEPT_COARSE, KEPT_FINE = 16, 3
"""Starts of the search that are refined, and how many of these the affine step begins from."""
BRAIN_HEIGHT_MM = 140.0
"""The brain lies within this distance below the top of a head."""
BINS = 24

BRIGHTEST = 1.6
"""Intensity, in medians of the head, at which a scan is clipped for registration: fat and vessels are no landmarks."""

AFFINE_LEVELS = ((4.0, 4.0, 1.0), (2.0, 2.0, 0.2))
"""Levels of the affine step: voxel in mm, rim in mm, share of the voxels that is sampled. In a narrow rim nothing
bright lies, which would draw the template's edge to it."""


@dataclass(frozen=True)
class Target:
    """The template at some voxel size: `image` in [0, 1], 0 outside the brain; `brain` bool; on `grid`."""

    image: np.ndarray
    brain: np.ndarray
    grid: Grid

    def within(self, rim_mm: float) -> np.ndarray:
        """Voxels of the brain and a rim around it."""
        return ndimage.distance_transform_edt(~self.brain, sampling=self.grid.spacing_mm) <= rim_mm


@dataclass(frozen=True)
class Working:
    """A scan resampled for registration: axes along the world's, voxels equal along the three."""

    image: np.ndarray
    """float32, in [0, 1] but for outliers above, 0 where there was no scan."""
    affine: np.ndarray
    seen: np.ndarray
    """bool: inside the field of view of the scan."""

    @property
    def spacing_mm(self) -> float:
        return float(self.affine[0, 0])


@cache
def target(spacing_mm: float) -> Target:
    """The template at a voxel size, low-passed for it."""
    shape = tuple(int(np.ceil(extent / spacing_mm)) for extent in _FIELD_MM)
    grid = Grid("target", shape, spacing_mm, CENTRE_MM)
    source = load_template("icbm2009a")
    values = np.asarray(source.dataobj) / np.float32(255)
    inside = fill_holes(values > 0).astype(np.float32)
    brain = onto_grid(inside, source.affine, grid) > 0.5
    return Target(onto_grid(values, source.affine, grid), brain, grid)


def register_affine(scan: Working) -> np.ndarray:
    """Finds the affine (4, 4) from template to scan; RefusedError if there is nothing to lay the template on."""
    scan = replace(scan, image=clipped(scan.image))
    moving = itk_image(scan.image, scan.affine)
    found = []
    for matrix in search(scan):
        for level in AFFINE_LEVELS:
            matrix, information = _affine_step(moving, matrix, *level)
        found.append((information, matrix))
    return max(found, key=lambda one: one[0])[1]


def refine_affine(scan: Working, matrix: np.ndarray) -> np.ndarray:
    """The finest level of `register_affine` once more, from a matrix that is nearly right."""
    return _affine_step(itk_image(clipped(scan.image), scan.affine), matrix, *AFFINE_LEVELS[-1])[0]


def clipped(image: np.ndarray) -> np.ndarray:
    """The image without what is brighter than BRIGHTEST medians of the head."""
    head = image[head_mask(np.clip(image, 0, 1))]
    return np.minimum(image, np.float32(BRIGHTEST * np.median(head))) if head.size else image


# Search.


def search(scan: Working) -> list[np.ndarray]:
    """The best few rigid motions with scale, from template to scan, best first."""
    turns = list(product(SEARCH_DEGREES, repeat=3))
    shifts = _brain_centre(scan) + np.array(list(product(SEARCH_SHIFTS_MM, repeat=3)))
    poses = np.array([[*turn, *shift, np.log(scale)] for turn, shift, scale in product(turns, shifts, SEARCH_SCALES)])
    score = _Score(scan, SEARCH_STEP_MM)
    values = np.concatenate([score(some) for some in np.array_split(poses, len(poses) // 100)])
    fine = _Score(scan, REFINING_STEP_MM)
    refined = []
    for pose in _apart(poses[np.argsort(-values)], KEPT_COARSE):
        done = optimize.minimize(
            lambda at: -fine(at[None])[0], pose, method="Nelder-Mead",
            options={"initial_simplex": np.vstack([pose, pose + np.diag(POSE_STEPS)]), "maxfev": 250, "fatol": 1e-4},
        )  # fmt: skip
        refined.append((-done.fun, done.x))
    ranked = [pose for _, pose in sorted(refined, key=lambda found: -found[0])]
    return [_matrices(pose[None])[0] for pose in _apart(ranked, KEPT_FINE)]


def _apart(poses: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """The first `count` poses that are not close to an earlier one."""
    kept: list[np.ndarray] = []
    for pose in poses:
        if all(np.linalg.norm((pose - other) / POSE_STEPS) > 1.2 for other in kept):
            kept.append(pose)
        if len(kept) == count:
            break
    return kept


def _matrices(poses: np.ndarray) -> np.ndarray:
    """Poses (N, 7) to matrices (N, 4, 4).

    A pose is degrees about x, y and z, where the middle of the brain goes (mm), and the logarithm of the scale.
    """
    matrices = np.tile(np.eye(4), (len(poses), 1, 1))
    turns = Rotation.from_euler("xyz", poses[:, :3], degrees=True).as_matrix()
    matrices[:, :3, :3] = np.exp(poses[:, 6])[:, None, None] * turns
    matrices[:, :3, 3] = poses[:, 3:6] - matrices[:, :3, :3] @ np.array(CENTRE_MM)
    return matrices


def _brain_centre(scan: Working) -> np.ndarray:
    """Centre of mass of the head, less what lies too far below its top to be brain; mm."""
    head = head_mask(np.clip(scan.image, 0, 1))
    layers = head.sum(axis=(0, 1))
    if not layers.any():
        raise RefusedError("no head was found: nothing stands out from the background")
    # A top that is noise or the tip of an ear has few voxels: the first layer with a tenth of the largest counts.
    top = np.flatnonzero(layers > 0.1 * layers.max())[-1]
    lowest = max(0, top - round(BRAIN_HEIGHT_MM / scan.spacing_mm))
    middle = np.array(ndimage.center_of_mass(head[:, :, lowest : top + 1])) + np.array([0, 0, lowest])
    return scan.affine[:3, :3] @ middle + scan.affine[:3, 3]


class _Score:
    """Mutual information between the template at a sparse lattice of points and the scan at their images.

    Points outside the field of view are left out and lower the score by their share, so that neither a cut brain nor a
    brain pushed out of sight is taken for agreement.
    """

    def __init__(self, scan: Working, step_mm: float) -> None:
        whole = target(2.0)
        smooth = ndimage.gaussian_filter(whole.image, SEARCH_BLUR_MM / whole.grid.spacing_mm)
        step = round(step_mm / whole.grid.spacing_mm)
        lattice = np.zeros(smooth.shape, bool)
        lattice[::step, ::step, ::step] = True
        chosen = np.argwhere(lattice & whole.within(SEARCH_RIM_MM)).T
        self.points = whole.grid.affine[:3, :3] @ chosen + whole.grid.affine[:3, 3:]
        self.fixed = np.minimum((smooth[tuple(chosen)] * BINS).astype(int), BINS - 1)
        shrink = max(1, round(SEARCH_BLUR_MM / scan.spacing_mm))
        thin = (slice(None, None, shrink),) * 3
        blurred = ndimage.gaussian_filter(scan.image, SEARCH_BLUR_MM / scan.spacing_mm)[thin]
        tissue = blurred[blurred > 0.05]
        high = float(np.percentile(tissue, 99)) if tissue.size else 1.0
        places = np.clip(blurred / high, 0, 1) * (BINS - 1.001)
        # What is not seen is far below 0, and stays there when it is interpolated with what is.
        self.places = np.where(scan.seen[thin], places, -1e6).astype(np.float32)
        self.to_voxels = np.linalg.inv(scan.affine @ np.diag([shrink, shrink, shrink, 1.0]))

    def __call__(self, poses: np.ndarray) -> np.ndarray:
        """Scores (N,) of poses (N, 7): nats times the share of the points in sight, 0 for less than half."""
        full = self.to_voxels @ _matrices(poses)
        at = full[:, :3, :3] @ self.points + full[:, :3, 3:]
        places = ndimage.map_coordinates(self.places, at.transpose(1, 0, 2), order=1, mode="constant", cval=-1e6)
        seen = places >= 0
        low = np.where(seen, places, 0).astype(int)
        over = np.where(seen, places - low, 0)
        cells = (np.arange(len(poses))[:, None] * BINS + self.fixed) * BINS + low
        size = len(poses) * BINS * BINS
        joint = np.bincount(cells.ravel(), (seen * (1 - over)).ravel(), size)
        joint += np.bincount(np.minimum(cells + 1, size - 1).ravel(), (seen * over).ravel(), size)
        joint = joint.reshape(-1, BINS, BINS) / np.maximum(seen.sum(axis=1), 1)[:, None, None]
        outer = joint.sum(axis=2, keepdims=True) * joint.sum(axis=1, keepdims=True)
        information = np.where(joint > 0, joint * np.log(np.maximum(joint, 1e-12) / np.maximum(outer, 1e-12)), 0)
        share = seen.mean(axis=1)
        penalty = SCALE_PENALTY * np.maximum(poses[:, 6] - np.log(LARGEST_SCALE), 0)
        return np.where(share > 0.5, share * information.sum(axis=(1, 2)), 0) - penalty


# Affine.


def _affine_step(
    moving: sitk.Image, start: np.ndarray, spacing_mm: float, rim_mm: float, share: float
) -> tuple[np.ndarray, float]:
    """Refines a matrix at one level; returns it with the mutual information (nats) reached in the brain and its rim."""
    fixed = target(spacing_mm)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricFixedMask(itk_image(fixed.within(rim_mm).astype(np.uint8), fixed.grid.affine))
    if share < 1:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(share, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=spacing_mm / 2, minStep=0.005, numberOfIterations=120, relaxationFactor=0.6,
        gradientMagnitudeTolerance=1e-6,
    )  # fmt: skip
    method.SetOptimizerScalesFromPhysicalShift()
    transform = sitk.AffineTransform(3)
    transform.SetCenter(CENTRE_MM)
    transform.SetMatrix(start[:3, :3].ravel().tolist())
    centre = np.array(CENTRE_MM)
    transform.SetTranslation((start[:3, :3] @ centre + start[:3, 3] - centre).tolist())
    method.SetInitialTransform(transform, inPlace=True)
    # The scan is as fine as the finest level; for a coarser one it is blurred as the template was.
    blur = float(antialias_sigma(spacing_mm, moving.GetSpacing()[0])) * moving.GetSpacing()[0]
    blurred = sitk.SmoothingRecursiveGaussian(moving, blur) if blur else moving
    try:
        method.Execute(itk_image(fixed.image, fixed.grid.affine), blurred)
    except RuntimeError as error:  # how ITK says that the images came apart
        raise RefusedError(f"registration to the template failed: {str(error).splitlines()[-1].strip()}") from None
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = centre + np.array(transform.GetTranslation()) - matrix[:3, :3] @ centre
    return matrix, -float(method.GetMetricValue())


def itk_image(volume: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """An image whose physical space is the world of `affine` (RAS, axes along the world's)."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.transpose(2, 1, 0)))
    image.SetSpacing(np.diag(affine)[:3].tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image
