"""Posterior health against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from VAE.posterior import PosteriorHealth


def planted(seed: int, scans: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Four channels: informative; equal to the prior; narrow but the same everywhere; between, with known variances."""
    generator = torch.Generator().manual_seed(seed)
    mu = torch.randn(scans, 4, 16, 16, 16, generator=generator)
    mu *= torch.tensor([2.0, 0.0, 0.0, 0.5]).view(4, 1, 1, 1)
    mu += torch.tensor([1.0, 0.0, 3.0, 0.0]).view(4, 1, 1, 1)
    logvar = torch.tensor([math.log(0.01), 0.0, -6.0, math.log(0.75)]).view(4, 1, 1, 1).expand_as(mu)
    return mu, logvar


def test_closed_forms() -> None:
    health = PosteriorHealth(4)
    for seed in range(4):
        health.add(*planted(seed))
    report = health.report()
    informative, prior, constant, between = report["channels"]
    assert report["scans"] == 4
    assert (informative["mean"], informative["std"]) == pytest.approx((1, 2), abs=0.05)
    assert informative["noise_share"] == pytest.approx(0.01 / 4.01, rel=0.05)
    assert informative["kl"] == pytest.approx(0.5 * (5 + 0.01 - 1 - math.log(0.01)), rel=0.03)
    assert (prior["kl"], prior["noise_share"], prior["std"]) == pytest.approx((0, 1, 0), abs=1e-12)
    assert constant["kl"] == pytest.approx(0.5 * (9 + math.exp(-6) - 1 + 6), rel=1e-6)
    assert constant["noise_share"] == pytest.approx(1)
    assert between["noise_share"] == pytest.approx(0.75, rel=0.03)
    assert report["dead"] == [1, 2]
    assert [channel["dead"] for channel in report["channels"]] == [False, True, True, False]
    assert report["kl"] == pytest.approx(sum(channel["kl"] for channel in report["channels"]))


def test_parts_add_up_to_the_whole() -> None:
    mu, logvar = planted(0, scans=4)
    whole, first, second = (PosteriorHealth(4) for _ in range(3))
    whole.add(mu, logvar)
    for k in range(4):
        (first if k % 2 else second).add(mu[k : k + 1], logvar[k : k + 1])
    first.merge(second)
    assert first.positions == whole.positions == 4 * 16**3
    assert first.scans == whole.scans == 4
    torch.testing.assert_close(first.sums, whole.sums, rtol=1e-12, atol=1e-9)


def test_nothing_added_is_an_error() -> None:
    with pytest.raises(ValueError, match="no posterior"):
        PosteriorHealth(4).report()
