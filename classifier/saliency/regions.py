"""From maps to anatomy: how strongly each atlas region is attributed, and how that differs by class, origin, side.

All intervals are 95 % percentiles of a bootstrap over subjects. Arrays of resampled estimates have one row per resample
below a first row that is the estimate itself.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from classifier.measures.resampling import bootstrap_weights
from cohort.atlas import Atlas, bilateral_pairs
from runtime import seeding
from runtime.errors import InputError

QUANTITIES = ("mean_abs", "TLE_minus_HC")
"""What rankings of regions are compared by."""
HALVINGS = 100
"""Random halves of the subjects for the ceiling of a correlation."""


@dataclass(frozen=True)
class Relevance:
    """What N maps say about regions."""

    magnitudes: np.ndarray
    """(N, regions), `region_means` of each map's absolute value."""
    labels: np.ndarray
    """(N,) 0 HC or 1 TLE."""
    diagnoses: np.ndarray
    """(N,) such as HC, TLE-L, TLE-R or TLE (of unknown side)."""
    clusters: np.ndarray
    """(N,) names of what is resampled as a whole."""
    sums: np.ndarray | None = None
    """(N, regions), `region_sums` of each signed map, in logits; of methods that are complete only."""


def choose_regions(atlas: Atlas, names: Sequence[str]) -> Atlas:
    """The atlas with only the regions of these names; all for no names."""
    if not names:
        return atlas
    near = {name: difflib.get_close_matches(name, atlas.codes, n=3, cutoff=0.4) for name in names}
    unknown = [f"{name!r}; near it: {', '.join(near[name])}" for name in names if name not in atlas.codes]
    if unknown:
        raise InputError.of(f"--regions: unknown, and none of the atlas's {len(atlas.names)}", unknown)
    kept = {atlas.codes[name]: name for name in names}
    return Atlas(np.where(np.isin(atlas.labels, list(kept)), atlas.labels, 0).astype(atlas.labels.dtype), kept)


def region_means(map_: np.ndarray, atlas: Atlas) -> np.ndarray:
    """Mean over each region's voxels of a map (D, H, W), regions in the order of `atlas.names`; NaN without voxels.

    For rankings of strength a mean, not a sum: the largest region would lead every one otherwise.
    """
    sums, voxels = region_sums(map_, atlas), region_sums(np.ones_like(map_), atlas)
    return np.divide(sums, voxels, out=np.full(len(sums), np.nan), where=voxels > 0)


def region_sums(map_: np.ndarray, atlas: Atlas) -> np.ndarray:
    """Sum over each region's voxels of a map (D, H, W), 0 without voxels.

    Of a signed map that is complete: how many logits the region contributes. With what lies outside every region, the
    contributions of all add up to the logit minus the baseline's.
    """
    codes = np.array(list(atlas.names))
    size = int(max(codes.max(), atlas.labels.max())) + 1
    return np.bincount(atlas.labels.ravel(), weights=map_.ravel().astype(np.float64), minlength=size)[codes]


def rank_regions(maps: Relevance, atlas: Atlas, rng: np.random.Generator, resamples: int) -> pd.DataFrame:
    """One row per region that has voxels, strongest mean |attribution| over subjects first.

    Columns: rank, region, voxels, mean_abs with low and high, mean_abs_HC, mean_abs_TLE, and TLE_minus_HC with
    difference_low and difference_high (NaN with one class only). Of complete methods also the mean of the signed sums,
    in logits: logits_HC and logits_TLE, and logits_TLE_minus_HC with logits_low and logits_high.
    """
    kept = np.flatnonzero(np.isfinite(maps.magnitudes).all(0))
    weights = _weights(maps.labels, maps.clusters, resamples, rng)
    overall, controls, patients = _means_by_class(weights, maps.labels, maps.magnitudes[:, kept])
    codes = np.array(list(atlas.names))[kept]
    voxels = np.bincount(atlas.labels.ravel(), minlength=codes.max() + 1)[codes]
    table = pd.DataFrame({
        "region": [atlas.names[code] for code in codes], "voxels": voxels, **_interval(overall, "mean_abs"),
        "mean_abs_HC": controls[0], "mean_abs_TLE": patients[0],
        **_interval(patients - controls, "TLE_minus_HC", "difference_low", "difference_high"),
    })  # fmt: skip
    if maps.sums is not None:
        _, controls, patients = _means_by_class(weights, maps.labels, maps.sums[:, kept])
        added = _interval(patients - controls, "logits_TLE_minus_HC", "logits_low", "logits_high")
        table = table.assign(logits_HC=controls[0], logits_TLE=patients[0], **added)
    table = table.sort_values("mean_abs", ascending=False, kind="stable", ignore_index=True)
    table.insert(0, "rank", table.index + 1)
    return table


def agreement(a: Relevance, b: Relevance, rng: np.random.Generator, resamples: int) -> dict[str, dict[str, float]]:
    """Spearman's correlation of two rankings of the same regions: {quantity: {"value", "low", "high", "ceiling"}}.

    The quantities are ``mean_abs`` and, where both sets have both classes, ``TLE_minus_HC``, which says more: strength
    follows the image's edges in any set of heads. Subjects that are in both sets are drawn together. Resampling adds
    its own noise to both rankings, so that percentiles would lie too low and could miss the value itself: the interval
    is by Fisher's z with the resamples' standard deviation. Few subjects pull all three below what many would show:
    ``ceiling`` is what two rankings that were the same but for the choice of subjects would reach (`reliability`), NaN
    where that cannot be told. Maps of the same subjects share some of this noise, and may correlate beyond it.
    """
    kept = np.isfinite(a.magnitudes).all(0) & np.isfinite(b.magnitudes).all(0)
    estimates = []
    for part, weights in zip((a, b), _joint_weights(a, b, resamples, rng), strict=True):
        overall, controls, patients = _means_by_class(weights, part.labels, part.magnitudes[:, kept])
        estimates.append((overall, patients - controls))
    known = [reliability(part, kept, rng) for part in (a, b)]
    return {
        name: {
            **correlation_interval(rank_correlations(*pair), int(kept.sum())),
            "ceiling": float(np.sqrt(max(known[0][name], 0) * max(known[1][name], 0))),
        }
        for name, pair in zip(QUANTITIES, zip(*estimates, strict=True), strict=True)
        if np.isfinite(pair).all() and kept.sum() > 2
    }


def reliability(maps: Relevance, kept: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """How well a ranking repeats itself in other subjects, by quantity: the mean rank correlation of random halves of
    the subjects of each class, brought to their full number by 2 r / (1 + r) (Spearman 1910 and Brown 1910, British
    Journal of Psychology 3:271 and 3:296); NaN where a half would be empty.
    """
    names = np.array([f"{label}:{name}" for label, name in zip(maps.labels, maps.clusters, strict=True)])
    halves = np.zeros((HALVINGS, len(names)))
    for label in np.unique(maps.labels):
        every = np.unique(names[maps.labels == label])
        if len(every) < 2:
            return dict.fromkeys(QUANTITIES, np.nan)
        for half in halves:
            half[np.isin(names, rng.permutation(every)[: len(every) // 2])] = 1
    found = []
    for weights in (halves, 1 - halves):
        overall, controls, patients = _means_by_class(weights, maps.labels, maps.magnitudes[:, kept])
        found.append((overall, patients - controls))
    means = (np.mean(rank_correlations(*pair)) for pair in zip(*found, strict=True))
    return {name: float(2 * r / (1 + r)) if r > 0 else r for name, r in zip(QUANTITIES, means, strict=True)}


def lateralisation(maps: Relevance, atlas: Atlas, rng: np.random.Generator, resamples: int) -> pd.DataFrame:
    """On which side each structure's relevance lies, a row per diagnosis and structure, and ``TLE-L minus TLE-R``.

    The index of a map is (left - right) / (left + right) of the two regions' mean |attribution|, from -1 (all right) to
    1 (all left), 0 where there is none at all. Brains, atlas and network have sides of their own: the last
    group, left cases minus right cases, is free of what all share.
    """
    codes = list(atlas.names)
    pairs = [(name, codes.index(left), codes.index(right)) for name, left, right in bilateral_pairs(atlas.names)]
    pairs = [pair for pair in pairs if np.isfinite(maps.magnitudes[:, pair[1:]]).all()]
    if not pairs:
        return pd.DataFrame(columns=["group", "structure", "volumes", "index", "low", "high"])
    structures, left, right = zip(*pairs, strict=True)
    left, right = maps.magnitudes[:, left], maps.magnitudes[:, right]
    index = np.divide(left - right, left + right, out=np.zeros_like(left), where=left + right > 0)
    weights = _weights(maps.diagnoses, maps.clusters, resamples, rng)
    members = {group: maps.diagnoses == group for group in sorted(set(maps.diagnoses))}
    means = {group: _mean(weights * rows, index) for group, rows in members.items()}
    if {"TLE-L", "TLE-R"} <= set(means):
        members["TLE-L minus TLE-R"] = members["TLE-L"] | members["TLE-R"]
        means["TLE-L minus TLE-R"] = means["TLE-L"] - means["TLE-R"]
    parts = [
        pd.DataFrame({"group": group, "structure": structures, "volumes": int(members[group].sum())}
                     | _interval(mean, "index"))
        for group, mean in means.items()
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def tables_of(
    found: dict[tuple[str, str], Relevance], regions: Atlas, resamples: int, seed: int
) -> dict[str, pd.DataFrame]:
    """Tables of maps by (method, origin); agreement is between origins of one method, and methods of one origin."""

    def joined(table_of: Callable, purpose: str) -> pd.DataFrame:
        tables = {pair: table_of(maps, regions, seeding.rng(seed, purpose), resamples) for pair, maps in found.items()}
        return pd.concat(tables, names=["method", "origin", "row"]).reset_index(["method", "origin"])

    agreements = []
    for ((method_a, origin_a), a), ((method_b, origin_b), b) in combinations(found.items(), 2):
        if (method_a == method_b) == (origin_a == origin_b):
            continue
        pair = ("origins" if method_a == method_b else "methods", method_a, origin_a, method_b, origin_b)
        cells = agreement(a, b, seeding.rng(seed, "agreement"), resamples)
        agreements += [(*pair, quantity, *cell.values()) for quantity, cell in cells.items()]
    columns = [
        "between",
        "method_a",
        "origin_a",
        "method_b",
        "origin_b",
        "quantity",
        "spearman",
        "low",
        "high",
        "ceiling",
    ]
    return {
        "region_ranking": joined(rank_regions, "regions"),
        "lateralisation": joined(lateralisation, "sides"),
        "agreement": pd.DataFrame(agreements, columns=columns),
    }


def rank_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row of (R, K) with the other's, (R,); of one row with each; NaN for a constant."""
    a, b = (stats.rankdata(part, axis=1) for part in (a, b))
    a, b = (part - part.mean(1, keepdims=True) for part in (a, b))
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), scale, out=np.full(len(scale), np.nan), where=scale > 0)


def _weights(strata: np.ndarray, clusters: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([np.ones((1, len(strata))), bootstrap_weights(strata, clusters, resamples, rng)])


def _joint_weights(
    a: Relevance, b: Relevance, resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of two sets; the sizes of what only one has and of what both have stay as they are."""
    names = [[f"{label}:{name}" for label, name in zip(part.labels, part.clusters, strict=True)] for part in (a, b)]
    every = np.unique(names[0] + names[1])
    both = [np.isin(every, part) for part in names]
    strata = np.array([f"{name[0]} {in_a} {in_b}" for name, in_a, in_b in zip(every, *both, strict=True)])
    weights = _weights(strata, every, resamples, rng)
    return tuple(weights[:, np.searchsorted(every, part)] for part in names)


def _means_by_class(weights: np.ndarray, labels: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """Weighted means of all rows, of the controls and of the patients."""
    return [_mean(weights * rows, values) for rows in (1, labels == 0, labels == 1)]


def _mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Weighted means (R, regions) of values (N, regions); NaN where all weights are 0."""
    total = weights.sum(1, keepdims=True)
    return np.divide(weights @ values, total, out=np.full((len(weights), values.shape[1]), np.nan), where=total > 0)


def correlation_interval(estimates: np.ndarray, regions: int) -> dict[str, float]:
    """The first of (1 + R,) rank correlations over regions, and 95 % around it by Fisher's z and the others' spread.

    A complete agreement, where z is infinite, counts as half way to the next lower value that ranks can have.
    """
    limit = 1 - 6 / (regions * (regions**2 - 1))
    z = np.arctanh(np.clip(estimates, -limit, limit))
    low, high = np.tanh(z[0] + 1.959964 * np.nanstd(z[1:]) * np.array([-1, 1]))
    value = float(estimates[0])
    return {"value": value, "low": min(float(low), value), "high": max(float(high), value)}


def _interval(estimates: np.ndarray, value: str, low: str = "low", high: str = "high") -> dict[str, np.ndarray]:
    ends = np.quantile(estimates[1:], [0.025, 0.975], axis=0)
    return {value: estimates[0], low: ends[0], high: ends[1]}
