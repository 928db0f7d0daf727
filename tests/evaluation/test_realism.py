"""Extrapolation where the truth is known; and heads with a random size, contrast and shading: fresh ones lie at the
floor, spoiled ones and copies do not."""

from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from cohort.atlas import load_template, resample
from cohort.grids import GRIDS
from cohort.scans import normalise
from evaluation import fid, realism
from evaluation.features import features_of
from evaluation.fid import FeatureSet
from evaluation.networks import open_networks
from evaluation.references import controls
from runtime.device import pick_device

DEMO = GRIDS["demo"]
CPU = pick_device("float32", threads=2)


@cache
def template():
    image = load_template("icbm2009a")
    return resample(np.asarray(image.dataobj), image.affine, DEMO)


def head(seed, label):
    """The template with a random size, contrast and shading, and some noise; class 1 is darker in its lower half."""
    draw = np.random.default_rng(seed)
    middle = (np.array(DEMO.shape) - 1) / 2
    scales = draw.normal(1.0, 0.03, 3)
    volume = ndimage.affine_transform(template(), scales, middle - scales * middle, order=1)
    places = np.meshgrid(*[np.linspace(-1, 1, size) for size in DEMO.shape], indexing="ij")
    shading = 1 + sum(draw.normal(0, 0.05) * place for place in places)
    volume = (volume / volume.max()) ** draw.normal(1.0, 0.05) * shading
    volume = np.where(volume > 0.05, volume + draw.normal(0, 0.01, DEMO.shape), 0)
    if label:
        volume[:, :, :16] *= 0.8
    return normalise(volume)


@pytest.fixture(scope="module")
def networks():
    return open_networks(DEMO, {}, per_axis=1)[0]


@pytest.fixture(scope="module")
def simulated():
    """Volumes of a training, a held-out and a fresh set, and the held-out ones spoiled; with their labels."""
    sizes = {"train": 32, "test": 32, "synthetic": 24}
    labels = {name: np.arange(size) % 2 for name, size in sizes.items()}
    stacks = {
        name: np.stack([head(1000 * part + i, labels[name][i]) for i in range(size)])
        for part, (name, size) in enumerate(sizes.items())
    }
    spoiled = controls.make_controls(stacks["test"], seed=0)
    return stacks | spoiled, labels | dict.fromkeys(spoiled, labels["test"])


@pytest.mark.parametrize("name", [pytest.param("efficientnet_lite0", marks=pytest.mark.slow), "region_intensities"])
def test_controls_rank_as_they_must_in_both_distances(simulated, networks, tmp_path, name):
    volumes, labels = simulated
    network = networks[name]
    sets = {
        key: FeatureSet.of(features_of(stack, network, CPU, tmp_path), labels[key], network.views)
        for key, stack in volumes.items()
    }
    n = fid.per_draw(*(labels[role] for role in fid.ROLES))
    arguments = {"dimensions": 6, "n": n, "repeats": 8, "seed": 0}
    results = fid.compare(sets, **arguments)
    for metric in ("fid", "kid"):
        overall = results["overall"]["held_out"]
        floor = overall["floor"][metric]
        assert overall["synthetic"][metric]["mean"] < floor["high"]  # fresh volumes of the same distribution
        for control in ("blurred", "noisy", "shuffled", "repeated"):
            assert overall[control][f"{metric}_minus_floor"]["low"] > 0, (metric, control)
            assert overall[control][metric]["mean"] > overall["synthetic"][metric]["mean"], (metric, control)
        assert overall["relabelled"][metric]["mean"] == pytest.approx(floor["mean"], rel=1e-6)
        for group in ("HC", "TLE"):
            assert results[group]["held_out"]["relabelled"][f"{metric}_minus_floor"]["low"] > 0
    copies = {**sets, "synthetic": sets["train"]}
    for made, warned in ((sets, False), (copies, True)):
        everything = fid.compare_all(made, dimensions=6, permutations=199, seed=0)
        assert bool(fid.warnings_of(fid.compare(made, **arguments), everything, name)) == warned
    assert everything["overall"]["to_training"]["fid"] < 1e-6 < everything["overall"]["to_held_out"]["fid"]


def test_a_line_in_the_inverse_of_n_is_continued_exactly():
    sizes = np.array([10, 12, 15, 20, 30])
    lines = np.array([[3.0, 40.0], [-1.0, 7.0]])
    values = lines[:, :1] + lines[:, 1:] / sizes
    np.testing.assert_allclose(realism.intercepts(sizes, values), lines[:, 0])


@pytest.mark.parametrize(("n", "count"), [(1, 0), (4, 3), (8, 5), (18, 6), (500, 6)])
def test_sizes_are_different_and_reach_from_half_to_all(n, count):
    sizes = realism.sample_sizes(n)
    assert len(sizes) == count
    assert not sizes or (min(sizes) >= min(2, n), max(sizes)) == (True, n)


def sets_of(n, shift, seed=0, features=12):
    """Gaussians; the synthetic mean lies `shift` away, so that the true Frechet distance is its square."""
    made = {}
    for part, name in enumerate(("train", "test", "synthetic")):
        draw = np.random.default_rng([seed, part])
        offset = np.zeros(features)
        offset[0] = shift * (name == "synthetic")
        made[name] = FeatureSet(draw.normal(size=(1, 4 * n, features)) + offset, np.arange(4 * n) % 2, ("all",))
    return made


@pytest.mark.slow
def test_the_floor_goes_to_zero_and_a_shift_to_its_square():
    # all features are kept (12 at most), so that the projection is a rotation and the truth is known
    found = [realism.extrapolate(sets_of(50, 1.5, seed), dimensions=12, n=50, repeats=10, seed=0) for seed in range(4)]
    held_out = [entry["overall"]["held_out"] for entry in found]
    assert found[0]["overall"]["dimensions"] == 12
    assert found[0]["overall"]["sizes"][-1] == 100
    floor, synthetic = ([entry[name]["mean"] for entry in held_out] for name in ("floor", "synthetic"))
    raw = [entry["floor"]["at_sizes"][-1] for entry in held_out]
    assert np.mean(raw) > 0.5
    assert abs(np.mean(floor)) < 0.2 * np.mean(raw)
    assert np.mean(synthetic) == pytest.approx(1.5**2, abs=0.6)
    for entry in held_out:
        assert entry["floor"]["low"] < 0 < entry["floor"]["high"]
        assert np.all(np.diff(entry["floor"]["at_sizes"]) < 0)
        assert entry["synthetic"]["low"] < entry["synthetic"]["mean"] < entry["synthetic"]["high"]


def test_too_few_volumes_are_skipped_with_the_reason():
    found = realism.extrapolate(sets_of(4, 0.0), dimensions=4, n=4, repeats=2, seed=0)
    assert set(found) == {"overall", "HC", "TLE"}
    assert all(
        entry == {"skipped": "skipped: 4 volumes per class allow 3 sample sizes, 5 are needed"}
        for entry in found.values()
    )


def test_same_seed_same_extrapolation():
    runs = [realism.extrapolate(sets_of(10, 0.5), dimensions=4, n=10, repeats=3, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert {"held_out", "training"} < set(runs[0]["HC"])
