"""Attacks against closed forms and scikit-learn; chance for exchangeable losses, near 1 for planted ones; canaries."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from diffusion.checkpoint import LoadedDiffusion
from diffusion.config import ModelConfig, ProcessConfig
from diffusion.dataset import LatentSpace
from diffusion.model import DiT
from diffusion.process import build_process
from evaluation.privacy.audit import head_error
from evaluation.privacy.membership import (
    DRAWS,
    LEVELS,
    area,
    attack,
    dit_losses,
    exposure_attack,
    loss_attack,
)
from runtime.device import Device
from runtime.errors import InputError
from VAE.latents import Statistics

CPU = Device(torch.device("cpu"), torch.float32)


# Attacks on scores.


def test_area_equals_scikit_learn_and_its_variance_the_definition():
    draw = np.random.default_rng(0)
    members, others = draw.integers(0, 9, 40).astype(float), draw.integers(0, 7, 25).astype(float)
    auc, deviation = area(members, others)
    labels = np.repeat([1, 0], [40, 25])
    assert auc == pytest.approx(roc_auc_score(labels, np.concatenate([members, others])))
    pairs = (members[:, None] > others) + (members[:, None] == others) / 2
    variance = pairs.mean(1).var(ddof=1) / 40 + pairs.mean(0).var(ddof=1) / 25
    assert deviation == pytest.approx(math.sqrt(variance))


def test_the_interval_holds_one_half_when_nobody_is_a_member():
    results = [attack(*np.split(np.random.default_rng(seed).normal(size=120), [70])) for seed in range(150)]
    covered = np.mean([result["low"] <= 0.5 <= result["high"] for result in results])
    assert covered > 0.91
    assert np.mean([result["p"] <= 0.05 for result in results]) <= stats.binom.ppf(0.999, 300, 0.05) / 150


def test_true_positives_are_read_where_hardly_anybody_is_accused():
    result = attack(np.arange(100.0), np.arange(-25.0, 50.0))
    assert result["tpr"]["value"] == pytest.approx(0.5)
    assert result["fpr"]["value"] == 0
    assert result["fpr"]["high"] == pytest.approx(1 - 0.025 ** (1 / 75))
    assert "75" in result["note"]
    assert "cannot show" in result["note"]
    many = attack(np.arange(100.0), np.arange(-250.0, 50.0))
    assert many["fpr"]["value"] == pytest.approx(0.01)
    assert "cannot show" not in many["note"]


def test_sides_that_do_not_overlap_have_an_interval_all_the_same():
    result = attack(np.arange(30.0) + 100, np.arange(20.0))
    assert result["auc"] == result["high"] == result["tpr"]["value"] == 1
    assert 0.8 < result["low"] < 1
    assert 0 < result["p"] < 1e-9


def test_too_few_or_spoiled_scores_are_refused():
    with pytest.raises(InputError, match="at least"):
        attack(np.zeros(5), np.zeros(50))
    with pytest.raises(InputError, match="finite"):
        attack(np.full(20, np.nan), np.zeros(20))


# The loss attack.


def losses(seed, members, gap, level=1):
    """Losses of members and of others, 140 together, 4 draws and 3 levels; members' are lower by `gap` at one level."""
    draw = np.random.default_rng(seed)
    table = 1.0 + 0.2 * draw.normal(size=(140, 1, 3)) + 0.1 * draw.normal(size=(140, 4, 3))
    table[:members, :, level] -= gap
    return table[:members], table[members:]


def test_exchangeable_losses_give_one_half_and_the_best_level_does_not_flatter():
    results = [loss_attack(*losses(seed, 80, 0.0), (0.1, 0.4, 0.7), seed=seed) for seed in range(80)]
    assert np.mean([result["auc"] for result in results]) == pytest.approx(0.5, abs=0.015)
    assert np.mean([max(result["levels"].values()) for result in results]) > 0.53  # what choosing would have gained
    assert np.mean([result["p"] <= 0.05 for result in results]) <= stats.binom.ppf(0.999, 80, 0.05) / 80


def test_planted_members_are_found_at_their_level():
    result = loss_attack(*losses(0, 80, 1.0), (0.1, 0.4, 0.7), seed=0)
    assert result["auc"] > 0.99
    assert result["tpr"]["value"] > 0.8
    assert result["chosen"] == [0.4, 0.4]
    assert result["draws"] == 4


def loaded(process_config):
    shape = (2, 4, 4, 4)
    process = build_process(process_config)
    config = ModelConfig(dim=64, depth=1, heads=1, patch=(2, 2, 2))
    torch.manual_seed(0)
    model = DiT(config, shape, process).eval()
    raw = Statistics((0.0,) * 2, (1.0,) * 2, 8, "train", "", {}, [])
    space = LatentSpace(raw, torch.zeros(shape), torch.ones(shape))
    return LoadedDiffusion(model, process, space, "", [], 0, 0.1, {}, process_config)


@pytest.mark.parametrize("schedule", ["linear", "flow"])
def test_dit_losses_of_a_silent_network_are_what_it_should_have_said(schedule):
    """A fresh DiT predicts 0, so that its loss is the mean square of the target; the flow's is eps - z."""
    target = "velocity" if schedule == "flow" else "noise"
    diffusion = loaded(ProcessConfig(schedule=schedule, target=target))
    mu = np.random.default_rng(0).normal(size=(6, 2, 4, 4, 4)).astype(np.float32)
    mu[5] *= 10
    labels = np.array([0, 1] * 3)
    found = dit_losses(diffusion, mu, labels, CPU, seed=0)
    assert found.shape == (6, DRAWS, len(LEVELS))
    np.testing.assert_array_equal(found[2:3], dit_losses(diffusion, mu[2:3], labels[2:3], CPU, seed=0))
    if schedule == "linear":  # the same noises for everybody, and the target is the noise
        np.testing.assert_allclose(found, np.broadcast_to(found[0], found.shape), rtol=1e-6)
        assert found.mean() == pytest.approx(1.0, abs=0.1)
    else:
        assert found[5].mean() == pytest.approx(np.mean(mu[5] ** 2) + 1, rel=0.1)


def test_a_network_fitted_to_members_gives_them_away():
    """One linear layer is fitted to 24 latents at one level; the attack on its losses finds them."""
    draw = np.random.default_rng(0)
    z, eps = draw.normal(size=(48, 40)), draw.normal(size=(24, 40))
    noised = 0.7 * np.repeat(z[:24], 4, axis=0) + 0.7 * draw.normal(size=(96, 40))
    weights = np.linalg.lstsq(noised, np.repeat(z[:24], 4, axis=0), rcond=None)[0]

    found = np.stack([np.mean(((0.7 * own + 0.7 * eps) @ weights - own) ** 2, axis=1)[:, None] for own in z])
    assert loss_attack(found[:24], found[24:], (0.5,), seed=0)["auc"] > 0.9


# Other attacks.


def test_reconstruction_errors_count_the_head_alone():
    x = np.zeros((3, 3, 3), np.float32)
    x[1] = 0.5
    y = x + 0.1
    y[0] = 9.0  # background
    assert head_error(x, y) == pytest.approx(0.01, rel=1e-5)


def test_exposed_subjects_are_members():
    ratios = {"training": {f"t{k}": 0.2 + k / 100 for k in range(30)}, "held_out": {f"h{k}": 1.0 for k in range(20)}}
    assert exposure_attack(ratios)["auc"] == 1
