"""Down-sampled voxels are correlations; the encoder knows shifted, noisy and darkened people again, and only these."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from evaluation.privacy.copying import limit_of
from evaluation.privacy.embedding import (
    EncoderConfig,
    VoxelSpace,
    embed,
    fit_encoder,
    grow,
    mirrored,
    nt_xent,
    shrink,
    two_views,
    warp,
)
from evaluation.privacy.nearest import Pool, Reals, neighbours
from runtime import seeding
from runtime.device import Device
from tests.support.scans import brains

CPU = Device(torch.device("cpu"), torch.float32)
SPACING = 4.0
SMALL = EncoderConfig(steps=100, channels=(8, 16, 32))


@pytest.fixture(scope="module")
def cohort():
    return brains(0, 40), brains(1, 40)


@pytest.fixture(scope="module")
def encoder(cohort):
    return fit_encoder(np.concatenate(cohort), SPACING, CPU, seed=0, config=SMALL)


@pytest.mark.parametrize("shape", [(20, 24, 20), (21, 23, 17), (40, 48, 40)])
def test_shrinking_commutes_with_mirroring(shape):
    x = np.random.default_rng(0).uniform(size=(3, *shape)).astype(np.float32)
    np.testing.assert_allclose(shrink(mirrored(x), 4.0, 8.0), mirrored(shrink(x, 4.0, 8.0)), atol=1e-6)
    np.testing.assert_array_equal(shrink(x, 8.0, 8.0), x)  # never finer, never blurred without need


def test_voxel_distance_is_correlation_whatever_gain_and_offset(cohort):
    place = VoxelSpace.fit(np.concatenate(cohort), SPACING)
    a, b = place(cohort[0][:1])[0], place(cohort[1][:1])[0]
    raw = [shrink(x[:1], SPACING, 8.0)[0][place.inside] for x in cohort]
    assert np.sum((a - b) ** 2) == pytest.approx(2 * (1 - np.corrcoef(*raw)[0, 1]), rel=1e-4)
    np.testing.assert_allclose(place(0.3 * cohort[0] + 0.1), place(cohort[0]), atol=1e-5)
    assert not np.any(place(np.zeros((1, 20, 24, 20), np.float32)))
    np.testing.assert_array_equal(place.inside, place.inside[::-1])


def test_nt_xent_equals_its_equation():
    draw = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn((6, 4), generator=draw), dim=1)
    total = 0.0
    for i in range(6):
        j = (i + 3) % 6
        others = sum(math.exp(float(z[i] @ z[k]) / 0.2) for k in range(6) if k != i)
        total -= math.log(math.exp(float(z[i] @ z[j]) / 0.2) / others)
    assert float(nt_xent(z[:3], z[3:], 0.2)) == pytest.approx(total / 6, rel=1e-5)


def test_values_between_nodes_are_those_of_interpolation():
    nodes = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(nodes, size=(7, 9, 4), mode="trilinear", align_corners=True)
    torch.testing.assert_close(grow(nodes, (7, 9, 4)), wanted)


def test_warping_by_nothing_and_by_a_whole_voxel():
    x = torch.rand((2, 1, 9, 7, 8))
    still = torch.zeros(2, 3, 4, 4, 4)
    torch.testing.assert_close(warp(x, still), x, atol=1e-5, rtol=0)
    moved = still.clone()
    moved[:, 1] = 2.0  # reads two voxels further along the second axis
    torch.testing.assert_close(warp(x, moved)[:, :, :, :5], x[:, :, :, 2:], atol=1e-5, rtol=0)


def test_two_views_differ_and_are_of_one_person(cohort):
    x = torch.from_numpy(cohort[0][:8]).unsqueeze(1)
    first, second = two_views(x, EncoderConfig(deformation=0, shift=0, noise=0, gamma=0, bias=0, blur=0), draw(0))
    torch.testing.assert_close(first, second)
    first, second = two_views(x, EncoderConfig(), draw(0))
    assert float((first - second).abs().mean()) > 0.01
    assert first.shape == second.shape == x.shape


def draw(seed):
    return seeding.generator(seed, "test views")


def test_the_encoder_depends_on_its_seed_alone(cohort):
    few = EncoderConfig(steps=3, batch_size=8)
    torch.manual_seed(1)
    one = embed(fit_encoder(cohort[0], SPACING, CPU, seed=0, config=few), cohort[1][:5], SPACING, CPU)
    torch.manual_seed(2)
    again = embed(fit_encoder(cohort[0], SPACING, CPU, seed=0, config=few), cohort[1][:5], SPACING, CPU)
    np.testing.assert_array_equal(one, again)
    other = embed(fit_encoder(cohort[0], SPACING, CPU, seed=1, config=few), cohort[1][:5], SPACING, CPU)
    assert np.abs(one - other).max() > 0.01
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["exact", "shift", "noise", "gamma", "blur"])
def test_changed_copies_are_recognised(encoder, cohort, change):
    """Of 20 copies nearly all are closer than 99 % of people are to their nearest other person."""
    changed = {
        "exact": lambda x: x,
        "shift": lambda x: np.roll(x, 1, axis=2),
        "noise": lambda x: np.where(x > 0, x + np.random.default_rng(0).normal(0, 0.05, x.shape), 0),
        "gamma": lambda x: x**1.3,
        "blur": lambda x: ndimage.gaussian_filter(x, (0, 0.8, 0.8, 0.8)),
    }[change](cohort[0][:20])
    found, pool, limit = search(encoder, cohort, changed.astype(np.float32))
    assert np.mean(found.squared[:, pool.trained].argmin(axis=1) == np.arange(20)) == 1.0
    assert np.mean(found.squared.min(axis=1) < limit) >= 0.9


def test_a_shift_of_one_voxel_escapes_plain_voxels(cohort):
    """Why there is an encoder at all."""
    place = VoxelSpace.fit(np.concatenate(cohort), SPACING)
    sides = [reals(place, x, letter) for x, letter in zip(cohort, "th", strict=True)]
    pool = Pool.of(*sides)
    found = neighbours(place(np.roll(cohort[0][:20], 1, axis=2)), pool.reals)
    assert np.mean(found.squared.min(axis=1) < limit_of(pool.among)) < 0.9


@pytest.mark.slow
def test_new_people_are_not_taken_for_copies(encoder, cohort):
    found, _, limit = search(encoder, cohort, brains(5, 60))
    assert np.mean(found.squared.min(axis=1) < limit) <= 0.05


def reals(place, volumes, letter):
    return Reals(place(volumes), np.array([f"{letter}{k:03d}" for k in range(len(volumes))]))


def search(encoder, cohort, queries):
    def place(x):
        return embed(encoder, x, SPACING, CPU)

    pool = Pool.of(*(reals(place, x, letter) for x, letter in zip(cohort, "th", strict=True)))
    return neighbours(place(queries), pool.reals), pool, limit_of(pool.among)


def test_too_few_volumes_are_refused():
    with pytest.raises(ValueError, match="8 or more"):
        fit_encoder(brains(0, 5), SPACING, CPU, seed=0, config=SMALL)
