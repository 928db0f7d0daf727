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
from evaluation.privacy.canary_plan import plan_canaries, read_canaries, write_canaries
from evaluation.privacy.membership import (
    LEVELS,
    area,
    attack,
    dit_losses,
    exposure_attack,
    loss_attack,
    reconstruction_attack,
    reconstruction_errors,
)
from runtime.device import Device
from runtime.errors import InputError
from VAE.latents import Latent, Statistics, compute_statistics, list_latents, read_split, write_latent, write_statistics

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
    results = [attack(*np.split(np.random.default_rng(seed).normal(size=120), [70])) for seed in range(300)]
    covered = np.mean([one["low"] <= 0.5 <= one["high"] for one in results])
    assert covered > 0.91
    assert np.mean([one["p"] <= 0.05 for one in results]) <= stats.binom.ppf(0.999, 300, 0.05) / 300


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
    """Losses of 140 subjects, 4 draws and 3 levels; the first `members` are lower by `gap` at one level."""
    draw = np.random.default_rng(seed)
    table = 1.0 + 0.2 * draw.normal(size=(140, 1, 3)) + 0.1 * draw.normal(size=(140, 4, 3))
    table[:members, :, level] -= gap
    return lambda row: table[row]


def test_exchangeable_losses_give_one_half_and_the_best_level_does_not_flatter():
    rows = range(80), range(80, 140)
    results = [loss_attack(losses(seed, 80, 0.0), *rows, (0.1, 0.4, 0.7), seed=seed) for seed in range(150)]
    assert np.mean([one["auc"] for one in results]) == pytest.approx(0.5, abs=0.015)
    assert np.mean([max(one["levels"].values()) for one in results]) > 0.53  # what choosing would have gained
    assert np.mean([one["p"] <= 0.05 for one in results]) <= stats.binom.ppf(0.999, 150, 0.05) / 150


def test_planted_members_are_found_at_their_level():
    result = loss_attack(losses(0, 80, 1.0), range(80), range(80, 140), (0.1, 0.4, 0.7), seed=0)
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
    of_row = dit_losses(diffusion, mu, np.full_like(mu, -60.0), np.array([0, 1] * 3), CPU, seed=0)
    found = np.stack([of_row(row) for row in range(6)])
    assert found.shape == (6, 4, len(LEVELS))
    np.testing.assert_array_equal(found[2], of_row(2))
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

    def of_row(row):
        return np.mean(((0.7 * z[row] + 0.7 * eps) @ weights - z[row]) ** 2, axis=1)[:, None]

    assert loss_attack(of_row, range(24), range(24, 48), (0.5,), seed=0)["auc"] > 0.9


# Other attacks.


def test_reconstruction_errors_count_the_head_alone():
    x = np.zeros((2, 3, 3, 3), np.float32)
    x[:, 1] = 0.5
    y = x + 0.1
    y[1, 0] = 9.0  # background
    np.testing.assert_allclose(reconstruction_errors(x, y), 0.01, rtol=1e-5)
    assert reconstruction_attack(np.linspace(1, 2, 30), np.linspace(1.9, 3, 30))["auc"] > 0.95


def test_exposed_subjects_are_members():
    ratios = {"training": {f"t{k}": 0.2 + k / 100 for k in range(30)}, "held_out": {f"h{k}": 1.0 for k in range(20)}}
    assert exposure_attack(ratios)["auc"] == 1


# Canaries.


@pytest.fixture
def latents(tmp_path):
    """24 training latents, two of subject s00, and 4 held-out ones."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 23), ("val", 4)):
        for k in range(count):
            write(tmp_path / "latents" / split / f"{split[0]}{k:02d}.pkl", f"{split[0]}{k:02d}", k % 2, draw)
    write(tmp_path / "latents/train/t00_b.pkl", "t00", 0, draw)
    train = read_split(tmp_path / "latents", "train")
    write_statistics(tmp_path / "latents", compute_statistics(train, split="train", ledger=["abc"]))
    return tmp_path / "latents"


def write(path, subject, label, draw):
    mu = draw.normal(size=(2, 3, 3, 3)).astype(np.float32)
    write_latent(path, Latent(mu, np.zeros_like(mu), label, subject, "vae", {}))


def test_a_plan_is_balanced_repeatable_and_modest():
    subjects, labels = [f"s{k:02d}" for k in range(40)], [k % 2 for k in range(40)]
    plan = plan_canaries(subjects, labels, each=4, seed=0)
    assert sorted(plan.values()) == [1] * 4 + [4] * 4 + [16] * 4
    classes = dict(zip(subjects, labels, strict=True))
    for count in (1, 4, 16):
        assert sorted(classes[name] for name in plan if plan[name] == count) == [0, 0, 1, 1]
    assert plan == plan_canaries(subjects[::-1], labels[::-1], each=4, seed=0)
    assert plan != plan_canaries(subjects, labels, each=4, seed=1)
    with pytest.raises(InputError, match="half"):
        plan_canaries(subjects, labels, each=10, seed=0)


def test_planted_latents_are_copies_under_new_names(latents, tmp_path):
    plan = {"t00": 4, "t03": 16, "t05": 1}
    count = write_canaries(latents, tmp_path / "out", plan)
    made = read_split(tmp_path / "out", "train")
    assert len(made) == count == 24 + 2 * 3 + 15
    assert sum(one.subject == "t03" for one in made) == 16
    assert len({one.mu.tobytes() for one in made}) == 24
    assert len(list_latents(tmp_path / "out" / "val")) == 4
    assert (tmp_path / "out/statistics.json").read_text().count("abc") == 1
    with pytest.raises(InputError, match="exists"):
        write_canaries(latents, tmp_path / "out", plan)
    with pytest.raises(InputError, match="nobody"):
        write_canaries(latents, tmp_path / "out2", {"nobody": 4})


def test_canaries_are_found_by_exposure_and_others_at_the_stated_rate():
    plan = {f"t{k}": count for k, count in enumerate((1, 1, 4, 4, 16, 16))}
    shares = []
    for seed in range(50):
        draw = np.random.default_rng(seed)
        training = {f"t{k}": float(value) for k, value in enumerate(draw.normal(1, 0.1, 100))}
        training |= {"t4": 0.2, "t5": 0.3}
        held_out = {f"h{k}": float(value) for k, value in enumerate(draw.normal(1, 0.1, 60))}
        result = read_canaries(plan, {"training": training, "held_out": held_out})
        assert result["by_occurrences"]["16"] == {"n": 2, "found": 2, "median_rank": 1.5, "median_exposure": 0.25}
        assert result["canaries"][4]["p"] == pytest.approx(1 / 61)
        shares.append(result["alarms"])
    assert np.mean(shares) == pytest.approx(result["stated_alarms"], abs=0.015)


def test_too_few_held_out_subjects_cannot_find_canaries():
    with pytest.raises(InputError, match="19 or more"):
        read_canaries({"t0": 1}, {"training": {"t0": 1.0}, "held_out": {f"h{k}": 1.0 for k in range(10)}})
