"""Intensities of T1-weighted scans: the bias field of the coil, and a scale that does not hang on outliers."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk  # noqa: N813, its documentation's own short name
from scipy import ndimage

SHRINK_MM = 6.0
"""Voxel size at which the bias field is fitted; the field varies over centimetres."""
ITERATIONS = (50, 40, 30)
"""Most iterations of N4 at each of its levels, the lattice of control points being doubled from level to level."""
FIRST_LATTICE = 4
CONVERGENCE = 5e-4
SCALE = 1000.0
"""What the 99.5th percentile inside the brain becomes."""


def bias_field(image: np.ndarray, mask: np.ndarray, spacing_mm: float) -> np.ndarray:
    """The multiplicative field of a scan, by N4 (Tustison et al. 2010, IEEE TMI 29:1310).

    Args:
        image: (D, H, W), positive where it counts.
        mask: bool, the tissue that the field is fitted to.
        spacing_mm: edge of a voxel.

    Returns:
        float32 (D, H, W), positive, with geometric mean 1 inside the mask.
    """
    step = max(1, round(SHRINK_MM / spacing_mm))
    positive = mask & (image > 0)
    small = _means(np.where(positive, image, 0), step)
    filled = _means(positive.astype(np.float32), step)
    inside = filled > 0.5
    if inside.sum() < FIRST_LATTICE**3:
        return np.ones(image.shape, np.float32)
    values = np.where(inside, small / np.maximum(filled, 1e-6), 0).astype(np.float32)
    filter_ = sitk.N4BiasFieldCorrectionImageFilter()
    filter_.SetMaximumNumberOfIterations(ITERATIONS)
    filter_.SetConvergenceThreshold(CONVERGENCE)
    filter_.SetNumberOfControlPoints([FIRST_LATTICE] * 3)
    coarse = sitk.GetImageFromArray(values)
    filter_.Execute(coarse, sitk.GetImageFromArray(inside.astype(np.uint8)))
    log_small = sitk.GetArrayFromImage(filter_.GetLogBiasFieldAsImage(coarse))
    # The centre of a small voxel lies (step - 1) / 2 voxels beyond that of its first.
    offset = -(step - 1) / 2 / step
    log_field = ndimage.affine_transform(
        log_small, np.full(3, 1 / step), offset, image.shape, order=1, mode="nearest", output=np.float32
    )
    return np.exp(log_field - log_field[positive].mean())


def rescale(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Scales a volume so that the 99.5th percentile inside the brain is SCALE, and rounds it to whole numbers.

    The brightest half per cent are vessels and what is left of fat; nothing is clipped. Inside the brain no voxel
    falls below 1, so that 0 remains the mark of the background.

    Args:
        image: (D, H, W).
        brain: bool, not empty.

    Returns:
        float32 (D, H, W), whole numbers.
    """
    high = float(np.percentile(image[brain], 99.5))
    scaled = np.rint(image * (SCALE / high)) if high > 0 else np.zeros_like(image)
    return np.where(brain, np.maximum(scaled, 1), scaled).astype(np.float32)


def _means(image: np.ndarray, step: int) -> np.ndarray:
    """Means of blocks of `step` voxels along each axis; the last block repeats the border."""
    padded = np.pad(image, [(0, -size % step) for size in image.shape], mode="edge")
    d, h, w = (size // step for size in padded.shape)
    return padded.reshape(d, step, h, step, w, step).mean(axis=(1, 3, 5))
