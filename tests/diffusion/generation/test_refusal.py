"""Refusal at sampling: copies are refused, at the stated rate new people are, and the average brain is not a copy."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.dataset import LatentSpace
from diffusion.generation.refusal import Refusal, calibrate
from runtime.device import Device
from runtime.errors import InputError
from VAE.latents import Latent, Statistics, write_latent

CPU = Device(torch.device("cpu"), torch.float32)
SHAPE = (2, 4, 4, 4)
SIZE = 128


def people(count: int, seed: int) -> np.ndarray:
    """Latents that vary along 20 of 128 axes, around a common mean of 3."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, 20)))[0]
    draw = np.random.default_rng(seed)
    found = 3 + draw.normal(size=(count, 20)) @ axes.T + 0.1 * draw.normal(size=(count, SIZE))
    return found.reshape(-1, *SHAPE).astype(np.float32)


def write(folder: Path, latents: np.ndarray, vae: str = "vae") -> None:
    for k, mu in enumerate(latents):
        record = Latent(mu, np.full(SHAPE, -20, np.float32), k % 2, f"{folder.name}{k}", vae, {})
        write_latent(folder / f"{folder.name}{k:03d}.pkl", record)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "train", people(150, 1))
    write(tmp_path / "val", people(200, 2))
    return tmp_path


def space(vae: str = "vae") -> LatentSpace:
    statistics = Statistics((0.0, 1.0), (1.0, 2.0), 150, "train", vae, {}, [])
    return LatentSpace(statistics, torch.zeros(SHAPE), torch.ones(SHAPE))


def refused(refusal: Refusal, latents: np.ndarray) -> float:
    return float(refusal.refuses(space().enter(torch.from_numpy(latents))).float().mean())


@pytest.mark.parametrize("level", [0.05, 0.3])
def test_new_people_are_refused_at_the_stated_rate(folder: Path, level: float) -> None:
    refusal = calibrate(folder, space(), 2, CPU, level)
    assert refused(refusal, people(4000, 3)) == pytest.approx(level, abs=0.035)  # of 200 held-out: 0.015 or 0.032


def test_copies_are_refused_also_when_they_were_shrunk_or_are_noisy(folder: Path) -> None:
    refusal, known = calibrate(folder, space(), 2, CPU, 0.05), people(150, 1)
    noise = np.random.default_rng(4).normal(size=known.shape).astype(np.float32)
    assert refused(refusal, known) == 1.0
    assert refused(refusal, known.mean(0) + 0.3 * (known - known.mean(0))) == 1.0
    assert refused(refusal, known + 0.1 * noise) == 1.0


def test_the_average_is_nobodys_copy(folder: Path) -> None:
    """It is nearer to everybody by distance than people are to each other."""
    refusal, known, new = calibrate(folder, space(), 2, CPU, 0.05), people(150, 1), people(50, 5)
    average = known.mean(0) + 0.2 * (new - known.mean(0))
    distance = np.linalg.norm((average[:, None] - known).reshape(50, 150, -1), axis=2).min()
    among = np.linalg.norm((new[:, None] - known).reshape(50, 150, -1), axis=2).min()
    assert distance < among
    assert refused(refusal, average) < 0.2


def test_what_cannot_be_calibrated_is_refused(folder: Path) -> None:
    for level in (0.0, 1.0, 0.001):
        with pytest.raises(InputError, match=f"--refuse-level {level:g}: expected above 0"):
            calibrate(folder, space(), 2, CPU, level)
    with pytest.raises(InputError, match="150 latents of VAE vae; the diffusion model was trained on 150 of other"):
        calibrate(folder, space("other"), 2, CPU, 0.05)
    (folder / "train/train000.pkl").unlink()
    with pytest.raises(InputError, match="149 latents of VAE vae; the diffusion model was trained on 150 of vae"):
        calibrate(folder, space(), 2, CPU, 0.05)
