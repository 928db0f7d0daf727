"""Smooth invertible maps: random ones, and those that bring anatomical regions to prescribed volumes.

A field is a float32 array (3, D, H, W) over the nodes of a lattice, in units of that lattice's voxels; between nodes it
is trilinear. A map is written by its displacement u: x -> x + u(x). The exponential of a stationary velocity field v is
the flow of v for unit time, and exp(-v) is its inverse (Arsigny et al. 2006, MICCAI, "A log-Euclidean framework for
statistics on diffeomorphisms").

Each region has a velocity field whose divergence is 1 inside it, with the opposite divergence spread over its
surroundings, so that the rest of the brain stays where it is: the field is the gradient of the solution of a Poisson
equation. The flow of a combination of these fields scales the regions' volumes by about the exponential of its
coefficients; the coefficients are iterated until the measured volumes are the prescribed ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage

from cohort.atlas import REGIONS, native_atlas
from cohort.grids import Grid

SQUARINGS = 3
"""Enough, with the second-order start, for flows up to two voxels: exp(-v) after exp(v) then misses the identity by
under 1 % of a voxel (root mean square)."""

SPACING_MM = 3.0
"""Two label voxels: each cell of the lattice holds 2 x 2 x 2 of them."""
MARGIN_MM = 15.0
"""Space around the regions in which they may grow and their surroundings give way."""
SURROUND_MM = 9.0
"""Width (Gaussian standard deviation) of the surroundings that take up a region's change."""
EDGE_MM = 2.0
"""Smoothing of the prescribed divergence at a region's edge, so that the lattice resolves the field."""
HORN_WEIGHT = 20.0
"""The temporal horns take up this many times more of a change than tissue: a hippocampus that loses 18 % of its volume
widens the horn of its side by about 30 % and leaves the other as it is. The sign is known from radiology; its size,
some 0.08 ml, is our choice."""
HORNS = ("Left Inf Lat Vent", "Right Inf Lat Vent")
TOLERANCE = 0.004
"""Largest relative deviation of a region's volume from the prescribed one at which the iteration ends."""
ITERATIONS = 12
AT_ONCE = 8192
"""Points of which a field is sampled at once."""


def nodes(shape: Sequence[int]) -> np.ndarray:
    """Coordinates of a lattice's nodes, float32 (3, D, H, W), in voxels."""
    return np.indices(tuple(shape), dtype=np.float32)


def world(grid: Grid) -> np.ndarray:
    """Coordinates of a grid's voxels in millimetres, float32 (3, D, H, W)."""
    return nodes(grid.shape) * np.float32(grid.spacing_mm) + column(grid.affine[:3, 3])


def to_voxels(position_mm: np.ndarray, grid: Grid) -> np.ndarray:
    """World points (3, D, H, W) in voxels of a grid."""
    return (position_mm - column(grid.affine[:3, 3])) / np.float32(grid.spacing_mm)


def column(vector: np.ndarray | Sequence[float]) -> np.ndarray:
    """A vector that adds to every point of a (3, D, H, W)."""
    return np.asarray(vector, np.float32).reshape(3, 1, 1, 1)


def sample(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Trilinear values (C, ...), float64, of a field (C, D, H, W) at points (3, ...) in its voxels, both float32;
    outside, as at its border.

    Several times as fast as `scipy.ndimage.map_coordinates` called for each component, because the cell and the weights
    of a point are found once for all components, and because what is computed of AT_ONCE points stays in the cache.
    """
    values, flat = np.ascontiguousarray(field).reshape(len(field), -1), points.reshape(3, -1)
    starts = range(0, max(1, flat.shape[1]), AT_ONCE)  # none at all are a part, too
    parts = [_sample(values, field.shape[1:], flat[:, start : start + AT_ONCE]) for start in starts]
    return np.concatenate(parts, axis=1).reshape(len(field), *points.shape[1:])


def _sample(values: np.ndarray, shape: tuple[int, ...], points: np.ndarray) -> np.ndarray:
    """`sample` of values (C, D H W) on a lattice of `shape` (D, H, W) at points (3, P): (C, P)."""
    _, height, width = shape
    last = np.array(shape, np.float32).reshape(3, 1) - 1
    at = np.clip(points, 0, last)
    cell = np.minimum(at.astype(np.int32), last.astype(np.int32) - 1)
    x, y, z = at - cell
    corner = ((cell[0] * height + cell[1]) * width + cell[2]).astype(np.intp)  # else every take converts

    def between(low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
        high -= low  # in place: nobody else holds it
        return high * share + low

    def edge(offset: int) -> np.ndarray:
        ends = (values.take(corner + (offset + step), axis=1, mode="clip") for step in (0, 1))
        return between(*ends, z)

    def face(offset: int) -> np.ndarray:
        return between(edge(offset), edge(offset + width), y)

    return between(face(0), face(height * width), x)


def random_velocity(
    shape: Sequence[int], spacing_mm: float, scales: Sequence[tuple[float, float]], rng: np.random.Generator
) -> np.ndarray:
    """A Gaussian random velocity field, float32 (3, D, H, W) in voxels: a sum of independent fields.

    White noise is filtered once by the root of the summed power spectra, which has the distribution of the sum.
    `scales` are (smoothness, amplitude) pairs in mm: the standard deviation of the Gaussian kernel, and the root mean
    square length of the three-component vector.
    """
    frequencies = (*(np.fft.fftfreq(size) for size in shape[:2]), np.fft.rfftfreq(shape[2]))
    squared = sum(np.square(axis) for axis in np.ix_(*frequencies))
    weight = np.full(squared.shape[2], 2.0)  # rfftn gives half of the frequencies: these stand for two each,
    weight[0] = 1  # these for themselves
    if shape[2] % 2 == 0:
        weight[-1] = 1
    power = np.zeros(squared.shape)
    for sigma_mm, amplitude_mm in scales:
        kernel = np.exp(-2 * np.square(np.pi * sigma_mm / spacing_mm) * squared) ** 2
        variance = np.square(amplitude_mm / spacing_mm) / 3
        power += variance * kernel / float((kernel * weight).sum() / np.prod(shape))
    noise = fft.rfftn(rng.standard_normal((3, *shape), dtype=np.float32), axes=(1, 2, 3))
    return fft.irfftn(noise * np.sqrt(power).astype(np.float32), s=tuple(shape), axes=(1, 2, 3))


def affine_basis(weight: np.ndarray) -> np.ndarray:
    """Orthonormal basis, under a voxel weight, of the affine functions 1, x, y, z on a lattice: (4, D, H, W)."""
    functions = np.concatenate([np.ones((1, *weight.shape)), nodes(weight.shape)]).reshape(4, -1)
    root = np.sqrt(weight.ravel() / weight.sum())
    _, triangle = np.linalg.qr((functions * root).T)
    return np.linalg.solve(triangle.T, functions).reshape(4, *weight.shape).astype(np.float32)


def without_affine(field: np.ndarray, basis: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A field less its weighted least-squares affine part: what is left after affine registration."""
    flat = basis.reshape(4, -1)
    part = (field.reshape(3, -1) * (weight.ravel() / weight.sum())) @ flat.T
    return field - (part @ flat).reshape(field.shape).astype(np.float32)


def exponential(velocity: np.ndarray) -> np.ndarray:
    """The displacement of exp(v), float32 (3, D, H, W), by scaling and squaring.

    The first small step is of second order, x + w + (Dw) w / 2 with w = v / 2^n, so that few squarings suffice.
    """
    step = (velocity / 2**SQUARINGS).astype(np.float32)
    slopes = np.stack([np.stack(np.gradient(component)) for component in step])
    displacement = step + 0.5 * np.einsum("cadhw,adhw->cdhw", slopes, step)
    at = nodes(velocity.shape[1:])
    for _ in range(SQUARINGS):
        displacement = displacement + sample(displacement, at + displacement)
    return displacement


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The displacement of x -> outer(inner(x)), both given as displacements on one lattice in voxels."""
    return inner + sample(outer, nodes(inner.shape[1:]) + inner)


def jacobian_determinant(displacement: np.ndarray) -> np.ndarray:
    """Determinant of the derivative of x + u(x) at the centre of each cell of the lattice, (D - 1, H - 1, W - 1).

    It is that of the trilinear map itself, not a difference over two voxels. Positive everywhere means no folding.
    """
    rows = [[_cell_slope(component, axis) for axis in range(3)] for component in displacement]
    for axis in range(3):
        rows[axis][axis] += 1
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _cell_slope(values: np.ndarray, axis: int) -> np.ndarray:
    """Difference along one axis, averaged over the four edges of each cell."""
    slope = np.diff(values, axis=axis)
    for other in {0, 1, 2} - {axis}:
        size = slope.shape[other]
        slope = 0.5 * (slope.take(range(size - 1), other) + slope.take(range(1, size), other))
    return slope


@dataclass(frozen=True)
class RegionModel:
    """One velocity field and one volume weight for each region, on one lattice."""

    fields: np.ndarray
    """float32 (regions, 3, D, H, W) in voxels: flow for unit time with coefficient g changes log-volume by about g."""
    weights: np.ndarray
    """float32 (regions, cells): mm3 of the region in each cell of the lattice, cells in C order."""
    response: np.ndarray
    """(regions, regions): derivative of the log-volumes (rows) by the coefficients (columns), at the identity."""

    @property
    def label_volumes(self) -> np.ndarray:
        """Volume of every region in the labels, mm3."""
        return self.weights.sum(axis=1)

    def volumes(self, forward: np.ndarray) -> np.ndarray:
        """Volumes in mm3 of the regions after a map from the template, given by its displacement on this lattice."""
        return self.weights @ jacobian_determinant(forward).ravel()


class RegionMap(NamedTuple):
    """A map that brings regions to prescribed volumes. Fields (3, D, H, W) in voxels of the model's lattice."""

    velocity: np.ndarray
    pull: np.ndarray
    """Displacement from the deformed template to the template: where to read the image."""
    push: np.ndarray
    """Displacement from the template to the subject, the random deformation included."""
    volumes: np.ndarray
    """Volumes reached (mm3), as integrals of the Jacobian determinant over the labels."""


def atlas_model() -> tuple[RegionModel, Grid]:
    """The fields and weights of REGIONS by the labels as distributed, and their lattice in the template's space."""
    atlas, affine = native_atlas()
    labels, origin = _crop(atlas.labels, affine, [atlas.codes[region] for region in REGIONS])
    cells = np.stack([_by_cell(labels == atlas.codes[region]) for region in REGIONS])
    horns = _by_cell(np.isin(labels, [atlas.codes[name] for name in HORNS]))
    room = np.maximum(_by_cell(labels > 0) - cells.sum(axis=0), 0) + (HORN_WEIGHT - 1) * horns
    model = region_model(cells, room, np.full(3, SPACING_MM))
    shape = model.fields.shape[2:]
    return model, Grid("regions", shape, SPACING_MM, tuple(origin + SPACING_MM * (np.array(shape) - 1) / 2))


def region_model(
    cells: np.ndarray, room: np.ndarray, edges_mm: np.ndarray, surround_mm: float = SURROUND_MM
) -> RegionModel:
    """Builds fields and weights; the nodes of the lattice are the corners of its cells.

    Args:
        cells: (regions, D, H, W), share of each cell in each region, in [0, 1].
        room: (D, H, W), how readily each cell gives way, relative to the others.
        edges_mm: (3,), edges of a cell.
        surround_mm: width (Gaussian standard deviation) of the surroundings that take up a region's change.
    """
    fields = np.stack([_field_of(region, room, edges_mm, surround_mm) for region in cells])
    weights = (cells.reshape(len(cells), -1) * np.prod(edges_mm)).astype(np.float32)
    small = 0.01
    changed = [np.log(weights @ jacobian_determinant(small * field).ravel()) for field in fields]
    response = (np.stack(changed, axis=1) - np.log(weights.sum(axis=1))[:, None]) / small
    return RegionModel(fields.astype(np.float32), weights, response)


def solve(model: RegionModel, random_forward: np.ndarray, target_mm3: np.ndarray) -> RegionMap | None:
    """Finds the region deformation that, with a random deformation on top, gives the prescribed volumes.

    Newton's method on the log-volumes, with Broyden's update of the derivative (Broyden 1965, Math. Comp. 19:577).
    Displacements (3, D, H, W) are in voxels of the model's lattice; that of the random map leads from the template's
    side to the subject. Returns None when the iteration reaches no such map from this random deformation.
    """
    response = model.response.copy()
    missing = np.log(target_mm3 / model.volumes(random_forward))
    coefficients = np.zeros(len(target_mm3))
    for _ in range(ITERATIONS):
        step = np.linalg.solve(response, missing)
        coefficients = coefficients + step
        velocity = np.tensordot(coefficients.astype(np.float32), model.fields, axes=1)
        forward = compose(random_forward, exponential(velocity))
        volumes = model.volumes(forward)
        if (volumes <= 0).any():
            break
        before, missing = missing, np.log(target_mm3 / volumes)
        if np.abs(missing).max() < TOLERANCE:
            return RegionMap(velocity, exponential(-velocity), forward, volumes)
        gained = before - missing
        response += np.outer(gained - response @ step, step) / (step @ step)
    return None


def _crop(labels: np.ndarray, affine: np.ndarray, codes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The labels around some regions, an even number of voxels per axis, and the world position of its first corner."""
    margin = round(MARGIN_MM / affine[0, 0])
    padded = np.pad(labels, margin + 1)  # the regions may lie near the edge
    found = np.argwhere(np.isin(padded, codes))
    low, high = found.min(axis=0) - margin, found.max(axis=0) + 1 + margin
    high += (high - low) % 2
    return padded[tuple(map(slice, low, high))], affine[:3, :3] @ (low - margin - 1.5) + affine[:3, 3]


def _by_cell(mask: np.ndarray) -> np.ndarray:
    """Share of each 2 x 2 x 2 cell that a mask fills, in [0, 1]."""
    d, h, w = (size // 2 for size in mask.shape)
    return mask.reshape(d, 2, h, 2, w, 2).mean(axis=(1, 3, 5))


def _field_of(region: np.ndarray, room: np.ndarray, edges_mm: np.ndarray, surround_mm: float) -> np.ndarray:
    """Velocity (3, nodes) whose divergence is about 1 in a region given by cells, taken up in its surroundings."""
    source = ndimage.gaussian_filter(region, EDGE_MM / edges_mm)
    near = ndimage.gaussian_filter(region, surround_mm / edges_mm) * room
    source = source - near * source.sum() / near.sum()
    frequencies = np.meshgrid(*[2 * np.pi * np.fft.fftfreq(size) for size in source.shape], indexing="ij")
    # The symbols of a cell's slope and of its adjoint, with the half-cell shift between cells and nodes: the discrete
    # divergence of the solution, as `jacobian_determinant` measures it, is the source itself.
    shift, half = zip(*((np.exp(-0.5j * f), f / 2) for f in frequencies), strict=True)
    slopes = [
        2j * np.sin(half[axis]) * np.cos(half[first]) * np.cos(half[second])
        for axis, first, second in ((0, 1, 2), (1, 0, 2), (2, 0, 1))
    ]
    # A gradient in mm, and its components in voxels: twice the edge of a cell along that axis.
    scales = np.square(edges_mm.min() / edges_mm)
    power = sum(scale * np.abs(s) ** 2 for scale, s in zip(scales, slopes, strict=True))
    power[power < 1e-6] = np.inf
    potential = fft.fftn(source) / power * shift[0] * shift[1] * shift[2]
    nodes = np.stack([scale * fft.ifftn(np.conj(s) * potential).real for scale, s in zip(scales, slopes, strict=True)])
    nodes = np.pad(nodes, [(0, 0)] + [(0, 1)] * 3, mode="wrap")
    return nodes * _fade(nodes.shape[1:])


def _fade(shape: tuple[int, ...]) -> np.ndarray:
    """1 inside, down to 0 at the lattice's border over three voxels, so that the map ends smoothly in the identity."""
    ramps = [np.clip(np.minimum(np.arange(n), np.arange(n)[::-1]) / 3, 0, 1) for n in shape]
    return ramps[0][:, None, None] * ramps[1][:, None] * ramps[2]
