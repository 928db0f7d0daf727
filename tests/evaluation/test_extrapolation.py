"""Extrapolation to infinitely many volumes, where the truth is known."""

import numpy as np
import pytest

from evaluation import extrapolation
from evaluation.fid import FeatureSet


def test_a_line_in_the_inverse_of_n_is_continued_exactly():
    sizes = np.array([10, 12, 15, 20, 30])
    lines = np.array([[3.0, 40.0], [-1.0, 7.0]])
    values = lines[:, :1] + lines[:, 1:] / sizes
    np.testing.assert_allclose(extrapolation.intercepts(sizes, values), lines[:, 0])


@pytest.mark.parametrize(("n", "count"), [(1, 0), (4, 3), (8, 5), (18, 6), (500, 6)])
def test_sizes_are_different_and_reach_from_half_to_all(n, count):
    sizes = extrapolation.sample_sizes(n)
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


def test_the_floor_goes_to_zero_and_a_shift_to_its_square():
    # all features are kept (12 at most), so that the projection is a rotation and the truth is known
    found = [
        extrapolation.extrapolate(sets_of(50, 1.5, seed), dimensions=12, n=50, repeats=10, seed=0) for seed in range(4)
    ]
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
    found = extrapolation.extrapolate(sets_of(4, 0.0), dimensions=4, n=4, repeats=2, seed=0)
    assert set(found) == {"overall", "HC", "TLE"}
    assert all(
        entry == {"skipped": "skipped: 4 volumes per class allow 3 sample sizes, 5 are needed"}
        for entry in found.values()
    )


def test_same_seed_same_figures():
    runs = [extrapolation.extrapolate(sets_of(10, 0.5), dimensions=4, n=10, repeats=3, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert {"held_out", "training"} < set(runs[0]["HC"])
