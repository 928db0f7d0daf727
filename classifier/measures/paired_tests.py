"""Tests of two sets of answers about the same subjects, and what a margin makes of a difference."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from classifier.measures.metrics import Z95

Verdict = Literal["equivalent", "not inferior", "inferior", "undecided"]


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> tuple[int, int, float]:
    """McNemar's exact two-sided test for two sets of right-or-wrong answers about the same subjects.

    Returns:
        how many only a had right, how many only b had right, p (1 when neither).
    """
    from statsmodels.stats import contingency_tables  # slow to import

    only_a, only_b = int(np.sum(correct_a & ~correct_b)), int(np.sum(~correct_a & correct_b))
    test = contingency_tables.mcnemar([[0, only_a], [only_b, 0]], exact=True)
    return only_a, only_b, float(test.pvalue)


def share_difference(only_a: int, only_b: int, count: int) -> tuple[float, float, float]:
    """Difference of two shares of right answers about the same `count` subjects, b minus a, with a 95 % interval.

    The interval is the adjusted Wald interval of Bonett & Price 2012 (Br J Math Stat Psychol 65:479, equation 8): one
    is added to both kinds of disagreement, so that it keeps a width when there are none.

    Args:
        only_a, only_b: how many only a, and only b, had right.

    Returns:
        difference, low, high; within [-1, 1].
    """
    a, b = (only_a + 1) / (count + 2), (only_b + 1) / (count + 2)
    half = Z95 * math.sqrt((a + b - (b - a) ** 2) / (count + 2))
    return (only_b - only_a) / count, max(-1.0, b - a - half), min(1.0, b - a + half)


def verdict(low: float, high: float, margin: float) -> Verdict:
    """What an interval of a difference says at a margin stated beforehand.

    With the 90 % interval these are one-sided tests at 5 % each: two of them for equivalence (TOST; Schuirmann 1987),
    one for non-inferiority. Equivalent results are not inferior too; the stronger word is given. Inferior means worse
    by more than the margin.

    Args:
        low, high: ends of the interval of the difference to the reference, larger is better.
        margin: largest difference that does not matter, above 0.
    """
    if -margin < low:
        return "equivalent" if high < margin else "not inferior"
    return "inferior" if high < -margin else "undecided"
