import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from classifier.measures.bands import GRID, all_bands, precision_rows, reliabilities, reliability, roc_rows
from classifier.measures.nested_bootstrap import draws_of
from classifier.measures.runs import arms_of
from tests.support.arm_folders import write_arms


def sample(seed=0, decimals=2):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(60) % 3 == 0).astype(int)
    return labels, np.round(rng.normal(size=60) + labels, decimals), rng


def test_roc_agrees_with_scikit_learn():
    labels, scores, _ = sample(decimals=1)
    fpr, tpr, _ = reference.roc_curve(labels, scores, drop_intermediate=False)
    row = roc_rows(labels, scores, np.ones((1, 60)))[0]
    for x, y in zip(GRID, row, strict=True):
        right = np.flatnonzero(fpr <= x + 1e-12)[-1]
        if np.isclose(fpr[right], x):
            assert y == pytest.approx(tpr[right])
    assert np.trapezoid(row, GRID) == pytest.approx(reference.roc_auc_score(labels, scores), abs=0.01)


def test_precision_is_that_of_the_first_threshold_that_reaches_the_recall():
    labels, scores, _ = sample(decimals=1)
    row = precision_rows(labels, scores, np.ones((1, 60)))[0]
    for recall, precision in zip(GRID[1:], row[1:], strict=True):
        for threshold in np.unique(scores)[::-1]:
            called = scores >= threshold
            if labels[called].sum() / labels.sum() >= recall - 1e-12:
                assert precision == pytest.approx(labels[called].mean())
                break


def test_weights_equal_drawing_again():
    labels, scores, rng = sample()
    weights = rng.multinomial(60, np.full(60, 1 / 60), size=1)
    drawn = np.repeat(np.arange(60), weights[0])
    for rows in (roc_rows, precision_rows):
        expected = rows(labels[drawn], scores[drawn], np.ones((1, 60)))
        np.testing.assert_allclose(rows(labels, scores, weights), expected)


def test_bands_of_arms(tmp_path):
    runs = arms_of(write_arms(tmp_path, {"real": (1.0, {}), "more": (3.0, {})}), "real", "test")
    found = all_bands(runs, draws_of(runs, 60, seed=0))
    assert list(found) == ["real", "more"]
    for arm in found.values():
        for kind in ("roc", "precision"):
            line, low, high = arm[kind]
            assert (low <= line + 0.1).all()
            assert (high >= line - 0.1).all()
            assert (high > low).any()
        assert arm["share"] == 0.5
    assert found["more"]["roc"][0].mean() > found["real"]["roc"][0].mean()


def test_reliability_averages_over_seeds(tmp_path):
    runs = arms_of(write_arms(tmp_path, {"real": (1.0, {}), "more": (3.0, {})}), "real", "test")
    bins = reliabilities(runs)["real"]
    assert sum(row["count"] for row in bins) == 60
    cells = runs.arms["real"]
    mean = np.mean([run.frame["probability"].mean() for run in cells.values()])
    assert np.average([row["promised"] for row in bins], weights=[row["count"] for row in bins]) == pytest.approx(mean)


def test_bins_of_equal_mass():
    labels = np.array([0, 0, 1, 0, 1, 1, 1])
    p = np.array([0.1, 0.9, 0.8, 0.2, 0.3, 0.4, 0.5])
    rows = reliability(labels, p, 3)
    assert [row["count"] for row in rows] == [3, 2, 2]
    assert [row["promised"] for row in rows] == pytest.approx([0.2, 0.45, 0.85])
    assert [row["observed"] for row in rows] == pytest.approx([1 / 3, 1.0, 0.5])
    wilson = stats.binomtest(1, 3).proportion_ci(method="wilson")
    assert (rows[0]["low"], rows[0]["high"]) == pytest.approx((wilson.low, wilson.high))
    assert len(reliability(labels, p, 50)) == 7
