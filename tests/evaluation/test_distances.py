"""Distances against closed forms, MONAI and torchmetrics; tests against planted differences and their stated rate."""

import numpy as np
import pytest
import torch
from monai.metrics import FIDMetric

from evaluation import distances


def gaussian(seed, n, mean, scale):
    return np.random.default_rng(seed).normal(mean, scale, (n, len(np.atleast_1d(scale))))


def test_frechet_equals_the_closed_form_for_gaussians():
    """Diagonal Gaussians: |difference of means|^2 + sum of (difference of standard deviations)^2."""
    scale_a, scale_b = np.array([1.0, 2.0, 0.5]), np.array([1.5, 1.0, 0.5])
    a, b = gaussian(0, 200_000, 0.0, scale_a), gaussian(1, 200_000, 0.7, scale_b)
    exact = 3 * 0.7**2 + np.sum((scale_a - scale_b) ** 2)
    assert distances.frechet(a, b) == pytest.approx(exact, rel=0.01)


def test_frechet_of_fitted_moments_is_exact():
    """No sampling error: two sets whose sample moments are known."""
    square = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # covariance 2/3 of the identity
    assert distances.frechet(square, 3 * square + [1.0, 2.0]) == pytest.approx(
        5 + 2 * (2 / 3) * (3 - 1) ** 2, rel=1e-12
    )


@pytest.mark.parametrize(("n_a", "n_b", "features"), [(60, 80, 12), (300, 300, 16), (20, 100, 16)])
def test_frechet_equals_monai(n_a, n_b, features):
    draw = np.random.default_rng(n_a)
    mixing = draw.normal(size=(features, features))
    a, b = draw.normal(size=(n_a, features)) @ mixing, draw.normal(size=(n_b, features)) * 1.3 + 0.2
    reference = float(FIDMetric()(torch.from_numpy(a), torch.from_numpy(b)))
    assert distances.frechet(a, b) == pytest.approx(reference, rel=1e-3)


def test_frechet_with_fewer_samples_than_features_is_finite_symmetric_and_zero_for_itself():
    a, b = gaussian(0, 5, 0.0, np.ones(40)), gaussian(1, 7, 0.0, np.ones(40))
    assert distances.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert distances.frechet(a, b) == pytest.approx(distances.frechet(b, a))
    assert distances.frechet(a, np.repeat(b[:1], 5, axis=0)) > 0


def test_frechet_refuses_one_row():
    with pytest.raises(ValueError, match="2 rows"):
        distances.frechet(np.zeros((1, 3)), np.zeros((4, 3)))


def test_kid_is_unbiased_where_frechet_is_not():
    pairs = [(gaussian(2 * i, 20, 0.0, np.ones(8)), gaussian(2 * i + 1, 20, 0.0, np.ones(8))) for i in range(300)]
    values = np.array([distances.kid(a, b) for a, b in pairs])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    assert np.mean([distances.frechet(a, b) for a, b in pairs]) > 1


def test_kid_grows_with_a_shift():
    a = gaussian(0, 50, 0.0, np.ones(8))
    values = [distances.kid(a, gaussian(1, 50, shift, np.ones(8))) for shift in (0.0, 0.5, 1.0)]
    assert values[0] < values[1] < values[2]


def p_value(a, b, strata=None, permutations=199):
    joined = np.concatenate([a, b])
    first = np.arange(len(joined)) < len(a)
    strata = np.zeros(len(joined), dtype=int) if strata is None else strata
    kernel = distances.polynomial_kernel(joined, joined)
    return distances.permutation_p_value(kernel, first, strata, permutations, np.random.default_rng(0))


def test_permutation_test_agrees_with_kid():
    a, b = gaussian(0, 12, 0.0, np.ones(4)), gaussian(1, 9, 0.5, np.ones(4))
    joined = np.concatenate([a, b])
    memberships = (np.arange(21) < 12)[None]
    assert distances.mmd_of_memberships(distances.polynomial_kernel(joined, joined), memberships)[0] == pytest.approx(
        distances.kid(a, b)
    )


def test_p_values_are_uniform_without_and_small_with_a_difference():
    same = [p_value(gaussian(2 * i, 15, 0, np.ones(4)), gaussian(2 * i + 1, 15, 0, np.ones(4))) for i in range(60)]
    assert 0.35 < np.mean(same) < 0.65
    assert np.mean(np.array(same) < 0.1) < 0.25
    assert p_value(gaussian(0, 15, 0, np.ones(4)), gaussian(1, 15, 1.5, np.ones(4))) == pytest.approx(1 / 200)


def test_another_mix_of_classes_is_no_difference():
    """Classes far apart, 20:5 against 5:20: exchanged within classes, the sets are the same."""
    classes = {0: 0.0, 1: 4.0}
    a = np.concatenate([gaussian(1, 20, classes[0], np.ones(3)), gaussian(2, 5, classes[1], np.ones(3))])
    b = np.concatenate([gaussian(3, 5, classes[0], np.ones(3)), gaussian(4, 20, classes[1], np.ones(3))])
    strata = np.repeat([0, 1, 0, 1], [20, 5, 5, 20])
    assert p_value(a, b) < 0.02
    assert p_value(a, b, strata) > 0.05


def test_frechet_equals_torchmetrics():
    theirs = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is no dependency of this project")
    draw = np.random.default_rng(5)
    a, b = draw.normal(size=(80, 12)) @ draw.normal(size=(12, 12)), draw.normal(size=(90, 12)) * 1.3 + 0.2
    moments = [torch.from_numpy(value) for side in (a, b) for value in (side.mean(axis=0), np.cov(side.T))]
    assert distances.frechet(a, b) == pytest.approx(float(theirs._compute_fid(*moments)), rel=1e-3)


def nearer(train, test, synthetic, strata=None, permutations=199):
    joined = np.concatenate([train, test, synthetic])
    origin = np.repeat([0, 1, 2], [len(train), len(test), len(synthetic)])
    strata = np.zeros(len(joined), dtype=int) if strata is None else strata
    kernel = distances.polynomial_kernel(joined, joined)
    draw = np.random.default_rng(0)
    return distances.nearer_training(kernel, origin == 0, origin != 2, strata, permutations, draw)


def test_the_difference_is_that_of_two_kids():
    train, test, synthetic = (gaussian(seed, n, 0.1 * seed, np.ones(5)) for seed, n in ((0, 14), (1, 9), (2, 11)))
    expected = distances.kid(train, synthetic) - distances.kid(test, synthetic)
    assert nearer(train, test, synthetic)[0] == pytest.approx(expected)


def test_fresh_volumes_are_called_nearer_to_training_at_the_stated_rate():
    """Also where training reals are more than held-out ones, and the generator is far from both."""
    values = [
        nearer(
            *(gaussian([i, part], n, mean, np.ones(6)) for part, (n, mean) in enumerate(((24, 0), (10, 0), (20, 0.5))))
        )
        for i in range(300)
    ]
    chances = np.array([chance for _, chance in values])
    assert 0.44 < chances.mean() < 0.56
    assert np.mean(chances <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_copies_of_training_reals_are_found():
    for i in range(5):
        train, test = (gaussian([i, part], 30, 0, np.ones(20)) for part in range(2))
        copies = train + gaussian([i, 2], 30, 0, np.full(20, 0.3))
        assert nearer(train, test, copies)[1] <= 0.01
        assert nearer(test, train, copies)[1] > 0.9


def test_another_mix_of_classes_does_not_bring_training_nearer():
    """Classes far apart; training and synthetic 20:5, held-out 5:20."""
    parts = [(20, 0.0), (5, 4.0), (5, 0.0), (20, 4.0), (20, 0.0), (5, 4.0)]
    train, rest = [], []
    for i, (n, mean) in enumerate(parts):
        (train if i < 2 else rest).append(gaussian(i, n, mean, np.ones(3)))
    sets = np.concatenate(train), np.concatenate(rest[:2]), np.concatenate(rest[2:])
    strata = np.repeat([0, 1] * 3, [n for n, _ in parts])
    assert nearer(*sets)[1] < 0.02
    assert nearer(*sets, strata)[1] > 0.05
