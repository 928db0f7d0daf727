"""Samplers against a Gaussian whose denoiser is known, against MONAI, and against themselves in other batches."""

from __future__ import annotations

import pytest
import torch

from diffusion.config import ModelConfig, ProcessConfig
from diffusion.model import DiT
from diffusion.process import Process, build_process
from diffusion.sampler import SAMPLERS, ddim, ddpm, guided, spaced
from tests.diffusion.test_dit import awake

MEAN, STD = 1.5, 0.6


def gaussian_denoise(process: Process):
    """E[z | z_t] for z ~ N(MEAN, STD^2): the best denoiser there is, in closed form."""

    def denoise(z_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        alpha, sigma = process.coefficients(t)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return MEAN + gain * (z_t - alpha * MEAN)

    return denoise


@pytest.mark.parametrize(("name", "steps"), [("ddpm", 1000), ("ddpm", 100), ("ddim", 1000), ("ddim", 50)])
def test_a_gaussian_is_reproduced(name: str, steps: int) -> None:
    """Mean and spread of 32,768 samples; tolerance 4 standard errors plus what few steps cost."""
    process = build_process(ProcessConfig())
    generator = torch.Generator().manual_seed(0)
    shape = (8, 1, 16, 16, 16)
    z = torch.randn(shape, generator=generator)
    y = torch.zeros(8, dtype=torch.long)
    out = SAMPLERS[name](
        gaussian_denoise(process), z, y, process, steps, lambda: torch.randn(shape, generator=generator)
    )
    slack = 0.01 if steps == 1000 else 0.05
    assert out.mean() == pytest.approx(MEAN, abs=0.02 + slack)
    assert out.std() == pytest.approx(STD, abs=0.01 + slack)


def test_spaced_timesteps() -> None:
    assert spaced(1000, 1000) == list(range(999, -1, -1))
    assert spaced(1000, 3) == [999, 500, 0]
    assert spaced(1000, 1) == [999]
    with pytest.raises(ValueError, match="1001 sampling steps"):
        spaced(1000, 1001)


@pytest.mark.parametrize(("ours", "theirs"), [(ddpm, "DDPMScheduler"), (ddim, "DDIMScheduler")])
def test_every_step_equals_monai(ours, theirs: str) -> None:
    """The whole 1000-step path with the same denoiser and the same noises, noise prediction."""
    from monai.networks import schedulers

    kwargs = {"num_train_timesteps": 1000, "schedule": "linear_beta", "beta_start": 1e-4, "beta_end": 0.02}
    scheduler = getattr(schedulers, theirs)(**kwargs, clip_sample=False)
    scheduler.set_timesteps(1000)
    process = build_process(ProcessConfig())
    denoise = gaussian_denoise(process)
    z = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(2, dtype=torch.long)

    expected, noises = z, torch.Generator().manual_seed(1)
    for t in range(999, -1, -1):
        times = torch.full_like(y, t)
        alpha, sigma = process.coefficients(times)
        eps_hat = (expected - alpha * denoise(expected, times, y)) / sigma
        extra = {"generator": noises} if theirs == "DDPMScheduler" else {}
        expected, _ = scheduler.step(eps_hat, t, expected, **extra)

    draws = torch.Generator().manual_seed(1)
    actual = ours(denoise, z, y, process, 1000, lambda: torch.randn(z.shape, generator=draws))
    torch.testing.assert_close(actual, expected, atol=2e-3, rtol=1e-3)


def test_guidance_mixes_all_channels_in_one_forward() -> None:
    process = build_process(ProcessConfig(target="velocity"))
    model = awake(DiT(ModelConfig(dim=32, depth=1, heads=1, patch=(2, 2, 2), latent_channels=3), (3, 4, 4, 4)))
    calls = []
    model.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    z, t, y = torch.randn(2, 3, 4, 4, 4), torch.tensor([700, 700]), torch.tensor([0, 1])
    with torch.no_grad():
        conditional = guided(model, process, model.null_class, 1.0)(z, t, y)
        unconditional = guided(model, process, model.null_class, 1.0)(z, t, torch.tensor([2, 2]))
        calls.clear()
        mixed = guided(model, process, model.null_class, 3.0)(z, t, y)
    assert calls == [4]
    torch.testing.assert_close(mixed, unconditional + 3 * (conditional - unconditional), atol=1e-4, rtol=1e-4)
    assert all(not torch.allclose(mixed[:, c], conditional[:, c]) for c in range(3))
