"""Which voxels speak for TLE: attribution maps of a classifier's logit, one function per method, by name in METHODS.

Every map is signed (positive speaks for TLE), float32 (D, H, W), per voxel and in logits: for integrated gradients and
occlusion, sums over voxels are differences of logits; for the gradients, logits per unit of intensity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import FeatureAblation, IntegratedGradients, NoiseTunnel, Saliency
from torch import nn

from runtime import seeding
from runtime.errors import InputError


@dataclass(frozen=True)
class Context:
    """What methods need besides network and volume."""

    mean_hc: torch.Tensor
    """(1, 1, D, H, W), the mean control of the training data."""
    regions: torch.Tensor
    """int64 (1, 1, D, H, W), atlas labels, 0 outside every region."""
    ig_steps: int = 32
    """Points of the Gauss-Legendre rule along integrated gradients' path."""
    noise_samples: int = 16
    """Noisy copies in SmoothGrad."""
    noise: float = 0.1
    """Standard deviation of SmoothGrad's noise, in intensity units (volumes span 0 to 1)."""
    batch: int = 8
    """Volumes evaluated at once."""
    seed: int = 0
    """Seed of SmoothGrad's noise."""


Method = Callable[[nn.Module, torch.Tensor, Context, int], torch.Tensor]


def integrated_gradients(model: nn.Module, x: torch.Tensor, context: Context, index: int) -> torch.Tensor:
    """Integrated gradients from the empty volume. Source: Sundararajan et al. 2017, arXiv 1703.01365, equation 1."""
    return _integrate(model, x, torch.zeros_like(x), context)


def integrated_gradients_hc(model: nn.Module, x: torch.Tensor, context: Context, index: int) -> torch.Tensor:
    """Integrated gradients from the mean control: what distinguishes this volume from an average healthy one."""
    return _integrate(model, x, context.mean_hc, context)


def _integrate(model: nn.Module, x: torch.Tensor, baseline: torch.Tensor, context: Context) -> torch.Tensor:
    return IntegratedGradients(model).attribute(
        x, baselines=baseline, n_steps=context.ig_steps, internal_batch_size=context.batch
    )


def saliency(model: nn.Module, x: torch.Tensor, context: Context, index: int) -> torch.Tensor:
    """The gradient of the logit, signed. Source: Simonyan et al. 2013, arXiv 1312.6034."""
    return Saliency(model).attribute(x, abs=False)


def smoothgrad(model: nn.Module, x: torch.Tensor, context: Context, index: int) -> torch.Tensor:
    """The gradient, averaged over noisy copies of the volume. Source: Smilkov et al. 2017, arXiv 1706.03825."""
    seeding.seed_layers(context.seed, index)  # captum draws from torch's global generator
    return NoiseTunnel(Saliency(model)).attribute(
        x, nt_type="smoothgrad", nt_samples=context.noise_samples, nt_samples_batch_size=context.batch,
        stdevs=context.noise, abs=False,
    )  # fmt: skip


def occlusion(model: nn.Module, x: torch.Tensor, context: Context, index: int) -> torch.Tensor:
    """How much the logit falls when one atlas region is replaced by the mean control's, spread over its voxels.

    Voxels outside every region get 0: they are no region. Replacing by the mean control stays nearer to real volumes
    than a hole would; its borders are sharp all the same.
    """
    codes, features = torch.unique(context.regions, return_inverse=True)
    fall = FeatureAblation(model).attribute(
        x, baselines=context.mean_hc, feature_mask=features, perturbations_per_eval=context.batch
    )
    voxels = torch.bincount(features.flatten(), minlength=len(codes))[features]
    return torch.where(context.regions > 0, fall / voxels, 0.0)


METHODS: dict[str, Method] = {
    method.__name__: method
    for method in (integrated_gradients, integrated_gradients_hc, saliency, smoothgrad, occlusion)
}

COMPLETE = ("integrated_gradients", "integrated_gradients_hc")
"""Methods whose maps sum to the logit minus the baseline's logit, up to the error of the integration rule."""


def check_methods(names: tuple[str, ...]) -> None:
    """Raises InputError that names the unknown methods and lists the known ones."""
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise InputError(f"--methods: unknown: {', '.join(unknown) or 'none given'}; there are: {', '.join(METHODS)}")


def attribute(model: nn.Module, x: torch.Tensor, method: str, context: Context, index: int = 0) -> np.ndarray:
    """One map of one volume.

    Args:
        model: gives logits (B,) for volumes (B, 1, D, H, W); in evaluation mode.
        x: (1, 1, D, H, W) in [0, 1].
        method: a name in METHODS.
        context: baseline, regions and numbers.
        index: of the volume, the address of random draws.

    Returns:
        float32 (D, H, W).
    """
    check_methods((method,))
    x = x.detach().clone().requires_grad_(True)
    return METHODS[method](model, x, context, index).detach()[0, 0].float().cpu().numpy()


@torch.no_grad()
def completeness_error(model: nn.Module, x: torch.Tensor, method: str, context: Context, map_: np.ndarray) -> float:
    """How far a map of one of the COMPLETE methods is from summing to logit minus baseline's logit, in logits."""
    baseline = torch.zeros_like(x) if method == "integrated_gradients" else context.mean_hc
    both = model(torch.cat([x, baseline]))
    return float(map_.sum(dtype=np.float64) - float(both[0] - both[1]))
