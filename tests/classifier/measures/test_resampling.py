import numpy as np
import pytest

from classifier.measures.resampling import bootstrap_weights, cell, cell_text, interval, seed_weights, two_sided_p


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
