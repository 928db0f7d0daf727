"""Mixtures of two people: of one class and side, with their mean and variance, and less alike from place to place."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.dataset import Latents
from diffusion.mixing import SPREAD, Mixer, spacing_of
from runtime.device import Device
from VAE.latents import Latent, write_latent

CPU = Device(torch.device("cpu"), torch.float32)
SHAPE = (2, 8, 8, 8)


@pytest.fixture
def latents(tmp_path: Path) -> Latents:
    """Sixty people of three groups, and one TLE of unknown side. Each is one number everywhere, times the place's."""
    draw = np.random.default_rng(0)
    groups = [(0, ""), (1, "L"), (1, "R")] * 20 + [(1, "")]
    for k, (label, side) in enumerate(groups):
        mu = np.full(SHAPE, draw.normal() + 10 * len(side) + 5 * (side == "R"), np.float32)
        latent = Latent(mu, np.full(SHAPE, -30, np.float32), label, f"S{k:02d}", "vae", {}, side)
        write_latent(tmp_path / "train" / f"S{k:02d}.pkl", latent)
    return Latents(tmp_path, "train", 2, CPU)


def mixtures(latents: Latents, rows: torch.Tensor, distance_mm: float) -> torch.Tensor:
    mixer = Mixer(latents, (8.0, 8.0, 8.0), distance_mm)
    noise = mixer.noise(len(rows), torch.Generator().manual_seed(1))
    return mixer.mix(rows, latents.mu[rows], *noise)


def test_partners_are_others_of_the_same_class_and_side(latents: Latents) -> None:
    mixer = Mixer(latents, (8.0, 8.0, 8.0), 32.0)
    rows = torch.arange(61).repeat(200)
    partners = mixer.partners(rows, torch.rand(len(rows), generator=torch.Generator().manual_seed(0)))
    assert torch.equal(latents.labels[partners], latents.labels[rows])
    assert torch.equal(latents.sides[partners], latents.sides[rows])
    alone = rows == 60
    assert (partners[alone] == 60).all()
    assert (partners[~alone] != rows[~alone]).all()
    of_first = torch.bincount(partners[rows == 0], minlength=61)
    assert (of_first > 0).sum() == 19  # every other one of its group, about equally often
    assert of_first.max() < 25
    ends = mixer.partners(torch.tensor([0, 60]), torch.tensor([0.99999994, 0.99999994]))
    assert ends[1] == 60
    assert ends[0] != 0


def test_mixtures_keep_mean_and_variance_and_lose_distant_covariance(latents: Latents) -> None:
    """People are constant, so that any two places of a person are equal; those of a mixture only when they are near."""
    rows = torch.where((latents.labels == 1) & (latents.sides == 0))[0].repeat(400)
    people, z = latents.mu[rows], mixtures(latents, rows, 28.0)
    centred = z - people.mean(0)
    torch.testing.assert_close(centred.mean(0), torch.zeros(SHAPE), atol=0.05, rtol=0)
    torch.testing.assert_close(centred.var(0), people.var(0), atol=0, rtol=0.1)
    corner, near, far = (centred[:, 0, 0, 0, k] for k in (0, 1, 7))
    correlation = [float((corner * other).mean() / people.var(0)[0, 0, 0, 0]) for other in (near, far)]
    # E[cos of the angles' difference] of normal angles that are linear between nodes 3.5 positions apart
    expected = [np.exp(-0.5 * SPREAD**2 * 2 * (1 / 3.5) ** 2), np.exp(-0.5 * SPREAD**2 * 2)]
    assert correlation == pytest.approx(expected, abs=0.08)


def test_who_is_alone_stays_as_he_is(latents: Latents) -> None:
    torch.testing.assert_close(mixtures(latents, torch.tensor([60]), 32.0), latents.mu[60:])


def test_a_row_is_mixed_the_same_way_in_any_batch(latents: Latents) -> None:
    """What is random comes from outside: two processes share what one would draw."""
    mixer = Mixer(latents, (8.0, 8.0, 8.0), 32.0)
    rows = torch.arange(8)
    noise = mixer.noise(8, torch.Generator().manual_seed(2))
    whole = mixer.mix(rows, latents.mu[rows], *noise)
    half = mixer.mix(rows[4:], latents.mu[rows[4:]], *(part[4:] for part in noise))
    assert torch.equal(whole[4:], half)


def test_spacing_is_that_of_latent_positions() -> None:
    assert spacing_of({"shape": [40, 48, 40], "spacing_mm": 4.0}, (4, 20, 24, 10)) == (8.0, 8.0, 16.0)
