"""From a simulated subject to a simulated scan: template anatomy, deformed, and imaged by a scanner.

This is a simulation. Its anatomy is that of three population templates, not of people; its disease is nothing but a
change of 16 volumes. A network that separates these groups has shown that it can see such changes, no more.

The scan reads a template, or a smooth patchwork of two, through

    scan position -> small rigid motion -> exp(v), random -> region map -> template,

so that a region's true volume is the integral over its labels of the Jacobian determinant of the way back. The region
map (`cohort.simulation.warps`) is found given v, so that the volume reached is the one prescribed for the subject.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cohort.atlas import REGIONS, TEMPLATES, load_template, native_atlas, resample
from cohort.grids import CENTRE_MM, Grid
from cohort.scans import antialias_sigma
from cohort.simulation import warps
from cohort.simulation.acquisition import SITES, acquire
from cohort.simulation.effects import Subject
from runtime.seeding import rng

SIMULATION = 2
"""Version of the simulation. To be raised with any change that gives the same subject another scan."""

LATTICE = Grid("deformation", (44, 52, 44), 4.0, CENTRE_MM)
"""Lattice of the random deformation: the field of view and 8 mm around it."""

SCALES_MM = ((20.0, 1.7), (12.0, 1.9), (6.0, 0.8))
"""Smoothness (standard deviation of the kernel) and root mean square length of the random velocity, in mm: what remains
between people after affine registration, and an undulation at the scale of gyri."""
BLEND_SMOOTHNESS_MM = 25.0
BLEND_STEEPNESS = 3.0
"""How sharply the patchwork passes from one template to the other, per standard deviation of its random field."""
RIGID_MM, RIGID_DEGREES = 0.5, 0.7
"""Standard deviation, per axis, of the misalignment that registration leaves."""
SHRINK = (1.0, 0.8, 0.6, 0.4)
"""Factors on the random velocity, tried in turn until the map has no fold; nearly every subject takes the first."""
LEAST_JACOBIAN = 0.02
"""A map counts as free of folds above this: 0 with some room for what lies between the lattice's cell centres."""


class SimulatedScan(NamedTuple):
    """A scan and what is true of it."""

    image: np.ndarray
    """int16 (D, H, W), scanner units, 0 outside the brain."""
    facts: dict[str, Any]
    """Plain values, described in `cohort.make_demo.TRUTH_COLUMNS`."""
    region: np.ndarray | None
    """float32 (D, H, W), share of each voxel that lies in the region asked for, through the subject's own map."""


class Warp(NamedTuple):
    """A subject's map from the scan to the template, as displacements (3, D, H, W), and what it does."""

    random: np.ndarray
    """Of exp(v), in voxels of LATTICE."""
    regions: np.ndarray
    """Of the region map, in voxels of the region model's lattice."""
    volumes_mm3: np.ndarray
    min_jacobian: float
    displacement_mm: float


class Simulator:
    """What all scans on one grid share: smoothed templates, the fields of the regions. Built once per process."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.model, self.lattice = warps.atlas_model()
        self.templates, self.template_origin = _template_stack(grid)
        brain = load_template("icbm2009a")
        inside = (np.asarray(brain.dataobj) > 0).astype(np.float32)
        self.weight = resample(inside, brain.affine, LATTICE)
        self.affine_basis = warps.affine_basis(self.weight)
        self.region_nodes = warps.to_voxels(warps.world(self.lattice), LATTICE)
        self.voxels_mm = warps.world(grid)

    def scan(self, seed: int, subject: Subject, region: str = "") -> SimulatedScan:
        """The scan of a subject of the cohort with this seed, a function of the two alone; `region` names the atlas
        region whose place in the scan is wanted as well."""
        warp = self.warp(seed, subject)
        draw = rng(seed, "cohort.look", subject.index)
        pair = [int(i) for i in draw.permutation(len(TEMPLATES))[:2]]
        blend = warps.random_velocity(LATTICE.shape, LATTICE.spacing_mm, [(BLEND_SMOOTHNESS_MM, 1.0)], draw)[:1]
        blend = blend / blend.std() + np.float32(draw.uniform(-1.5, 1.5))

        position = self._rigid(draw)
        *shift, blend = warps.sample(np.concatenate([warp.random, blend]), warps.to_voxels(position, LATTICE))
        position = self.through_regions(position + np.stack(shift) * np.float32(LATTICE.spacing_mm), warp.regions)
        tissue, share = self.patchwork(position, blend, pair)
        facts = {
            "simulation": True,
            "volumes_mm3": dict(zip(REGIONS, warp.volumes_mm3.round(2).tolist(), strict=True)),
            "min_jacobian": round(warp.min_jacobian, 4),
            "displacement_mm": round(warp.displacement_mm, 3),
            "templates": [TEMPLATES[i] for i in pair],
            "first_template_share": round(float(share.mean()), 3),
        }
        image = acquire(tissue, SITES[subject.site], draw)
        return SimulatedScan(image, facts, self._share_of(region, position) if region else None)

    def patchwork(
        self, position_mm: np.ndarray, blend: np.ndarray, pair: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Intensities of two of the templates at world positions (3, D, H, W), and the share of the first of them in
        each, by a field (D, H, W): above 0 it prevails."""
        at = position_mm - warps.column(self.template_origin)
        first, second = (warps.sample(self.templates[i : i + 1], at)[0] for i in pair)
        share = 1 / (1 + np.exp(-BLEND_STEEPNESS * blend))
        return share * first + (1 - share) * second, share

    def warp(self, seed: int, subject: Subject) -> Warp:
        """The subject's deformation, with the prescribed region volumes and without folds."""
        draw = rng(seed, "cohort.shape", subject.index)
        velocity = warps.random_velocity(LATTICE.shape, LATTICE.spacing_mm, SCALES_MM, draw)
        velocity = warps.without_affine(velocity, self.affine_basis, self.weight)
        target = self.model.label_volumes * subject.relative_volume
        for shrink in SHRINK:
            if found := self._fold_free(np.float32(shrink) * velocity, target):
                return found
        raise RuntimeError(f"{subject.name}: no deformation without folds reaches the prescribed volumes")

    def _fold_free(self, velocity: np.ndarray, target_mm3: np.ndarray) -> Warp | None:
        """The map of a random velocity and region volumes; None when it folds or misses the volumes."""
        pull, push = warps.exponential(velocity), warps.exponential(-velocity)
        scale = np.float32(LATTICE.spacing_mm / warps.SPACING_MM)
        if (solved := warps.solve(self.model, warps.sample(push, self.region_nodes) * scale, target_mm3)) is None:
            return None
        _, regions, forward, volumes = solved
        at, voxel = warps.world(LATTICE), np.float32(LATTICE.spacing_mm)
        total = self.through_regions(at + pull * voxel, regions) - at
        smallest = min(warps.jacobian_determinant(total / voxel).min(), warps.jacobian_determinant(forward).min())
        if smallest < LEAST_JACOBIAN:
            return None
        length = np.average(np.square(total).sum(axis=0), weights=self.weight)
        return Warp(pull, regions, volumes, float(smallest), float(np.sqrt(length)))

    def _rigid(self, draw: np.random.Generator) -> np.ndarray:
        """World positions of the grid's voxels after a small rigid motion about the centre, (3, D, H, W)."""
        turn = Rotation.from_euler("xyz", RIGID_DEGREES * draw.standard_normal(3), degrees=True).as_matrix()
        centre = warps.column(self.grid.centre_mm)
        turned = np.tensordot(turn.astype(np.float32), self.voxels_mm - centre, axes=1)
        return turned + centre + warps.column(RIGID_MM * draw.standard_normal(3))

    def through_regions(self, position_mm: np.ndarray, regions: np.ndarray) -> np.ndarray:
        """World positions (3, D, H, W) after the region map."""
        shift = warps.sample(regions, warps.to_voxels(position_mm, self.lattice))
        return position_mm + shift * np.float32(warps.SPACING_MM)

    def _share_of(self, region: str, position_mm: np.ndarray) -> np.ndarray:
        """Share of each voxel of the grid in an atlas region, (D, H, W) in [0, 1]: labels low-passed as templates are,
        read at template positions."""
        atlas, affine = native_atlas()
        voxel_mm = np.abs(np.diag(affine)[:3])
        inside = atlas.mask(region).astype(np.float32)
        inside = ndimage.gaussian_filter(inside, antialias_sigma(self.grid.spacing_mm, voxel_mm))
        at = (position_mm - warps.column(affine[:3, 3])) / warps.column(np.diag(affine)[:3])
        return warps.sample(inside[None], at)[0].clip(0, 1)


def _template_stack(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The templates, low-passed for a grid's spacing, and the world position (3,) of their first voxel, in mm.

    They are float32 (templates, D, H, W) at 1 mm, on the intensity scale of ICBM 2009a over 255: the brain voxels of
    the others are mapped to its distribution of intensities.
    """
    extent = np.array(LATTICE.shape) * LATTICE.spacing_mm
    origin = np.round(np.array(LATTICE.centre_mm) - extent / 2)
    levels = np.linspace(1, 100, 199)  # fluid below the first is raised to it: no brain voxel may look like background
    reference = None
    stack = np.zeros((len(TEMPLATES), *extent.astype(int)), np.float32)
    for target, name in zip(stack, TEMPLATES, strict=True):
        image = load_template(name)
        values = np.asarray(image.dataobj)
        box = ndimage.find_objects((values > 0).astype(np.uint8))[0]
        values = values[box]
        inside = ndimage.binary_fill_holes(values > 0)
        quantiles = np.percentile(values[inside], levels)
        reference = quantiles / 255 if reference is None else reference
        offset = np.round(image.affine[:3, 3] - origin).astype(int)
        place = tuple(slice(s.start + o, s.stop + o) for s, o in zip(box, offset, strict=True))
        target[place] = np.where(inside, np.interp(values, quantiles, reference), 0)
        ndimage.gaussian_filter(target, antialias_sigma(grid.spacing_mm, np.ones(3)), output=target)
    return stack, origin
