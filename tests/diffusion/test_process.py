"""The noising process: closed forms, agreement with MONAI, consistency of the three targets."""

from __future__ import annotations

import pytest
import torch

from diffusion.config import ProcessConfig
from diffusion.process import build_process, linear_alphas_bar

TARGETS = ("noise", "x0", "velocity")


def test_linear_schedule_equals_monai() -> None:
    from monai.networks.schedulers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=1000, schedule="linear_beta", beta_start=1e-4, beta_end=0.02)
    torch.testing.assert_close(linear_alphas_bar(1000).float(), scheduler.alphas_cumprod, atol=1e-6, rtol=1e-5)


def test_noising_equals_monai_and_keeps_unit_variance() -> None:
    from monai.networks.schedulers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=1000, schedule="linear_beta", beta_start=1e-4, beta_end=0.02)
    process = build_process(ProcessConfig())
    z, eps, t = torch.randn(4, 2, 8, 8, 8), torch.randn(4, 2, 8, 8, 8), torch.tensor([0, 10, 500, 999])
    torch.testing.assert_close(process.noised(z, eps, t), scheduler.add_noise(z, eps, t), atol=1e-5, rtol=1e-4)
    alpha, sigma = process.coefficients(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


@pytest.mark.parametrize("target", TARGETS)
def test_the_right_prediction_gives_back_the_clean_latent(target: str) -> None:
    process = build_process(ProcessConfig(target=target))
    z, eps, t = torch.randn(4, 2, 3, 3, 3), torch.randn(4, 2, 3, 3, 3), torch.tensor([0, 10, 500, 900])
    z_t, wanted = process.noised(z, eps, t), process.wanted(z, eps, t)
    torch.testing.assert_close(process.clean(wanted, z_t, t), z, atol=2e-3, rtol=1e-3)
    assert torch.equal(process.loss(wanted, z, eps, t), torch.zeros(4))


def test_velocity_equals_monai() -> None:
    from monai.networks.schedulers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=1000, schedule="linear_beta", beta_start=1e-4, beta_end=0.02)
    process = build_process(ProcessConfig(target="velocity"))
    z, eps, t = torch.randn(3, 2, 3, 3, 3), torch.randn(3, 2, 3, 3, 3), torch.tensor([3, 500, 999])
    torch.testing.assert_close(process.wanted(z, eps, t), scheduler.get_velocity(z, eps, t), atol=1e-5, rtol=1e-4)
