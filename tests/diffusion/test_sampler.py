"""Samplers against Gaussians and a mixture whose denoisers are known, against MONAI, and against each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import nn

from diffusion.config import ModelConfig, ProcessConfig
from diffusion.model import DiT
from diffusion.process import Process, build_process
from diffusion.sampler import (
    DEFAULT,
    FOR_FLOWS,
    SAMPLERS,
    Denoise,
    Guide,
    check_sampler,
    ddim,
    ddpm,
    euler,
    guided,
    samplers_for,
)
from runtime.errors import InputError

LINEAR = build_process(ProcessConfig(target="velocity"))
COSINE = build_process(ProcessConfig(schedule="cosine", target="velocity"))
FLOW = build_process(ProcessConfig(schedule="flow", target="velocity"))
SHIFTED = build_process(ProcessConfig(schedule="flow", target="velocity", shift=3.0))

MEAN = torch.tensor([1.5, -0.5, 0.3])
COVARIANCE = torch.tensor([[0.60, 0.35, -0.20], [0.35, 0.50, 0.10], [-0.20, 0.10, 0.40]])
"""Of the three numbers that make one latent (3, 1, 1, 1); its eigenvalues are 0.06, 0.54 and 0.90."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


def forbidden() -> torch.Tensor:
    raise AssertionError("a deterministic sampler drew noise")


def gaussian(process: Process) -> Denoise:
    """E[z | z_t] for z ~ N(MEAN, COVARIANCE): the best denoiser there is, in closed form."""

    def denoise(z_t: torch.Tensor, t: float) -> torch.Tensor:
        alpha, sigma = process.at(t)
        mean, covariance = MEAN.to(z_t.dtype), COVARIANCE.to(z_t.dtype)
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(3, dtype=z_t.dtype))
        flat = z_t.flatten(1)
        return (mean + (flat - alpha * mean) @ gain).view_as(z_t)

    return denoise


def mixture(process: Process, spread: float = 0.2) -> Denoise:
    """E[z | z_t] for z from N(-1, spread^2) or N(1, spread^2), at every position, with equal chances."""

    def denoise(z_t: torch.Tensor, t: float) -> torch.Tensor:
        alpha, sigma = process.at(t)
        variance = alpha**2 * spread**2 + sigma**2
        sign = torch.tanh(alpha * z_t / variance)  # chance of 1 less chance of -1
        return sign + alpha * spread**2 / variance * (z_t - alpha * sign)

    return denoise


@pytest.mark.parametrize(
    ("process", "name", "steps", "tolerance"),
    [
        pytest.param(LINEAR, "ddpm", 1000, 0.01, marks=pytest.mark.slow),
        (LINEAR, "ddpm", 100, 0.05),
        pytest.param(LINEAR, "ddim", 1000, 0.01, marks=pytest.mark.slow),
        (LINEAR, "ddim", 50, 0.05),
        (LINEAR, "dpmpp", 25, 0.02),
        (COSINE, "ddim", 200, 0.02),
        (COSINE, "dpmpp", 25, 0.02),
        (FLOW, "ddpm", 400, 0.02),
        (FLOW, "ddim", 100, 0.03),
        (FLOW, "dpmpp", 25, 0.02),
        (FLOW, "euler", 100, 0.03),
        (FLOW, "heun", 25, 0.02),
        (SHIFTED, "heun", 25, 0.02),
    ],
)
def test_a_correlated_gaussian_is_reproduced(process: Process, name: str, steps: int, tolerance: float) -> None:
    """Mean and every covariance of 20,000 latents; sampling error 0.02 (about 3 standard errors) and `tolerance`."""
    noises = generator(1)
    z = normal(20_000, 3, 1, 1, 1)
    out = SAMPLERS[name](gaussian(process), z, process, steps, lambda: torch.randn(z.shape, generator=noises))
    torch.testing.assert_close(out.flatten(1).mean(0), MEAN, atol=0.02 + tolerance, rtol=0)
    torch.testing.assert_close(torch.cov(out.flatten(1).T), COVARIANCE, atol=0.02 + tolerance, rtol=0)


def test_25_dpmpp_steps_are_nearer_a_mixture_than_25_ddpm_steps() -> None:
    """Mean distance between the quantiles of 32,768 numbers and those of 1000-step ddpm (Wasserstein-1)."""

    def drawn(name: str, steps: int) -> torch.Tensor:
        noises = generator(1)
        z = normal(8, 1, 16, 16, 16)
        out = SAMPLERS[name](mixture(LINEAR), z, LINEAR, steps, lambda: torch.randn(z.shape, generator=noises))
        return out.flatten().sort().values

    reference = drawn("ddpm", 1000)
    coarse, multistep = ((drawn(name, 25) - reference).abs().mean().item() for name in ("ddpm", "dpmpp"))
    assert multistep < 0.025
    assert multistep < 0.5 * coarse


def ode_error(name: str, process: Process, steps: int) -> float:
    """Root mean square distance from the exact end of the probability-flow ODE of a Gaussian, in float64.

    Along a principal axis with variance s, deviations from alpha mean grow as sqrt(alpha^2 s + sigma^2).
    """
    variances, axes = torch.linalg.eigh(COVARIANCE.double())
    z, mean = normal(64, 3).double(), MEAN.double()
    alpha, sigma = process.at(process.times(steps)[0])
    scale = (variances / (alpha**2 * variances + sigma**2)).sqrt()
    exact = mean + ((z - alpha * mean) @ axes * scale) @ axes.T
    out = SAMPLERS[name](gaussian(process), z.view(64, 3, 1, 1, 1), process, steps, forbidden)
    return (out.flatten(1) - exact).square().mean().sqrt().item()


@pytest.mark.parametrize(
    ("process", "name", "steps", "fall"),
    [
        (LINEAR, "ddim", 20, 4),
        (FLOW, "ddim", 20, 4),
        (FLOW, "euler", 20, 4),
        (LINEAR, "dpmpp", 20, 16),
        (FLOW, "dpmpp", 160, 16 * math.log(160) / math.log(640)),
        (FLOW, "heun", 20, 16),
        (SHIFTED, "heun", 20, 16),
    ],
)
def test_order_of_convergence(process: Process, name: str, steps: int, fall: float) -> None:
    """With 4 times the steps the error falls by 4 at order 1 and by 16 at order 2, within 20 percent.

    dpmpp on a flow loses a logarithm: near the clean end even times are far apart in lambda, however many there are.
    """
    assert ode_error(name, process, steps) / ode_error(name, process, 4 * steps) == pytest.approx(fall, rel=0.2)


@pytest.mark.parametrize(("ours", "theirs"), [(ddpm, "DDPMScheduler"), (ddim, "DDIMScheduler")])
def test_the_whole_path_equals_monai(ours: Callable[..., torch.Tensor], theirs: str) -> None:
    """1000 steps with the same denoiser and the same noises, noise prediction."""
    from monai.networks import schedulers

    kwargs = {"num_train_timesteps": 1000, "schedule": "linear_beta", "beta_start": 1e-4, "beta_end": 0.02}
    scheduler = getattr(schedulers, theirs)(**kwargs, clip_sample=False)
    scheduler.set_timesteps(1000)
    denoise = gaussian(LINEAR)
    z = normal(4, 3, 1, 1, 1)

    expected, noises = z, generator(1)
    for t in range(999, -1, -1):
        alpha, sigma = LINEAR.at(t)
        eps_hat = (expected - alpha * denoise(expected, t)) / sigma
        extra = {"generator": noises} if theirs == "DDPMScheduler" else {}
        expected, _ = scheduler.step(eps_hat, t, expected, **extra)

    draws = generator(1)
    actual = ours(denoise, z, LINEAR, 1000, lambda: torch.randn(z.shape, generator=draws))
    torch.testing.assert_close(actual, expected, atol=2e-3, rtol=1e-3)


def test_euler_is_ddim_on_a_flow() -> None:
    z = normal(4, 3, 1, 1, 1)
    denoise = gaussian(FLOW)
    expected = z.double()
    times = [*FLOW.times(10), 0.0]
    for t, after in pairwise(times):
        velocity = (expected - denoise(expected, t)) / (t / 1000)
        expected = expected + (after - t) / 1000 * velocity
    for sample in (euler, ddim):
        torch.testing.assert_close(sample(denoise, z.double(), FLOW, 10, forbidden), expected)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_evaluations_are_counted_and_times_are_the_schedule(name: str, steps: int) -> None:
    seen: list[float] = []

    def denoise(z_t: torch.Tensor, t: float) -> torch.Tensor:
        seen.append(t)
        return torch.zeros_like(z_t)

    z = normal(1, 1, 2, 2, 2)
    out = SAMPLERS[name](denoise, z, FLOW, steps, lambda: z)
    assert len(seen) == (2 * steps - 1 if name == "heun" else steps)
    assert sorted(set(seen), reverse=True) == (FLOW.multistep_times if name == "dpmpp" else FLOW.times)(steps)
    assert seen == sorted(seen, reverse=True)
    assert torch.isfinite(out).all()


def test_a_rounded_noise_prediction_does_no_harm_under_the_cosine_schedule() -> None:
    """bfloat16 is wrong by up to 0.4 percent; divided by an alpha of 5e-5 that would be 80 standard deviations."""
    process = build_process(ProcessConfig(schedule="cosine", target="noise"))
    exact = gaussian(process)

    def denoise(z_t: torch.Tensor, t: float) -> torch.Tensor:
        alpha, sigma = process.at(t)
        eps_hat = ((z_t - alpha * exact(z_t, t)) / sigma).bfloat16().float()
        return process.clean(eps_hat, z_t, torch.full((len(z_t),), t))

    z = normal(4000, 3, 1, 1, 1)
    rounded, wanted = (ddim(denoiser, z, process, 25, forbidden) for denoiser in (denoise, exact))
    assert (rounded - wanted).square().mean().sqrt() < 0.1


def test_pairs_that_cannot_be_sampled_are_refused() -> None:
    for name in FOR_FLOWS:
        with pytest.raises(InputError, match="use ddpm, ddim, dpmpp"):
            check_sampler(name, LINEAR, 10)
        with pytest.raises(InputError, match="use ddpm, ddim, dpmpp"):
            SAMPLERS[name](gaussian(LINEAR), normal(1, 3, 1, 1, 1), LINEAR, 10, forbidden)
    with pytest.raises(InputError, match="--steps 1001: the schedule has 1000"):
        check_sampler("ddim", LINEAR, 1001)
    assert samplers_for(LINEAR) == ["ddpm", "ddim", "dpmpp"]
    assert samplers_for(FLOW) == list(SAMPLERS)
    for process in (LINEAR, FLOW):
        check_sampler(DEFAULT, process, 25)
    for name in SAMPLERS:
        check_sampler(name, FLOW, 2000)


@pytest.mark.parametrize("name", ["ddpm", "dpmpp"])
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    """Each has a generator of its own, from which its noises come in order."""

    def drawn(seeds: list[int]) -> torch.Tensor:
        draws = [generator(seed) for seed in seeds]

        def draw() -> torch.Tensor:
            return torch.stack([torch.randn(1, 2, 2, 2, generator=own) for own in draws])

        return SAMPLERS[name](mixture(LINEAR), draw(), LINEAR, 20, draw)

    together = drawn([0, 1, 2, 3])
    assert torch.equal(drawn([2]), together[2:3])
    assert torch.equal(drawn([3, 1]), together[[3, 1]])
    assert not torch.equal(together[0], together[1])


class StandIn(nn.Module):
    """The DiT in a few lines: the prediction depends on latent, time, class, covariates and side."""

    null_class = 2

    def __init__(self) -> None:
        super().__init__()
        self.label, self.time, self.side = nn.Embedding(3, 6), nn.Linear(1, 6), nn.Embedding(3, 6)
        self.covariate, self.mix = nn.Linear(2, 6), nn.Linear(3, 3)
        self.forwards: list[int] = []

    def forward(
        self,
        z_t: torch.Tensor,
        t: torch.Tensor,
        y: torch.Tensor,
        covariates: torch.Tensor | None,
        side: torch.Tensor | None,
    ) -> torch.Tensor:
        self.forwards.append(len(z_t))
        assert len(z_t) == len(t) == len(y)
        cond = torch.sin(self.time(t[:, None].float() / 100)) + self.label(y)
        if covariates is not None:
            cond = cond + self.covariate(torch.where(covariates.isnan(), -1.0, covariates))
        if side is not None:
            cond = cond + self.side(side)
        shift, scale = cond[:, :, None, None, None].chunk(2, dim=1)
        return self.mix(z_t.movedim(1, -1)).movedim(-1, 1) * (1 + scale) + shift


@pytest.fixture
def network() -> StandIn:
    torch.manual_seed(0)
    return StandIn().requires_grad_(False)


@pytest.mark.parametrize("process", [LINEAR, FLOW], ids=["diffusion", "flow"])
def test_guidance_mixes_all_channels_in_one_forward(network: StandIn, process: Process) -> None:
    z, y, ages = normal(2, 3, 4, 4, 4), torch.tensor([0, 1]), torch.tensor([[0.5, math.nan], [-2.0, 1.0]])
    conditional = guided(network, process, y, covariates=ages)(z, 700)
    unconditional = guided(network, process, torch.tensor([2, 2]), covariates=ages)(z, 700)
    network.forwards.clear()
    mixed = guided(network, process, y, guidance=3.0, covariates=ages)(z, 700)
    assert network.forwards == [4]
    torch.testing.assert_close(mixed, unconditional + 3 * (conditional - unconditional), atol=1e-5, rtol=1e-5)
    assert all(not torch.allclose(mixed[:, c], conditional[:, c]) for c in range(3))


def test_guidance_is_away_from_neither_class_nor_side(network: StandIn) -> None:
    z, y, side = normal(3, 3, 4, 4, 4), torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1])
    conditional = guided(network, LINEAR, y, side=side)(z, 700)
    unconditional = guided(network, LINEAR, torch.full_like(y, 2), side=torch.full_like(side, 2))(z, 700)
    mixed = guided(network, LINEAR, y, side=side, guidance=3.0)(z, 700)
    torch.testing.assert_close(mixed, unconditional + 3 * (conditional - unconditional), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(conditional, guided(network, LINEAR, y, side=side.flip(0))(z, 700))


def test_outside_its_interval_guidance_costs_nothing(network: StandIn) -> None:
    z, y = normal(2, 3, 4, 4, 4), torch.tensor([0, 1])
    plain, denoise = guided(network, LINEAR, y), guided(network, LINEAR, y, guidance=3.0, interval=(0.2, 0.8))
    for t, batch in ((900, 2), (800, 4), (500, 4), (200, 4), (100, 2)):
        network.forwards.clear()
        z_hat = denoise(z, t)
        assert network.forwards == [batch]
        assert torch.allclose(z_hat, plain(z, t), atol=1e-6) == (batch == 2)


@pytest.mark.parametrize("process", [LINEAR, FLOW])
def test_a_guide_stands_for_the_null_class(network: StandIn, process: Process) -> None:
    """Under the same conditions, with a target of its own, and inside the interval alone."""
    z, y, ages = normal(2, 3, 4, 4, 4), torch.tensor([0, 1]), torch.tensor([[0.5, math.nan], [-2.0, 1.0]])
    worse = StandIn(), build_process(ProcessConfig(schedule="flow" if process.is_flow else "linear", target="x0"))
    own, other = (guided(*model, y, covariates=ages)(z, 700) for model in ((network, process), worse))
    assert not torch.allclose(own, other)
    denoise = guided(network, process, y, guidance=2.5, covariates=ages, guide=Guide(*worse), interval=(0.3, 0.8))
    torch.testing.assert_close(denoise(z, 700), other + 2.5 * (own - other), atol=1e-5, rtol=1e-5)
    network.forwards.clear()
    torch.testing.assert_close(denoise(z, 900), guided(network, process, y, covariates=ages)(z, 900))
    assert network.forwards == [2, 2]


@pytest.mark.slow
def test_the_real_network_gives_each_sample_alone_what_it_gives_it_in_a_batch() -> None:
    torch.manual_seed(0)
    network = DiT(ModelConfig(dim=32, depth=2, heads=1, patch=(2, 2, 2), covariates=("age",)), (3, 4, 5, 4)).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    z, y, ages = normal(3, 3, 4, 5, 4), torch.tensor([0, 1, 1]), torch.tensor([[0.3], [math.nan], [1.2]])
    for process in (LINEAR, FLOW):

        def drawn(rows: slice, process: Process = process) -> torch.Tensor:
            denoise = guided(network, process, y[rows], guidance=2.0, interval=(0.0, 0.6), covariates=ages[rows])
            return SAMPLERS["dpmpp"](denoise, z[rows], process, 4, forbidden)

        together = drawn(slice(0, 3))
        assert together.dtype == torch.float32
        torch.testing.assert_close(drawn(slice(1, 2)), together[1:2], atol=1e-4, rtol=1e-4)
