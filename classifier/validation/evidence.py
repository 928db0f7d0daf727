"""What maps of a network say about a change whose place is known, in numbers with intervals and null distributions.

Patients with the change on the right are mirrored, so that in one frame the changed side is always the left; grids are
symmetric about the midline. Maps follow an image's edges in every class: besides patients' maps their difference from
the mean map of the controls is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from classifier.measures.resampling import cell
from classifier.saliency.regions import rank_correlations, region_means
from classifier.validation.localisation import localise, widen
from classifier.validation.spatial_nulls import Moves, moves, p_value
from cohort.atlas import REGIONS, Atlas

HALF = 0.5
"""Share of a voxel that has to lie in a region for the voxel to count as one of it."""


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
    shares = [ipsilateral(share, side) for share, side in zip(shares, sides, strict=True)]
    reference = np.mean(shares, axis=0) >= HALF / 2  # an average of shifted regions is lower than each of them
    brain = head & np.flip(head, 0)
    regions = [share >= HALF if (share >= HALF).any() else share == share.max() for share in shares]
    return Truth(brain, reference, moves(reference & brain, brain, count, rng), regions, spacing_mm)


def ipsilateral(map_: np.ndarray, side: str) -> np.ndarray:
    """A map (D, H, W) in the frame where the changed side is the left: mirrored for R."""
    return np.flip(map_, 0) if side == "R" else map_


@dataclass(frozen=True)
class Maps:
    """Maps of one network's test subjects by one method, in the scans' own frame."""

    patients: np.ndarray
    """float32 (P, D, H, W)."""
    sides: list[str]
    """L or R of each patient."""
    controls: np.ndarray
    """float32 (C, D, H, W)."""

    def ipsilateral(self) -> list[np.ndarray]:
        """Patients' maps in the frame where the changed side is the left."""
        return [ipsilateral(map_, side) for map_, side in zip(self.patients, self.sides, strict=True)]


def localisation(maps: Maps, truth: Truth) -> dict[str, np.ndarray]:
    """Each measure of `localise`, (P, 1 + null places), of patients' maps; NaN (an empty map) counts as 0."""
    found = [localise(map_, truth.brain, *truth.places(patient)) for patient, map_ in enumerate(maps.ipsilateral())]
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
    difference = np.mean(maps.ipsilateral(), axis=0) - (controls + np.flip(controls, 0)) / 2
    found = localise(difference, truth.brain, *truth.places(None))
    found = {name: np.nan_to_num(values) for name, values in found.items()}
    return difference, {name: {"value": float(part[0]), **_against_null(part)} for name, part in found.items()}


def side_accuracy(maps: Sequence[np.ndarray], sides: Sequence[str], atlas: Atlas) -> dict[str, Any]:
    """How often the stronger hippocampus of a map, in the scan's own frame, is the changed one; exact interval.

    Equal strength on both sides is no answer and counts as wrong.
    """
    hits = 0
    for map_, side in zip(maps, sides, strict=True):
        left, right = (np.abs(map_)[atlas.mask(f"{name} Hippocampus")].mean() for name in ("Left", "Right"))
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
    totals = np.maximum(strength.sum(axis=1), np.finfo(float).tiny)
    shares = strength[:, mark.ravel()].sum(axis=1) / totals
    mean = strength.mean(axis=0)
    others = region_means(mean.reshape(mark.shape), atlas)
    others = others[np.isfinite(others)]
    return {
        "share": cell(shares.mean(), weights @ shares),
        "rank": int(1 + np.sum(others >= mean[mark.ravel()].mean())),
        "regions": len(others) + 1,
    }


def merged(atlas: Atlas) -> Atlas:
    """A coarse atlas for replacing regions: the 16 modelled regions, all others of a side as one, the rest as one."""
    names = [*REGIONS, "Left other", "Right other", "Other"]
    codes = {name: code for code, name in enumerate(names, start=1)}
    table = np.zeros(int(max(atlas.labels.max(), *atlas.names)) + 1, np.int16)
    for code, name in atlas.names.items():
        side = name.partition(" ")[0]
        table[code] = codes[name if name in REGIONS else f"{side} other" if side in ("Left", "Right") else "Other"]
    return Atlas(table[atlas.labels], {code: name for name, code in codes.items()})
