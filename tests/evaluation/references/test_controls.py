"""Each control does what its name says, reproducibly, and stays a volume in [0, 1]."""

import numpy as np
import pytest

from cohort.scans import DARKEST
from evaluation.references import controls


@pytest.fixture
def volume():
    draw = np.random.default_rng(0)
    volume = np.zeros((20, 24, 20), dtype=np.float32)
    volume[3:17, 3:21, 3:17] = draw.uniform(0.2, 1.0, (14, 18, 14))
    return volume


def test_blur_removes_detail_and_keeps_the_mean(volume):
    blurred = controls.blurred(volume)
    assert np.abs(np.diff(blurred, axis=0)).mean() < 0.5 * np.abs(np.diff(volume, axis=0)).mean()
    assert blurred.mean() == pytest.approx(volume.mean(), rel=0.02)


def test_noise_has_the_stated_strength_and_spares_the_background(volume):
    noisy = controls.noisy(volume, np.random.default_rng(1))
    assert np.all(noisy[volume == 0] == 0)
    assert (noisy - volume)[volume > 0].std() == pytest.approx(controls.NOISE, rel=0.1)


@pytest.mark.parametrize("shape", [(20, 24, 20), (40, 48, 40), (21, 23, 17)])
def test_shuffling_keeps_every_voxel_and_moves_most(shape):
    volume = np.random.default_rng(2).uniform(size=shape).astype(np.float32)
    shuffled = controls.shuffled(volume, np.random.default_rng(3))
    np.testing.assert_array_equal(np.sort(shuffled, axis=None), np.sort(volume, axis=None))
    assert np.mean(shuffled != volume) > 0.5


def test_a_block_arrives_whole():
    volume = np.zeros((20, 20, 20), dtype=np.float32)
    volume[:4, :4, :4] = np.arange(1, 65).reshape(4, 4, 4)
    shuffled = controls.shuffled(volume, np.random.default_rng(0))
    start = np.argwhere(shuffled == 1)[0]
    block = shuffled[tuple(slice(first, first + 4) for first in start)]
    np.testing.assert_array_equal(block, volume[:4, :4, :4])


def test_all_controls_are_scaled_reproducible_and_documented(volume):
    made = controls.make_controls([volume, volume], seed=0)
    again = controls.make_controls([volume, volume], seed=0)
    assert set(made) == set(controls.NAMES) <= set(controls.describe())
    for name, stack in made.items():
        volumes = stack[:]
        np.testing.assert_array_equal(volumes, again[name][[0, 1]])
        assert stack.shape == volumes.shape == (2, 20, 24, 20)
        assert volumes.dtype == np.float32
        assert volumes.min() in (0, DARKEST)  # blur leaves no background
        assert volumes.max() == 1
    assert np.any(made["noisy"][0] != made["noisy"][1])  # volume i has its own draws
    assert np.any(made["noisy"][:] != controls.make_controls([volume, volume], seed=1)["noisy"][:])
