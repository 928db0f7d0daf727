import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.linear_model import LogisticRegression

from classifier.measures.calibration import recalibration, reliability, wilson
from classifier.measures.metrics import sigmoid


def sample(count=120, effect=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    return labels, rng.normal(size=count) + effect * (labels - 0.5), rng


@pytest.mark.parametrize("effect", [0.0, 1.0, 3.0])
def test_agrees_with_scikit_learn_and_scipy(effect):
    """Weighted fits, the last effect close to perfect separation."""
    labels, z, rng = sample(effect=effect)
    weights = np.vstack([np.ones(120), rng.multinomial(120, np.full(120, 1 / 120), size=4)]).astype(float)
    got = recalibration(labels, sigmoid(z), weights)
    for row, w in enumerate(weights):
        fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(z[:, None], labels, sample_weight=w)
        assert got["calibration_slope"][row] == pytest.approx(fit.coef_[0, 0], rel=1e-4, abs=1e-5)
        root = optimize.brentq(lambda a, w=w: np.sum(w * (labels - sigmoid(a + z))), -9, 9)
        assert got["calibration_intercept"][row] == pytest.approx(root, abs=1e-8)


def test_a_known_miscalibration_is_recovered():
    rng = np.random.default_rng(0)
    z = rng.normal(size=200_000)
    labels = (rng.random(200_000) < sigmoid(z)).astype(int)
    one = np.ones((1, len(z)))
    true = recalibration(labels, sigmoid(z), one)
    assert true["calibration_slope"] == pytest.approx(1, abs=0.03)
    assert true["calibration_intercept"] == pytest.approx(0, abs=0.03)
    assert recalibration(labels, sigmoid(2 * z), one)["calibration_slope"] == pytest.approx(0.5, abs=0.02)
    assert recalibration(labels, sigmoid(z + 1), one)["calibration_intercept"] == pytest.approx(-1, abs=0.03)


def test_separated_classes_have_no_slope():
    labels = np.array([0, 0, 0, 1, 1, 1])
    rising, tied = np.linspace(0.1, 0.9, 6), np.array([0.1, 0.2, 0.5, 0.5, 0.8, 0.9])
    one = np.ones((1, 6))
    assert recalibration(labels, rising, one)["calibration_slope"] == np.inf
    assert recalibration(labels, tied, one)["calibration_slope"] == np.inf
    assert recalibration(labels, rising[::-1], one)["calibration_slope"] == -np.inf
    assert np.isnan(recalibration(labels, np.full(6, 0.4), one)["calibration_slope"])


def test_a_resample_can_be_separated_though_the_sample_is_not():
    labels = np.array([0, 0, 0, 1, 1, 1])
    p = np.array([0.1, 0.2, 0.7, 0.6, 0.8, 0.9])
    weights = np.array([[1, 1, 1, 1, 1, 1], [2, 1, 0, 1, 1, 1]], dtype=float)
    slope = recalibration(labels, p, weights)["calibration_slope"]
    assert np.isfinite(slope).tolist() == [True, False]


def test_probabilities_of_0_and_1_have_finite_logits():
    labels = np.array([0, 1, 0, 1])
    got = recalibration(labels, np.array([0.0, 0.0, 1.0, 1.0]), np.ones((1, 4)))
    assert got["calibration_slope"] == pytest.approx(0, abs=1e-9)
    assert got["calibration_intercept"] == pytest.approx(0, abs=1e-3)  # flat between logits of 28


def test_blocks_of_weights_change_nothing(monkeypatch):
    labels, z, rng = sample()
    weights = rng.multinomial(120, np.full(120, 1 / 120), size=30)
    whole = recalibration(labels, sigmoid(z), weights)
    monkeypatch.setattr("classifier.measures.calibration.ENTRIES", 700)
    for name, values in recalibration(labels, sigmoid(z), weights).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-6)


def test_bins_of_equal_mass():
    labels = np.array([0, 0, 1, 0, 1, 1, 1])
    p = np.array([0.1, 0.9, 0.8, 0.2, 0.3, 0.4, 0.5])
    rows = reliability(labels, p, 3)
    assert [row["count"] for row in rows] == [3, 2, 2]
    assert [row["promised"] for row in rows] == pytest.approx([0.2, 0.45, 0.85])
    assert [row["observed"] for row in rows] == pytest.approx([1 / 3, 1.0, 0.5])
    assert len(reliability(labels, p, 50)) == 7


@pytest.mark.parametrize(("hits", "count"), [(0, 9), (4, 9), (9, 9)])
def test_wilson_equals_scipy(hits, count):
    expected = stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-6)
