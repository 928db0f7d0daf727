"""A smaller hippocampus in a real head: the simulation's region map, made of the head's own labels.

Everything happens in the voxels of the scan, in the order of its file: the side is the side of the label.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cohort.atlas import SIDES
from cohort.simulation import warps
from cohort.simulation.simulator import LEAST_JACOBIAN

HIPPOCAMPUS, HORN = "Hippocampus", "Inf Lat Vent"
NEEDED = tuple(f"{side} {structure}" for structure in (HIPPOCAMPUS, HORN) for side in SIDES)
"""What labels must have, by the names of the atlas."""
FINEST_MM = 1.0
"""Voxels are divided until their edges are no longer: at 2 mm a map that is read at the centres of voxels alone would
lose a seventh of the change."""
MARGIN_MM = 16.0
"""Space around the hippocampus in which everything happens."""
SURROUND_MM = 3.5
"""Width of the surroundings that take up the change: narrower than between templates, because the rest of a real head
is to stay where it is."""
HORN_WEIGHT = 5.0
"""As `warps.HORN_WEIGHT`, for this width: a loss of a fifth widens the horn of its side by a sixth."""
FAR_MM = 10.0
"""Distance from the hippocampus beyond which nothing should move."""
STILL_MM = 0.03
"""Voxels that the map moves by less keep their intensities."""


@dataclass(frozen=True)
class HeadMap:
    """A map of a head in its own voxels. Fields (3, D, H, W) are displacements over the nodes of a lattice, in its
    units; the nodes are the corners of the voxels in `box`, each divided in `parts`."""

    box: tuple[slice, slice, slice]
    """The voxels beyond which nothing changes."""
    parts: np.ndarray
    """Int (3,): in how many the voxels are divided along each axis."""
    edges_mm: np.ndarray
    """(3,): edges of a voxel."""
    pull: np.ndarray
    """From the new head to the healthy one: where to read."""
    push: np.ndarray
    """From the healthy head to the new one."""
    region: np.ndarray
    """bool (D, H, W): the hippocampus of the healthy head, in the voxels of the box."""

    @property
    def min_jacobian(self) -> float:
        """Smallest Jacobian determinant of both; positive: nothing folds."""
        return float(min(warps.jacobian_determinant(field).min() for field in (self.pull, self.push)))

    def shift(self, points: np.ndarray) -> np.ndarray:
        """How far from points (3, ...), in voxels of the box, the healthy head is read; in voxels, float32."""
        scale = self.parts.reshape(3, *[1] * (points.ndim - 1)).astype(np.float32)
        return warps.sample(self.pull, (points + np.float32(0.5)) * scale) / scale

    def moved_mm(self) -> np.ndarray:
        """Length of the shift at the centre of each voxel of the box, (D, H, W)."""
        return np.linalg.norm(self.shift(warps.nodes(self.region.shape)) * warps.column(self.edges_mm), axis=0)

    def far_mm(self) -> float:
        """Largest of these lengths more than FAR_MM from the hippocampus."""
        away = ndimage.distance_transform_edt(~self.region, sampling=self.edges_mm) > FAR_MM
        return float(self.moved_mm()[away].max())

    def volumes(self, labels: np.ndarray, codes: Mapping[str, int]) -> dict[str, float]:
        """mm3 of each structure in the new head: integrals of the Jacobian determinant over labels (D, H, W)."""
        growth = warps.jacobian_determinant(self.push) - 1
        d, h, w = self.region.shape
        growth = growth.reshape(d, self.parts[0], h, self.parts[1], w, self.parts[2]).mean(axis=(1, 3, 5))
        gained = np.bincount(labels[self.box].ravel(), growth.ravel(), minlength=max(codes.values()) + 1)
        before, voxel = label_volumes(labels, codes, self.edges_mm), float(np.prod(self.edges_mm))
        return {name: before[name] + float(gained[code]) * voxel for name, code in codes.items()}

    def applied(self, image: np.ndarray) -> np.ndarray:
        """A scan (D, H, W) through the map, its own type of numbers, untouched where the map moves nothing.

        By cubic splines, within the range of the box: linear interpolation blurs, and a blurred temporal lobe would
        tell patients from controls.
        """
        inside, moved = image[self.box], self.moved_mm() > STILL_MM
        points = warps.nodes(inside.shape)[:, moved]
        at = points + self.shift(points)
        values = ndimage.map_coordinates(inside.astype(np.float64), at, order=3, mode="nearest")
        values = np.clip(values, inside.min(), inside.max())
        out = image.copy()
        out[self.box][moved] = values if image.dtype.kind == "f" else np.rint(values)
        return out


def find_map(
    labels: np.ndarray, edges_mm: np.ndarray, codes: Mapping[str, int], side: str, change: float, *,
    placebo: bool = False,
) -> HeadMap | None:  # fmt: skip
    """The map that changes the volume of one hippocampus; the temporal horn and what else is near make up for it.

    Args:
        labels: whole numbers (D, H, W), 0 where there is no region.
        edges_mm: (3,), edges of a voxel.
        codes: label of each structure, NEEDED among them.
        side: Left or Right.
        change: relative change of the volume; -0.2 is a loss of a fifth.
        placebo: a map of the same velocities, turned by a right angle about the first axis, which frees them of
            divergence: it moves and resamples the same tissue as far, and changes no volume.

    Returns:
        The map, or None where none without folds reaches that volume.
    """
    box = _box(labels == codes[f"{side} {HIPPOCAMPUS}"], edges_mm)
    parts = np.ceil(edges_mm / FINEST_MM - 1e-3).astype(int)
    fine_mm = edges_mm / parts
    near = labels[box]
    for axis in range(3):
        near = near.repeat(parts[axis], axis=axis)
    region, horn = (near == codes[f"{side} {structure}"] for structure in (HIPPOCAMPUS, HORN))
    room = ((near > 0) & ~region) + (HORN_WEIGHT - 1) * horn
    room = ndimage.gaussian_filter(room, warps.EDGE_MM / fine_mm)  # the lattice resolves no sharp edges
    model = warps.region_model(region[None].astype(float), room, fine_mm, SURROUND_MM)
    still = np.zeros(model.fields.shape[1:], np.float32)
    if (solved := warps.solve(model, still, (1 + change) * model.label_volumes)) is None:
        return None
    pull, push = solved.pull, solved.push
    if placebo:
        velocity = _turned(solved.velocity, fine_mm)
        pull, push = warps.exponential(-velocity), warps.exponential(velocity)
    found = HeadMap(box, parts, edges_mm, pull, push, labels[box] == codes[f"{side} {HIPPOCAMPUS}"])
    return found if found.min_jacobian >= LEAST_JACOBIAN else None


def label_volumes(labels: np.ndarray, codes: Mapping[str, int], edges_mm: np.ndarray) -> dict[str, float]:
    """mm3 of each structure, by counting its voxels."""
    counts = np.bincount(labels.ravel(), minlength=max(codes.values()) + 1)
    return {name: float(counts[code] * np.prod(edges_mm)) for name, code in codes.items()}


def _box(region: np.ndarray, edges_mm: np.ndarray) -> tuple[slice, slice, slice]:
    """The voxels around a region, as far as the scan has them."""
    margin = np.ceil(MARGIN_MM / edges_mm).astype(int)
    found = ndimage.find_objects(region.astype(np.uint8))[0]
    return tuple(
        slice(max(0, s.start - m), min(size, s.stop + m))
        for s, m, size in zip(found, margin, region.shape, strict=True)
    )


def _turned(velocity: np.ndarray, edges_mm: np.ndarray) -> np.ndarray:
    """The cross product of the first axis and a velocity (3, D, H, W) in voxels. Of a gradient, as the region's field
    is, it is the curl of the potential along that axis: its divergence is 0."""
    _, b, c = velocity * warps.column(edges_mm)
    return (np.stack([np.zeros_like(b), -c, b]) / warps.column(edges_mm)).astype(np.float32)
