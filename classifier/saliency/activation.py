"""Maps by place instead of by voxel: a network's own activations, and atlas regions replaced. Maps (B, 1, D, H, W)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from captum.attr import FeatureAblation, LayerGradCam
from torch import nn

from classifier.saliency.gradients import Context
from runtime.errors import InputError


def grad_cam(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """Activations of the last convolution, weighted by their mean gradients, signed. For comparison only.

    One value per place of the last level, constant in H where a network has the coronal slices as channels. Source:
    Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2 without the ReLU.
    """
    layer = getattr(model, "last_convolution", None)
    if layer is None:
        raise InputError(f"grad_cam: {type(model).__name__} names no last convolution; use another method")
    with torch.enable_grad():
        coarse = LayerGradCam(model, layer).attribute(x.detach().requires_grad_(True))  # (B, 1, d, h, w)
    return _onto_grid(coarse, x)


@torch.no_grad()
def attention(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """Where the pooling head takes its features from: not signed, sums to 1, says nothing about the direction.

    Source: Ilse et al. 2018, arXiv 1802.04712, equation 8.
    """
    weights = model.attention(x) if hasattr(model, "attention") else None
    if weights is None:
        raise InputError(
            f"attention: {type(model).__name__} has no attention head; train --model.name resnet --model.pool attention"
        )
    fine = _onto_grid(weights[:, None].float(), x)
    return fine / fine.sum((2, 3, 4), keepdim=True)


def occlusion(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """How much the logit falls when one atlas region becomes the mean control's, spread over the region's voxels.

    Voxels outside every region get 0: they are no region. Replacing by the mean control stays nearer to real volumes
    than a hole would; its borders are sharp all the same.
    """
    codes, features = torch.unique(context.regions, return_inverse=True)
    fall = FeatureAblation(model).attribute(
        x, baselines=context.mean_hc, feature_mask=features, perturbations_per_eval=max(1, context.batch // len(x))
    )
    voxels = torch.bincount(features.flatten(), minlength=len(codes))[features]
    return torch.where(context.regions > 0, fall / voxels, 0.0)


def _onto_grid(coarse: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(coarse, size=x.shape[2:], mode="trilinear", align_corners=False)
