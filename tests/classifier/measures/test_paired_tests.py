import itertools
import math

import numpy as np
import pytest
from scipy import stats

from classifier.measures import paired_tests
from classifier.measures.paired_tests import delong_test
from runtime.errors import InputError


def test_mcnemar_equals_the_binomial_test():
    rng = np.random.default_rng(7)
    a, b = rng.random(40) < 0.8, rng.random(40) < 0.6
    only_a, only_b, p = paired_tests.mcnemar(a, b)
    assert p == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)
    assert paired_tests.mcnemar(a, a) == (0, 0, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.04, 0.04, "equivalent"),
        (-0.04, 0.06, "not inferior"),
        (0.06, 0.10, "not inferior"),
        (-0.06, 0.04, "undecided"),
        (-0.20, 0.20, "undecided"),
        (-0.20, -0.04, "undecided"),
        (-0.20, -0.06, "inferior"),
        (-0.05, 0.05, "undecided"),
    ],
)
def test_verdicts_at_a_margin(low, high, expected):
    assert paired_tests.verdict(low, high, 0.05) == expected


def sample(rng, count=80, ties=True):
    labels = rng.permutation(np.arange(count) % 3 == 0).astype(int)
    scores = rng.normal(size=count) + labels
    return labels, np.round(scores, 1) if ties else scores


def delong(labels, a, b):
    """The test of one fold."""
    return delong_test([labels], [a], [b])


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
    got_areas, got_covariance = paired_tests.delong_covariance(labels, np.stack([a, b]))
    np.testing.assert_allclose(got_areas, areas)
    np.testing.assert_allclose(got_covariance, covariance, atol=1e-15)
    test = delong(labels, a, b)
    assert test["p"] == pytest.approx(p, rel=1e-9)
    assert test["low"] < test["difference"] < test["high"]
    assert not test["degenerate"]


def test_delong_of_identical_scores():
    labels, scores = sample(np.random.default_rng(5))
    test = delong(labels, scores, 2 * scores + 1)
    assert (test["p"], test["difference"], test["degenerate"]) == (1.0, 0.0, True)


def test_delong_of_perfect_separation():
    labels = np.array([0] * 10 + [1] * 10)
    perfect = np.arange(20.0)
    other = np.random.default_rng(0).normal(size=20)
    assert delong(labels, perfect, perfect + 1)["p"] == 1.0
    one_sided = delong(labels, other, perfect)
    assert one_sided["auc_b"] == 1.0
    assert 0 < one_sided["p"] < 0.05
    opposite = delong(labels, perfect, -perfect)
    assert (opposite["p"], opposite["degenerate"]) == (0.0, True)
    for test in (delong(labels, perfect, perfect + 1), opposite):
        assert -1 <= test["low"] < test["high"] <= 1
    few = delong(np.array([0, 0, 1, 1]), np.array([1.0, 4.0, 2.0, 3.0]), np.array([1.0, 2.0, 0.0, 3.0]))
    assert -1 <= few["low"] < few["high"] <= 1


def test_delong_keeps_its_level():
    """Equal areas, correlated scores, 1500 times: rejected in 5 %, to three and a half binomial standard errors."""
    rng = np.random.default_rng(6)
    labels = np.arange(120) % 2
    p = []
    for _ in range(1500):
        truth = rng.normal(size=120) + labels
        p.append(delong(labels, truth + rng.normal(size=120), truth + rng.normal(size=120))["p"])
    assert abs(np.mean(np.array(p) < 0.05) - 0.05) < 3.5 * math.sqrt(0.05 * 0.95 / 1500)


@pytest.mark.parametrize("labels", [np.zeros(5, int), np.ones(5, int), np.array([0, 1, 2])])
def test_delong_of_one_class_is_refused(labels):
    with pytest.raises(InputError, match="both classes"):
        delong(labels, np.arange(len(labels)), np.arange(len(labels)))


def test_delong_needs_two_of_each():
    with pytest.raises(InputError, match="2 HC and 1 TLE"):
        delong(np.array([0, 0, 1]), np.arange(3.0), np.arange(3.0))


def test_delong_averages_over_folds():
    rng = np.random.default_rng(6)
    labels = [np.arange(40) % 2 for _ in range(3)]
    a, b = ([rng.normal(size=40) + effect * y for y in labels] for effect in (1.0, 1.4))
    each = [delong(*fold) for fold in zip(labels, a, b, strict=True)]
    got = delong_test(labels, a, b)
    assert got["difference"] == pytest.approx(np.mean([test["difference"] for test in each]))
    widths = np.array([test["high"] - test["low"] for test in each])
    assert got["high"] - got["low"] == pytest.approx(np.sqrt(np.sum(widths**2)) / 3)
