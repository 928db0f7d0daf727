"""Measures of a two-class prediction, their uncertainty over subjects, and paired tests. Pure numpy.

Everywhere: `labels` (N,) of 0 (HC) and 1 (TLE), `scores` (N,) larger for TLE, `probabilities` (N,) in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from runtime.errors import InputError

METRICS = (
    "accuracy", "balanced_accuracy", "sensitivity", "specificity", "auc", "average_precision", "brier",
)  # fmt: skip


def check_labels(labels: np.ndarray) -> None:
    """Raises InputError unless both classes are there and nothing else."""
    values, counts = np.unique(labels, return_counts=True)
    if values.tolist() != [0, 1]:
        found = ", ".join(f"{count} of class {value}" for value, count in zip(values, counts, strict=True)) or "none"
        raise InputError(f"a two-class measure needs subjects of both classes, 0 (HC) and 1 (TLE); there are: {found}")


def midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing the middle of their places, along the last axis of (N,)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the share of (TLE, HC) pairs in the right order, ties counting one half."""
    check_labels(labels)
    positive = labels == 1
    P, N = positive.sum(), (~positive).sum()
    return float((midranks(scores)[positive].sum() - P * (P + 1) / 2) / (P * N))


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates (K + 1,) as the threshold falls through the K distinct scores; starts at (0, 0)."""
    check_labels(labels)
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(labels[order])[ends]
    alarms = ends + 1 - hits
    return np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1])


def choose_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The threshold (at or above it is TLE) of largest balanced accuracy.

    Candidates are the middles between neighbouring distinct probabilities, so that a threshold is never a subject's own
    value; among equals the one nearest 0.5 is taken. To be called on validation subjects only.
    """
    check_labels(labels)
    values = np.unique(probabilities)
    candidates = (values[1:] + values[:-1]) / 2 if len(values) > 1 else np.array([0.5])
    called = probabilities[None] >= candidates[:, None]
    balanced = (called[:, labels == 1].mean(1) + (~called[:, labels == 0]).mean(1)) / 2
    best = candidates[balanced >= balanced.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - 0.5))])


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """The number T in [0.05, 20] by which to divide logits for the least cross-entropy (Guo et al. 2017).

    Classes are weighted equally: training batches are balanced, and validation need not be. The cross-entropy is convex
    in 1/T; golden-section search. Source: https://arxiv.org/abs/1706.04599, section 4.2.
    """
    check_labels(labels)
    weights = np.where(labels == 1, 0.5 / (labels == 1).mean(), 0.5 / (labels == 0).mean())
    signed = np.where(labels == 1, -1.0, 1.0) * logits

    def loss(inverse: float) -> float:
        return float(np.mean(weights * np.logaddexp(0.0, inverse * signed)))

    low, high, golden = 1 / 20, 20.0, (math.sqrt(5) - 1) / 2
    while high - low > 1e-6:
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return 2.0 / (low + high)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Logits to probabilities without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))


def weighted_metrics(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """All of METRICS for many weightings of the subjects at once.

    Args:
        labels, probabilities: (N,).
        threshold: at or above it is called TLE.
        weights: (R, N), not negative, for example how often each subject was drawn; each row holds both classes.

    Returns:
        arrays (R,). Average precision is the step-wise sum over distinct scores, as in scikit-learn.
    """
    positive = labels == 1
    w_pos, w_neg = weights[:, positive], weights[:, ~positive]
    P, N = w_pos.sum(1), w_neg.sum(1)
    called = probabilities >= threshold
    sensitivity = w_pos @ called[positive] / P
    specificity = w_neg @ ~called[~positive] / N
    pairs = np.sign(probabilities[positive][:, None] - probabilities[~positive][None]) / 2 + 0.5
    return {
        "accuracy": (sensitivity * P + specificity * N) / (P + N),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "auc": np.einsum("rp,rp->r", w_pos, w_neg @ pairs.T) / (P * N),
        "average_precision": _average_precision(positive, probabilities, weights),
        "brier": weights @ (probabilities - labels) ** 2 / (P + N),
    }


def _average_precision(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(weights[:, order] * positive[order], axis=1)[:, ends]
    called = np.cumsum(weights[:, order], axis=1)[:, ends]
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    return (np.diff(hits, axis=1, prepend=0.0) * precision).sum(1) / hits[:, -1]


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


def evaluate(
    labels: np.ndarray,
    probabilities: np.ndarray,
    threshold: float,
    clusters: np.ndarray,
    rng: np.random.Generator,
    resamples: int = 2000,
) -> dict[str, dict[str, float]]:
    """All of METRICS with 95 % percentile intervals of a stratified bootstrap over subjects.

    Returns:
        {metric: {"value", "low", "high"}}.
    """
    check_labels(labels)
    one = weighted_metrics(labels, probabilities, threshold, np.ones((1, len(labels))))
    drawn = weighted_metrics(labels, probabilities, threshold, bootstrap_weights(labels, clusters, resamples, rng))
    intervals = {name: np.quantile(drawn[name], [0.025, 0.975]) for name in METRICS}
    return {
        name: {"value": float(one[name][0]), "low": float(intervals[name][0]), "high": float(intervals[name][1])}
        for name in METRICS
    }


@dataclass(frozen=True)
class PairedTest:
    """Two areas under the ROC curve of the same subjects."""

    auc_a: float
    auc_b: float
    difference: float
    """auc_b - auc_a."""
    low: float
    high: float
    """95 % interval of the difference, by the normal approximation."""
    p: float
    degenerate: bool
    """The variance of the difference is zero: p is then 1 for equal areas and 0 otherwise, and means little."""


def delong_covariance(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas and their covariance, for K score vectors of the same subjects.

    The placement value of a TLE subject is the share of controls below it, that of a control the share of TLE subjects
    above it; both follow from midranks. It covers the sampling of test subjects, not of training. Source: DeLong et al.
    1988; Sun & Xu 2014, https://doi.org/10.1109/LSP.2014.2337313, equations 5 to 9.

    Args:
        labels: (N,).
        scores: (K, N).

    Returns:
        areas (K,) and covariance (K, K).

    Raises:
        InputError: fewer than two subjects of a class.
    """
    check_labels(labels)
    positive = labels == 1
    P, N = int(positive.sum()), int((~positive).sum())
    if min(P, N) < 2:
        raise InputError(f"DeLong's variance needs two subjects of each class; there are {N} HC and {P} TLE")
    joint = np.stack([midranks(row) for row in scores])
    v_pos = (joint[:, positive] - np.stack([midranks(row) for row in scores[:, positive]])) / N
    v_neg = 1 - (joint[:, ~positive] - np.stack([midranks(row) for row in scores[:, ~positive]])) / P
    covariance = np.atleast_2d(np.cov(v_pos)) / P + np.atleast_2d(np.cov(v_neg)) / N
    return v_pos.mean(1), covariance


def delong_test(labels: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray) -> PairedTest:
    """DeLong's two-sided test of equal areas for two scores of the same subjects."""
    areas, covariance = delong_covariance(labels, np.stack([scores_a, scores_b]))
    difference = float(areas[1] - areas[0])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    degenerate = variance < 1e-14  # rounding of placement values, which are of order 1
    if degenerate:
        deviation, p = 0.0, 1.0 if abs(difference) < 1e-12 else 0.0
    else:
        deviation = math.sqrt(variance)
        p = math.erfc(abs(difference) / deviation / math.sqrt(2))
    margin = 1.959964 * deviation
    return PairedTest(
        float(areas[0]), float(areas[1]), difference, difference - margin, difference + margin, p, degenerate
    )


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> tuple[int, int, float]:
    """McNemar's exact two-sided test for two sets of right-or-wrong answers about the same subjects.

    Returns:
        how many only a had right, how many only b had right, p (1 when neither).
    """
    only_a = int(np.sum(correct_a & ~correct_b))
    only_b = int(np.sum(~correct_a & correct_b))
    n, k = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return only_a, only_b, min(1.0, 2 * tail)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values (family-wise error), in the order given. Source: Holm 1979."""
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted
