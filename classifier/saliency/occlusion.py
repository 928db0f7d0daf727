"""Occlusion by anatomy: what the logit loses when one atlas region is replaced by the mean control's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from captum.attr import FeatureAblation
from torch import nn

from classifier.saliency.explanation import Context


def occlusion(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """How much the logit falls when one region is replaced, spread over the region's voxels (B, 1, D, H, W).

    Voxels outside every region get 0: they are no region. Replacing by the mean control stays nearer to real volumes
    than a hole would; its borders are sharp all the same.
    """
    codes, features = torch.unique(context.regions, return_inverse=True)
    fall = FeatureAblation(model).attribute(
        x, baselines=context.mean_hc, feature_mask=features, perturbations_per_eval=max(1, context.batch // len(x))
    )
    voxels = torch.bincount(features.flatten(), minlength=len(codes))[features]
    return torch.where(context.regions > 0, fall / voxels, 0.0)
