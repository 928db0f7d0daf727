"""Random anatomies whose region labels are known: the simulation's templates and labels, deformed at random.

The way of SynthSeg (Billot et al. 2023, https://doi.org/10.1016/j.media.2023.102789): a network that is to read scans
learns from labels, deformed and imaged at random, more variously than any scan will be. Volumes are drawn evenly and
independently on both sides, far beyond health and disease, so that knowing the usual volume is of no help in finding
the true one.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cohort.anatomy.grey_matter import TISSUES
from cohort.atlas import REGIONS, SIDES, TEMPLATES, native_atlas, other_side, resample, tissue
from cohort.grids import Grid
from cohort.scans import normalise
from cohort.simulation import warps
from cohort.simulation.simulator import BLEND_SMOOTHNESS_MM, LATTICE, SCALES_MM, Simulator

NEIGHBOURS = (
    "Left Inf Lat Vent", "Right Inf Lat Vent", "Left Ventral DC", "Right Ventral DC", "3rd Ventricle", "Brain Stem",
)  # fmt: skip
"""Structures that touch REGIONS and have a contrast of their own, but are background to the network."""
COARSEST_MM = 2.0
"""Largest spacing of the lattice from which labels are read; it divides the grid's."""
STRENGTH = (0.6, 1.4)
"""Factor on the simulation's random velocities."""
LOG_VOLUME_SHARED, LOG_VOLUME_OWN = 0.35, 0.25
"""Largest change of a structure's log-volume that both sides have, and that one side has; a factor of 0.55 to 1.8."""
VENTRICLES = 2.5
"""Factor on both for the lateral ventricles."""
DEGREES, SCALE, SHIFT_MM = 1.5, 0.03, 1.5
"""Standard deviations of rotation about, logarithm of scale along, and shift along each axis."""


MARGIN_MM = 12.0
"""Room around the atlas' regions in the box that the network sees: for people who differ from it."""


class Box(NamedTuple):
    """The part of a grid in which the regions lie: all that the network sees, symmetric about the middle plane."""

    slices: tuple[slice, slice, slice]
    grid: Grid

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """That part of a volume (D, H, W) on the grid, normalised by itself."""
        return normalise(volume[self.slices])


@cache
def region_box(grid: Grid) -> Box:
    """The box around REGIONS as the atlas has them, MARGIN_MM larger on every side, as far as the grid reaches."""
    labels, affine = native_atlas()
    found = np.argwhere(np.isin(labels.labels, [labels.codes[name] for name in REGIONS]))
    ends = np.stack([found.min(axis=0), found.max(axis=0)]) @ affine[:3, :3].T + affine[:3, 3]
    first, last = (ends - grid.affine[:3, 3]) / grid.spacing_mm
    margin = MARGIN_MM / grid.spacing_mm
    low, high = np.floor(first - margin).astype(int), np.ceil(last + margin).astype(int) + 1
    low[0] = min(low[0], grid.shape[0] - high[0])
    high[0] = grid.shape[0] - low[0]
    low, high = np.maximum(low, 0), np.minimum(high, grid.shape)
    centre = grid.affine[:3, 3] + grid.spacing_mm * (low + high - 1) / 2
    shape = tuple(int(size) for size in high - low)
    slices = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return Box(slices, Grid(grid.name, shape, grid.spacing_mm, tuple(float(x) for x in centre)))


class Anatomy(NamedTuple):
    """One anatomy in the box of a grid."""

    shares: np.ndarray
    """float32 (regions, D, H, W) in [0, 1]: part of each voxel in each of REGIONS; their sum is at most 1."""
    others: np.ndarray
    """float32 (NEIGHBOURS and TISSUES, D, H, W): parts of what is in no region; all sum to 1 inside the brain."""
    template: np.ndarray
    """float32 (D, H, W): intensities of the patchwork of two templates, white matter about 0.9, as the simulation's."""


class Anatomies:
    """What all anatomies on one grid share: the labels and tissues, low-passed for it."""

    def __init__(self, grid: Grid) -> None:
        self.grid = region_box(grid).grid
        self.simulator = Simulator(self.grid)
        spacing = grid.spacing_mm / np.ceil(grid.spacing_mm / COARSEST_MM)
        self.whole, self.near = (finer(coarse, spacing) for coarse in (LATTICE, self.grid))
        native, affine = native_atlas()
        masks = (native.mask(name).astype(np.float32) for name in (*REGIONS, *NEIGHBOURS))
        self.labels = self._smooth([resample(mask, affine, self.near) for mask in masks])
        maps = tissue(self.whole)
        self.tissues = self._smooth([maps[name] for name in TISSUES])

    def _smooth(self, maps: list[np.ndarray]) -> np.ndarray:
        """Maps (D, H, W) on a finer lattice, low-passed for the grid: float32 (C, D, H, W).

        The kernel is a triangle, as wide at half its height as a voxel: read once a voxel, such kernels sum to 1
        wherever the grid lies, so that sums of shares are volumes.
        """
        width = round(self.grid.spacing_mm / self.near.spacing_mm)
        triangle = np.convolve(np.ones(width), np.ones(width)) / width**2
        for axis in range(3):
            maps = [ndimage.convolve1d(one, triangle, axis) for one in maps]
        return np.stack(maps).astype(np.float32)

    def draw(self, rng: np.random.Generator) -> Anatomy:
        """An anatomy, a function of the generator alone; mirrored in half of the draws."""
        simulator = self.simulator
        position, blend = self._deformed(rng)
        pair = [int(i) for i in rng.permutation(len(TEMPLATES))[:2]]
        template = simulator.patchwork(position, blend, pair)[0]
        labels = self.labels_at(position)
        tissues = warps.sample(self.tissues, warps.to_voxels(position, self.whole))
        tissues = tissues * (1 - labels.sum(axis=0)).clip(0, 1) / np.maximum(tissues.sum(axis=0), 1)
        anatomy = Anatomy(labels[: len(REGIONS)], np.concatenate([labels[len(REGIONS) :], tissues]), template)
        return mirrored(anatomy) if rng.random() < 0.5 else anatomy

    def labels_at(self, position_mm: np.ndarray) -> np.ndarray:
        """Shares of REGIONS and NEIGHBOURS (labels, D, H, W) at world positions (3, D, H, W): most are far from all."""
        at = warps.to_voxels(position_mm, self.near)
        near = ((at > 0) & (at < warps.column(self.near.shape) - 1)).all(axis=0)
        shares = np.zeros((len(self.labels), *near.shape), np.float32)
        shares[:, near] = warps.sample(self.labels, at[:, near])
        return shares

    def _deformed(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Template positions (3, D, H, W) in mm of the grid's voxels, and the field of the patchwork (D, H, W)."""
        simulator = self.simulator
        velocity = warps.random_velocity(LATTICE.shape, LATTICE.spacing_mm, SCALES_MM, rng)
        velocity = warps.without_affine(velocity, simulator.affine_basis, simulator.weight)
        random = warps.exponential(velocity * np.float32(rng.uniform(*STRENGTH)))
        blend = warps.random_velocity(LATTICE.shape, LATTICE.spacing_mm, [(BLEND_SMOOTHNESS_MM, 1.0)], rng)[:1]
        blend = blend / blend.std() + np.float32(rng.uniform(-1.5, 1.5))
        growth = np.tensordot(log_volumes(rng).astype(np.float32), simulator.model.fields, axes=1)
        position = self._moved(rng)
        *shift, blend = warps.sample(np.concatenate([random, blend]), warps.to_voxels(position, LATTICE))
        position = position + np.stack(shift) * np.float32(LATTICE.spacing_mm)
        return simulator.through_regions(position, warps.exponential(-growth)), blend

    def _moved(self, rng: np.random.Generator) -> np.ndarray:
        """World positions (3, D, H, W) of the grid's voxels after a random affine map about the centre."""
        turn = Rotation.from_euler("xyz", DEGREES * rng.standard_normal(3), degrees=True).as_matrix()
        matrix = (turn * np.exp(SCALE * rng.standard_normal(3))).astype(np.float32)
        centre = warps.column(self.grid.centre_mm)
        moved = np.tensordot(matrix, self.simulator.voxels_mm - centre, axes=1)
        return moved + centre + warps.column(SHIFT_MM * rng.standard_normal(3))


@cache
def anatomies_on(grid: Grid) -> Anatomies:
    """The anatomies of a grid; building them takes longer than drawing a few dozen."""
    return Anatomies(grid)


def finer(grid: Grid, spacing_mm: float) -> Grid:
    """A lattice over the field of view of a grid."""
    shape = tuple(round(size * grid.spacing_mm / spacing_mm) for size in grid.shape)
    return Grid(grid.name, shape, spacing_mm, grid.centre_mm)


def log_volumes(rng: np.random.Generator) -> np.ndarray:
    """A change of the logarithm of each region's volume, (regions,) in the order of REGIONS."""
    structures = len(REGIONS) // len(SIDES)
    shared = rng.uniform(-LOG_VOLUME_SHARED, LOG_VOLUME_SHARED, structures).repeat(len(SIDES))
    own = rng.uniform(-LOG_VOLUME_OWN, LOG_VOLUME_OWN, len(REGIONS))
    wide = np.array([VENTRICLES if name.endswith("Lateral Ventricle") else 1.0 for name in REGIONS])
    return (shared + own) * wide


def opposite(names: tuple[str, ...]) -> list[int]:
    """The place of each structure's `other_side`."""
    return [names.index(other_side(name)) for name in names]


def mirrored(anatomy: Anatomy) -> Anatomy:
    """The anatomy with left and right exchanged, in place and in name."""
    others = opposite(NEIGHBOURS)
    rest = list(range(len(others), len(anatomy.others)))
    flipped = anatomy.shares[opposite(REGIONS)], anatomy.others[[*others, *rest]], anatomy.template
    return Anatomy(*(np.flip(part, axis=-3) for part in flipped))
