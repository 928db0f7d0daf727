"""Questions about regional volumes: planted effects, none where there are none, closed forms, SciPy."""

import json

import numpy as np
import pytest
from scipy import stats

from evaluation import effects, figures

NAMES = ("a", "b", "c", "d")


def cohort(seed, n, planted=(0.0, 0.0, 0.0, 0.0), scale=1.0):
    labels = np.arange(n) % 2
    table = 10 + scale * np.random.default_rng(seed).normal(size=(n, len(planted)))
    return table + labels[:, None] * scale * np.array(planted), labels


def test_d_equals_the_direct_formula():
    table, labels = cohort(0, 31, (1.0, -0.5, 0.0, 2.0))
    a, b = table[labels == 1], table[labels == 0]
    pooled = np.sqrt(((len(a) - 1) * a.var(0, ddof=1) + (len(b) - 1) * b.var(0, ddof=1)) / (len(a) + len(b) - 2))
    np.testing.assert_allclose(effects.cohens_d(table, labels), (a.mean(0) - b.mean(0)) / pooled)
    t = stats.ttest_ind(a, b).statistic
    np.testing.assert_allclose(effects.cohens_d(table, labels), t * np.sqrt(1 / len(a) + 1 / len(b)))
    assert np.isnan(effects.cohens_d(np.full((6, 1), 1e6), np.arange(6) % 2)).all()
    with pytest.raises(ValueError, match="needs two"):
        effects.cohens_d(table[:3], labels[:3])


def test_weights_of_a_resample_give_the_d_of_the_drawn_subjects():
    table, labels = cohort(1, 40, (0.5, 0.0, 0.0, 0.0))
    weights = effects.resample(labels, 5, np.random.default_rng(0))
    assert (weights[0] == 1).all()
    assert (weights[:, labels == 1].sum(axis=1) == 20).all()
    found = effects._weighted_d(table, labels, weights)
    for row, weight in zip(found, weights.astype(int), strict=True):
        drawn = np.repeat(np.arange(40), weight)
        np.testing.assert_allclose(row, effects.cohens_d(table[drawn], labels[drawn]))


def test_a_planted_effect_is_found_with_its_size_and_none_elsewhere():
    table, labels = cohort(2, 400, (0.0, -1.2, 0.0, 0.0), scale=0.3)
    found = effects.class_effects(NAMES, table, labels, resamples=300)
    assert found["n"] == {"HC": 200, "TLE": 200}
    assert found["measures"]["b"]["d_low"] < -1.2 < found["measures"]["b"]["d_high"]
    assert found["measures"]["b"]["d_high"] < -0.9
    assert all(found["measures"][name]["d_low"] < 0 < found["measures"][name]["d_high"] for name in "acd")
    json.dumps(found, allow_nan=False)


def test_intervals_of_d_hold_the_truth_at_about_the_stated_rate():
    held = []
    for seed in range(60):
        table, labels = cohort([7, seed], 80, (0.8, 0.0, 0.0, -0.4))
        measures = effects.class_effects(NAMES, table, labels, resamples=200, seed=seed)["measures"]
        truth = dict(zip(NAMES, (0.8, 0.0, 0.0, -0.4), strict=True))
        held += [entry["d_low"] <= truth[name] <= entry["d_high"] for name, entry in measures.items()]
    assert 0.89 < np.mean(held) <= 0.99


def test_ks_p_values_are_uniform_without_a_difference_and_adjusted_as_by_benjamini_and_hochberg():
    real, synthetic = cohort(3, 70, (0.0,) * 300)[0], cohort(4, 70, (0.0,) * 300)[0]
    names = tuple(map(str, range(300)))
    found = effects.compare_distributions(names, real, synthetic, resamples=20)
    p = np.array([entry["p"] for entry in found["measures"].values()])
    assert 0.45 < p.mean() < 0.6
    assert np.mean(p < 0.1) < 0.15
    assert found["significant"] <= 1
    order = np.argsort(p)
    steps = np.minimum.accumulate((p[order] * 300 / np.arange(1, 301))[::-1])[::-1].clip(max=1)
    adjusted = np.array([entry["p_adjusted"] for entry in found["measures"].values()])
    np.testing.assert_allclose(adjusted[order], steps)
    assert found["measures"]["0"]["ks"] == stats.ks_2samp(real[:, 0], synthetic[:, 0]).statistic


def test_shift_and_lost_spread_are_told_apart():
    real, synthetic = cohort(5, 200)[0], cohort(6, 200)[0]
    synthetic[:, 0] += 0.8
    synthetic[:, 1] = 10 + 0.5 * (synthetic[:, 1] - 10)
    synthetic[:, 2] = 10.0
    found = effects.compare_distributions(NAMES, real, synthetic, resamples=200)
    entry = found["measures"]
    assert entry["a"]["difference_low"] < 0.8 < entry["a"]["difference_high"]
    assert entry["a"]["spread_low"] < 1 < entry["a"]["spread_high"]
    assert entry["b"]["spread_low"] < 0.5 * real[:, 1].std() < entry["b"]["spread_high"] < 0.7
    assert entry["b"]["difference_low"] < 0 < entry["b"]["difference_high"]
    assert entry["c"]["spread"] == 0
    assert all(entry[name]["p_adjusted"] < 0.05 for name in "abc")
    assert entry["d"]["p_adjusted"] > 0.05
    json.dumps(found, allow_nan=False)


EFFECTS = tuple(np.linspace(-1, 1, 12))


def test_agreement_of_the_same_effects_is_high_and_of_the_same_size():
    found = effects.effect_agreement(cohort(8, 300, EFFECTS), cohort(9, 300, EFFECTS), resamples=200, permutations=99)
    assert found["correlation"] > 0.95
    assert found["correlation_low"] < found["correlation"] < found["correlation_high"] <= 1
    assert found["slope"] == pytest.approx(1, abs=0.2)
    assert found["p"] == pytest.approx(1 / 100)
    assert found["n_sample"] == {"HC": 150, "TLE": 150}
    opposite = effects.effect_agreement(
        cohort(8, 300, EFFECTS), cohort(9, 300, tuple(-e for e in EFFECTS)), resamples=50, permutations=99
    )
    assert opposite["correlation"] < -0.9
    assert opposite["p"] > 0.9
    assert opposite["same_sign"] < 0.2


def test_labels_that_mean_nothing_are_not_taken_for_agreement_though_measures_are_correlated():
    """Measures share one factor, so that d over measures correlate by chance far more often than independent ones."""
    p = []
    for seed in range(60):
        sides = []
        for side in (0, 1):
            draw = np.random.default_rng([seed, side])
            table = draw.normal(size=(40, 12)) + 2 * draw.normal(size=(40, 1)) * np.linspace(-1, 1, 12)
            sides.append((table, np.arange(40) % 2))
        p.append(effects.effect_agreement(*sides, resamples=5, permutations=49, seed=seed)["p"])
    assert 0.35 < np.mean(p) < 0.65
    assert np.mean(np.array(p) <= 0.1) < 0.25


def test_agreement_without_variation_is_skipped():
    constant = (np.ones((10, 4)), np.arange(10) % 2)
    found = effects.effect_agreement(cohort(0, 20), constant)
    assert found == {"skipped": "0 of the measures vary on both sides; a correlation needs 3"}


def test_recovery_is_pearsons_correlation_per_measure():
    true = cohort(10, 60)[0]
    measured = 0.4 * true + np.array([0.0, 0.2, 1.0, 0.0]) * np.random.default_rng(0).normal(size=true.shape)
    measured[:, 3] = 2.0
    found = effects.recovery(NAMES, measured, true, resamples=100)["measures"]
    assert found["a"]["correlation"] == pytest.approx(1)
    expected = np.corrcoef(measured[:, 2], true[:, 2])[0, 1]
    assert found["c"]["correlation"] == pytest.approx(expected)
    assert found["c"]["correlation_low"] < expected < found["c"]["correlation_high"]
    assert found["d"]["correlation"] is None


def test_paired_effect_sees_what_unpaired_subjects_would_hide():
    draw = np.random.default_rng(0)
    hc = 10 + draw.normal(size=(30, 4))
    tle = hc + np.array([-0.1, 0.05, 0.0, 0.0]) + 0.05 * draw.normal(size=(30, 4))
    tle[:, 3] = hc[:, 3]
    found = effects.paired_effect(NAMES, hc, tle, resamples=200)
    entry = found["measures"]
    assert found["n"] == 30
    assert entry["a"]["difference"] == pytest.approx((tle - hc)[:, 0].mean())
    assert entry["a"]["difference_low"] < -0.1 < entry["a"]["difference_high"] < 0
    assert (entry["a"]["sign"], entry["b"]["sign"]) == (-1, 1)
    assert entry["a"]["same_sign"] > 0.9
    assert entry["a"]["d"] == pytest.approx(-0.1, abs=0.04)
    assert entry["d"] == {
        "difference": 0, "difference_low": 0, "difference_high": 0, "d": 0, "sign": 0, "same_sign": 1, "p": 1,
        "p_adjusted": 1,
    }  # fmt: skip
    assert entry["a"]["p_adjusted"] < 0.001
    with pytest.raises(ValueError, match="same 2 seeds"):
        effects.paired_effect(NAMES, hc, tle[:-1])


def test_paired_effects_are_claimed_at_the_stated_rate_where_there_are_none():
    hc = cohort(11, 25, (0.0,) * 400)[0]
    tle = hc + 0.1 * np.random.default_rng(1).standard_t(6, size=hc.shape)
    found = effects.paired_effect(tuple(map(str, range(400))), hc, tle, resamples=300)
    measures = found["measures"].values()
    assert 0.88 < np.mean([entry["difference_low"] < 0 < entry["difference_high"] for entry in measures]) < 0.98
    assert 0.02 < np.mean([entry["p"] < 0.05 for entry in measures]) < 0.08
    assert found["significant"] <= 2


def test_same_seed_same_figures():
    table, labels = cohort(0, 30)
    runs = [effects.class_effects(NAMES, table, labels, resamples=20, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_forest_plot_is_written_also_where_a_set_has_no_effect(tmp_path):
    real = effects.class_effects(NAMES, *cohort(0, 40), resamples=20)
    collapsed = effects.class_effects(NAMES, np.ones((8, 4)), np.arange(8) % 2, resamples=20)
    path = tmp_path / "forest.png"
    figures.draw_effects(path, {"real": real, "synthetic": collapsed}, known={"a": -0.3}, shown=3)
    assert path.stat().st_size > 5000
