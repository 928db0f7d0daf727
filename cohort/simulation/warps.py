"""Deformations that bring anatomical regions to prescribed volumes.

Each region has a velocity field whose divergence is 1 inside it, with the opposite divergence spread over its
surroundings, so that the rest of the brain stays where it is: the field is the gradient of the solution of a Poisson
equation. The flow of a combination of these fields scales the regions' volumes by about the exponential of its
coefficients; the coefficients are iterated until the measured volumes are the prescribed ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

from cohort.atlas import REGIONS, native_atlas
from cohort.simulation import deformation

SPACING_MM = 3.0
"""Two label voxels: each cell of the lattice holds 2 x 2 x 2 of them."""
MARGIN_MM = 15.0
"""Space around the regions in which they may grow and their surroundings give way."""
SURROUND_MM = 9.0
"""Width (Gaussian standard deviation) of the surroundings that take up a region's change."""
EDGE_MM = 2.0
"""Smoothing of the prescribed divergence at a region's edge, so that the lattice resolves the field."""
HORN_WEIGHT = 4.0
"""The temporal horns take up this many times more of a change than tissue: as the hippocampus shrinks, they widen."""
HORNS = ("Left Inf Lat Vent", "Right Inf Lat Vent")
TOLERANCE = 0.004
"""Largest relative deviation of a region's volume from the prescribed one at which the iteration ends."""
ITERATIONS = 12
SQUARINGS = 3


@dataclass(frozen=True)
class RegionModel:
    """Lattice over the regions, and one velocity field and one volume weight for each."""

    origin_mm: np.ndarray
    """World coordinates of node (0, 0, 0)."""
    shape: tuple[int, int, int]
    fields: np.ndarray
    """float32 (regions, 3, D, H, W) in voxels: flow for unit time with coefficient g changes log-volume by about g."""
    weights: np.ndarray
    """float32 (regions, cells): mm3 of the region in each cell of the lattice, cells in C order."""
    response: np.ndarray
    """(regions, regions): derivative of the log-volumes (rows) by the coefficients (columns), at the identity."""

    @property
    def atlas_volumes(self) -> np.ndarray:
        """Volume of every region in the labels, mm3."""
        return self.weights.sum(axis=1)

    def volumes(self, forward: np.ndarray) -> np.ndarray:
        """Volumes in mm3 of the regions after a map from the template, given by its displacement on this lattice."""
        return self.weights @ deformation.jacobian_determinant(forward).ravel()

    def velocity(self, coefficients: np.ndarray) -> np.ndarray:
        """The combination of the regions' fields, (3, D, H, W) in voxels."""
        return np.tensordot(coefficients.astype(np.float32), self.fields, axes=1)

    def to_voxels(self, world_mm: np.ndarray) -> np.ndarray:
        """World points (3, ...) in voxels of this lattice."""
        return (world_mm - self.origin_mm.reshape(3, *[1] * (world_mm.ndim - 1)).astype(np.float32)) / SPACING_MM


@dataclass(frozen=True)
class RegionMap:
    """A region deformation that was found. Displacements (3, D, H, W) in voxels of the model's lattice."""

    pull: np.ndarray
    """From the deformed template to the template: where to read the image."""
    forward: np.ndarray
    """From the template to the subject, the random deformation included."""
    volumes_mm3: np.ndarray


def region_model() -> RegionModel:
    """Builds the fields and weights of the regions from the labels as distributed."""
    labels, affine, names = native_atlas()
    codes = {name: code for code, name in names.items()}
    lattice_labels, origin = _crop(labels, affine, [codes[region] for region in REGIONS])
    cells = np.stack([_by_cell(lattice_labels == codes[region]) for region in REGIONS])
    horns = _by_cell(np.isin(lattice_labels, [codes[name] for name in HORNS]))
    tissue = _by_cell(lattice_labels > 0)
    room = np.maximum(tissue - cells.sum(axis=0), 0) + (HORN_WEIGHT - 1) * horns
    fields = np.stack([_field_of(region, room) for region in cells])
    weights = (cells.reshape(len(cells), -1) * SPACING_MM**3).astype(np.float32)
    shape = fields.shape[2:]
    small = 0.01
    changed = [np.log(weights @ deformation.jacobian_determinant(small * field).ravel()) for field in fields]
    response = (np.stack(changed, axis=1) - np.log(weights.sum(axis=1))[:, None]) / small
    return RegionModel(origin, shape, fields.astype(np.float32), weights, response)


def solve(model: RegionModel, random_forward: np.ndarray, target_mm3: np.ndarray) -> RegionMap | None:
    """Finds the region deformation that, with a random deformation on top, gives the prescribed volumes.

    Newton's method on the log-volumes, with Broyden's update of the derivative (Broyden 1965, Math. Comp. 19:577).

    Args:
        model: from `region_model`.
        random_forward: displacement (3, D, H, W), in voxels of the model's lattice, of the random map from the
            template's side to the subject.
        target_mm3: prescribed volumes in the subject.

    Returns:
        The maps and the volumes reached, as integrals of the Jacobian determinant over the labels; None when the
        iteration reaches no such map from this random deformation.
    """
    response = model.response.copy()
    missing = np.log(target_mm3 / model.volumes(random_forward))
    coefficients = np.zeros(len(target_mm3))
    for _ in range(ITERATIONS):
        step = np.linalg.solve(response, missing)
        coefficients = coefficients + step
        velocity = model.velocity(coefficients)
        forward = deformation.compose(random_forward, deformation.exponential(velocity, SQUARINGS))
        volumes = model.volumes(forward)
        if (volumes <= 0).any():
            break
        before, missing = missing, np.log(target_mm3 / volumes)
        if np.abs(missing).max() < TOLERANCE:
            return RegionMap(deformation.exponential(-velocity, SQUARINGS), forward, volumes)
        gained = before - missing
        response += np.outer(gained - response @ step, step) / (step @ step)
    return None


def _crop(labels: np.ndarray, affine: np.ndarray, codes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The labels around some regions, an even number of voxels per axis, and the world position of its first corner."""
    voxel = affine[0, 0]
    margin = round(MARGIN_MM / voxel)
    found = np.argwhere(np.isin(labels, codes))
    low, high = found.min(axis=0) - margin, found.max(axis=0) + 1 + margin
    high += (high - low) % 2
    inside_low, inside_high = np.maximum(low, 0), np.minimum(high, labels.shape)
    crop = labels[tuple(slice(a, b) for a, b in zip(inside_low, inside_high, strict=True))]
    crop = np.pad(crop, list(zip(inside_low - low, high - inside_high, strict=True)))
    return crop, affine[:3, :3] @ (low - 0.5) + affine[:3, 3]


def _by_cell(mask: np.ndarray) -> np.ndarray:
    """Share of each 2 x 2 x 2 cell that a mask fills, in [0, 1]."""
    d, h, w = (size // 2 for size in mask.shape)
    return mask.reshape(d, 2, h, 2, w, 2).mean(axis=(1, 3, 5))


def _field_of(region: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Velocity (3, nodes) whose divergence is about 1 in a region given by cells, taken up in its surroundings."""
    source = ndimage.gaussian_filter(region, EDGE_MM / SPACING_MM)
    near = ndimage.gaussian_filter(region, SURROUND_MM / SPACING_MM) * room
    source = source - near * source.sum() / near.sum()
    frequencies = np.meshgrid(*[2 * np.pi * np.fft.fftfreq(size) for size in source.shape], indexing="ij")
    # The symbols of a cell's slope and of its adjoint, with the half-cell shift between cells and nodes: the discrete
    # divergence of the solution, as `jacobian_determinant` measures it, is the source itself.
    shift = [np.exp(-0.5j * f) for f in frequencies]
    slopes = []
    for axis in range(3):
        symbol = 2j * np.sin(frequencies[axis] / 2)
        for other in {0, 1, 2} - {axis}:
            symbol = symbol * np.cos(frequencies[other] / 2)
        slopes.append(symbol)
    power = sum(np.abs(s) ** 2 for s in slopes)
    power[power < 1e-6] = np.inf
    potential = fft.fftn(source) / power * shift[0] * shift[1] * shift[2]
    nodes = np.stack([fft.ifftn(np.conj(s) * potential).real for s in slopes])
    nodes = np.pad(nodes, [(0, 0)] + [(0, 1)] * 3, mode="wrap")
    return nodes * _fade(nodes.shape[1:])


def _fade(shape: tuple[int, ...]) -> np.ndarray:
    """1 inside, down to 0 at the lattice's border over three voxels, so that the map ends smoothly in the identity."""
    ramps = [np.clip(np.minimum(np.arange(n), np.arange(n)[::-1]) / 3, 0, 1) for n in shape]
    return ramps[0][:, None, None] * ramps[1][:, None] * ramps[2]
