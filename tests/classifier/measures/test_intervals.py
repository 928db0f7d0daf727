"""Closed intervals against other libraries, published figures and their own stated rate; none has width zero."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from classifier.measures.intervals import (
    auc_interval,
    extreme_auc_interval,
    extreme_difference_interval,
    mean_interval,
    mean_of_shares_interval,
    share_interval,
)
from classifier.measures.metrics import auc


@pytest.mark.parametrize(("hits", "total"), [(0, 12), (7, 12), (12, 12)])
def test_shares_are_wilsons(hits, total):
    assert share_interval(hits, total) == pytest.approx(proportion_confint(hits, total, method="wilson"), abs=1e-9)
    assert share_interval(0, 0) == (0.0, 1.0)


def test_a_mean_of_shares_is_as_wide_as_its_parts():
    low, high = mean_of_shares_interval([0.8, 0.6], [(0.7, 0.9), (0.5, 0.7)])
    assert (low, high) == pytest.approx((0.7 - 0.1 / np.sqrt(2), 0.7 + 0.1 / np.sqrt(2)))
    low, high = mean_of_shares_interval([1.0, 1.0], [(0.8, 1.0), (0.9, 1.0)])
    assert (low, high) == pytest.approx((1 - np.hypot(0.2, 0.1) / 2, 1.0))


def test_a_mean_of_three_seeds_is_covered_as_often_as_is_said():
    assert mean_interval([0.7, 0.8, 0.9]) == pytest.approx((0.5516, 1.0484), abs=1e-4)  # 0.8 +- 4.303 * 0.1 / sqrt(3)
    assert mean_interval([0.7]) is mean_interval([0.7, 0.7]) is None
    draws = np.random.default_rng(0).normal(size=(2000, 3))
    hits = np.mean([low <= 0 <= high for low, high in map(mean_interval, draws)])
    assert hits == pytest.approx(0.95, abs=0.02)


def test_the_ends_of_an_extreme_area_solve_newcombes_equation():
    for area, controls, patients in ((1.0, 20, 30), (0.9, 12, 12), (0.0, 5, 9)):
        low, high = extreme_auc_interval(area, controls, patients)
        for end in {low, high} - {0.0, 1.0}:
            more = (controls + patients) / 2 - 1
            spread = end * (1 - end) * (1 + more * (1 - end) / (2 - end) + more * end / (1 + end))
            z = abs(area - end) / np.sqrt(spread / (controls * patients))
            assert z == pytest.approx(stats.norm.ppf(0.975), rel=1e-4)
        assert (low == 0.0, high == 1.0) == (area == 0.0, area == 1.0)
        assert high - low > 0.05


def test_perfect_answers_have_an_interval_that_more_subjects_narrow():
    ends = []
    for count in (10, 40):
        labels = np.repeat([0, 1], count)
        low, high = auc_interval(labels, labels.astype(float))
        assert high == 1.0
        ends.append(low)
    assert 0.7 < ends[0] < 0.85
    assert ends[0] + 0.1 < ends[1] < 0.97


@pytest.mark.parametrize("distance", [0.5, 2.5])
def test_areas_are_covered_as_often_as_is_said(distance):
    rng, labels, hits = np.random.default_rng(0), np.repeat([0, 1], 30), 0
    true = stats.norm.cdf(distance / np.sqrt(2))
    for _ in range(600):
        scores = rng.normal(size=60) + distance * labels
        low, high = auc_interval(labels, scores)
        assert 0 <= low < auc(labels, scores) <= high <= 1
        hits += low <= true <= high
    assert hits / 600 == pytest.approx(0.95, abs=0.03)


def test_the_difference_of_perfect_areas_is_uncertain_by_both():
    below = 1 - extreme_auc_interval(1.0, 20, 30)[0]
    assert extreme_difference_interval((1.0, 1.0), [(20, 30)]) == pytest.approx((-below, below))
    low, high = extreme_difference_interval((0.0, 1.0), [(20, 30)])
    assert (low, high) == pytest.approx((1 - np.hypot(below, below), 1.0))
    narrower = extreme_difference_interval((1.0, 1.0), [(20, 30)] * 4)
    assert narrower == pytest.approx((-below / 2, below / 2))
