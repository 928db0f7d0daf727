"""Networks that have forgotten: do maps change when what was learned is gone?

The end of the cascading randomisation of Adebayo et al. 2018, arXiv 1810.03292, section 4.1: all weights are random. A
map that looks the same then shows the image, not what the network has learned from the cohort.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from classifier.saliency.regions import rank_correlations
from runtime import seeding


@torch.no_grad()
def forgotten(model: nn.Module, seed: int) -> nn.Module:
    """A copy of a network with all its weights random, in evaluation mode.

    Weights are drawn from a normal distribution with each tensor's own trained mean and deviation, so that signals
    keep their size and nothing is lost but what the weights say.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for name, trained in model.named_parameters():
        drawn = torch.randn(trained.shape, generator=seeding.generator(seed, f"randomise:{name}"))
        trained.copy_(trained.mean() + trained.std(unbiased=False) * drawn.to(trained))
    return model


def rank_correlation(a: np.ndarray, b: np.ndarray, brain: np.ndarray) -> float:
    """Spearman's correlation of the magnitudes of two maps (D, H, W) over the brain; 0 when one is constant there."""
    return float(np.nan_to_num(rank_correlations(*(np.abs(map_[brain])[None] for map_ in (a, b)))[0]))
