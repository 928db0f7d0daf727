import numpy as np
import pytest
from scipy import stats

from classifier.measures import paired_tests


def test_mcnemar_equals_the_binomial_test():
    rng = np.random.default_rng(7)
    a, b = rng.random(40) < 0.8, rng.random(40) < 0.6
    only_a, only_b, p = paired_tests.mcnemar(a, b)
    assert p == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)
    assert paired_tests.mcnemar(a, a) == (0, 0, 1.0)


def test_share_difference_by_hand():
    """20 subjects, 3 right in a alone and 7 in b alone: (7 - 3) / 20; interval from (4, 8) of 22."""
    difference, low, high = paired_tests.share_difference(3, 7, 20)
    middle, half = 4 / 22, 1.959964 * np.sqrt((12 / 22 - (4 / 22) ** 2) / 22)
    assert (difference, low, high) == pytest.approx((0.2, middle - half, middle + half))
    same = paired_tests.share_difference(0, 0, 20)
    assert same[0] == 0
    assert same[1] == -same[2] < 0


def test_share_difference_covers_the_truth():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(2000):
        only_a, only_b, _ = rng.multinomial(60, [0.1, 0.2, 0.7])
        _, low, high = paired_tests.share_difference(only_a, only_b, 60)
        covered.append(low <= 0.1 <= high)
    assert 0.935 < np.mean(covered) < 0.97


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.04, 0.04, "equivalent"),
        (-0.04, 0.06, "not inferior"),
        (0.06, 0.10, "not inferior"),
        (-0.06, 0.04, "undecided"),
        (-0.20, 0.20, "undecided"),
        (-0.20, -0.04, "undecided"),
        (-0.20, -0.06, "inferior"),
        (-0.05, 0.05, "undecided"),
    ],
)
def test_verdicts_at_a_margin(low, high, expected):
    assert paired_tests.verdict(low, high, 0.05) == expected
