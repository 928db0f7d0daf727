"""What every attribution method is given besides network and volumes, and the check that the two fit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from runtime.errors import InputError


@dataclass(frozen=True)
class Context:
    """Baseline, regions and the numbers of the methods."""

    mean_hc: torch.Tensor
    """(1, 1, D, H, W), the mean control of the training data."""
    regions: torch.Tensor
    """int64 (1, 1, D, H, W), atlas labels, 0 outside every region."""
    ig_steps: int = 32
    """Points of the Gauss-Legendre rule along integrated gradients' path."""
    noise_samples: int = 16
    """Noisy copies in SmoothGrad."""
    shap_samples: int = 25
    """Random points in gradient SHAP; its baselines take turns."""
    noise: float = 0.1
    """Standard deviation of the noise of SmoothGrad and of gradient SHAP's noisy baselines, in intensity units (volumes
    span 0 to 1)."""
    batch: int = 8
    """Volumes evaluated at once: points of paths, noisy copies and occluded copies count each."""
    seed: int = 0
    """Seed of all noise."""


def check_input(x: torch.Tensor, context: Context) -> None:
    """Raises InputError unless the volumes (B, 1, D, H, W) have the shape of the network's own training volumes."""
    got, expected = tuple(x.shape[1:]), tuple(context.mean_hc.shape[1:])
    if x.dim() != 5 or got != expected:
        raise InputError(
            f"volumes of shape {tuple(x.shape)} cannot be explained: this classifier was trained on (B, "
            f"{', '.join(map(str, expected))}); bring them onto its grid (cohort.scans.load_scan)"
        )
