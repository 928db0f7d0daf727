"""Intervals in closed form, for what a bootstrap of few subjects does badly: shares, and areas near 0 or 1.

A bootstrap of perfect answers is perfect in every draw, and its interval has width zero.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special, stats

from classifier.measures.metrics import check_labels, pairs_in_order
from runtime.errors import InputError

Ends = tuple[float, float]
Z95, Z90 = 1.959964, 1.644854
"""Percentiles of the normal distribution at the ends of the middle 95 and 90 %."""


def share_interval(hits: int, total: int) -> Ends:
    """Wilson's 95 % interval of a share of `total` subjects (Wilson 1927, JASA 22:209); (0, 1) of none."""
    if total == 0:
        return 0.0, 1.0
    found = stats.binomtest(hits, total).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def mean_of_shares_interval(shares: list[float], ends: list[Ends]) -> Ends:
    """95 % interval of the mean of independent shares, from theirs (Newcombe 1998, Stat Med 17:873, method 10)."""
    value, count = float(np.mean(shares)), len(shares)
    below = math.sqrt(sum((share - low) ** 2 for share, (low, _) in zip(shares, ends, strict=True))) / count
    above = math.sqrt(sum((high - share) ** 2 for share, (_, high) in zip(shares, ends, strict=True))) / count
    return value - below, value + above


def mean_interval(values: Sequence[float]) -> Ends | None:
    """Student's 95 % interval of the mean of a few independent values, such as one per training seed; None where they
    do not vary, or there is but one: then nothing is known of others."""
    if np.ptp(values) == 0:
        return None
    margin = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - margin), float(np.mean(values) + margin)


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


def auc_interval(labels: np.ndarray, scores: np.ndarray) -> Ends:
    """95 % interval of the area for labels of 0 and 1 and scores (N,), two subjects of each class or more.

    By DeLong's variance on the logit scale (Pepe 2003, "The Statistical Evaluation of Medical Tests", section 5.2.4);
    where that variance is 0, because no pair or all of them are in order, by `extreme_auc_interval`.
    """
    areas, covariance = delong_covariance(labels, scores[None])
    area, variance = float(areas[0]), float(covariance[0, 0])
    if variance < 1e-14 or not 0 < area < 1:
        N, P = np.bincount(labels)
        return extreme_auc_interval(area, int(N), int(P))
    step = Z95 * math.sqrt(variance) / (area * (1 - area))
    return float(special.expit(special.logit(area) - step)), float(special.expit(special.logit(area) + step))


def extreme_auc_interval(area: float, controls: int, patients: int, z: float = Z95) -> Ends:
    """The areas that an observed one contradicts at no more than 5 %, by the variance of Hanley and McNeil at each.

    Source: Newcombe 2006, Stat Med 25:559, method 5: as Wilson's interval for a share, it has a width at 0 and 1.
    """
    pairs, more = controls * patients, (controls + patients) / 2 - 1

    def excess(true: float) -> float:
        spread = true * (1 - true) * (1 + more * (1 - true) / (2 - true) + more * true / (1 + true)) / pairs
        return (area - true) ** 2 - z**2 * spread

    low = 0.0 if area <= 0 else optimize.brentq(excess, 0.0, area - 1e-12 * area)
    high = 1.0 if area >= 1 else optimize.brentq(excess, area + 1e-12 * (1 - area), 1.0)
    return float(low), float(high)


def extreme_difference_interval(areas: Ends, sizes: Sequence[np.ndarray], z: float = Z95) -> Ends:
    """Interval of the second area minus the first, each 0 or 1 in all folds, of so many (HC, TLE) in each fold.

    From the intervals of the areas, by Newcombe's squares of their arms (1998, Stat Med 17:873, method 10). It takes
    both for independent, and so is wide for the same subjects; their own variance is 0 and says nothing of others.
    """
    arms = []
    for area in areas:
        each = [extreme_auc_interval(area, int(N), int(P), z) for N, P in sizes]
        low, high = mean_of_shares_interval([area] * len(each), each)
        arms.append((area - low, high - area))
    (below_a, above_a), (below_b, above_b) = arms
    difference = areas[1] - areas[0]
    return max(-1.0, difference - math.hypot(below_b, above_a)), min(1.0, difference + math.hypot(above_b, below_a))
