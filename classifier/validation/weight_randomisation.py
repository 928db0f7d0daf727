"""Networks that forget from the head downwards: do maps change when what was learned is gone?

The cascading randomisation of Adebayo et al. 2018, arXiv 1810.03292, section 4.1. A map that looks the same with random
weights shows the image, not what the network has learned from the cohort.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

from runtime import seeding

HEAD = ("head", "score")
"""Modules behind the features."""


def stages(model: nn.Module) -> list[tuple[str, list[str]]]:
    """The network's parameters by stage, the head first and the stem last: (name of the stage, names of parameters).

    A stage is a module of the network or, where that is a sequence, one of its parts.
    """
    names = [name for name, _ in model.named_parameters()]
    groups: dict[str, list[str]] = {"head": [name for name in names if name.split(".")[0] in HEAD]}
    for name in reversed(names):
        if name.split(".")[0] not in HEAD:
            groups.setdefault(".".join(name.split(".")[:-1][:2]), []).append(name)
    return [(stage, members) for stage, members in groups.items() if members]


def cascade(model: nn.Module, seed: int, points: int | None = None) -> Iterator[tuple[str, nn.Module]]:
    """Copies of a network with ever more of it random: the head, the head and what is below it, ... everything.

    Weights are drawn anew from a normal distribution with each tensor's own trained mean and deviation, so that signals
    keep their size and nothing is lost but what the weights say.

    Args:
        model: the trained network; it is not changed.
        seed: of the draws.
        points: yield only so many of the copies, evenly spread, the first and the last among them; by default all.

    Yields:
        name of the last stage that was made random, and the network in evaluation mode.
    """
    parts = stages(model)
    wanted = set(np.linspace(0, len(parts) - 1, min(points or len(parts), len(parts))).round().astype(int))
    current = copy.deepcopy(model).eval().requires_grad_(False)
    parameters = dict(current.named_parameters())
    for number, (stage, names) in enumerate(parts):
        for name in names:
            trained = parameters[name]
            drawn = torch.randn(trained.shape, generator=seeding.generator(seed, f"randomise:{name}"))
            trained.copy_(trained.mean() + trained.std(unbiased=False) * drawn.to(trained))
        if number in wanted:
            yield stage, copy.deepcopy(current)


def rank_correlation(a: np.ndarray, b: np.ndarray, brain: np.ndarray) -> float:
    """Spearman's correlation of the magnitudes of two maps (D, H, W) over the brain; 0 when one is constant there."""
    ranks = [rankdata(np.abs(map_[brain])) for map_ in (a, b)]
    if any(rank.std() == 0 for rank in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])
