"""Reconstruction measures against closed forms, MONAI and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.scans import blob
from VAE.metrics import nmse, psnr, reconstruction_metrics, ssim_map


def test_closed_forms() -> None:
    x = np.full((4, 4, 4), 0.5)
    assert psnr(x + 0.1, x) == pytest.approx(20.0)
    assert psnr(x, x) == np.inf
    assert nmse(x * 1.1, x) == pytest.approx(0.01)


def test_ssim_equals_monai() -> None:
    from monai.metrics.regression import compute_ssim_and_cs

    random = np.random.default_rng(0)
    x = blob(0, 0) / 250
    x_hat = np.clip(x + 0.05 * random.standard_normal(x.shape), 0, 1).astype(np.float32)
    expected, _ = compute_ssim_and_cs(
        torch.from_numpy(x_hat)[None, None], torch.from_numpy(x)[None, None], spatial_dims=3, kernel_size=(7, 7, 7),
        kernel_sigma=(1.5, 1.5, 1.5), data_range=1.0, kernel_type="uniform",
    )  # fmt: skip
    np.testing.assert_allclose(ssim_map(x_hat, x), expected[0, 0].numpy(), atol=1e-3)


def test_background_does_not_count_inside_the_head() -> None:
    x = blob(0, 0) / 250
    inside = np.where(x > 0, x + 0.1, 0).astype(np.float32)
    outside = np.where(x > 0, x, 0.1).astype(np.float32)
    assert reconstruction_metrics(inside, x)["psnr_head"] == pytest.approx(20, abs=0.7)
    assert reconstruction_metrics(outside, x)["psnr_head"] > 30
    assert reconstruction_metrics(inside, x)["psnr"] > reconstruction_metrics(inside, x)["psnr_head"]
