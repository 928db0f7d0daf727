import itertools
import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from sklearn import metrics as reference

from classifier.measures import metrics
from runtime.errors import InputError


def sample(rng, count=80, ties=True):
    labels = rng.permutation(np.arange(count) % 3 == 0).astype(int)
    scores = rng.normal(size=count) + labels
    return labels, np.round(scores, 1) if ties else scores


@pytest.mark.parametrize("ties", [True, False])
def test_measures_agree_with_scikit_learn(ties):
    labels, scores = sample(np.random.default_rng(0), ties=ties)
    p = expit(scores)
    got = metrics.evaluate(labels, p, 0.5, np.arange(80), np.random.default_rng(1), resamples=50)
    assert tuple(got) == metrics.MEASURES
    called = p >= 0.5
    expected = {
        "accuracy": reference.accuracy_score(labels, called),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, called),
        "sensitivity": reference.recall_score(labels, called),
        "specificity": reference.recall_score(labels, called, pos_label=0),
        "precision": reference.precision_score(labels, called),
        "f1": reference.f1_score(labels, called),
        "auc": reference.roc_auc_score(labels, p),
        "average_precision": reference.average_precision_score(labels, p),
        "brier": reference.brier_score_loss(labels, p),
    }
    assert {name: got[name]["value"] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert all(got[name]["low"] <= got[name]["value"] <= got[name]["high"] for name in metrics.MEASURES)
    assert metrics.auc(labels, scores) == pytest.approx(expected["auc"])


def test_weighting_equals_drawing_scans_again():
    labels, scores = sample(np.random.default_rng(3))
    p = expit(scores)
    weights = np.random.default_rng(0).multinomial(80, np.full(80, 1 / 80), size=5)
    got = metrics.weighted_metrics(labels, p, 0.4, weights)
    for row in range(5):
        drawn = np.repeat(np.arange(80), weights[row])
        y, called = labels[drawn], p[drawn] >= 0.4
        for name, expected in (
            ("auc", reference.roc_auc_score(y, p[drawn])),
            ("average_precision", reference.average_precision_score(y, p[drawn])),
            ("precision", reference.precision_score(y, called)),
            ("f1", reference.f1_score(y, called)),
            ("accuracy", reference.accuracy_score(y, called)),
        ):
            assert got[name][row] == pytest.approx(expected)


def test_nobody_called_tle_and_perfect_separation():
    labels, p = np.array([0, 0, 0, 1, 1, 1]), np.array([0.1, 0.2, 0.3, 0.6, 0.7, 0.8])
    got = metrics.evaluate(labels, p, 0.9, np.arange(6), np.random.default_rng(0), resamples=50)
    assert (got["precision"]["value"], got["f1"]["value"], got["specificity"]["value"]) == (0.0, 0.0, 1.0)
    assert got["calibration_slope"] == {"value": None, "low": None, "high": None, "not_estimable": 1.0}
    assert all(got["calibration_intercept"][end] is not None for end in ("value", "low", "high"))
    assert "not_estimable" not in got["auc"]


def test_balanced_loss_agrees_with_scikit_learn():
    labels, scores = sample(np.random.default_rng(5))
    weights = np.where(labels == 1, 1 / labels.sum(), 1 / (1 - labels).sum())
    expected = reference.log_loss(labels, expit(scores), sample_weight=weights)
    assert metrics.balanced_loss(labels, scores) == pytest.approx(expected)
    assert metrics.balanced_loss(labels, 0 * scores) == pytest.approx(np.log(2))


def test_threshold_is_the_best_midpoint_nearest_one_half():
    labels = np.array([0, 0, 1, 1])
    assert metrics.choose_threshold(labels, np.array([0.1, 0.2, 0.8, 0.9])) == pytest.approx(0.5)
    assert metrics.choose_threshold(labels, np.array([0.6, 0.7, 0.8, 0.9])) == pytest.approx(0.75)
    assert metrics.choose_threshold(labels, np.full(4, 0.3)) == 0.5


def test_temperature_recovers_a_known_scale():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=200_000) * 2
    labels = (rng.random(200_000) < expit(logits)).astype(int)
    assert metrics.fit_temperature(labels, 3 * logits) == pytest.approx(3, rel=0.03)


def test_temperature_is_a_minimum_and_stays_within_its_bounds():
    labels, logits = sample(np.random.default_rng(8), ties=False)
    best = metrics.fit_temperature(labels, logits)
    losses = [metrics.balanced_loss(labels, logits / (best * factor)) for factor in (0.999, 1.0, 1.001)]
    assert losses[1] == min(losses)
    assert metrics.fit_temperature(labels, labels - 0.5) == pytest.approx(0.05, rel=1e-3)  # the surer the better
    assert metrics.fit_temperature(labels, 0.5 - labels) == pytest.approx(20, rel=1e-3)


def brute_force_delong(labels, a, b):
    """Placement values straight from their definition (DeLong et al. 1988)."""
    covariance, areas = np.zeros((2, 2)), []
    parts = []
    for scores in (a, b):
        x, y = scores[labels == 1], scores[labels == 0]
        psi = (x[:, None] > y) + 0.5 * (x[:, None] == y)
        areas.append(psi.mean())
        parts.append((psi.mean(1), psi.mean(0)))
    for i, j in itertools.product(range(2), repeat=2):
        covariance[i, j] = sum(np.cov(parts[i][k], parts[j][k])[0, 1] / len(parts[i][k]) for k in range(2))
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    return areas, covariance, 2 * stats.norm.sf(abs(areas[1] - areas[0]) / math.sqrt(variance))


@pytest.mark.parametrize("ties", [True, False])
def test_delong_equals_brute_force(ties):
    rng = np.random.default_rng(4)
    labels, a = sample(rng, ties=ties)
    b = np.round(a + rng.normal(size=80), 1) if ties else a + rng.normal(size=80)
    areas, covariance, p = brute_force_delong(labels, a, b)
    got_areas, got_covariance = metrics.delong_covariance(labels, np.stack([a, b]))
    np.testing.assert_allclose(got_areas, areas)
    np.testing.assert_allclose(got_covariance, covariance, atol=1e-15)
    test = metrics.delong_test(labels, a, b)
    assert test.p == pytest.approx(p, rel=1e-9)
    assert test.low < test.difference < test.high
    assert not test.degenerate


def test_delong_of_identical_scores():
    labels, scores = sample(np.random.default_rng(5))
    test = metrics.delong_test(labels, scores, 2 * scores + 1)
    assert (test.p, test.difference, test.degenerate) == (1.0, 0.0, True)


def test_delong_of_perfect_separation():
    labels = np.array([0] * 10 + [1] * 10)
    perfect = np.arange(20.0)
    other = np.random.default_rng(0).normal(size=20)
    assert metrics.delong_test(labels, perfect, perfect + 1).p == 1.0
    one_sided = metrics.delong_test(labels, other, perfect)
    assert one_sided.auc_b == 1.0
    assert 0 < one_sided.p < 0.05
    opposite = metrics.delong_test(labels, perfect, -perfect)
    assert (opposite.p, opposite.degenerate) == (0.0, True)


def test_delong_keeps_its_level():
    """Equal areas, correlated scores, 1500 times: rejected in 5 %, to three and a half binomial standard errors."""
    rng = np.random.default_rng(6)
    labels = np.arange(120) % 2
    p = []
    for _ in range(1500):
        truth = rng.normal(size=120) + labels
        p.append(metrics.delong_test(labels, truth + rng.normal(size=120), truth + rng.normal(size=120)).p)
    assert abs(np.mean(np.array(p) < 0.05) - 0.05) < 3.5 * math.sqrt(0.05 * 0.95 / 1500)


@pytest.mark.parametrize("labels", [np.zeros(5, int), np.ones(5, int), np.array([0, 1, 2])])
def test_one_class_is_refused(labels):
    scores = np.arange(len(labels)) / 10
    for call in (metrics.auc, metrics.choose_threshold, metrics.fit_temperature):
        with pytest.raises(InputError, match="both classes"):
            call(labels, scores)
    with pytest.raises(InputError, match="both classes"):
        metrics.delong_test(labels, scores, scores)


def test_delong_needs_two_of_each():
    with pytest.raises(InputError, match="2 HC and 1 TLE"):
        metrics.delong_test(np.array([0, 0, 1]), np.arange(3.0), np.arange(3.0))
