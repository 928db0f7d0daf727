"""Latents as batches, and the space of diffusion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.dataset import Latents, fit_space, space_from_dict
from runtime.device import Device
from runtime.errors import InputError
from VAE.latents import Latent, compute_statistics, write_latent

CPU = Device(torch.device("cpu"), torch.float32)


def posteriors(labels: list[int]) -> list[Latent]:
    random = np.random.default_rng(0)
    mus = [(random.standard_normal((2, 3, 3, 3)) * [[[[1]]], [[[4]]]] + 5).astype(np.float32) for _ in labels]
    return [
        Latent(mu, np.full_like(mu, -2.0), label, f"s{k}", "v", {"name": "smoke"}, "LR"[k % 4 // 2] if label else "")
        for k, (mu, label) in enumerate(zip(mus, labels, strict=True))
    ]


def write_split(folder: Path, labels: list[int]) -> list[Latent]:
    latents = posteriors(labels)
    for latent in latents:
        write_latent(folder / "train" / f"{latent.subject}.pkl", latent)
    return latents


def test_batches_are_samples_of_the_posterior(tmp_path: Path) -> None:
    latents = write_split(tmp_path, [0, 1, 0])
    data = Latents(tmp_path, "train", 2, CPU)
    assert (len(data), data.shape) == (3, (2, 3, 3, 3))
    rows, eps = torch.tensor([2, 1]), torch.randn(2, 2, 3, 3, 3)
    batch = data.batch(rows, eps)
    torch.testing.assert_close(batch.z[0], torch.from_numpy(latents[2].mu) + np.exp(-1.0) * eps[0])
    assert batch.y.tolist() == [0, 1]
    assert batch.covariates.shape == (2, 0)
    data.covariates = torch.tensor([[0.0], [1.0], [2.0]])
    assert data.batch(rows, eps).covariates.tolist() == [[2.0], [1.0]]


def test_sides_come_along_and_both_must_be_there(tmp_path: Path) -> None:
    write_split(tmp_path / "both", [0, 1, 0, 1])
    data = Latents(tmp_path / "both", "train", 2, CPU)
    assert data.has_sides
    rows = torch.tensor([3, 0, 1])
    assert data.batch(rows, torch.zeros(3, 2, 3, 3, 3)).side.tolist() == [1, 2, 0]  # R, none, L
    write_split(tmp_path / "left", [0, 1])
    assert not Latents(tmp_path / "left", "train", 2, CPU).has_sides


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1], [0, 1, 2]])
def test_a_missing_or_unknown_class_is_refused(tmp_path: Path, labels: list[int]) -> None:
    write_split(tmp_path, labels)
    with pytest.raises(InputError, match="expected each of 0 to 1"):
        Latents(tmp_path, "train", 2, CPU)


@pytest.mark.parametrize("centred", [False, True])
def test_the_space_is_undone_and_whitens(centred: bool) -> None:
    latents = posteriors([0, 1] * 200)
    statistics = compute_statistics(latents, split="train", ledger=[])
    mu, logvar = (
        torch.stack([torch.from_numpy(getattr(latent, name)) for latent in latents]) for name in ("mu", "logvar")
    )
    space = fit_space(mu, logvar, statistics, centred=centred)
    z = mu + torch.exp(0.5 * logvar) * torch.randn(mu.shape, generator=torch.Generator().manual_seed(0))
    inside = space.enter(z)
    assert inside.mean((0, 2, 3, 4)).abs().max() < 0.05
    assert inside.std((0, 2, 3, 4)).tolist() == pytest.approx([1, 1], abs=0.05)
    if centred:
        assert inside.std(0).sub(1).abs().max() < 0.25
        assert inside.mean(0).abs().max() < 0.25
    back = space_from_dict(space.to_dict(), "a.pt")
    torch.testing.assert_close(back.leave(inside), z, atol=1e-4, rtol=1e-4)
