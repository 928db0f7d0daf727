"""The linear start: exact on the Gaussian it models, for every prediction target."""

from __future__ import annotations

import pytest
import torch

from diffusion.config import ModelConfig, ProcessConfig
from diffusion.model import DiT
from diffusion.model.linear_start import LinearStart
from diffusion.process import build_process


def gaussian(count: int) -> torch.Tensor:
    """Latents (count, 1, 2, 3, 4) with two strong axes of variance 9 and 4 over a rest of 0.25."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(24, 2, generator=generator))[0]
    strong = torch.randn(count, 2, generator=generator) * torch.tensor([8.75, 3.75]).sqrt()
    z = strong @ axes.T + 0.5 * torch.randn(count, 24, generator=generator)
    return z.view(count, 1, 2, 3, 4)


@pytest.mark.parametrize("target", ["noise", "x0", "velocity"])
def test_no_linear_predictor_is_better(target: str) -> None:
    """Least squares from z_t to the target, fitted on the same draws, gains less than two percent."""
    process = build_process(ProcessConfig(target=target))
    z = gaussian(20_000)
    start = LinearStart(2, 24, process.timesteps)
    start.fit(z, process)
    for time in (10, 300, 800):
        t = torch.full((len(z),), time)
        eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(time))
        z_t, wanted = process.noised(z, eps, t), process.wanted(z, eps, t).flatten(1)
        best = torch.linalg.lstsq(z_t.flatten(1), wanted).solution
        best_loss = (z_t.flatten(1) @ best - wanted).square().mean()
        loss = process.loss(start(z_t, t), z, eps, t).mean()
        assert loss < 1.02 * best_loss + 1e-4


def test_a_new_network_predicts_what_the_start_does() -> None:
    process = build_process(ProcessConfig(target="velocity"))
    model = DiT(ModelConfig(dim=32, depth=1, heads=1, patch=(1, 1, 2), latent_channels=1, linear_rank=2), (1, 2, 3, 4))
    z = gaussian(50)
    model.start.fit(z, process)
    t = torch.arange(50) * 20
    out = model(z, t, torch.zeros(50, dtype=torch.long))
    torch.testing.assert_close(out, model.start(z, t))
    assert out.abs().max() > 0.1
    assert "start.axes" in model.state_dict()
