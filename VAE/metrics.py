"""How close a reconstruction is to its volume: PSNR, SSIM and NMSE, over the volume and inside the head."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from cohort.scans import head_mask

SSIM_KERNEL = 7
"""Voxels along each axis of SSIM's uniform window."""


def psnr(x_hat: np.ndarray, x: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB for volumes in [0, 1] (peak 1); infinite for equal volumes."""
    mse = float(np.mean((x_hat - x) ** 2, dtype=np.float64))
    return float("inf") if mse == 0 else -10.0 * float(np.log10(mse))


def nmse(x_hat: np.ndarray, x: np.ndarray) -> float:
    """Squared error over squared signal, sum over the voxels given."""
    return float(np.sum((x_hat - x) ** 2, dtype=np.float64) / np.sum(x**2, dtype=np.float64))


def ssim_map(x_hat: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Structural similarity of each voxel whose window lies inside the volume; uniform window, data range 1.

    Wang et al. 2004 (https://doi.org/10.1109/TIP.2003.819861), equation 13 with K1 = 0.01 and K2 = 0.03. Written out
    here, and compared with MONAI's in a test, because importing MONAI takes longer than validating.

    Args:
        x_hat: reconstruction (D, H, W) in [0, 1].
        x: volume, same shape.

    Returns:
        array of (D - 6, H - 6, W - 6).
    """
    a, b = (torch.as_tensor(volume, dtype=torch.float64)[None, None] for volume in (x_hat, x))
    mean_a, mean_b, aa, bb, ab = F.avg_pool3d(torch.cat([a, b, a * a, b * b, a * b]), SSIM_KERNEL, stride=1)[:, 0]
    similarity = (2 * mean_a * mean_b + 0.01**2) * (2 * (ab - mean_a * mean_b) + 0.03**2)
    similarity /= (mean_a**2 + mean_b**2 + 0.01**2) * (aa - mean_a**2 + bb - mean_b**2 + 0.03**2)
    return similarity.numpy()


def reconstruction_metrics(x_hat: np.ndarray, x: np.ndarray) -> dict[str, float]:
    """All measures for one pair of volumes (D, H, W) in [0, 1].

    Returns:
        ``psnr_head``, ``ssim_head``, ``nmse_head`` inside the head of `x` (background inflates all three), and
        ``psnr``, ``ssim``, ``nmse`` over the whole volume.
    """
    x_hat = np.clip(x_hat, 0.0, 1.0)
    head = head_mask(x)
    similarity = ssim_map(x_hat, x)
    edge = SSIM_KERNEL // 2
    inner = head[edge:-edge, edge:-edge, edge:-edge]
    return {
        "psnr_head": psnr(x_hat[head], x[head]),
        "ssim_head": float(similarity[inner].mean()),
        "nmse_head": nmse(x_hat[head], x[head]),
        "psnr": psnr(x_hat, x),
        "ssim": float(similarity.mean()),
        "nmse": nmse(x_hat, x),
    }
