import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn import metrics as reference

from classifier.measures import metrics
from classifier.measures.resampling import evaluate
from runtime.errors import InputError


def sample(rng, count=80, ties=True):
    labels = rng.permutation(np.arange(count) % 3 == 0).astype(int)
    scores = rng.normal(size=count) + labels
    return labels, np.round(scores, 1) if ties else scores


def table(labels, probabilities):
    return pd.DataFrame({"label": labels, "probability": probabilities, "group": np.arange(len(labels))})


@pytest.mark.parametrize("ties", [True, False])
def test_measures_agree_with_scikit_learn(ties):
    labels, scores = sample(np.random.default_rng(0), ties=ties)
    p = expit(scores)
    got = evaluate(table(labels, p), 0.5, np.random.default_rng(1), resamples=50)
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
    got = evaluate(table(labels, p), 0.9, np.random.default_rng(0), resamples=50)
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
    alternating = np.array([0, 1, 0, 1])  # 0.2 and 0.75 are equally good, both better than 0.45 between them
    assert metrics.choose_threshold(alternating, np.array([0.1, 0.3, 0.6, 0.9])) == pytest.approx(0.75)


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


@pytest.mark.parametrize("labels", [np.zeros(5, int), np.ones(5, int), np.array([0, 1, 2])])
def test_one_class_is_refused(labels):
    scores = np.arange(len(labels)) / 10
    for call in (metrics.auc, metrics.choose_threshold, metrics.fit_temperature):
        with pytest.raises(InputError, match="both classes"):
            call(labels, scores)


def test_one_subject_of_a_class_has_no_interval_in_what_it_enters():
    labels, p = np.array([0, 0, 0, 0, 1, 1]), np.array([0.1, 0.6, 0.3, 0.2, 0.9, 0.8])
    frame = table(labels, p).assign(group=[0, 1, 2, 3, 4, 4])
    got = evaluate(frame, 0.5, np.random.default_rng(0), resamples=50)
    bounded = {name for name, found in got.items() if found["low"] is not None or found["high"] is not None}
    assert bounded == {"specificity"}
    assert got["auc"]["value"] == 1.0
