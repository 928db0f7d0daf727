"""How close reconstructions are to their volumes (PSNR, SSIM, NMSE), and what each latent channel carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cohort.pictures import gallery
from cohort.scans import head_mask

SSIM_KERNEL = 7
"""Voxels along each axis of SSIM's uniform window."""
DEAD_NOISE_SHARE = 0.95
"""A channel with more posterior noise than this is dead: it carries less than 0.5 ln(1 + 1/19) = 0.026 nats a position.
The KL is no such test: a narrow channel that is the same everywhere has a large one, and tells the decoder nothing."""


def psnr(x_hat: np.ndarray, x: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB for volumes in [0, 1] (peak 1); infinite for equal volumes."""
    mse = float(np.mean((x_hat - x) ** 2, dtype=np.float64))
    return float("inf") if mse == 0 else -10.0 * float(np.log10(mse))


def nmse(x_hat: np.ndarray, x: np.ndarray) -> float:
    """Squared error over squared signal, sum over the voxels given."""
    return float(np.sum((x_hat - x) ** 2, dtype=np.float64) / np.sum(x**2, dtype=np.float64))


def ssim_map(x_hat: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Structural similarity of each voxel whose window lies inside the volume: (D - 6, H - 6, W - 6), data range 1.

    Wang et al. 2004 (https://doi.org/10.1109/TIP.2003.819861), equation 13 with a uniform window, K1 = 0.01, K2 = 0.03.
    Written out here, and compared with MONAI's in a test, because importing MONAI takes longer than validating.
    """
    a, b = (torch.as_tensor(volume, dtype=torch.float64)[None, None] for volume in (x_hat, x))
    mean_a, mean_b, aa, bb, ab = F.avg_pool3d(torch.cat([a, b, a * a, b * b, a * b]), SSIM_KERNEL, stride=1)[:, 0]
    similarity = (2 * mean_a * mean_b + 0.01**2) * (2 * (ab - mean_a * mean_b) + 0.03**2)
    similarity /= (mean_a**2 + mean_b**2 + 0.01**2) * (aa - mean_a**2 + bb - mean_b**2 + 0.03**2)
    return similarity.numpy()


def reconstruction_metrics(x_hat: np.ndarray, x: np.ndarray) -> dict[str, float]:
    """PSNR, SSIM and NMSE of volumes (D, H, W) in [0, 1]: ``..._head`` inside the head of `x`, and of the whole volume,
    where background inflates all three.
    """
    x_hat = np.clip(x_hat, 0.0, 1.0)
    head = head_mask(x)
    similarity = ssim_map(x_hat, x)
    edge = SSIM_KERNEL // 2
    inner = head[edge:-edge, edge:-edge, edge:-edge]
    return {
        "psnr_head": psnr(x_hat[head], x[head]), "ssim_head": float(similarity[inner].mean()),
        "nmse_head": nmse(x_hat[head], x[head]),
        "psnr": psnr(x_hat, x), "ssim": float(similarity.mean()), "nmse": nmse(x_hat, x),
    }  # fmt: skip


def draw_pairs(path: Path, pairs: list[tuple[np.ndarray, np.ndarray]], title: str) -> None:
    """A picture of scans, their reconstructions and the differences; pairs are (reconstruction, scan)."""
    reconstructions, scans = zip(*pairs, strict=True)
    differences = [x_hat - x for x_hat, x in pairs]
    rows = [("scan", list(scans)), ("reconstruction", list(reconstructions)), ("difference", differences)]
    gallery(path, rows, title=title, error_rows=(2,))


def posterior_sums(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """Of mu, mu^2, exp(logvar) and KL to the standard normal, over scans and positions: (4, C) float64."""
    mu, logvar = (value.detach().cpu().double().transpose(0, 1).flatten(1) for value in (mu, logvar))
    variance = logvar.exp()
    kl = 0.5 * (mu**2 + variance - 1 - logvar)  # Kingma & Welling 2014, appendix B
    return torch.stack([value.sum(1) for value in (mu, mu**2, variance, kl)])


def posterior_report(sums: list[torch.Tensor], positions: int) -> dict[str, Any]:
    """What each latent channel carries, from the `posterior_sums` of scans with so many positions each.

    Returns:
        ``scans``; ``channels``, for each one ``mean`` and ``std`` of mu over scans and positions, ``kl`` in nats per
        position, ``noise_share`` = E[exp(logvar)] / (Var mu + E[exp(logvar)]) and ``dead``; ``kl``, their KL added up;
        and ``dead``, the numbers of dead channels from 0.
    """
    mean, square, noise, kl = sum(sums) / (len(sums) * positions)
    variance = (square - mean**2).clamp(min=0)
    share = noise / (variance + noise)
    names = ("mean", "std", "kl", "noise_share")
    rows = torch.stack([mean, variance.sqrt(), kl, share], dim=1).tolist()
    channels = [{**dict(zip(names, row, strict=True)), "dead": row[3] > DEAD_NOISE_SHARE} for row in rows]
    dead = [number for number, channel in enumerate(channels) if channel["dead"]]
    return {"scans": len(sums), "channels": channels, "kl": float(kl.sum()), "dead": dead}
