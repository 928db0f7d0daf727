"""Distances against closed forms and MONAI; the draws; the order of floor, copies and controls."""

import numpy as np
import pytest
import torch
from monai.metrics import FIDMetric

from diffusion import fid
from diffusion.fid import FeatureSet


def gaussian(seed, n, mean, scale):
    return np.random.default_rng(seed).normal(mean, scale, (n, len(np.atleast_1d(scale))))


def test_frechet_equals_the_closed_form_for_gaussians():
    """Diagonal Gaussians: |difference of means|^2 + sum of (difference of standard deviations)^2."""
    scale_a, scale_b = np.array([1.0, 2.0, 0.5]), np.array([1.5, 1.0, 0.5])
    a, b = gaussian(0, 200_000, 0.0, scale_a), gaussian(1, 200_000, 0.7, scale_b)
    exact = 3 * 0.7**2 + np.sum((scale_a - scale_b) ** 2)
    assert fid.frechet(a, b) == pytest.approx(exact, rel=0.01)


def test_frechet_of_fitted_moments_is_exact():
    """No sampling error: two sets whose sample moments are known."""
    square = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # covariance 2/3 of the identity
    assert fid.frechet(square, 3 * square + [1.0, 2.0]) == pytest.approx(5 + 2 * (2 / 3) * (3 - 1) ** 2, rel=1e-12)


@pytest.mark.parametrize(("n_a", "n_b", "features"), [(60, 80, 12), (300, 300, 16), (20, 100, 16)])
def test_frechet_equals_monai(n_a, n_b, features):
    draw = np.random.default_rng(n_a)
    mixing = draw.normal(size=(features, features))
    a, b = draw.normal(size=(n_a, features)) @ mixing, draw.normal(size=(n_b, features)) * 1.3 + 0.2
    reference = float(FIDMetric()(torch.from_numpy(a), torch.from_numpy(b)))
    assert fid.frechet(a, b) == pytest.approx(reference, rel=1e-3)


def test_frechet_with_fewer_samples_than_features_is_finite_symmetric_and_zero_for_itself():
    a, b = gaussian(0, 5, 0.0, np.ones(40)), gaussian(1, 7, 0.0, np.ones(40))
    assert fid.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert fid.frechet(a, b) == pytest.approx(fid.frechet(b, a))
    assert fid.frechet(a, np.repeat(b[:1], 5, axis=0)) > 0


def test_frechet_refuses_one_row():
    with pytest.raises(ValueError, match="2 rows"):
        fid.frechet(np.zeros((1, 3)), np.zeros((4, 3)))


def test_kid_is_unbiased_where_frechet_is_not():
    pairs = [(gaussian(2 * i, 20, 0.0, np.ones(8)), gaussian(2 * i + 1, 20, 0.0, np.ones(8))) for i in range(300)]
    values = np.array([fid.kid(a, b) for a, b in pairs])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    assert np.mean([fid.frechet(a, b) for a, b in pairs]) > 1


def test_kid_grows_with_a_shift():
    a = gaussian(0, 50, 0.0, np.ones(8))
    values = [fid.kid(a, gaussian(1, 50, shift, np.ones(8))) for shift in (0.0, 0.5, 1.0)]
    assert values[0] < values[1] < values[2]


def p_value(a, b, strata=None, permutations=199):
    joined = np.concatenate([a, b])
    first = np.arange(len(joined)) < len(a)
    strata = np.zeros(len(joined), dtype=int) if strata is None else strata
    kernel = fid.polynomial_kernel(joined, joined)
    return fid.permutation_p_value(kernel, first, strata, permutations, np.random.default_rng(0))


def test_permutation_test_agrees_with_kid():
    a, b = gaussian(0, 12, 0.0, np.ones(4)), gaussian(1, 9, 0.5, np.ones(4))
    joined = np.concatenate([a, b])
    memberships = (np.arange(21) < 12)[None]
    assert fid._mmd_of_memberships(fid.polynomial_kernel(joined, joined), memberships)[0] == pytest.approx(
        fid.kid(a, b)
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


def feature_sets(n_train=40, n_test=24, n_synth=20, shift=0.0, features=30):
    def one(seed, n, mean):
        labels = np.arange(n) % 2
        return FeatureSet(np.stack([gaussian([seed, axis], n, mean, np.ones(features)) for axis in range(3)]), labels)

    test = one(2, n_test, 0.0)
    return {
        "train": one(1, n_train, 0.0),
        "test": test,
        "synthetic": one(3, n_synth, shift),
        "blurred": FeatureSet(test.pooled + 3.0, test.labels),
    }


def test_projection_keeps_the_directions_of_most_variance():
    data = gaussian(0, 100, 5.0, np.array([1.0, 10.0, 0.1]))
    projection = fid.Projection.fit(data, 1)
    assert abs(projection.components[0, 1]) > 0.99
    assert projection(data).mean() == pytest.approx(0, abs=1e-9)
    assert projection(data).shape == (100, 1)


def test_draws_share_no_volume_and_hold_n_of_each_class():
    sets = feature_sets()
    n = fid.per_draw(*(sets[name].labels for name in ("train", "test", "synthetic")))
    assert n == 6  # 12 of each class held out, in halves
    drawn = fid.draw_once(sets, n, np.random.default_rng(0))
    for code in (0, 1):
        assert not set(drawn["reference"][code]) & set(drawn["partner"][code])
        assert not set(drawn["train"][code]) & set(drawn["train_partner"][code])
        assert np.all(sets["synthetic"].labels[drawn["synthetic"][code]] == code)
        assert {len(drawn[role][code]) for role in drawn} == {n}


def test_every_pair_has_the_same_number_of_volumes_and_controls_share_none_with_the_reference():
    sets = feature_sets()
    drawn = fid.draw_once(sets, 6, np.random.default_rng(0))
    for classes, n in (((0, 1), 12), ((1,), 6)):
        compared = fid.pairs(sets, drawn, classes)
        shapes = {array.shape for samples in compared.values() for pair in samples.values() for array in pair}
        assert shapes == {(3, n, 30)}
        reference, blurred = compared["held_out"]["blurred"]
        assert not np.isin(blurred - 3.0, reference).any()


def test_compare_orders_floor_and_control_and_sees_a_shift():
    same, shifted = (
        fid.compare(feature_sets(shift=shift), dimensions=4, n=6, repeats=6, seed=0)["overall"]["held_out"]
        for shift in (0.0, 1.0)
    )
    assert same["floor"]["fid"] == shifted["floor"]["fid"]
    assert same["synthetic"]["fid"]["mean"] < 2 * same["floor"]["fid"]["mean"]
    assert shifted["synthetic"]["fid"]["low"] > same["synthetic"]["fid"]["mean"]
    assert shifted["blurred"]["fid"]["mean"] > shifted["synthetic"]["fid"]["mean"]
    assert same["floor"]["fid"]["low"] <= same["floor"]["fid"]["mean"] <= same["floor"]["fid"]["high"]
    axes = [same["floor"]["fid"][axis] for axis in ("sagittal", "coronal", "axial")]
    assert same["floor"]["fid"]["mean"] == pytest.approx(np.mean(axes))


def test_copies_of_training_reals_are_nearer_to_training_than_to_held_out_reals():
    sets = feature_sets(n_synth=40)
    sets["synthetic"] = sets["train"]
    results = fid.compare_all(sets, dimensions=4, permutations=49, seed=0)["overall"]
    assert results["to_training"]["fid"] == pytest.approx(0, abs=1e-9)
    assert results["to_held_out"]["fid"] > 0.1
    assert results["to_held_out"]["n_real"] == 24
    assert 0 < results["kid_p_value"] <= 1


def test_same_seed_same_figures():
    runs = [fid.compare(feature_sets(), dimensions=3, n=4, repeats=3, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(("n", "dimensions"), [(4, 2), (16, 8), (34, 16), (500, 16)])
def test_dimensions_follow_the_sample_size(n, dimensions):
    assert fid.dimensions_for(n) == dimensions
