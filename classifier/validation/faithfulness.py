"""Does a map show what the network uses? Deletion and insertion of atlas regions, and a network with random weights.

A region is deleted by putting the mean control in its place, with edges that fade over about two voxels: the result is
nearer to a brain than one with a hole would be. The curves of logits over the number of regions replaced are those of
Petsiuk et al. 2018, arXiv 1806.07421, section 3.2, with regions for pixels and logits for probabilities. They measure
an order, not the strengths behind it, and edited volumes are not brains: compare with random orders only.

Random weights are the end of the cascading randomisation of Adebayo et al. 2018, arXiv 1810.03292, section 4.1. A map
that looks the same then shows the image, not what the network has learned from the cohort.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from classifier.saliency.regions import rank_correlations
from runtime import seeding

FADE_VOXELS = 1.0
"""Standard deviation of the Gaussian by which a replaced region fades outside its border."""
_REACH = 3
"""Voxels beyond which the fade counts as 0 (a weight of 0.01)."""


@dataclass(frozen=True)
class Regions:
    """What is replaced: R regions, all that have voxels, in the order of their labels."""

    labels: np.ndarray
    """int (D, H, W), 0 outside every region."""
    codes: np.ndarray
    """(R,) ascending."""
    fades: np.ndarray
    """float32 (R, D, H, W), how far each voxel is replaced with each region, from 0 to 1."""


def fading(labels: np.ndarray) -> Regions:
    """Regions by labels (D, H, W) with their faded borders."""
    boxes = ndimage.find_objects(labels)
    codes = np.array([code for code, box in enumerate(boxes, start=1) if box is not None])
    fades = np.zeros((len(codes), *labels.shape), np.float32)
    for fade, code in zip(fades, codes, strict=True):
        box = tuple(slice(max(0, part.start - _REACH), part.stop + _REACH) for part in boxes[code - 1])
        distance = ndimage.distance_transform_edt(labels[box] != code)
        fade[box] = np.exp(-0.5 * (distance / FADE_VOXELS) ** 2)
    return Regions(labels, codes, fades)


@torch.no_grad()
def curve(
    model: nn.Module, start: torch.Tensor, end: torch.Tensor, regions: Regions, order: Sequence[int], batch: int
) -> np.ndarray:
    """Logits float64 (len(order) + 1,) on the way from one volume (1, 1, D, H, W) to another, region by region.

    Deletion goes from a volume to the mean control, insertion the other way. `order` are places in `regions`.
    """
    none = np.zeros((1, *regions.labels.shape), np.float32)
    shares = np.maximum.accumulate(np.concatenate([none, regions.fades[list(order)]]))
    logits = []
    for part in torch.from_numpy(shares).to(start)[:, None].split(batch):
        volumes = torch.stack([torch.lerp(start[0], end[0], share) for share in part])
        logits.append(model(volumes).double().cpu())
    return torch.cat(logits).numpy()


def areas(
    model: nn.Module, x: torch.Tensor, mean_hc: torch.Tensor, regions: Regions, order: Sequence[int], batch: int
) -> np.ndarray:
    """Areas (2,) under the curves of deletion and insertion (trapezoidal rule, regions from 0 to 1): mean logits."""
    ways = ((x, mean_hc), (mean_hc, x))
    return np.array([np.trapezoid(curve(model, *way, regions, order, batch)) for way in ways]) / len(order)


def random_areas(
    model: nn.Module, x: torch.Tensor, mean_hc: torch.Tensor, regions: Regions, batch: int, draws: int, seed: int
) -> np.ndarray:
    """`areas` (draws, 2) of random orders of all regions: what the maps of this volume are compared with."""
    orders = [seeding.rng(seed, "region orders", draw).permutation(len(regions.codes)) for draw in range(draws)]
    return np.array([areas(model, x, mean_hc, regions, order, batch) for order in orders])


def relevance_order(map_: np.ndarray, regions: Regions) -> np.ndarray:
    """Places of all regions by the sum of a map (D, H, W) over them, largest first.

    What speaks most for TLE is deleted first, and for a faithful map the logit falls early, in patients and controls.
    """
    sums = np.bincount(regions.labels.ravel(), weights=map_.ravel().astype(np.float64))[regions.codes]
    return np.argsort(-sums, kind="stable")


@torch.no_grad()
def forgotten(model: nn.Module, seed: int) -> nn.Module:
    """A copy of a network with all its weights random, in evaluation mode.

    Each tensor is normal with its trained mean and deviation, so that signals keep their size.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for name, trained in model.named_parameters():
        drawn = torch.randn(trained.shape, generator=seeding.generator(seed, f"randomise:{name}"))
        trained.copy_(trained.mean() + trained.std(unbiased=False) * drawn.to(trained))
    return model


def rank_correlation(a: np.ndarray, b: np.ndarray, brain: np.ndarray) -> float:
    """Spearman's correlation of the magnitudes of two maps (D, H, W) over the brain; 0 when one is constant there."""
    return float(np.nan_to_num(rank_correlations(*(np.abs(map_[brain])[None] for map_ in (a, b)))[0]))
