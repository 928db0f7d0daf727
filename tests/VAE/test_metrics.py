"""Reconstruction measures and the health of the posterior against closed forms and MONAI."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from tests.support.scans import blob
from VAE.metrics import nmse, posterior_report, posterior_sums, psnr, reconstruction_metrics, ssim_map


def test_closed_forms() -> None:
    x = torch.full((4, 4, 4), 0.5, dtype=torch.float64)
    assert psnr(x + 0.1, x) == pytest.approx(20.0)
    assert psnr(x, x) == np.inf
    assert nmse(x * 1.1, x) == pytest.approx(0.01)


def scan_and_reconstruction() -> tuple[torch.Tensor, torch.Tensor]:
    """A head, and the same with noise, both float32 in [0, 1]."""
    x = blob(0, 0) / 250
    x_hat = np.clip(x + 0.05 * np.random.default_rng(0).standard_normal(x.shape), 0, 1).astype(np.float32)
    return torch.from_numpy(x_hat), torch.from_numpy(x)


def test_ssim_equals_monai() -> None:
    from monai.metrics.regression import compute_ssim_and_cs

    x_hat, x = scan_and_reconstruction()
    expected, _ = compute_ssim_and_cs(
        x_hat[None, None], x[None, None], spatial_dims=3, kernel_size=(7, 7, 7),
        kernel_sigma=(1.5, 1.5, 1.5), data_range=1.0, kernel_type="uniform",
    )  # fmt: skip
    torch.testing.assert_close(ssim_map(x_hat, x), expected[0, 0].double(), atol=1e-3, rtol=0)


def test_ssim_equals_the_formula_window_by_window() -> None:
    x_hat, x = scan_and_reconstruction()
    a, b = (sliding_window_view(volume.numpy().astype(np.float64), (7, 7, 7)) for volume in (x_hat, x))
    axes = (3, 4, 5)
    covariance = ((a - a.mean(axes, keepdims=True)) * (b - b.mean(axes, keepdims=True))).mean(axes)
    expected = (2 * a.mean(axes) * b.mean(axes) + 1e-4) * (2 * covariance + 9e-4)
    expected /= (a.mean(axes) ** 2 + b.mean(axes) ** 2 + 1e-4) * (a.var(axes) + b.var(axes) + 9e-4)
    found = ssim_map(x_hat, x)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)
    assert reconstruction_metrics(x_hat, x)["ssim"] == pytest.approx(expected.mean(), abs=1e-9)


def test_background_does_not_count_inside_the_head() -> None:
    x = blob(0, 0) / 250
    inside = np.where(x > 0, x + 0.1, 0).astype(np.float32)
    outside = np.where(x > 0, x, 0.1).astype(np.float32)
    changed, beyond = (reconstruction_metrics(torch.from_numpy(v), torch.from_numpy(x)) for v in (inside, outside))
    assert changed["psnr_head"] == pytest.approx(20, abs=0.7)
    assert beyond["psnr_head"] > 30
    assert changed["psnr"] > changed["psnr_head"]


def planted(seed: int, scans: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Four channels: informative; equal to the prior; narrow but the same everywhere; between, with known variances."""
    generator = torch.Generator().manual_seed(seed)
    mu = torch.randn(scans, 4, 16, 16, 16, generator=generator)
    mu *= torch.tensor([2.0, 0.0, 0.0, 0.5]).view(4, 1, 1, 1)
    mu += torch.tensor([1.0, 0.0, 3.0, 0.0]).view(4, 1, 1, 1)
    logvar = torch.tensor([math.log(0.01), 0.0, -6.0, math.log(0.75)]).view(4, 1, 1, 1).expand_as(mu)
    return mu, logvar


def test_the_health_of_planted_channels() -> None:
    report = posterior_report([posterior_sums(*planted(seed)) for seed in range(4)], positions=16**3)
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
    parts = [posterior_sums(mu[k : k + 1], logvar[k : k + 1]) for k in range(4)]
    torch.testing.assert_close(sum(parts), posterior_sums(mu, logvar), rtol=1e-12, atol=1e-9)
