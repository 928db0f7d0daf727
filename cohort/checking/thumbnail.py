"""Thumbnails: a scan at 4 mm about the middle of its head, small enough to compare each scan with every other.

The frame is the head's own and not the world's: prepared scans lie in MNI space, raw ones anywhere, and a copy whose
header lost its origin should still meet its original. Turning the head is not undone.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from cohort.resampling import edges_mm, resample, to_ras
from cohort.scans import head_mask, normalise

SHAPE = (40, 48, 40)
"""Voxels (D, H, W): 160 x 192 x 160 mm, a brain with some of the head around it."""
SPACING_MM = 4.0
VERSION = 1
"""Of what `thumbnail` computes. Raise it with any change: cached thumbnails are then made anew."""


def thumbnail(image: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Makes the thumbnail of a scan.

    Args:
        image: float32, three axes in any order, finite.
        affine: its voxel indices to world mm (RAS), (4, 4), invertible.

    Returns:
        uint8 SHAPE, axes (left-right, back-front, foot-head): intensities between the scan's own percentiles
        (`cohort.scans.normalise`), 255 the brightest. Its middle is the centre of mass of the head's mask.
    """
    image, affine = _block_means(*to_ras(image, affine))
    mask = head_mask(normalise(image))
    middle = ndimage.center_of_mass(mask) if mask.any() else (np.array(image.shape) - 1) / 2
    target = np.diag([SPACING_MM] * 3 + [1.0])
    target[:3, 3] = (affine @ [*middle, 1])[:3] - SPACING_MM * (np.array(SHAPE) - 1) / 2
    small, _ = resample(image, affine, target, SHAPE)
    return np.round(255 * normalise(small)).astype(np.uint8)


def _block_means(image: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over blocks of whole voxels whose edges stay within half the spacing: all later steps are then cheap."""
    sizes = np.maximum(1, np.floor(SPACING_MM / 2 / edges_mm(affine) + 1e-3).astype(int))
    sizes = np.minimum(sizes, image.shape)
    counts = np.array(image.shape) // sizes
    whole = image[tuple(slice(0, count * size) for count, size in zip(counts, sizes, strict=True))]
    blocks = whole.reshape(counts[0], sizes[0], counts[1], sizes[1], counts[2], sizes[2])
    step = np.diag([*sizes.astype(float), 1.0])
    step[:3, 3] = (sizes - 1) / 2
    return np.ascontiguousarray(blocks.mean(axis=(1, 3, 5), dtype=np.float32)), affine @ step
