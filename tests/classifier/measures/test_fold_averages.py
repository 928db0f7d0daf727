import math

import numpy as np
import pytest
from scipy import stats

from classifier.measures import metrics
from classifier.measures.fold_averages import delong_by_fold, fold_averaged_auc, influence, pooled_auc


def folds(rng, count=40, number=3, effect=1.0, shift=0.0):
    labels = [np.arange(count) % 2 for _ in range(number)]
    scores = [rng.normal(size=count) + effect * y + shift * place for place, y in enumerate(labels)]
    return labels, scores, [np.arange(count) + count * place for place in range(number)]


def test_one_fold_agrees_with_delong():
    """The same placement values; N in place of N - 1."""
    (y,), (scores,), _ = folds(np.random.default_rng(0), number=1)
    parts = influence(y, np.round(scores, 1))
    below, above = metrics.placements(y, np.round(scores, 1))
    _, covariance = metrics.delong_covariance(y, np.round(scores, 1)[None])
    delong = np.var(below, ddof=1) / 20 + np.var(above, ddof=1) / 20
    assert covariance[0, 0] == pytest.approx(delong)
    assert np.sum(parts**2) == pytest.approx(delong * 19 / 20)


def test_equals_the_published_formula():
    """LeDell et al. 2015: the mean over folds of the mean squared influence curve, over the number of subjects."""
    labels, scores, names = folds(np.random.default_rng(1))
    squares = []
    for y, x in zip(labels, scores, strict=True):
        area = metrics.auc(y, x)
        below = [(x[y == 0] < score).mean() + (x[y == 0] == score).mean() / 2 for score in x[y == 1]]
        above = [(x[y == 1] > score).mean() + (x[y == 1] == score).mean() / 2 for score in x[y == 0]]
        curve = np.concatenate([(np.array(below) - area) / 0.5, (np.array(above) - area) / 0.5])
        squares.append(np.mean(curve**2))
    got = fold_averaged_auc(labels, scores, names)
    assert got["se"] == pytest.approx(math.sqrt(np.mean(squares) / 120))
    assert got["value"] == pytest.approx(np.mean([metrics.auc(*pair) for pair in zip(labels, scores, strict=True)]))


def test_interval_covers_the_true_area():
    """Five folds of 40, each on its own scale; 95 % of 500 intervals, a little less for its normal approximation."""
    rng = np.random.default_rng(2)
    truth = stats.norm.cdf(1 / math.sqrt(2))
    covered = []
    for _ in range(500):
        found = fold_averaged_auc(*folds(rng, number=5, shift=3.0))
        covered.append(found["low"] <= truth <= found["high"])
    assert 0.91 < np.mean(covered) < 0.975


def test_repeated_scans_are_no_further_subjects():
    labels, scores, names = folds(np.random.default_rng(3))
    twice = [[np.repeat(row, 2) for row in part] for part in (labels, scores, names)]
    assert fold_averaged_auc(*twice)["se"] == pytest.approx(fold_averaged_auc(labels, scores, names)["se"])
    apart = [np.arange(80) for _ in names]
    assert fold_averaged_auc(*twice[:2], apart)["se"] < 0.75 * fold_averaged_auc(labels, scores, names)["se"]


def test_seeds_are_averaged():
    labels, scores, names = folds(np.random.default_rng(4))
    same = fold_averaged_auc(labels, [np.stack([x, x]) for x in scores], names)
    assert same == pytest.approx(fold_averaged_auc(labels, scores, names))
    opposite = fold_averaged_auc(labels, [np.stack([x, -x]) for x in scores], names)
    assert (opposite["value"], opposite["se"]) == pytest.approx((0.5, 0), abs=1e-12)


def test_ranking_within_folds_undoes_their_shifts():
    labels, scores, _ = folds(np.random.default_rng(5), effect=2.0)
    shifted = [x + 5 * place for place, x in enumerate(scores)]
    assert pooled_auc(labels, shifted, ranked=True) == pytest.approx(pooled_auc(labels, scores, ranked=True))
    assert pooled_auc(labels, shifted, ranked=False) < pooled_auc(labels, scores, ranked=False) - 0.1
    assert pooled_auc(labels[:1], scores[:1], ranked=True) == pytest.approx(metrics.auc(labels[0], scores[0]))


def test_delong_by_fold():
    labels, a, _ = folds(np.random.default_rng(6))
    _, b, _ = folds(np.random.default_rng(7), effect=1.4)
    assert delong_by_fold(labels[:1], a[:1], b[:1]) == metrics.delong_test(labels[0], a[0], b[0])
    each = [metrics.delong_test(y, first, second) for y, first, second in zip(labels, a, b, strict=True)]
    got = delong_by_fold(labels, a, b)
    assert got.difference == pytest.approx(np.mean([test.difference for test in each]))
    widths = np.array([test.high - test.low for test in each])
    assert got.high - got.low == pytest.approx(np.sqrt(np.sum(widths**2)) / 3)
