"""Tests of two sets of answers about the same subjects, their correction for number, and margins. Pure Python."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

Verdict = Literal["equivalent", "not inferior", "inferior", "undecided"]


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
    half = 1.959964 * math.sqrt((a + b - (b - a) ** 2) / (count + 2))
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
