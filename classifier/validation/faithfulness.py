"""Do the regions that a map ranks first move the logit most? Deletion and insertion of atlas regions.

A region is deleted by putting the mean control in its place, with edges that fade over about two voxels: the result is
nearer to a brain than one with a hole would be. The curves of logits over the number of regions replaced are those of
Petsiuk et al. 2018, arXiv 1806.07421, section 3.2, with regions for pixels and logits for probabilities. They judge an
order, not the strengths behind it, and edited volumes are not brains: compare with random orders only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from classifier.saliency.explanation import Context, check_input
from runtime import seeding
from runtime.errors import InputError

FADE_VOXELS = 1.0
"""Standard deviation of the Gaussian by which a replaced region fades outside its border."""
_REACH = 3
"""Voxels beyond which the fade counts as 0 (a weight of 0.01)."""


def deletion_curve(
    model: nn.Module,
    x: torch.Tensor,
    mean_hc: torch.Tensor,
    region_labels: torch.Tensor,
    order: Sequence[int],
    batch: int,
) -> np.ndarray:
    """Logits as one region after another becomes the mean control's.

    Args:
        model: gives logits (B,) for volumes (B, 1, D, H, W); in evaluation mode.
        x: (1, 1, D, H, W).
        mean_hc: (1, 1, D, H, W).
        region_labels: int64 (1, 1, D, H, W).
        order: R labels, first to be replaced first.
        batch: volumes evaluated at once.

    Returns:
        float64 (R + 1,); the first is the volume's own logit.

    Raises:
        InputError: a label in `order` that no voxel has, or one that is there twice.
    """
    return _curve(model, x, mean_hc, region_labels, order, batch)


def insertion_curve(
    model: nn.Module,
    x: torch.Tensor,
    mean_hc: torch.Tensor,
    region_labels: torch.Tensor,
    order: Sequence[int],
    batch: int,
) -> np.ndarray:
    """Logits (R + 1,) as the mean control gets one region after another of the volume; see `deletion_curve`."""
    return _curve(model, mean_hc, x, region_labels, order, batch)


def area(curve: np.ndarray) -> float:
    """Mean height of a curve of logits (R + 1,) by the trapezoidal rule: its area over regions from 0 to 1."""
    return float(np.trapezoid(curve) / (len(curve) - 1))


@dataclass(frozen=True)
class RandomOrders:
    """Areas (draws,) of the curves of random orders of all regions, for one volume."""

    deletion: np.ndarray
    insertion: np.ndarray


def random_orders(model: nn.Module, x: torch.Tensor, context: Context, draws: int, seed: int) -> RandomOrders:
    """The reference of `faithfulness`: the same for all maps of a volume, so that it need be made only once."""
    codes = region_codes(context.regions)
    orders = [seeding.rng(seed, "region orders", draw).permutation(codes) for draw in range(draws)]
    found = [_areas(model, x, context, order) for order in orders]
    return RandomOrders(*np.array(found).reshape(draws, 2).T)


def faithfulness(
    model: nn.Module,
    x: torch.Tensor,
    map_: np.ndarray,
    context: Context,
    draws: int,
    seed: int,
    reference: RandomOrders | None = None,
) -> dict[str, Any]:
    """Areas under the deletion and insertion curves, regions in the order of their relevance, against random orders.

    A region's relevance is the sum of the map over it, largest first: what speaks most for TLE is deleted first, and
    for a faithful map the logit falls early, in patients and controls alike.

    Args:
        model, x: as for `deletion_curve`.
        map_: (D, H, W), positive speaks for TLE.
        context: mean control, regions, batch.
        draws: random orders.
        seed: theirs.
        reference: `random_orders` of the same volume, draws and seed; made anew if not given.

    Returns:
        deletion and insertion (mean logits), deletion_random and insertion_random (lists of `draws`), deletion_gain
        (random mean minus deletion) and insertion_gain (insertion minus random mean), both positive for a map better
        than chance, deletion_p and insertion_p, the share of random orders at least as good (the map counted in).
    """
    check_input(x, context)
    codes = region_codes(context.regions)
    sums = np.bincount(context.regions.cpu().numpy().ravel(), weights=map_.ravel().astype(np.float64))[codes]
    deletion, insertion = _areas(model, x, context, codes[np.argsort(-sums, kind="stable")])
    random = reference or random_orders(model, x, context, draws, seed)
    return {
        "deletion": deletion,
        "insertion": insertion,
        "deletion_random": random.deletion.tolist(),
        "insertion_random": random.insertion.tolist(),
        "deletion_gain": float(random.deletion.mean() - deletion),
        "insertion_gain": float(insertion - random.insertion.mean()),
        "deletion_p": float((1 + (random.deletion <= deletion).sum()) / (1 + len(random.deletion))),
        "insertion_p": float((1 + (random.insertion >= insertion).sum()) / (1 + len(random.insertion))),
    }


def region_codes(region_labels: torch.Tensor) -> np.ndarray:
    """The labels (R,) of all regions that have voxels, ascending."""
    codes = torch.unique(region_labels).cpu().numpy()
    return codes[codes > 0]


def _areas(model: nn.Module, x: torch.Tensor, context: Context, order: Sequence[int]) -> tuple[float, float]:
    setting = (context.mean_hc, context.regions, order, context.batch)
    return area(deletion_curve(model, x, *setting)), area(insertion_curve(model, x, *setting))


@torch.no_grad()
def _curve(
    model: nn.Module, start: torch.Tensor, end: torch.Tensor, labels: torch.Tensor, order: Sequence[int], batch: int
) -> np.ndarray:
    """Logits on the way from `start` to `end`, region by region."""
    logits, waiting = [], []
    for weight in _weights(labels.cpu().numpy()[0, 0], order):
        share = torch.from_numpy(weight).to(start)
        waiting.append(torch.lerp(start[0], end[0], share[None]))
        if len(waiting) == batch:
            logits.append(model(torch.stack(waiting)).double().cpu())
            waiting = []
    if waiting:
        logits.append(model(torch.stack(waiting)).double().cpu())
    return torch.cat(logits).numpy()


def _weights(labels: np.ndarray, order: Sequence[int]) -> Iterator[np.ndarray]:
    """How far each voxel is replaced (D, H, W), from 0 to 1, with 0, 1, ... R regions replaced."""
    boxes = ndimage.find_objects(labels)
    absent = [str(code) for code in order if not 0 < code <= len(boxes) or boxes[code - 1] is None]
    if absent or len(set(order)) < len(order):
        problem = f"no voxel has the label {', '.join(absent)}" if absent else "a label is there twice"
        raise InputError(f"regions to replace: {problem}")
    weight = np.zeros(labels.shape, np.float32)
    yield weight.copy()
    for code in order:
        box = tuple(slice(max(0, part.start - _REACH), part.stop + _REACH) for part in boxes[code - 1])
        distance = ndimage.distance_transform_edt(labels[box] != code)
        np.maximum(weight[box], np.exp(-0.5 * (distance / FADE_VOXELS) ** 2), out=weight[box], casting="same_kind")
        yield weight.copy()
