import numpy as np
import pandas as pd
import pytest

from classifier.measures import metrics
from classifier.measures.resampling import (
    Draws,
    auc_of_scores,
    bootstrap_weights,
    by_seed,
    cell,
    cell_text,
    draws_of,
    evaluate,
    interval,
    over_seeds,
    seed_weights,
    spread_over_seeds,
    two_sided_p,
)
from classifier.measures.runs import ArmRuns, FinishedRun


def test_bootstrap_keeps_the_scans_of_a_subject_together():
    labels = np.array([0, 0, 1, 1, 1, 0])
    clusters = np.array(["a", "a", "b", "b", "c", "d"])
    weights = bootstrap_weights(labels, clusters, 50, np.random.default_rng(0))
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 2] == weights[:, 3]).all()
    assert (weights[:, 0] + weights[:, 5] == 2).all()


@pytest.mark.parametrize("seeds", [2, 3, 7])
def test_seed_draws_have_the_variance_of_a_mean_of_seeds(seeds):
    """Sample variance over S, not the (S - 1) / S of it that drawing S of S seeds would give."""
    values = np.random.default_rng(0).normal(size=seeds)
    shares = seed_weights(seeds, 200_000, np.random.default_rng(1))
    np.testing.assert_allclose(shares.sum(1), 1)
    assert np.var(shares @ values) == pytest.approx(np.var(values, ddof=1) / seeds, rel=0.02)


def test_one_seed_says_nothing_about_training():
    assert (seed_weights(1, 5, np.random.default_rng(0)) == 1).all()


def test_interval_by_order_statistics():
    draws = np.random.default_rng(0).permutation(np.arange(1001.0))
    assert interval(draws) == (25.0, 975.0)
    assert interval(draws, level=0.9) == (50.0, 950.0)


def test_what_has_no_number_widens_the_interval():
    draws = np.arange(1001.0)
    assert interval(np.where(draws > 960, np.inf, draws)) == (25.0, np.inf)
    assert interval(np.where(draws > 990, np.inf, draws)) == (25.0, 975.0)
    assert interval(np.where(draws > 990, np.nan, draws)) == (15.0, 975.0)
    found = cell(3.0, np.where(draws > 960, np.inf, draws))
    assert found == {"value": 3.0, "low": 25.0, "high": None, "not_estimable": pytest.approx(40 / 1001)}
    assert cell_text(found, ".1f") == "3.0 [25.0, no bound]"
    assert cell_text(cell(np.inf, np.full(9, np.inf))) == "not estimable [no bound, no bound]"


def test_bootstrap_p():
    assert two_sided_p(np.full(999, 0.1)) == pytest.approx(2 / 1000)
    assert two_sided_p(np.zeros(999)) == 1.0
    assert two_sided_p(np.arange(999.0) - 24) == pytest.approx(2 * 26 / 1000)


def runs_of(probabilities, labels):
    """One arm from (S, F, N) probabilities, every fold with the labels (N,)."""
    seeds, folds, count = probabilities.shape
    cells = {}
    for seed, fold in np.ndindex(seeds, folds):
        names = [f"{fold}-{k:03d}" for k in range(count)]
        frame = pd.DataFrame({"subject": names, "group": names, "session": "", "label": labels})
        frame = frame.assign(probability=probabilities[seed, fold])
        cells[seed, fold] = FinishedRun(frame, frozenset(names), {"threshold": 0.5})
    return ArmRuns({"arm": cells}, tuple(range(seeds)), tuple(range(folds)))


def model(rng, subjects, seeds, sd_subject, sd_seed, sd_rest, labels):
    """Probabilities (S, 1, N) whose squared error is 0.3 + a subject's + a seed's + a rest: the Brier score's mean."""
    error = 0.3 + sd_subject * rng.normal(size=subjects) + sd_seed * rng.normal(size=(seeds, 1))
    error = np.clip(error + sd_rest * rng.normal(size=(seeds, subjects)), 0, 1)
    return np.where(labels == 1, 1 - np.sqrt(error), np.sqrt(error))[:, None], error


def closed_form(error, labels):
    """Variance of the resampled mean of `error` (S, N): subjects within classes, S - 1 of S seeds."""
    S, N = error.shape

    def subject_part(x):
        return sum(np.sum((x[labels == c] - x[labels == c].mean()) ** 2) for c in (0, 1)) / N**2

    means = error.mean(1)
    apart = [(means[s] - means.mean()) ** 2 + subject_part(error[s] - error.mean(0)) for s in range(S)]
    return subject_part(error.mean(0)) + sum(apart) / (S * (S - 1))


@pytest.mark.parametrize(("sd_subject", "sd_seed", "sd_rest"), [(0.08, 0.0, 0.0), (0.0, 0.04, 0.0), (0.06, 0.02, 0.05)])
def test_variance_of_a_linear_measure_has_its_closed_form(sd_subject, sd_seed, sd_rest):
    labels = np.arange(60) % 2
    p, error = model(np.random.default_rng(0), 60, 4, sd_subject, sd_seed, sd_rest, labels)
    runs = runs_of(p, labels)
    draws = draws_of(runs, 6000, seed=0)
    brier = over_seeds(by_seed(runs, "arm", draws)["brier"], draws)
    assert brier[0] == pytest.approx(error.mean())
    assert np.var(brier[1:]) == pytest.approx(closed_form(error, labels), rel=0.06)


def test_closed_form_is_subject_part_plus_seed_part():
    """Over cohorts of the additive model: sd_subject^2 / N + sd_seed^2 / S; and the rest counts three times."""
    labels, rng = np.arange(60) % 2, np.random.default_rng(1)
    additive = [closed_form(model(rng, 60, 4, 0.05, 0.03, 0.0, labels)[1], labels) for _ in range(1500)]
    assert np.mean(additive) == pytest.approx(0.05**2 / 60 + 0.03**2 / 4, rel=0.06)
    rest = [closed_form(model(rng, 60, 4, 0.0, 0.0, 0.05, labels)[1], labels) for _ in range(300)]
    assert np.mean(rest) == pytest.approx(3 * 0.05**2 / (60 * 4), rel=0.06)


def test_estimates_are_means_over_folds_and_seeds():
    rng = np.random.default_rng(2)
    labels, p = np.arange(30) % 2, rng.random((3, 2, 30))
    runs = runs_of(p, labels)
    draws = draws_of(runs, 20, seed=0)
    measured = by_seed(runs, "arm", draws)
    areas = np.array([[metrics.auc(labels, p[s, f]) for f in range(2)] for s in range(3)])
    np.testing.assert_allclose(measured["auc"][0], areas.mean(1))
    assert over_seeds(measured["auc"], draws)[0] == pytest.approx(areas.mean())
    fixed = auc_of_scores(runs, {fold: p[0, fold] for fold in range(2)}, draws)
    np.testing.assert_allclose(fixed, measured["auc"][:, 0])


def test_a_seed_that_is_not_drawn_does_not_count_even_when_infinite():
    labels = np.arange(30) % 2
    p = np.stack([np.linspace(0.1, 0.9, 30)[np.argsort(np.argsort(labels, kind="stable"))], np.full(30, 0.0)])
    p[1] = np.random.default_rng(3).random(30)
    runs = runs_of(p[:, None], labels)
    draws = draws_of(runs, 50, seed=0)
    slope = over_seeds(by_seed(runs, "arm", draws)["calibration_slope"], draws)
    assert slope[0] == np.inf
    assert np.isfinite(slope[1:]).tolist() == (draws.seeds[1:, 0] == 0).tolist()


@pytest.mark.parametrize(("seeds", "share", "covered"), [(2, 0.75, 0.90), (3, 0.75, 0.92), (5, 0.25, 0.95)])
def test_intervals_over_few_seeds_cover_what_the_readme_says(seeds, share, covered):
    """A mean whose variance lies by this share between training seeds; without Student's t it was 0.84 for two."""
    rng, hits, count = np.random.default_rng(0), 0, 400
    between, subjects = np.sqrt(share * seeds), np.sqrt(1 - share)
    for _ in range(count):
        estimate = rng.normal(0, between, seeds) + rng.normal(0, subjects)
        drawn = np.concatenate([[0.0], rng.normal(0, subjects, 300)])
        shares = np.vstack([np.full(seeds, 1 / seeds), seed_weights(seeds, 300, rng)])
        means = spread_over_seeds(estimate + drawn[:, None], Draws({}, shares))
        low, high = interval(means[1:])
        hits += low <= 0 <= high
    assert hits / count == pytest.approx(covered, abs=0.03)


def test_one_seed_is_spread_by_nothing():
    values = np.array([[0.7], [0.6], [0.8]])
    np.testing.assert_array_equal(spread_over_seeds(values, Draws({}, np.ones((3, 1)))), values[:, 0])


def test_no_interval_of_a_run_has_width_zero():
    frame = pd.DataFrame({"label": [0, 1] * 10, "probability": [0.1, 0.9] * 10, "group": [f"g{i}" for i in range(20)]})
    found = evaluate(frame, 0.5, np.random.default_rng(0), 200)
    for name in ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auc"):
        assert found[name]["value"] == found[name]["high"] == 1.0
        assert 0.6 < found[name]["low"] < 0.95
    for name in ("f1", "average_precision"):
        assert (found[name]["low"], found[name]["high"]) == (None, None)
    paired = frame.assign(group=np.repeat([f"g{i}" for i in range(5)], 4))  # scans of one subject: by the bootstrap
    assert evaluate(paired, 0.5, np.random.default_rng(0), 200)["auc"]["low"] is None
