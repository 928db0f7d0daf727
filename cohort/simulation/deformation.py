"""Diffeomorphic deformations of a regular lattice: random velocity fields, exponential, composition, Jacobian.

A field is a float32 array (3, D, H, W) over the nodes of a lattice, in units of that lattice's voxels; between nodes it
is trilinear. A map is written by its displacement u: x -> x + u(x). The exponential of a stationary velocity field v is
the flow of v for unit time, and exp(-v) is its inverse (Arsigny et al. 2006, MICCAI, "A log-Euclidean framework for
statistics on diffeomorphisms").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import fft

SQUARINGS = 3
"""Enough, with the second-order start, for flows up to two voxels: exp(-v) after exp(v) then misses the identity by
under 1 % of a voxel (root mean square)."""


def nodes(shape: Sequence[int]) -> np.ndarray:
    """Coordinates of a lattice's nodes, float32 (3, D, H, W), in voxels."""
    return np.indices(tuple(shape), dtype=np.float32)


def sample(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Trilinear values of a field at points; beyond the lattice, the value at its border.

    Twice as fast as `scipy.ndimage.map_coordinates` called for each component, because the cell and the weights of a
    point are found once for all components.

    Args:
        field: float32 (C, D, H, W).
        points: float32 (3, ...) in voxels of the field's lattice.

    Returns:
        float32 (C, ...).
    """
    _, _, height, width = field.shape
    last = np.array(field.shape[1:], np.float32).reshape(3, 1) - 1
    at = np.clip(points.reshape(3, -1), 0, last)
    cell = np.minimum(at.astype(np.int32), last.astype(np.int32) - 1)
    along_x, along_y, along_z = at - cell
    corner = ((cell[0] * height + cell[1]) * width + cell[2]).astype(np.intp)  # else every take converts
    values = np.ascontiguousarray(field).reshape(len(field), -1)

    def edge(offset: int) -> np.ndarray:
        low = values.take(corner + offset, axis=1, mode="clip")
        return low + along_z * (values.take(corner + (offset + 1), axis=1, mode="clip") - low)

    def face(offset: int) -> np.ndarray:
        low = edge(offset)
        return low + along_y * (edge(offset + width) - low)

    low = face(0)
    return (low + along_x * (face(height * width) - low)).reshape(len(field), *points.shape[1:])


def random_velocity(
    shape: Sequence[int], spacing_mm: float, scales: Sequence[tuple[float, float]], rng: np.random.Generator
) -> np.ndarray:
    """A Gaussian random velocity field that is the sum of independent fields of several smoothnesses.

    White noise is filtered once by the root of the summed power spectra, which has the distribution of the sum.

    Args:
        shape: nodes of the lattice.
        spacing_mm: its spacing.
        scales: (smoothness, amplitude) pairs in mm: the standard deviation of the Gaussian kernel, and the root mean
            square length of the three-component vector.
        rng: source of the noise.

    Returns:
        float32 (3, D, H, W) in voxels.
    """
    frequencies = (*(np.fft.fftfreq(size) for size in shape[:2]), np.fft.rfftfreq(shape[2]))
    squared = sum(np.square(axis) for axis in np.ix_(*frequencies))
    power = np.zeros(squared.shape)
    for sigma_mm, amplitude_mm in scales:
        kernel = np.exp(-2 * np.square(np.pi * sigma_mm / spacing_mm) * squared) ** 2
        variance = np.square(amplitude_mm / spacing_mm) / 3
        power += variance * kernel / _mean_power(kernel, shape)
    noise = fft.rfftn(rng.standard_normal((3, *shape), dtype=np.float32), axes=(1, 2, 3))
    return fft.irfftn(noise * np.sqrt(power).astype(np.float32), s=tuple(shape), axes=(1, 2, 3))


def _mean_power(half: np.ndarray, shape: Sequence[int]) -> float:
    """Mean over all frequencies of a spectrum of which rfftn's half is given."""
    weight = np.full(half.shape[2], 2.0)
    weight[0] = 1
    if shape[2] % 2 == 0:
        weight[-1] = 1
    return float((half * weight).sum() / np.prod(shape))


def affine_basis(weight: np.ndarray) -> np.ndarray:
    """Orthonormal basis, under a voxel weight, of the affine functions 1, x, y, z on a lattice: (4, D, H, W)."""
    functions = np.concatenate([np.ones((1, *weight.shape)), nodes(weight.shape)]).reshape(4, -1)
    root = np.sqrt(weight.ravel() / weight.sum())
    _, triangle = np.linalg.qr((functions * root).T)
    return np.linalg.solve(triangle.T, functions).reshape(4, *weight.shape).astype(np.float32)


def without_affine(field: np.ndarray, basis: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A field less its weighted least-squares affine part: what is left after affine registration.

    Args:
        field: (3, D, H, W).
        basis: from `affine_basis(weight)`.
        weight: (D, H, W), non-negative.
    """
    flat = basis.reshape(4, -1)
    part = (field.reshape(3, -1) * (weight.ravel() / weight.sum())) @ flat.T
    return field - (part @ flat).reshape(field.shape).astype(np.float32)


def exponential(velocity: np.ndarray, squarings: int = SQUARINGS) -> np.ndarray:
    """The displacement of exp(v) by scaling and squaring.

    The first small step is of second order, x + w + (Dw) w / 2 with w = v / 2^n, so that few squarings suffice.

    Args:
        velocity: (3, D, H, W) in voxels.
        squarings: n.

    Returns:
        float32 (3, D, H, W) in voxels.
    """
    step = (velocity / 2**squarings).astype(np.float32)
    slopes = np.stack([np.stack(np.gradient(component)) for component in step])
    displacement = step + 0.5 * np.einsum("cadhw,adhw->cdhw", slopes, step)
    at = nodes(velocity.shape[1:])
    for _ in range(squarings):
        displacement = displacement + sample(displacement, at + displacement)
    return displacement


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The displacement of x -> outer(inner(x)), both given as displacements on one lattice in voxels."""
    return inner + sample(outer, nodes(inner.shape[1:]) + inner)


def jacobian_determinant(displacement: np.ndarray) -> np.ndarray:
    """Determinant of the derivative of x + u(x) at the centre of each cell of the lattice.

    It is that of the trilinear map itself, not a difference over two voxels. Positive everywhere means no folding.

    Returns:
        float32 (D - 1, H - 1, W - 1).
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
        head = [slice(None)] * 3
        tail = [slice(None)] * 3
        head[other], tail[other] = slice(None, -1), slice(1, None)
        slope = 0.5 * (slope[tuple(head)] + slope[tuple(tail)])
    return slope
