"""What maps of a network say about a change whose place is known, in numbers with intervals and null distributions.

Patients with the change on the right are mirrored, so that in one frame the changed side is always the left; grids are
symmetric about the midline. Maps follow an image's edges in every class: besides patients' maps their difference from
the mean map of the controls is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.stats import binomtest

from classifier.measures.resampling import cell
from classifier.saliency.regions import rank_correlations, region_means
from classifier.validation.spatial_nulls import Moves, moves, p_value
from cohort.atlas import REGIONS, SIDES, Atlas

HALF = 0.5
"""Share of a voxel that has to lie in a region for the voxel to count as one of it."""
REACH_MM = 3.0
"""How far from the region the pointing game still counts a hit; half a voxel is added, since a voxel has an extent."""


@dataclass(frozen=True)
class Truth:
    """Where the change of each patient is, in the frame where the changed side is the left."""

    brain: np.ndarray
    """bool (D, H, W), symmetric."""
    reference: np.ndarray
    """bool (D, H, W), where the region lies on average."""
    moves: Moves
    """Null places of the reference."""
    regions: list[np.ndarray]
    """bool (D, H, W) of each patient."""
    spacing_mm: float

    def places(self, patient: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Voxels of a patient's region (of the reference for None) at all places, as it is and widened."""
        region = self.reference if patient is None else self.regions[patient]
        return self.moves.places(region), self.moves.places(widen(region, self.spacing_mm))


def truth_of(
    shares: Sequence[np.ndarray], sides: Sequence[str], head: np.ndarray, spacing_mm: float, count: int,
    rng: np.random.Generator,
) -> Truth:  # fmt: skip
    """The truth from the share (D, H, W) of each voxel in each patient's region, with `count` null places in `head`."""
    shares = ipsilateral(shares, sides)
    reference = np.mean(shares, axis=0) >= HALF / 2  # an average of shifted regions is lower than each of them
    brain = head & np.flip(head, 0)
    regions = [share >= HALF if (share >= HALF).any() else share == share.max() for share in shares]
    return Truth(brain, reference, moves(reference & brain, brain, count, rng), regions, spacing_mm)


def ipsilateral(maps: Sequence[np.ndarray], sides: Sequence[str]) -> list[np.ndarray]:
    """Maps (D, H, W) in the frame where the changed side is the left: mirrored for R."""
    return [np.flip(map_, 0) if side == "R" else map_ for map_, side in zip(maps, sides, strict=True)]


@dataclass(frozen=True)
class Maps:
    """Maps of one network's test subjects by one method, in the scans' own frame."""

    patients: np.ndarray
    """float32 (P, D, H, W)."""
    sides: list[str]
    """L or R of each patient."""
    controls: np.ndarray
    """float32 (C, D, H, W)."""


def widen(region: np.ndarray, spacing_mm: float, reach_mm: float = REACH_MM) -> np.ndarray:
    """The voxels whose centre is within `reach_mm` plus half a voxel of a region's voxel centre, bool (D, H, W)."""
    distance = ndimage.distance_transform_edt(~region, sampling=spacing_mm)
    return distance <= reach_mm + spacing_mm / 2 + 1e-6


def localise(map_: np.ndarray, brain: np.ndarray, places: np.ndarray, wide_places: np.ndarray) -> dict[str, np.ndarray]:
    """All measures (K,) of one map (D, H, W), at K places of the region, the first of them the true one.

    - pointing: share of the strongest voxels (one, unless several tie) in the widened region: 0 or 1 without ties.
      Source: the pointing game of Zhang et al. 2018, IJCV 126:1084.
    - enrichment: share of the magnitude that lies in the region over the region's share of the brain: 1 for a map
      without preference.
    - average_precision: area under the precision-recall curve of the magnitude as a detector of the region's voxels,
      step-wise as in scikit-learn; the region's share of the brain for a map without preference.

    Places are flat voxel indices, int (K, n), -1 off the grid; `wide_places` are those of the widened region. Only
    voxels of the brain, bool (D, H, W), count. NaN where a place has none, and for enrichment where the map is 0.
    """
    strength = np.where(brain, np.abs(map_), -1.0).ravel()
    inside, wide = ((at >= 0) & brain.ravel()[at] for at in (places, wide_places))
    values = strength[brain.ravel()]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(inside, strength[places], 0.0).sum(axis=1) / values.sum()
        return {
            "pointing": (wide & (strength[wide_places] == values.max())).sum(axis=1) / np.sum(values == values.max()),
            "enrichment": share / (inside.sum(axis=1) / len(values)),
            "average_precision": _average_precision(strength, values, places, inside),
        }


def _average_precision(strength: np.ndarray, values: np.ndarray, places: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Mean, over the region's voxels, of the precision at the threshold that each of them sets.

    A voxel's precision is the number of region voxels at least as strong over that of brain voxels at least as strong;
    the latter does not depend on the place, so that all brain voxels are sorted only once.
    """
    ascending = np.sort(values)
    called = len(values) - np.searchsorted(ascending, strength[places], side="left")
    # (K, n), strongest voxel first, absent ones last
    called = np.sort(np.where(inside, called, len(values) + 1), axis=1)
    # Voxels that tie share the count of the last of them.
    last = np.where(np.diff(called, axis=1, append=len(values) + 2) > 0, np.arange(1, called.shape[1] + 1), np.inf)
    found = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    precision = np.where(called <= len(values), found / called, 0.0)
    return precision.sum(axis=1) / inside.sum(axis=1)


def localisation(maps: Maps, truth: Truth) -> dict[str, np.ndarray]:
    """Each measure of `localise`, (P, 1 + null places), of patients' maps; NaN (an empty map) counts as 0."""
    turned = ipsilateral(maps.patients, maps.sides)
    found = [localise(map_, truth.brain, *truth.places(patient)) for patient, map_ in enumerate(turned)]
    return {name: np.nan_to_num(np.stack([values[name] for values in found])) for name in found[0]}


def summaries(values: dict[str, np.ndarray], weights: np.ndarray) -> dict[str, Any]:
    """Means over patients of measures (P, K) at the true place, with interval, null mean and spatial p-value."""
    means = {name: part.mean(axis=0) for name, part in values.items()}
    return {name: cell(means[name][0], weights @ part[:, 0]) | _against_null(means[name])
            for name, part in values.items()}  # fmt: skip


def _against_null(values: np.ndarray) -> dict[str, float]:
    return {"p": p_value(values), "null": float(values[1:].mean())}


def group_difference(maps: Maps, truth: Truth) -> tuple[np.ndarray, dict[str, Any]]:
    """The mean map of patients minus that of controls, in the left frame, and how it localises the reference region.

    Controls have no changed side: their mean map is averaged with its mirror image.
    """
    controls = maps.controls.mean(axis=0)
    difference = np.mean(ipsilateral(maps.patients, maps.sides), axis=0) - (controls + np.flip(controls, 0)) / 2
    found = localise(difference, truth.brain, *truth.places(None))
    parts = {name: np.nan_to_num(values) for name, values in found.items()}
    return difference, {name: {"value": float(part[0]), **_against_null(part)} for name, part in parts.items()}


def side_accuracy(maps: Sequence[np.ndarray], sides: Sequence[str], atlas: Atlas) -> dict[str, Any]:
    """How often the stronger hippocampus of a map, in the scan's own frame, is the changed one; exact interval.

    Equal strength on both sides is no answer and counts as wrong.
    """
    hits = 0
    for map_, side in zip(maps, sides, strict=True):
        left, right = (np.abs(map_)[atlas.mask(f"{name} Hippocampus")].mean() for name in SIDES)
        hits += left > right if side == "L" else right > left
    low, high = binomtest(int(hits), len(sides)).proportion_ci(method="exact")
    return {"value": hits / len(sides), "low": float(low), "high": float(high), "hits": int(hits), "count": len(sides)}


def trend(strengths: Sequence[float], values: np.ndarray, rng: np.random.Generator, resamples: int) -> dict[str, Any]:
    """Spearman's correlation of K strengths of what was planted with a measure (K, P) of the same patients.

    Patients are resampled with all their conditions. The interval does not cover training: there is one network per
    strength.
    """
    count = values.shape[1]
    picks = np.concatenate([np.arange(count)[None], rng.integers(0, count, (resamples, count))])
    drawn = values[:, picks].transpose(1, 0, 2).reshape(len(picks), -1)
    rho = np.nan_to_num(rank_correlations(drawn, np.repeat(strengths, count)[None]))
    return cell(rho[0], rho[1:])


def mark_exposure(maps: np.ndarray, mark: np.ndarray, atlas: Atlas, weights: np.ndarray) -> dict[str, Any]:
    """Whether maps (P, D, H, W) of a network that has learned a mark, bool (D, H, W), show it.

    That is the `share` of the magnitude in it, and its `rank` by mean magnitude per voxel among mark and regions (1:
    first; ties count against it), which are `regions` together.
    """
    strength = np.abs(maps).reshape(len(maps), -1)
    shares = strength[:, mark.ravel()].sum(axis=1) / np.maximum(strength.sum(axis=1), np.finfo(float).tiny)
    mean = strength.mean(axis=0)
    others = region_means(mean.reshape(mark.shape), atlas)
    others = others[np.isfinite(others)]
    rank = int(1 + np.sum(others >= mean[mark.ravel()].mean()))
    return {"share": cell(shares.mean(), weights @ shares), "rank": rank, "regions": len(others) + 1}


def merged(atlas: Atlas) -> Atlas:
    """A coarse atlas for replacing regions: the 16 modelled regions, all others of a side as one, the rest as one."""
    names = ["", *REGIONS, "Left other", "Right other", "Other"]
    table = np.zeros(int(max(atlas.labels.max(), *atlas.names)) + 1, np.int16)
    for code, name in atlas.names.items():
        side = name.partition(" ")[0]
        table[code] = names.index(name if name in REGIONS else f"{side} other" if side in SIDES else "Other")
    return Atlas(table[atlas.labels], dict(enumerate(names[1:], start=1)))
