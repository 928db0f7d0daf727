"""From maps to anatomy: how strongly each atlas region is attributed, and how that differs by class, origin, side."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from classifier.measures.resampling import bootstrap_weights
from cohort.atlas import Atlas, bilateral_pairs
from runtime.errors import InputError


@dataclass(frozen=True)
class Relevance:
    """What a set of maps says about regions."""

    magnitudes: np.ndarray
    """(N, regions), `region_means` of each map's absolute value, regions in the order of the atlas's names."""
    labels: np.ndarray
    """(N,) 0 HC or 1 TLE."""
    clusters: np.ndarray
    """(N,) names of what is resampled as one."""


def choose_regions(atlas: Atlas, names: Sequence[str]) -> Atlas:
    """The atlas with only the named regions; all when none is named.

    Raises:
        InputError: unknown regions; guesses what was meant and says how many there are.
    """
    unknown = [name for name in names if name not in atlas.codes]
    if unknown:
        guesses = [(name, difflib.get_close_matches(name, atlas.codes, n=3, cutoff=0.4)) for name in unknown]
        raise InputError.of(
            f"--regions: unknown, and none of the atlas's {len(atlas.names)}",
            [f"{name!r}" + (f"; near it: {', '.join(near)}" if near else "") for name, near in guesses],
        )
    if not names:
        return atlas
    kept = {atlas.codes[name]: name for name in names}
    return Atlas(np.where(np.isin(atlas.labels, list(kept)), atlas.labels, 0).astype(atlas.labels.dtype), kept)


def region_means(map_: np.ndarray, atlas: Atlas) -> np.ndarray:
    """Mean over each region's voxels of a map (D, H, W), regions in the order of `atlas.names`; NaN without voxels.

    A mean, not a sum: the largest region would lead every ranking otherwise.
    """
    codes = np.array(list(atlas.names))
    size = int(max(codes.max(), atlas.labels.max())) + 1
    sums = np.bincount(atlas.labels.ravel(), weights=map_.ravel().astype(np.float64), minlength=size)[codes]
    voxels = np.bincount(atlas.labels.ravel(), minlength=size)[codes]
    return np.divide(sums, voxels, out=np.full(len(codes), np.nan), where=voxels > 0)


def rank_regions(
    magnitudes: np.ndarray,
    labels: np.ndarray,
    clusters: np.ndarray,
    atlas: Atlas,
    rng: np.random.Generator,
    resamples: int = 2000,
) -> pd.DataFrame:
    """Ranks regions by their mean |attribution| over subjects, with 95 % bootstrap intervals over subjects.

    Args:
        magnitudes: (N, regions), `region_means` of each subject's |map|.
        labels: (N,) 0 or 1.
        clusters: (N,) names of what is resampled as one.
        atlas: names the regions.
        rng: numpy generator.
        resamples: number of bootstrap resamples.

    Returns:
        One row per region that has voxels, strongest first: rank, region, voxels, mean_abs with low and high,
        mean_abs_HC, mean_abs_TLE, and TLE_minus_HC with difference_low and difference_high (NaN with one class only).
    """
    kept = np.flatnonzero(np.isfinite(magnitudes).all(0))
    values = magnitudes[:, kept]
    weights = bootstrap_weights(labels, clusters, resamples, rng)
    weights = np.concatenate([np.ones((1, len(labels))), weights])  # the first row is the estimate itself
    overall = _mean(weights, values)
    by_class = [_mean(weights * (labels == label), values) for label in (0, 1)]
    difference = by_class[1] - by_class[0]
    codes = np.array(list(atlas.names))[kept]
    table = pd.DataFrame(
        {
            "region": [atlas.names[code] for code in codes],
            "voxels": np.bincount(atlas.labels.ravel(), minlength=codes.max() + 1)[codes],
            "mean_abs": overall[0],
            **_interval(overall, "low", "high"),
            "mean_abs_HC": by_class[0][0],
            "mean_abs_TLE": by_class[1][0],
            "TLE_minus_HC": difference[0],
            **_interval(difference, "difference_low", "difference_high"),
        }
    )
    table = table.sort_values("mean_abs", ascending=False, kind="stable").reset_index(drop=True)
    table.insert(0, "rank", table.index + 1)
    return table


def agreement(
    a: Relevance, b: Relevance, rng: np.random.Generator, resamples: int = 2000
) -> dict[str, dict[str, float]]:
    """Spearman's correlation of two rankings of the same regions, with 95 % bootstrap intervals over subjects.

    Subjects that are in both sets are drawn together. Resampling adds its own noise to both rankings, so that with few
    subjects the interval lies low.

    Returns:
        {quantity: {"value", "low", "high"}} for ``mean_abs`` and, where both sets have both classes, ``TLE_minus_HC``.
        Strength follows the image's edges in any set of heads: agreement of the differences says more.
    """
    kept = np.isfinite(a.magnitudes).all(0) & np.isfinite(b.magnitudes).all(0)
    drawn = _joint_weights(a, b, resamples, rng)
    quantities: dict[str, list[np.ndarray]] = {"mean_abs": [], "TLE_minus_HC": []}
    for part, weights in zip((a, b), drawn, strict=True):
        weights = np.concatenate([np.ones((1, len(part.labels))), weights])
        values = part.magnitudes[:, kept]
        quantities["mean_abs"].append(_mean(weights, values))
        by_class = [_mean(weights * (part.labels == label), values) for label in (0, 1)]
        quantities["TLE_minus_HC"].append(by_class[1] - by_class[0])
    found = {}
    for name, (first, second) in quantities.items():
        if np.isfinite(first).all() and np.isfinite(second).all():
            rho = _spearman(first, second)
            ends = np.quantile(rho[1:], [0.025, 0.975])
            found[name] = {"value": float(rho[0]), "low": float(ends[0]), "high": float(ends[1])}
    return found


def lateralisation(
    magnitudes: np.ndarray,
    diagnoses: np.ndarray,
    clusters: np.ndarray,
    atlas: Atlas,
    rng: np.random.Generator,
    resamples: int = 2000,
) -> pd.DataFrame:
    """On which side each structure's relevance lies, by diagnosis, with 95 % bootstrap intervals over subjects.

    The index of a map is (left - right) / (left + right) of the two regions' mean |attribution|, from -1 (all right) to
    1 (all left), 0 where there is none at all. Brains, atlas and network have sides of their own: the last
    group, left cases minus right cases, is free of what all share.

    Args:
        magnitudes: (N, regions), `region_means` of each |map|.
        diagnoses: (N,) such as HC, TLE-L, TLE-R or TLE (of unknown side).
        clusters: (N,) names of what is resampled as one.
        atlas: names the regions.
        rng: numpy generator.
        resamples: number of bootstrap resamples.

    Returns:
        group, structure, volumes, index, low, high; a row per diagnosis and structure, and ``TLE-L minus TLE-R``.
    """
    codes = list(atlas.names)
    pairs = [(name, codes.index(left), codes.index(right)) for name, left, right in bilateral_pairs(atlas.names)]
    pairs = [pair for pair in pairs if np.isfinite(magnitudes[:, pair[1:]]).all()]
    if not pairs:
        return pd.DataFrame(columns=["group", "structure", "volumes", "index", "low", "high"])
    left, right = (magnitudes[:, [pair[side] for pair in pairs]] for side in (1, 2))
    index = np.divide(left - right, left + right, out=np.zeros_like(left), where=left + right > 0)
    weights = bootstrap_weights(diagnoses, clusters, resamples, rng)
    weights = np.concatenate([np.ones((1, len(diagnoses))), weights])
    present = sorted(set(diagnoses))
    counts = {group: int((diagnoses == group).sum()) for group in present}
    means = {group: _mean(weights * (diagnoses == group), index) for group in present}
    if {"TLE-L", "TLE-R"} <= set(present):
        counts["TLE-L minus TLE-R"] = counts["TLE-L"] + counts["TLE-R"]
        means["TLE-L minus TLE-R"] = means["TLE-L"] - means["TLE-R"]
    structures = [name for name, *_ in pairs]
    parts = [
        pd.DataFrame(
            {"group": group, "structure": structures, "volumes": counts[group], "index": mean[0]}
            | _interval(mean, "low", "high")
        )
        for group, mean in means.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _joint_weights(
    a: Relevance, b: Relevance, resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap weights (R, N) of two sets; the sizes of what only one has and of what both have stay as they are."""
    names = [
        np.array([f"{label}:{cluster}" for label, cluster in zip(part.labels, part.clusters, strict=True)])
        for part in (a, b)
    ]
    every = np.unique(np.concatenate(names))
    strata = np.array(
        [f"{name.split(':')[0]} {a_has} {b_has}"
         for name, a_has, b_has in zip(every, np.isin(every, names[0]), np.isin(every, names[1]), strict=True)]
    )  # fmt: skip
    weights = bootstrap_weights(strata, every, resamples, rng)
    return weights[:, np.searchsorted(every, names[0])], weights[:, np.searchsorted(every, names[1])]


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row rank correlations (R,) of (R, regions)."""
    ranks = [stats.rankdata(part, axis=1) for part in (a, b)]
    centred = [part - part.mean(1, keepdims=True) for part in ranks]
    scale = np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    return np.divide((centred[0] * centred[1]).sum(1), scale, out=np.full(len(a), np.nan), where=scale > 0)


def _mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Weighted means (R, regions) of values (N, regions); NaN where all weights are 0."""
    total = weights.sum(1, keepdims=True)
    return np.divide(weights @ values, total, out=np.full((len(weights), values.shape[1]), np.nan), where=total > 0)


def _interval(estimates: np.ndarray, low: str, high: str) -> dict[str, np.ndarray]:
    ends = np.quantile(estimates[1:], [0.025, 0.975], axis=0)
    return {low: ends[0], high: ends[1]}
