"""The linear start: exact on the Gaussians it models, for every process and target, and careful about classes."""

from __future__ import annotations

import pytest
import torch

from diffusion.config import ModelConfig, ProcessConfig
from diffusion.model import DiT
from diffusion.model.linear_start import LinearStart, class_deviations
from diffusion.process import Process, build_process

SHAPE = (1, 2, 3, 4)
SIZE = 24
CASES = {
    "noise": (ProcessConfig(target="noise"), (10, 300, 800)),
    "x0": (ProcessConfig(target="x0"), (10, 300, 800)),
    "velocity": (ProcessConfig(target="velocity"), (10, 300, 800)),
    "cosine velocity": (ProcessConfig(schedule="cosine", target="velocity"), (0, 300, 999)),
    "flow velocity": (ProcessConfig(schedule="flow", target="velocity"), (0.37, 300.5, 1000.0)),
    "flow x0": (ProcessConfig(schedule="flow", target="x0"), (10.5, 300.25, 1000.0)),
}


def axes_of_two() -> torch.Tensor:
    """Two orthonormal axes (2, 24), float64."""
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(SIZE, 2, generator=generator, dtype=torch.float64))[0].T


def gaussian(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents with strong axes of variance 9 and 4 over a rest of 0.25, and two classes that differ at 12 positions."""
    generator = torch.Generator().manual_seed(1)
    strong = torch.randn(count, 2, generator=generator) * torch.tensor([8.75, 3.75]).sqrt()
    z = strong @ axes_of_two().float() + 0.5 * torch.randn(count, SIZE, generator=generator)
    y = torch.arange(count) % 2
    z[:, :12] += 1.5 * y[:, None]
    return z.view(count, *SHAPE), y


def times(process: Process, time: float, count: int) -> torch.Tensor:
    return torch.full((count,), time, dtype=torch.float32 if process.is_flow else torch.long)


@pytest.mark.parametrize("case", CASES)
def test_prediction_is_the_posterior_mean_of_a_known_gaussian(case: str) -> None:
    """Against m + alpha S (alpha^2 S + sigma^2 I)^-1 (z_t - alpha m) with the full covariance S, in float64."""
    config, moments = CASES[case]
    process = build_process(config)
    generator = torch.Generator().manual_seed(2)
    start = LinearStart(2, SHAPE, 2, process).double()
    start.axes.copy_(axes_of_two())
    start.variances.copy_(torch.tensor([9.0, 4.0, 0.25]))
    start.means.copy_(torch.randn(3, SIZE, generator=generator))
    U = axes_of_two().T
    S = U @ torch.diag(torch.tensor([8.75, 3.75], dtype=torch.float64)) @ U.T + 0.25 * torch.eye(SIZE)
    y = torch.tensor([0, 1, 2, 2])
    z_t = torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64)
    for time in moments:
        t = times(process, time, 4)
        alpha, sigma = process.at(time)
        m = start.means[y]
        inverse = torch.linalg.inv(alpha**2 * S + sigma**2 * torch.eye(SIZE))
        centred = (z_t.flatten(1) - alpha * m) @ inverse
        z_hat, eps_hat = m + alpha * centred @ S, sigma * centred
        expected = process.wanted(z_hat.view_as(z_t), eps_hat.view_as(z_t), t)
        # The process's coefficients are float32.
        torch.testing.assert_close(start(z_t, t, y), expected, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_no_linear_predictor_is_better(case: str) -> None:
    """Least squares from z_t and the class to the target, fitted on the same draws, gains less than two percent."""
    config, moments = CASES[case]
    process = build_process(config)
    z, y = gaussian(20_000)
    start = LinearStart(2, SHAPE, 2, process)
    start.fit(z, y)
    for time in moments:
        t = times(process, time, len(z))
        eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(int(time)))
        z_t, wanted = process.noised(z, eps, t), process.wanted(z, eps, t).flatten(1)
        told = torch.cat([z_t.flatten(1), torch.nn.functional.one_hot(y)], dim=1).double()
        best = torch.linalg.lstsq(told, wanted.double()).solution
        best_loss = (told @ best - wanted).square().mean()
        loss = (start(z_t, t, y).flatten(1) - wanted).square().mean()
        assert loss < 1.02 * best_loss + 1e-4
        assert loss < wanted.square().mean()


def test_the_fit_finds_means_axes_and_variances() -> None:
    z, y = gaussian(20_000)
    start = LinearStart(2, SHAPE, 2, build_process(ProcessConfig()))
    start.fit(z, y)
    torch.testing.assert_close(start.variances, torch.tensor([9.0, 4.0, 0.25]), atol=0, rtol=0.05)
    assert (start.axes.double() @ axes_of_two().T).abs().diag().min() > 0.99
    torch.testing.assert_close(start.means[2], z.flatten(1).mean(0))
    difference = start.means[1] - start.means[0]
    torch.testing.assert_close(difference[:12], torch.full((12,), 1.5), atol=0.15, rtol=0)
    assert difference[12:].abs().max() < 0.1


def correlated(count: int, size: int, seed: int) -> torch.Tensor:
    """Noise (count, size) of unit variance, correlated with its neighbours over about ten positions."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 1, size + 20, generator=generator, dtype=torch.float64)
    kernel = torch.exp(-torch.linspace(-2, 2, 21, dtype=torch.float64).square())[None, None]
    return torch.nn.functional.conv1d(z, kernel / kernel.square().sum().sqrt())[:, 0]


def test_labels_without_meaning_leave_no_difference() -> None:
    """In 20 cohorts of 40 the deviations keep on average under 2 percent of the energy of the raw difference."""
    kept = []
    y = torch.arange(40) % 2
    for seed in range(20):
        z = correlated(40, 2000, seed)
        raw = z[y == 1].mean(0) - z.mean(0)
        kept.append(class_deviations(z, y, 3)[1].square().sum() / raw.square().sum())
    assert sum(kept) / 20 < 0.02


@pytest.mark.parametrize("count", [60, 120])
def test_a_planted_difference_is_kept(count: int) -> None:
    """One standard deviation at a tenth of the positions: over 10 cohorts within 20 percent of it, and little else."""
    y = torch.arange(count) % 2
    inside, outside = [], []
    for seed in range(10):
        z = correlated(count, 2000, seed)
        z[:, 300:500] += y[:, None]
        deviations = class_deviations(z, y, 3)
        assert torch.equal(deviations[2], torch.zeros(2000, dtype=torch.float64))
        difference = deviations[1] - deviations[0]
        inside.append(difference[300:500].mean())
        outside.append(difference.square().sum() - difference[300:500].square().sum())
    assert sum(inside) / 10 == pytest.approx(1.0, abs=0.2)
    assert sum(outside) / 10 < 0.05 * 200


def test_positions_that_never_vary_and_classes_without_members_stay_at_the_mean() -> None:
    z, y = correlated(30, 100, 0), torch.arange(30) % 2
    z[:, :50] = 0.3
    z[:, 60:] += 3.0 * y[:, None]
    deviations = class_deviations(z, y, 4)
    assert torch.equal(deviations[:, :50], torch.zeros(4, 50, dtype=torch.float64))
    assert torch.equal(deviations[2:], torch.zeros(2, 100, dtype=torch.float64))
    assert deviations[:2, 60:].abs().min() > 0.5
    assert torch.equal(class_deviations(z, torch.zeros_like(y), 4), torch.zeros(4, 100, dtype=torch.float64))


def test_a_new_network_predicts_what_the_start_does() -> None:
    config = ModelConfig(dim=32, depth=1, heads=1, patch=(1, 1, 2), latent_channels=1, linear_rank=2)
    model = DiT(config, SHAPE, build_process(ProcessConfig(target="velocity")))
    z, y = gaussian(50)
    model.start.fit(z, y)
    t = torch.arange(50) * 20
    out = model(z, t, y)
    torch.testing.assert_close(out, model.start(z, t, y))
    assert out.abs().max() > 0.1
    assert {"start.axes", "start.variances", "start.means"} <= model.state_dict().keys()


def test_bfloat16_does_not_reach_the_start() -> None:
    start = LinearStart(2, SHAPE, 2, build_process(ProcessConfig(target="velocity")))
    z, y = gaussian(50)
    start.fit(z, y)
    t = torch.arange(50) * 20
    with torch.autocast("cpu", torch.bfloat16):
        inside = start(z, t, y)
    assert torch.equal(inside, start(z, t, y))
