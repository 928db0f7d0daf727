"""From a simulated subject to a simulated scan: template anatomy, deformed, and imaged by a scanner.

This is a simulation. Its anatomy is that of three population templates, not of people; its disease is nothing but a
change of 16 volumes. A network that separates these groups has shown that it can see such changes, no more.

The scan reads a template, or a smooth patchwork of two, through

    scan position -> small rigid motion -> exp(v), random -> region map -> template,

so that a region's true volume is the integral over its labels of the Jacobian determinant of the way back. The region
map (`cohort.simulation.warps`) is found given v, so that the volume reached is the one prescribed for the subject.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cohort.atlas import TEMPLATES, antialias_sigma, load_template, native_atlas, resample
from cohort.scans import GRIDS, Grid
from cohort.simulation import deformation
from cohort.simulation import warps as regional
from cohort.simulation.effects import Subject
from runtime.seeding import rng

SIMULATION = 1
"""Version of the simulation. To be raised with any change that gives the same subject another scan."""

LATTICE = Grid("deformation", (44, 52, 44), 4.0, GRIDS["demo"].centre_mm)
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

BRAIN_FLOOR = 0.14
"""Intensity, where white matter is about 0.9, below which a voxel is outside the brain: half of the darkest fluid."""


@dataclass(frozen=True)
class Site:
    """A scanner. `gain`: units per template intensity; `noise`: standard deviation relative to template intensity 1;
    `bias`: standard deviation of the log of the field; `contrast`: exponent of the intensity; `blur`: in voxels."""

    gain: float
    noise: float
    bias: float
    contrast: float
    blur: float


SITES = {
    "site-A": Site(gain=900.0, noise=0.012, bias=0.06, contrast=1.0, blur=0.0),
    "site-B": Site(gain=520.0, noise=0.018, bias=0.09, contrast=0.92, blur=0.25),
    "site-C": Site(gain=1300.0, noise=0.024, bias=0.07, contrast=1.10, blur=0.15),
}
GAIN_SPREAD, CONTRAST_SPREAD = 0.10, 0.03
"""Variation between scans of one site: standard deviation of log gain, and of the exponent."""


@dataclass(frozen=True)
class SimulatedScan:
    """A scan and what is true of it."""

    image: np.ndarray
    """int16 (D, H, W), scanner units, 0 outside the brain."""
    volumes_mm3: np.ndarray
    """True volume of each region of `cohort.atlas.REGIONS` in the space of the scan."""
    min_jacobian: float
    """Smallest Jacobian determinant of the map; positive, so nothing folds."""
    displacement_mm: float
    """Root mean square length of the displacement inside the brain, rigid motion left out."""
    templates: tuple[str, str]
    share: float
    """Share of the first template in the patchwork, by volume of the field of view."""
    region: np.ndarray | None = None
    """float32 (D, H, W), share of each voxel that lies in the region asked for, through the subject's own map."""


@dataclass(frozen=True)
class Warp:
    """A subject's map from the scan to the template, and the volumes it gives."""

    random: np.ndarray
    """Displacement (3, D, H, W) of exp(v) in voxels of LATTICE."""
    regions: regional.RegionMap
    min_jacobian: float
    displacement_mm: float


class Simulator:
    """What all scans on one grid share: smoothed templates, the fields of the regions. Built once per process."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.model = regional.region_model()
        self.templates, self.template_origin = _template_stack(grid)
        brain = load_template("icbm2009a")
        inside = (np.asarray(brain.dataobj) > 0).astype(np.float32)
        self.weight = resample(inside, brain.affine, LATTICE)
        self.affine_basis = deformation.affine_basis(self.weight)
        at = deformation.nodes(self.model.shape) * np.float32(regional.SPACING_MM)
        self.region_nodes_mm = at + _column(self.model.origin_mm)
        self.voxels_mm = _world(grid)

    def scan(self, seed: int, subject: Subject, region: str = "") -> SimulatedScan:
        """The scan of one subject; a function of the seed and the subject alone.

        Args:
            seed: of the cohort.
            subject: from `cohort.simulation.effects.subjects` with that seed.
            region: name of an atlas region whose place in this scan is wanted as well; empty for none.
        """
        warp = self.warp(seed, subject)
        draw = rng(seed, "cohort.look", subject.index)
        pair = [int(i) for i in draw.permutation(len(TEMPLATES))[:2]]
        blend = deformation.random_velocity(LATTICE.shape, LATTICE.spacing_mm, [(BLEND_SMOOTHNESS_MM, 1.0)], draw)[:1]
        blend = blend / blend.std() + np.float32(draw.uniform(-1.5, 1.5))

        position = self._rigid(draw)
        around = _to_voxels(position, LATTICE)
        *shift, blend = deformation.sample(np.concatenate([warp.random, blend]), around)
        position = self._through_regions(position + np.stack(shift) * np.float32(LATTICE.spacing_mm), warp.regions)
        first, second = (self._read_template(i, position) for i in pair)
        share = 1 / (1 + np.exp(-BLEND_STEEPNESS * blend))
        tissue = share * first + (1 - share) * second
        return SimulatedScan(
            image=self._acquire(tissue, SITES[subject.site], draw),
            volumes_mm3=warp.regions.volumes_mm3,
            min_jacobian=warp.min_jacobian,
            displacement_mm=warp.displacement_mm,
            templates=(TEMPLATES[pair[0]], TEMPLATES[pair[1]]),
            share=float(share.mean()),
            region=self._share_of(region, position) if region else None,
        )

    def warp(self, seed: int, subject: Subject) -> Warp:
        """The subject's deformation, with the prescribed region volumes and without folds."""
        velocity = deformation.random_velocity(
            LATTICE.shape, LATTICE.spacing_mm, SCALES_MM, rng(seed, "cohort.shape", subject.index)
        )
        velocity = deformation.without_affine(velocity, self.affine_basis, self.weight)
        target = self.model.atlas_volumes * subject.relative_volume
        for shrink in SHRINK:
            found = self._fold_free(np.float32(shrink) * velocity, target)
            if found is not None:
                return found
        raise RuntimeError(f"{subject.name}: no deformation without folds reaches the prescribed volumes")

    def _fold_free(self, velocity: np.ndarray, target_mm3: np.ndarray) -> Warp | None:
        """The map of a random velocity and region volumes; None when it folds or misses the volumes."""
        pull = deformation.exponential(velocity)
        push = deformation.exponential(-velocity)
        scale = np.float32(LATTICE.spacing_mm / regional.SPACING_MM)
        random_forward = deformation.sample(push, _to_voxels(self.region_nodes_mm, LATTICE)) * scale
        regions = regional.solve(self.model, random_forward, target_mm3)
        if regions is None:
            return None
        at = _world(LATTICE)
        total = self._through_regions(at + pull * np.float32(LATTICE.spacing_mm), regions) - at
        smallest = min(
            deformation.jacobian_determinant(total / np.float32(LATTICE.spacing_mm)).min(),
            deformation.jacobian_determinant(regions.forward).min(),
        )
        if smallest < LEAST_JACOBIAN:
            return None
        length = np.average(np.square(total).sum(axis=0), weights=self.weight)
        return Warp(pull, regions, float(smallest), float(np.sqrt(length)))

    def _rigid(self, draw: np.random.Generator) -> np.ndarray:
        """World positions of the grid's voxels after a small rigid motion about the centre, (3, D, H, W)."""
        turn = Rotation.from_euler("xyz", RIGID_DEGREES * draw.standard_normal(3), degrees=True).as_matrix()
        shift = RIGID_MM * draw.standard_normal(3)
        centre = _column(self.grid.centre_mm)
        turned = np.tensordot(turn.astype(np.float32), self.voxels_mm - centre, axes=1)
        return turned + centre + _column(shift)

    def _through_regions(self, position_mm: np.ndarray, regions: regional.RegionMap) -> np.ndarray:
        shift = deformation.sample(regions.pull, self.model.to_voxels(position_mm))
        return position_mm + shift * np.float32(regional.SPACING_MM)

    def _read_template(self, number: int, position_mm: np.ndarray) -> np.ndarray:
        at = position_mm - _column(self.template_origin)
        return deformation.sample(self.templates[number : number + 1], at)[0]

    def _share_of(self, region: str, position_mm: np.ndarray) -> np.ndarray:
        """Share of each voxel of the grid in an atlas region, (D, H, W) in [0, 1], read at template positions.

        The labels are low-passed to the grid's spacing first, as the templates are.
        """
        labels, affine, names = native_atlas()
        code = next(code for code, name in names.items() if name == region)
        inside = (labels == code).astype(np.float32)
        inside = ndimage.gaussian_filter(inside, antialias_sigma(self.grid.spacing_mm, np.abs(np.diag(affine)[:3])))
        at = (position_mm - _column(affine[:3, 3])) / _column(np.diag(affine)[:3])
        return deformation.sample(inside[None], at)[0].clip(0, 1)

    def _acquire(self, tissue: np.ndarray, site: Site, draw: np.random.Generator) -> np.ndarray:
        """What the site's scanner makes of template intensities: contrast, blur, bias field, Rician noise, gain."""
        inside = tissue > BRAIN_FLOOR
        signal = np.maximum(tissue, 0) ** (site.contrast + CONTRAST_SPREAD * draw.standard_normal())
        if site.blur:
            signal = ndimage.gaussian_filter(signal, site.blur)
        signal = signal * np.exp(site.bias * _smooth_field(signal.shape, draw))
        real, imaginary = draw.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(site.noise)
        gain = site.gain * np.exp(GAIN_SPREAD * draw.standard_normal())
        scan = np.hypot(signal + real, imaginary) * inside
        return np.rint(scan * gain).clip(0, np.iinfo(np.int16).max).astype(np.int16)


def demo_grid(spacing_mm: float) -> Grid:
    """The demo's field of view at another spacing; the demo grid itself at its own."""
    demo = GRIDS["demo"]
    shape = tuple(round(size * demo.spacing_mm / spacing_mm) for size in demo.shape)
    return Grid("demo", shape, spacing_mm, demo.centre_mm)


def _template_stack(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The templates, low-passed for a grid's spacing, and the world position of their first voxel.

    Returns:
        float32 (templates, D, H, W) at 1 mm, on the intensity scale of ICBM 2009a over 255 (the brain voxels of the
        others are mapped to its distribution of intensities), and the (3,) position in mm.
    """
    extent = np.array(LATTICE.shape) * LATTICE.spacing_mm
    origin = np.round(np.array(LATTICE.centre_mm) - extent / 2)
    levels = np.linspace(1, 100, 199)  # fluid below the first is raised to it: no brain voxel may look like background
    reference = None
    stack = np.zeros((len(TEMPLATES), *extent.astype(int)), np.float32)
    for target, name in zip(stack, TEMPLATES, strict=True):
        image = load_template(name)
        values = np.asarray(image.dataobj)
        inside = ndimage.binary_fill_holes(values > 0)
        quantiles = np.percentile(values[inside], levels)
        reference = quantiles / 255 if reference is None else reference
        matched = np.where(inside, np.interp(values, quantiles, reference), 0)
        box = ndimage.find_objects(inside.astype(np.uint8))[0]
        offset = np.round(image.affine[:3, 3] - origin).astype(int)
        target[tuple(slice(s.start + o, s.stop + o) for s, o in zip(box, offset, strict=True))] = matched[box]
        ndimage.gaussian_filter(target, antialias_sigma(grid.spacing_mm, np.ones(3)), output=target)
    return stack, origin


def _smooth_field(shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    """A random sum of the lowest cosines over the grid, float32, standard deviation about 1 and mean about 0."""
    coefficients = draw.standard_normal((3, 3, 3))
    coefficients[0, 0, 0] = 0
    waves = [np.cos(np.pi * np.outer(np.arange(3), (np.arange(n) + 0.5) / n)) for n in shape]
    field = np.einsum("ijk,ia,jb,kc->abc", coefficients, *waves, optimize=True)
    return (field / np.sqrt(np.square(field).mean())).astype(np.float32)


def _world(grid: Grid) -> np.ndarray:
    """World coordinates of a grid's voxels, float32 (3, D, H, W)."""
    return deformation.nodes(grid.shape) * np.float32(grid.spacing_mm) + _column(grid.affine[:3, 3])


def _to_voxels(position_mm: np.ndarray, grid: Grid) -> np.ndarray:
    return (position_mm - _column(grid.affine[:3, 3])) / np.float32(grid.spacing_mm)


def _column(vector: np.ndarray | tuple[float, ...]) -> np.ndarray:
    return np.asarray(vector, np.float32).reshape(3, 1, 1, 1)
