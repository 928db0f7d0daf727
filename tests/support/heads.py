"""A simulated raw head, to try preparation on: a template's brain in fluid, skull, scalp, face and neck.

It would not convince a radiologist. It has what makes whole heads hard to register to a brain: bright fat and marrow
around a dark ring, a neck longer than the brain, eyes, air in the face, a position far from the template's. All of it
varies, so that a method that works on many heads is not fitted to one.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cohort.atlas import load_template, native_atlas, resample
from cohort.grids import Grid
from cohort.scans import antialias_sigma, fill_holes
from cohort.simulation import warps
from cohort.simulation.acquisition import smooth_field
from cohort.simulation.simulator import SCALES_MM
from runtime.seeding import rng

CENTRE_MM = (0.0, 5.0, -35.0)
"""Middle of the canvas: its foot is 75 mm below the brain's."""
EXTENT_MM = (212.0, 264.0, 280.0)


@dataclass(frozen=True)
class Look:
    """What differs from head to head; lengths in mm, intensities relative to white matter of about 0.85."""

    fluid_mm: float = 2.5
    skull_mm: float = 6.0
    scalp_mm: float = 6.0
    neck_mm: float = 60.0
    """How far the neck reaches below the brain."""
    fluid: float = 0.15
    marrow: float = 0.35
    fat: float = 1.0
    muscle: float = 0.4
    contrast: float = 1.0
    """Exponent of the brain's intensities: above 1 grey and white matter lie further apart."""
    warp: float = 0.0
    """Random deformation of the brain, as a multiple of the demo cohort's."""


@dataclass(frozen=True)
class Pose:
    """Where the head lies in the scanner, and how it is scanned. `turn_degrees` are about x, y, z (pitch first)."""

    turn_degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shear: float = 0.0
    spacing_mm: tuple[float, float, float] = (3.0, 3.0, 3.0)
    orientation: str = "RAS"
    cut_top_mm: float = 0.0
    """How much of the highest part of the brain the field of view misses."""
    cut_foot_mm: float = 0.0
    """How much of the canvas is missing at its foot: 75 leaves no neck, more cuts the brain stem."""
    bias: float = 0.15
    """Standard deviation of the log of the bias field."""
    noise: float = 0.02
    """Standard deviation of each channel of the Rician noise, white matter being about 0.85."""
    gain: float = 800.0


@dataclass(frozen=True)
class Canvas:
    """A head in template space."""

    tissue: np.ndarray
    """float32 (D, H, W)."""
    brain: np.ndarray
    """float32 (D, H, W) in [0, 1]: how much of each voxel is brain."""
    grid: Grid


@dataclass(frozen=True)
class Head:
    """A raw scan and what is true of it."""

    image: nib.Nifti1Image
    matrix: np.ndarray
    """(4, 4), from template millimetres to millimetres of the scan."""
    brain: np.ndarray
    """bool, voxels of `image`."""


def canvas(look: Look, seed: int = 0, spacing_mm: float = 2.0, content: nib.Nifti1Image | None = None) -> Canvas:
    """Builds a head around a brain.

    Args:
        look: its anatomy and contrast.
        seed: of the irregularities of skull and scalp, and of the deformation.
        spacing_mm: of the canvas.
        content: a brain-extracted image in template space, 0 outside; by default the ICBM 2009a template over 255.
    """
    shape = tuple(int(extent / spacing_mm) for extent in EXTENT_MM)
    grid = Grid("canvas", shape, spacing_mm, CENTRE_MM)
    source = load_template("icbm2009a") if content is None else content
    values = np.asarray(source.dataobj, dtype=np.float32)
    values = values / np.percentile(values[values > 0], 99)
    inside = fill_holes(values > 0).astype(np.float32)
    tissue, brain = (resample(volume, source.affine, grid) for volume in (values, inside))
    draw = rng(seed, "tests.head")
    if look.warp:
        tissue, brain = _deformed(tissue, brain, grid, look.warp, draw)
    tissue = np.clip(tissue, 0, None) ** look.contrast
    return Canvas(_around(tissue, brain, grid, look, draw), brain, grid)


def _deformed(
    tissue: np.ndarray, brain: np.ndarray, grid: Grid, amount: float, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Both volumes after a random smooth map with no affine part inside the brain."""
    coarse = Grid("deformation", tuple(int(extent / 6) + 1 for extent in EXTENT_MM), 6.0, CENTRE_MM)
    velocity = warps.random_velocity(coarse.shape, 6.0, SCALES_MM, draw)
    weight = resample(brain, grid.affine, coarse)
    velocity = warps.without_affine(velocity, warps.affine_basis(weight), weight)
    pull = warps.exponential(np.float32(amount) * velocity)
    ratio = np.float32(grid.spacing_mm / 6.0)
    offset = (grid.affine[:3, 3] - coarse.affine[:3, 3]).reshape(3, 1, 1, 1).astype(np.float32) / 6.0
    at = warps.nodes(grid.shape)
    moved = at + warps.sample(pull, at * ratio + offset) / ratio
    tissue, brain = warps.sample(np.stack([tissue, brain]), moved)
    return tissue, brain


def _around(tissue: np.ndarray, brain: np.ndarray, grid: Grid, look: Look, draw: np.random.Generator) -> np.ndarray:
    """Fills what surrounds the brain, from the outside inwards."""
    step = grid.spacing_mm
    x, y, z = (axis * step + grid.affine[i, 3] for i, axis in enumerate(np.ogrid[tuple(map(slice, grid.shape))]))
    inside = brain > 0.5
    foot = z.ravel()[np.flatnonzero(inside.any(axis=(0, 1)))[0]]
    # The skull follows the hull of the brain, not its sulci.
    away = ndimage.distance_transform_edt(~inside, sampling=step)
    hull = ndimage.distance_transform_edt(away < 12, sampling=step) > 12
    away = ndimage.distance_transform_edt(~(hull | inside), sampling=step)
    away = away * np.exp(0.15 * _smooth(grid, 25.0, draw))

    lumpy = 1 + 0.2 * _smooth(grid, 6.0, draw)
    out = np.zeros(grid.shape, np.float32)
    neck = ((x / 55) ** 2 + ((y + 25) / 60) ** 2 < 1) & (z < -20) & (z > foot - look.neck_mm)
    face = (x / 62) ** 2 + ((y - 50) / 48) ** 2 + ((z + 62) / 62) ** 2 < 1
    outside = look.fluid_mm + look.skull_mm + look.scalp_mm
    soft = neck | face | (away < outside)
    depth = ndimage.distance_transform_edt(soft, sampling=step)
    out[soft] = (look.muscle * lumpy)[soft]
    fatty = soft & (depth < 5)
    out[fatty] = (look.fat * lumpy)[fatty]
    out[(neck | face) & (_smooth(grid, 8.0, draw) > 1)] = 0.8 * look.fat
    for air in (
        (x / 12) ** 2 + ((y - 62) / 22) ** 2 + ((z + 55) / 14) ** 2 < 1,
        (x / 10) ** 2 + ((y - 15) / 10) ** 2 < (z < -80),
    ):
        out[air & soft] = 0
    for side in (-1, 1):
        eye = np.sqrt((x - 33 * side) ** 2 + (y - 66) ** 2 + (z + 38) ** 2)
        out[eye < 18] = 0.9 * look.fat
        out[eye < 12] = look.fluid
    spine = np.hypot(x, y + 42)
    column = (z < foot) & neck
    out[column & (spine < 16)] = look.marrow
    out[column & (spine < 10)] = look.fluid
    out[column & (spine < 5)] = 0.7

    below = (z < -30) & (y < 20) & (np.hypot(x, y + 30) < 18)  # the great foramen: fluid leads on into the canal
    bone = (away < look.fluid_mm + look.skull_mm) & ~below
    within = (away - look.fluid_mm) / look.skull_mm
    out[bone] = 0.04
    out[bone & (within > 0.3) & (within < 0.7)] = look.marrow
    out[away < look.fluid_mm] = look.fluid
    share = np.clip(brain, 0, 1)
    return (share * np.maximum(tissue, 0.1) + (1 - share) * out).astype(np.float32)


def _smooth(grid: Grid, sigma_mm: float, draw: np.random.Generator) -> np.ndarray:
    field = ndimage.gaussian_filter(draw.standard_normal(grid.shape, dtype=np.float32), sigma_mm / grid.spacing_mm)
    return field / field.std()


def scan(head: Canvas, pose: Pose, seed: int = 0) -> Head:
    """Scans a head in a position: moved, cut, biased, noisy, with its voxels in any order."""
    draw = rng(seed, "tests.scan")
    matrix = _motion(pose)
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in head.grid.shape], indexing="ij")).reshape(3, -1)
    world = _apply(matrix @ head.grid.affine, corners)
    low, high = world.min(axis=1), world.max(axis=1)
    visible = _apply(matrix @ head.grid.affine, np.argwhere(head.brain > 0.5).T)
    low[2] += pose.cut_foot_mm
    high[2] = min(high[2], visible[2].max() + 25)
    if pose.cut_top_mm:
        high[2] = visible[2].max() - pose.cut_top_mm
    edges = np.array(pose.spacing_mm)
    shape = np.ceil((high - low) / edges).astype(int)
    affine = np.diag([*edges, 1.0])
    affine[:3, 3] = low + edges / 2
    to_canvas = np.linalg.inv(matrix @ head.grid.affine) @ affine

    def seen(volume: np.ndarray) -> np.ndarray:
        sigma = [antialias_sigma(edge, head.grid.spacing_mm) for edge in edges]
        smooth = ndimage.gaussian_filter(volume, np.array(sigma).ravel())
        return ndimage.affine_transform(smooth, to_canvas[:3, :3], to_canvas[:3, 3], tuple(shape), order=1)

    bias = smooth_field(draw.standard_normal((3, 3, 3)) / (1 + np.indices((3, 3, 3)).sum(axis=0)), tuple(shape))
    signal = seen(head.tissue) * np.exp(pose.bias * (bias / bias.std()))
    noise = pose.noise * draw.standard_normal((2, *shape))
    voxels = np.rint(pose.gain * np.hypot(signal + noise[0], noise[1])).astype(np.int16)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    turn = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("RAS", pose.orientation)))
    brain = nib.Nifti1Image((seen(head.brain) > 0.5).astype(np.uint8), affine).as_reoriented(turn)
    return Head(image.as_reoriented(turn), matrix, np.asarray(brain.dataobj) > 0)


def _motion(pose: Pose) -> np.ndarray:
    """Template to scan: scaled and sheared, turned about the middle of the brain, shifted."""
    linear = np.diag(pose.scale) @ np.array([[1, pose.shear, 0], [0, 1, pose.shear], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", pose.turn_degrees, degrees=True).as_matrix() @ linear
    pivot = np.array([0.0, -17.0, 8.0])
    matrix[:3, 3] = pivot + np.array(pose.shift_mm) - matrix[:3, :3] @ pivot
    return matrix


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return matrix[:3, :3] @ points + matrix[:3, 3:]


def landmark_error_mm(found: np.ndarray, true: np.ndarray) -> float:
    """Mean distance, in template space, between the centroids of atlas regions and where a wrong matrix puts them.

    Args:
        found: template to scan, as registered.
        true: template to scan, as it is.
    """
    atlas, affine = native_atlas()
    codes = [code for code in atlas.names if (atlas.labels == code).any()]
    marks = _apply(affine, np.array(ndimage.center_of_mass(atlas.labels > 0, atlas.labels, codes)).T)
    return float(np.linalg.norm(_apply(np.linalg.inv(true) @ found, marks) - marks, axis=0).mean())


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Overlap of two masks."""
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))
