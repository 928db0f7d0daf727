"""The draws; the order of floor, copies and controls; the layout of results; warnings and their false alarms."""

import numpy as np
import pytest

from evaluation import fid
from evaluation.fid import FeatureSet


def gaussian(seed, n, mean, scale):
    return np.random.default_rng(seed).normal(mean, scale, (n, len(np.atleast_1d(scale))))


def feature_sets(n_train=40, n_test=24, n_synth=20, shift=0.0, features=30):
    def entry(seed, n, mean):
        labels = np.arange(n) % 2
        return FeatureSet(np.stack([gaussian([seed, axis], n, mean, np.ones(features)) for axis in range(3)]), labels)

    test = entry(2, n_test, 0.0)
    return {
        "train": entry(1, n_train, 0.0),
        "test": test,
        "synthetic": entry(3, n_synth, shift),
        "blurred": FeatureSet(test.pooled + 3.0, test.labels),
    }


def test_projection_keeps_the_directions_of_most_variance():
    data = gaussian(0, 100, 5.0, np.array([1.0, 10.0, 0.1]))
    sets = {name: FeatureSet(data[None] + shift, np.zeros(100), ("all",)) for name, shift in (("train", 0), ("x", 1))}
    projected = fid.project(sets, 1)
    assert projected["train"].pooled.shape == (1, 100, 1)
    assert projected["train"].pooled.std() == pytest.approx(data[:, 1].std(), rel=0.01)
    assert projected["train"].pooled.mean() == pytest.approx(0, abs=1e-9)
    assert abs(projected["x"].pooled.mean()) == pytest.approx(1, abs=0.1)


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


@pytest.mark.parametrize(("n", "shared"), [(10, 0), (15, 10)])
def test_a_draw_takes_two_volumes_of_one_noise_only_where_no_others_are_left(n, shared):
    noises = np.tile(np.arange(20), 2)  # 20 HC and 20 TLE of the same noises
    made = gaussian(1, 40, np.zeros(3), np.ones(3))[:, None]
    sets = feature_sets(n_test=60, n_train=60) | {
        "synthetic": FeatureSet.of(made, np.repeat([0, 1], 20), ("only",), noises)
    }
    for draw in fid.draw_all(sets, n=n, repeats=5, seed=0):
        hc, tle = (noises[draw["synthetic"][code]] for code in (0, 1))
        assert len({*hc}) == len({*tle}) == n
        assert len({*hc} & {*tle}) == shared


def test_every_pair_has_the_same_number_of_volumes_and_controls_share_none_with_the_reference():
    sets = feature_sets()
    drawn = fid.draw_once(sets, 6, np.random.default_rng(0))
    for classes, n in (((0, 1), 12), ((1,), 6)):
        compared = fid.pairs(drawn, classes, ["blurred"])
        assert {len(rows) for real, samples in compared.values() for _, rows in (real, *samples.values())} == {n}
        (real, reference), samples = compared["held_out"]
        assert (real, samples["blurred"][0]) == ("test", "blurred")
        assert not np.isin(samples["blurred"][1], reference).any()
        assert len(set(samples["repeated"][1])) == 1
        assert ("other_class" in samples) == (n == 6)


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


def test_every_figure_states_its_size_and_what_is_left_above_the_floor():
    results = fid.compare(feature_sets(shift=1.0), dimensions=4, n=6, repeats=5, seed=0)
    for group, n in (("overall", 12), ("HC", 6)):
        for samples in results[group].values():
            for name, sample in samples.items():
                assert (sample["fid"]["n"], sample["kid"]["n"], sample["fid"]["dimensions"]) == (n, n, 4)
                assert ("fid_minus_floor" in sample) == (name != "floor")
    held_out, training = (results["overall"][key] for key in ("held_out", "training"))
    excess = held_out["synthetic"]["fid_minus_floor"]
    for key in ("mean", "coronal"):
        assert excess[key] == pytest.approx(held_out["synthetic"]["fid"][key] - held_out["floor"]["fid"][key])
    assert 0 < excess["low"] < excess["mean"] < excess["high"]
    gap = training["synthetic"]["fid_minus_held_out"]
    assert gap["mean"] == pytest.approx(training["synthetic"]["fid_minus_floor"]["mean"] - excess["mean"])
    assert gap["low"] < 0 < gap["high"]


def test_permuted_labels_are_seen_by_class_and_not_overall():
    """Classes that differ: half a class exchanged is farther than the floor; overall it is the floor, row by row."""
    sets = feature_sets(n_train=80, n_test=80, n_synth=40)
    sets = {
        name: FeatureSet(entry.pooled + 2.0 * entry.labels[None, :, None], entry.labels) for name, entry in sets.items()
    }
    results = fid.compare(sets, dimensions=4, n=20, repeats=6, seed=0)
    for metric in ("fid", "kid"):
        overall = results["overall"]["held_out"]
        assert overall["relabelled"][metric]["mean"] == pytest.approx(overall["floor"][metric]["mean"], rel=1e-6)
        for group in ("HC", "TLE"):
            assert results[group]["held_out"]["relabelled"][f"{metric}_minus_floor"]["low"] > 0


def test_sets_of_different_views_are_refused():
    sets = feature_sets()
    sets["blurred"] = FeatureSet(sets["blurred"].pooled[:2], sets["blurred"].labels, ("sagittal", "coronal"))
    with pytest.raises(ValueError, match="different views"):
        fid.compare(sets, dimensions=4, n=6, repeats=2, seed=0)


def test_features_of_a_network_are_kept_by_view_in_double_precision():
    features = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    found = FeatureSet.of(features, np.zeros(4, dtype=int), ("x", "y", "z"))
    np.testing.assert_array_equal(found.pooled[1], features[:, 1])
    assert found.pooled.dtype == np.float64


def test_figures_of_all_volumes_are_the_distances_of_all_volumes():
    sets = feature_sets(shift=0.5)
    results = fid.compare_all(sets, dimensions=4, permutations=19, seed=0)
    projected = fid.project(sets, 4)
    for group, code in (("HC", 0), ("TLE", 1)):
        test, synthetic = (np.flatnonzero(sets[name].labels == code) for name in ("test", "synthetic"))
        for metric, space, distance in (("fid", projected, fid.frechet), ("kid", sets, fid.kid)):
            expected = [
                distance(a, b)
                for a, b in zip(space["test"].pooled[:, test], space["synthetic"].pooled[:, synthetic], strict=True)
            ]
            assert results[group]["to_held_out"][metric] == pytest.approx(np.mean(expected))
        assert results[group]["to_training"]["n_real"] == 20


def warned(sets):
    results = fid.compare(sets, dimensions=4, n=6, repeats=2, seed=0)
    return fid.warnings_of(results, fid.compare_all(sets, dimensions=4, permutations=199, seed=0), "numbers")


def test_copies_of_training_reals_give_a_warning_and_fresh_volumes_none():
    sets = feature_sets(n_train=40, n_test=40, n_synth=40)
    assert warned(sets) == []
    sets["synthetic"] = FeatureSet(sets["train"].pooled + 0.1, sets["train"].labels)
    warnings = warned(sets)
    assert [text for text in warnings if "NEARER TO TRAINING (numbers, overall)" in text]
    assert all("its averages" in text for text in warnings)
