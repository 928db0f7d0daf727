"""Attribution by gradients of the logit: at the volume, around it, and on the way to it from a baseline.

Shapes: volumes and maps (B, 1, D, H, W). The map of a volume does not depend on what else is in its batch: SmoothGrad's
noise has the address (seed, purpose, index of the volume, number of the draw), which captum's NoiseTunnel cannot give.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from torch import nn

from runtime import seeding


@dataclass(frozen=True)
class Context:
    """What every method is given besides network and volumes."""

    mean_hc: torch.Tensor
    """(1, 1, D, H, W), the mean control of the training data."""
    regions: torch.Tensor
    """int64 (1, 1, D, H, W), atlas labels, 0 outside every region."""
    ig_steps: int = 32
    """Points of the Gauss-Legendre rule on the path of integrated gradients."""
    noise_samples: int = 16
    """Noisy copies in SmoothGrad."""
    noise: float = 0.1
    """Standard deviation of their noise, in intensity units (volumes span 0 to 1)."""
    batch: int = 8
    """Volumes evaluated at once: points of paths, noisy copies and occluded copies count each."""
    seed: int = 0
    """Seed of all noise."""


def saliency(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """The gradient of the logit, signed. Source: Simonyan et al. 2013, arXiv 1312.6034."""
    return Saliency(model).attribute(x.detach().requires_grad_(True), abs=False)


def smoothgrad(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """The gradient, averaged over noisy copies of the volume. Source: Smilkov et al. 2017, arXiv 1706.03825."""

    def noise(row: int, draw: int) -> torch.Tensor:
        source = seeding.generator(context.seed, "smoothgrad", indices[row], draw, device=x.device)
        return torch.randn(x.shape[1:], generator=source, device=x.device)

    copies = list(itertools.product(range(len(x)), range(context.noise_samples)))
    total = torch.zeros_like(x)
    for start in range(0, len(copies), context.batch):
        chosen = copies[start : start + context.batch]
        rows = torch.tensor([row for row, _ in chosen], device=x.device)
        noisy = x[rows] + context.noise * torch.stack([noise(row, draw) for row, draw in chosen])
        total.index_add_(0, rows, saliency(model, noisy, context, ()))
    return total / context.noise_samples


def input_x_gradient(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """Intensity times gradient: the first-order effect of blackening each voxel. Source: arXiv 1605.01713."""
    return InputXGradient(model).attribute(x.detach().requires_grad_(True))


def integrated_gradients(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """Integrated gradients from the empty volume. Source: Sundararajan et al. 2017, arXiv 1703.01365, equation 1."""
    return _integrate(model, x, torch.zeros_like(context.mean_hc), context)


def integrated_gradients_hc(
    model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]
) -> torch.Tensor:
    """Integrated gradients from the mean control: what distinguishes this volume from an average healthy one."""
    return _integrate(model, x, context.mean_hc, context)


def _integrate(model: nn.Module, x: torch.Tensor, baseline: torch.Tensor, context: Context) -> torch.Tensor:
    # captum divides the batch among the volumes; each needs one point of its path at least
    size = max(context.batch, len(x))
    return IntegratedGradients(model).attribute(
        x, baselines=baseline, n_steps=context.ig_steps, internal_batch_size=size
    )
