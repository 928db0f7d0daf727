"""Tests of two sets of answers about the same subjects, and what a margin makes of a difference."""

import math

import numpy as np

from classifier.measures.metrics import check_labels, pairs_in_order
from runtime.errors import InputError

Z95 = 1.959964  # 97.5 percentile of the normal distribution


def delong_covariance(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas (K,) and their covariance (K, K), for K score vectors (K, N) of the same subjects.

    It covers the sampling of test subjects, not of training. Source: DeLong et al. 1988, Biometrics 44:837; by the
    placement values of Sun & Xu 2014, https://doi.org/10.1109/LSP.2014.2337313, equations 5 to 9.
    """
    check_labels(labels)
    N, P = np.bincount(labels)
    if min(P, N) < 2:
        raise InputError(f"DeLong's variance needs two subjects of each class; there are {N} HC and {P} TLE")
    pairs = np.stack([pairs_in_order(labels, row) for row in scores])
    v_pos, v_neg = pairs.mean(2), pairs.mean(1)
    return v_pos.mean(1), np.atleast_2d(np.cov(v_pos)) / P + np.atleast_2d(np.cov(v_neg)) / N


def delong_test(
    labels: list[np.ndarray], scores_a: list[np.ndarray], scores_b: list[np.ndarray]
) -> dict[str, float | bool]:
    """DeLong's two-sided test of equal areas, averaged over folds of other subjects; one array (N_f,) for each fold.

    Scores of different folds are not on one scale, so areas are averaged and not pooled (Airola et al. 2011,
    https://doi.org/10.1016/j.csda.2010.11.018); the variance is the folds' mean variance over their number. The
    difference is b minus a, with its 95 % interval. Where the variance is zero (``degenerate``), p is 1 for equal areas
    and 0 otherwise, and means little.
    """
    folds = zip(labels, scores_a, scores_b, strict=True)
    areas, covariances = zip(*(delong_covariance(y, np.stack([a, b])) for y, a, b in folds), strict=True)
    a, b = map(float, np.mean(areas, axis=0))
    covariance = np.mean(covariances, axis=0) / len(labels)
    difference, variance = b - a, float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    degenerate = variance < 1e-14  # rounding of placement values, which are of order 1
    deviation = 0.0 if degenerate else math.sqrt(variance)
    p = float(abs(difference) < 1e-12) if degenerate else math.erfc(abs(difference) / deviation / math.sqrt(2))
    low, high = difference - Z95 * deviation, difference + Z95 * deviation
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
