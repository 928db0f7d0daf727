"""Geometry of scans: to RAS, and onto another grid of voxels in world millimetres."""

from __future__ import annotations

import math

import nibabel as nib
import numpy as np
from scipy import ndimage

_FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))


def is_flat(affine: np.ndarray) -> bool:
    """Whether an affine (4, 4) has no inverse, or none worth the name: a determinant of zero."""
    edges = edges_mm(affine)
    # Relative to the voxel's edges, so that small voxels are not taken for flat ones.
    return bool(edges.min() == 0 or abs(np.linalg.det(affine[:3, :3] / edges)) < 1e-6)


def edges_mm(affine: np.ndarray) -> np.ndarray:
    """Edges of a voxel along the three axes of the array, in mm."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def to_ras(image: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reorders and flips the axes to the nearest of (left-right, back-front, foot-head); no voxel changes its value."""
    turn = nib.orientations.io_orientation(affine)
    turned = nib.orientations.apply_orientation(image, turn)
    return turned, affine @ nib.orientations.inv_ornt_aff(turn, image.shape)


def resample(
    image: np.ndarray, affine: np.ndarray, target: np.ndarray, shape: tuple[int, int, int]
) -> tuple[np.ndarray, float]:
    """Resamples linearly in world millimetres.

    Args:
        image: float32, three axes.
        affine: its voxel indices to mm, (4, 4), invertible.
        target: the wanted grid's voxel indices to mm, (4, 4).
        shape: the wanted grid's (D, H, W).

    Returns:
        float32 (D, H, W), 0 outside the image's field of view; and the share of the grid inside it.
    """
    steps, offset = _index_map(affine, target)
    inside = _field_of_view(image.shape, steps, offset, shape)
    smooth = _low_pass(image, edges_mm(affine), edges_mm(target).min())
    moved = ndimage.affine_transform(smooth, steps, offset, shape, order=1, mode="nearest", output=np.float32)
    moved[~inside] = 0
    return moved, float(inside.mean())


def extent_mm(shape: tuple[int, ...], affine: np.ndarray) -> tuple[list[int], list[int]]:
    """Lowest and highest world coordinates of an image's field of view, in whole mm."""
    corners = np.array(np.meshgrid(*[(-0.5, size - 0.5) for size in shape], indexing="ij")).reshape(3, -1)
    world = np.round(affine[:3, :3] @ corners + affine[:3, 3:]).astype(int)
    return world.min(axis=1).tolist(), world.max(axis=1).tolist()


def _index_map(affine: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matrix (3, 3) and offset (3,) from indices of the target to indices of the image.

    Rounded far below what anyone can see (a ten-thousandth of a voxel): headers store float32, so that the same place
    written from the left (RAS) and from the right (LAS) differs in the last digits, and both must give one result.
    """
    full = np.linalg.inv(affine) @ target
    return np.round(full[:3, :3], 9), np.round(full[:3, 3], 4)


def _field_of_view(
    size: tuple[int, ...], steps: np.ndarray, offset: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray:
    """bool (D, H, W): grid points that lie in a voxel of the image, which reaches half a voxel beyond its centre."""
    i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    inside = np.ones(shape, dtype=bool)
    for axis in range(3):
        place = steps[axis, 0] * i + steps[axis, 1] * j + steps[axis, 2] * k + offset[axis]
        # The tolerance keeps points on the very border inside, whatever the last digit of the header.
        inside &= (place > -0.501) & (place < size[axis] - 0.499)
    return inside


def _low_pass(image: np.ndarray, edges: np.ndarray, wanted: float) -> np.ndarray:
    """Blurs an image that is finer than the grid, so that detail between grid points is averaged and not aliased.

    A voxel is taken as a Gaussian whose full width at half maximum is its edge; the blur is what turns the image's into
    the grid's, a Gaussian of sigma sqrt(wanted^2 - edge^2) / 2.355 (Cardoso et al. 2015, "Scale factor point spread
    function matching"). It vanishes as the two edges become equal, so there is no threshold to cross.
    """
    widths = np.sqrt(np.clip(wanted**2 - edges**2, 0, None)) / _FWHM_PER_SIGMA
    sigma = np.round(widths / edges, 4)
    if not sigma.any():
        return image
    return ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3.0, output=np.float32)
