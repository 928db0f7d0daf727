import numpy as np
import pytest
from scipy import optimize
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from classifier.measures.calibration import recalibration


def sample(count=120, effect=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    return labels, rng.normal(size=count) + effect * (labels - 0.5), rng


@pytest.mark.parametrize("effect", [0.0, 1.0, 3.0])
def test_agrees_with_scikit_learn_and_scipy(effect):
    """Weighted fits, the last effect close to perfect separation."""
    labels, z, rng = sample(effect=effect)
    weights = np.vstack([np.ones(120), rng.multinomial(120, np.full(120, 1 / 120), size=4)]).astype(float)
    got = recalibration(labels, expit(z), weights)
    for row, w in enumerate(weights):
        fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(z[:, None], labels, sample_weight=w)
        assert got["calibration_slope"][row] == pytest.approx(fit.coef_[0, 0], rel=1e-4, abs=1e-5)
        root = optimize.brentq(lambda a, w=w: np.sum(w * (labels - expit(a + z))), -9, 9)
        assert got["calibration_intercept"][row] == pytest.approx(root, abs=1e-8)


def test_a_known_miscalibration_is_recovered():
    rng = np.random.default_rng(0)
    z = rng.normal(size=200_000)
    labels = (rng.random(200_000) < expit(z)).astype(int)
    one = np.ones((1, len(z)))
    true = recalibration(labels, expit(z), one)
    assert true["calibration_slope"] == pytest.approx(1, abs=0.03)
    assert true["calibration_intercept"] == pytest.approx(0, abs=0.03)
    assert recalibration(labels, expit(2 * z), one)["calibration_slope"] == pytest.approx(0.5, abs=0.02)
    assert recalibration(labels, expit(z + 1), one)["calibration_intercept"] == pytest.approx(-1, abs=0.03)


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
    weights = np.array([[1.0, 2.0, 1.0, 1.0], [2.0, 1.0, 2.0, 1.0]])
    uneven = recalibration(labels, np.array([0.0, 0.0, 1.0, 1.0]), weights)["calibration_intercept"]
    z = logit(1e-12) * np.array([1, 1, -1, -1])
    roots = [optimize.brentq(lambda a, w=w: w @ (labels - expit(a + z)), -60, 60) for w in weights]
    np.testing.assert_allclose(uneven, roots, atol=1e-3)
