"""Tests of two sets of answers about the same subjects, and what a margin makes of a difference."""

import math

import numpy as np

from classifier.measures.intervals import Z95, delong_covariance, extreme_difference_interval


def delong_test(
    labels: list[np.ndarray], scores_a: list[np.ndarray], scores_b: list[np.ndarray]
) -> dict[str, float | bool]:
    """DeLong's two-sided test of equal areas, averaged over folds of other subjects; one array (N_f,) for each fold.

    Scores of different folds are not on one scale, so areas are averaged and not pooled (Airola et al. 2011,
    https://doi.org/10.1016/j.csda.2010.11.018); the variance is the folds' mean variance over their number. The
    difference is b minus a, with its 95 % interval. Where the variance is zero (``degenerate``), p is 1 for equal areas
    and 0 otherwise, and means little. Of perfect orders the interval is then that of `extreme_difference_interval`; of
    one order twice its ends are the difference, 0, which is known.
    """
    folds = zip(labels, scores_a, scores_b, strict=True)
    areas, covariances = zip(*(delong_covariance(y, np.stack([a, b])) for y, a, b in folds), strict=True)
    a, b = map(float, np.mean(areas, axis=0))
    covariance = np.mean(covariances, axis=0) / len(labels)
    difference, variance = b - a, float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    degenerate = variance < 1e-14  # rounding of placement values, which are of order 1
    deviation = 0.0 if degenerate else math.sqrt(variance)
    p = float(abs(difference) < 1e-12) if degenerate else math.erfc(abs(difference) / deviation / math.sqrt(2))
    low, high = max(-1.0, difference - Z95 * deviation), min(1.0, difference + Z95 * deviation)
    if degenerate and {a, b} <= {0.0, 1.0}:
        low, high = extreme_difference_interval((a, b), [np.bincount(y) for y in labels])
    found = {"auc_a": a, "auc_b": b, "difference": difference, "low": low, "high": high}
    return {**found, "p": p, "degenerate": degenerate}


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> tuple[int, int, float]:
    """McNemar's exact two-sided test: how many only a had right, how many only b, and p (1 when neither)."""
    from statsmodels.stats import contingency_tables  # slow to import

    only_a, only_b = int(np.sum(correct_a & ~correct_b)), int(np.sum(~correct_a & correct_b))
    test = contingency_tables.mcnemar([[0, only_a], [only_b, 0]], exact=True)
    return only_a, only_b, float(test.pvalue)


def verdict(low: float, high: float, margin: float) -> str:
    """What an interval of a difference (larger is better) says at a margin stated beforehand, above 0.

    With the 90 % interval these are one-sided tests at 5 % each: two of them for equivalence (TOST; Schuirmann 1987),
    one for non-inferiority. Equivalent results are not inferior too; the stronger word is given. Inferior means worse
    by more than the margin.
    """
    if -margin < low:
        return "equivalent" if high < margin else "not inferior"
    return "inferior" if high < -margin else "undecided"
