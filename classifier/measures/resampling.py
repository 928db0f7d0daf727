"""Bootstrap over subjects and training seeds: draws, intervals, p-values. Pure numpy."""

from __future__ import annotations

from typing import Any

import numpy as np


def bootstrap_weights(labels: np.ndarray, clusters: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each scan is drawn when subjects are resampled with replacement within each class.

    Args:
        labels: (N,).
        clusters: (N,) names; scans of one subject or group are drawn together (a group with both classes counts once in
            each).
        resamples: R.
        rng: numpy generator.

    Returns:
        float64 (R, N).
    """
    weights = np.zeros((resamples, len(labels)))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        _, member = np.unique(np.asarray(clusters, dtype=str)[rows], return_inverse=True)
        count = member.max() + 1
        weights[:, rows] = rng.multinomial(count, np.full(count, 1 / count), size=resamples)[:, member]
    return weights


def seed_weights(seeds: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Share of each training seed in each resample: seeds - 1 of them drawn with replacement.

    Drawing one less than there are makes the variance of the resampled mean an unbiased estimate of that of the mean
    (Rao & Wu 1988, JASA 83:231, with m = n - 1); drawing as many would halve it at two seeds. One seed alone always has
    weight 1: then nothing is known about training.

    Returns:
        float64 (R, S), rows sum to 1.
    """
    if seeds == 1:
        return np.ones((resamples, 1))
    return rng.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=resamples) / (seeds - 1)


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of draws (R,), by order statistics.

    Draws may be infinite; one that is not a number could be anything, and widens the interval at both ends.
    """
    unknown = np.isnan(draws)
    tail = (1 - level) / 2 * (len(draws) - 1)
    low = np.sort(np.where(unknown, -np.inf, draws))[int(np.floor(tail + 1e-9))]
    high = np.sort(np.where(unknown, np.inf, draws))[int(np.ceil(len(draws) - 1 - tail - 1e-9))]
    return float(low), float(high)


def cell(value: float, draws: np.ndarray, level: float = 0.95) -> dict[str, Any]:
    """An estimate and its percentile interval, ready for JSON.

    Returns:
        {"value", "low", "high"}, None where there is no finite number; then also ``not_estimable``, the share of draws
        that have no finite value.
    """
    numbers = dict(zip(("value", "low", "high"), (value, *interval(draws, level)), strict=True))
    found = {name: float(number) if np.isfinite(number) else None for name, number in numbers.items()}
    if None in found.values():
        found["not_estimable"] = float(np.mean(~np.isfinite(draws)))
    return found


def cell_text(found: dict[str, Any], form: str = ".3f") -> str:
    """A cell for people: ``0.812 [0.745, 0.871]``; ``not estimable`` and ``no bound`` where a number is missing."""
    value = "not estimable" if found["value"] is None else format(found["value"], form)
    low, high = ("no bound" if found[end] is None else format(found[end], form) for end in ("low", "high"))
    return f"{value} [{low}, {high}]"


def two_sided_p(draws: np.ndarray) -> float:
    """Bootstrap p-value of a difference of 0: twice the share of draws (R,) on the rarer side, at least 2 / (R + 1)."""
    rarer = min(np.sum(draws <= 0), np.sum(draws >= 0))
    return float(min(1.0, 2 * (1 + rarer) / (len(draws) + 1)))
