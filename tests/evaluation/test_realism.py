"""Heads with a random size, contrast and shading: fresh ones lie at the floor, spoiled ones and copies do not."""

from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from cohort.atlas import load_template, resample
from cohort.scans import GRIDS, normalise
from evaluation import controls, fid
from evaluation.features import features_of
from evaluation.fid import FeatureSet
from evaluation.networks import open_networks
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
