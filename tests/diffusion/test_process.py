"""Noising processes: closed forms, agreement with MONAI's schedulers, consistency of targets, weights and times."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks import schedulers

from diffusion.config import ProcessConfig
from diffusion.process import Flow, Process, betas, build_process
from diffusion.sampler import posterior, toward
from runtime.errors import InputError

SCHEDULES = ("linear", "scaled_linear", "cosine")
TARGETS = ("noise", "x0", "velocity")
PAIRS = [(schedule, target) for schedule in SCHEDULES for target in TARGETS] + [("flow", "x0"), ("flow", "velocity")]
MONAI_SCHEDULES = {
    "linear": {"schedule": "linear_beta", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195},
    "cosine": {"schedule": "cosine"},
}
MONAI_TARGETS = {"noise": "epsilon", "x0": "sample", "velocity": "v_prediction"}


def process_of(schedule: str, target: str = "velocity", **settings) -> Process:
    return build_process(ProcessConfig(schedule=schedule, target=target, **settings))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_times(process: Process) -> torch.Tensor:
    """Six times from little noise to much, on the process's scale."""
    return process.spread_times(torch.tensor([0.0, 0.01, 0.25, 0.5, 0.75, 0.9]))


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_noising_and_velocity_equal_monai(schedule: str) -> None:
    """All 1000 timesteps, to 1e-5; MONAI multiplies its alphas up in float32, we in float64."""
    theirs = schedulers.DDPMScheduler(1000, **MONAI_SCHEDULES[schedule])
    ours, t = process_of(schedule), torch.arange(1000)
    z, eps = normal(1000, 2, 1, 2, 2), normal(1000, 2, 1, 2, 2, seed=1)
    close(ours.alphas_bar.float(), theirs.alphas_cumprod)
    close(ours.noised(z, eps, t), theirs.add_noise(z, eps, t))
    close(ours.wanted(z, eps, t), theirs.get_velocity(z, eps, t))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_step_equals_monai(schedule: str, target: str) -> None:
    """DDPM's and DDIM's step to t - 1 from the same prediction and noise, to 1e-5.

    MONAI is given its schedule in float64: its float32 rounds 1 - alpha^2 to 3 digits at t = 0. Not above 900, where
    a noise prediction's clean latent is a difference divided by a small alpha, exact in no float32.
    """
    settings = {**MONAI_SCHEDULES[schedule], "prediction_type": MONAI_TARGETS[target], "clip_sample": False}
    ddpm, ddim = schedulers.DDPMScheduler(1000, **settings), schedulers.DDIMScheduler(1000, **settings)
    ours = process_of(schedule, target)
    for theirs in (ddpm, ddim):
        theirs.betas = betas(schedule, 1000)
        theirs.alphas, theirs.alphas_cumprod = 1.0 - theirs.betas, ours.alphas_bar
    z, eps, noise = normal(1, 2, 4, 4, 4), normal(1, 2, 4, 4, 4, seed=1), normal(1, 2, 4, 4, 4, seed=2)
    for t in (1, 20, 400, 900):
        time = torch.tensor([t])
        z_t = ours.noised(z, eps, time)
        prediction = ours.wanted(z, eps, time) + 0.1 * normal(1, 2, 4, 4, 4, seed=3) * ours.at(t)[0]
        z_hat, now, after = ours.clean(prediction, z_t, time), ours.at(t), ours.at(t - 1)
        mean, std = posterior(z_t, z_hat, now, after)
        close(mean + std * noise, ddpm.step(prediction, t, z_t, torch.Generator().manual_seed(2))[0])
        close(toward(z_t, z_hat, now, after), ddim.step(prediction, t, z_t)[0])


def test_flow_equals_monai() -> None:
    """Noising, sampling times and one step, to 1e-5.

    MONAI's time is 1 at noise as ours is, but its velocity points from noise to latent, the negative of ours. Its
    times are rounded to whole numbers and float16, so those of 8 steps are compared, which are exact.
    """
    theirs = schedulers.RFlowScheduler(1000, use_discrete_timesteps=False)
    ours = process_of("flow")
    z, eps, t = normal(3, 2, 4, 4, 4), normal(3, 2, 4, 4, 4, seed=1), torch.tensor([1.0, 370.5, 1000.0])
    close(ours.noised(z, eps, t), theirs.add_noise(z, eps, t))
    theirs.set_timesteps(8)
    assert ours.times(8) == theirs.timesteps.tolist()
    z_t, velocity = ours.noised(z, eps, torch.full((3,), 750.0)), normal(3, 2, 4, 4, 4, seed=2)
    z_hat = ours.clean(velocity, z_t, torch.full((3,), 750.0))
    stepped, clean = theirs.step(-velocity, 750, z_t, 625)
    close(z_hat, clean)
    close(toward(z_t, z_hat, ours.at(750.0), ours.at(625.0)), stepped)


def test_shifted_flow_times_equal_monai() -> None:
    """MONAI's shift is the ratio of the sides of latent and reference, 2 for 64^3 and 32^3; its times are float16."""
    theirs = schedulers.RFlowScheduler(1000, use_discrete_timesteps=False, use_timestep_transform=True)
    theirs.set_timesteps(10, input_img_size_numel=64**3)
    assert process_of("flow", shift=2.0).times(10) == pytest.approx(theirs.timesteps.tolist(), abs=0.5)


@pytest.mark.parametrize(("schedule", "target"), PAIRS)
def test_the_right_prediction_gives_back_the_clean_latent(schedule: str, target: str) -> None:
    process = process_of(schedule, target)
    t = some_times(process)
    z, eps = normal(6, 2, 3, 3, 3), normal(6, 2, 3, 3, 3, seed=1)
    z_t, wanted = process.noised(z, eps, t), process.wanted(z, eps, t)
    close(process.clean(wanted, z_t, t), z, 1e-3)
    assert torch.equal(process.loss(wanted, z, eps, t), torch.zeros(6))
    close(process.loss(wanted + 2.0, z, eps, t), torch.full((6,), 4.0))


@pytest.mark.parametrize("schedule", [*SCHEDULES, "flow"])
def test_coefficients_are_the_numbers_of_one_time(schedule: str) -> None:
    process = process_of(schedule)
    t = some_times(process)
    alpha, sigma = process.coefficients(t)
    assert alpha.shape == sigma.shape == (6, 1, 1, 1, 1)
    assert alpha.dtype == sigma.dtype == torch.float32
    for k, time in enumerate(t.tolist()):
        assert (alpha[k].item(), sigma[k].item()) == pytest.approx(process.at(time), abs=1e-7)
    total = alpha + sigma if process.is_flow else alpha**2 + sigma**2
    close(total, torch.ones(6, 1, 1, 1, 1), 1e-6)


def test_min_snr_makes_the_targets_losses_equal() -> None:
    """Each weighted loss is min(snr, 5) times the error of the clean latent (Hang et al. 2023, section 3.4)."""
    z, eps, wrong = (normal(5, 2, 3, 3, 3, seed=seed) for seed in range(3))
    t = torch.tensor([50, 200, 400, 600, 800])
    for target in TARGETS:
        process = process_of("linear", target, min_snr=5.0)
        alpha, sigma = process.coefficients(t)
        z_t, z_hat = process.noised(z, eps, t), z + wrong
        prediction = process.wanted(z_hat, (z_t - alpha * z_hat) / sigma, t)
        expected = (alpha / sigma).square().view(-1).clamp(max=5.0) * wrong.square().flatten(1).mean(1)
        close(process.loss(prediction, z, eps, t), expected, 1e-3)


def test_logit_normal_times_follow_their_law() -> None:
    """Median and spread of the logit of 20,000 times; the shift a adds log a to the logit."""
    process = process_of("flow", time_mean=-0.5, time_std=0.8, shift=3.0)
    t = process.draw_times(20_000, torch.Generator().manual_seed(0), "cpu")
    assert t.dtype == torch.float32
    assert t.min() > 0
    assert t.max() <= 1000
    logit = torch.logit(t.double() / 1000)
    assert logit.mean() == pytest.approx(-0.5 + math.log(3.0), abs=0.02)
    assert logit.std() == pytest.approx(0.8, abs=0.02)


def test_even_training_times() -> None:
    """Deviation 0 draws a flow's times evenly, and a diffusion's always are: means and extremes of 20,000."""
    for process in (process_of("flow", time_std=0.0), process_of("linear")):
        t = process.draw_times(20_000, torch.Generator().manual_seed(0), "cpu")
        assert t.double().mean() == pytest.approx(500, abs=10)
        assert t.max() > 995
        assert (0 < t.min() < 5) if process.is_flow else (t.min() == 0 and t.dtype == torch.int64)


def test_spread_times_cover_the_range_and_stay_in_it() -> None:
    places = torch.cat([torch.arange(1000) / 1000 + 5e-4, torch.tensor([0.0, 1 - 2.0**-24])])
    diffusion = process_of("linear").spread_times(places)
    assert diffusion.tolist() == [*range(1000), 0, 999]
    flow = process_of("flow", shift=3.0).spread_times(places)
    assert flow.min() > 0
    assert flow.max() <= 1000
    close(flow[:1000], torch.arange(1000) + 0.5, 1e-4)


def test_sampling_times() -> None:
    process = process_of("linear")
    assert process.times(1000) == list(range(999, -1, -1))
    assert process.times(3) == [999, 500, 0]
    assert process.times(1) == [999]
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=f"--steps {steps}: "):
            process.times(steps)
    assert process_of("flow").times(4) == [1000, 750, 500, 250]
    assert process_of("flow", shift=3.0).times(2) == [1000, 750]
    assert len(process_of("flow").times(1001)) == 1001
    with pytest.raises(ValueError, match="--steps 0: "):
        process_of("flow").times(0)


def test_a_noise_target_is_not_sampled_where_alpha_vanishes() -> None:
    """Cosine's alpha falls to 5e-5, and a noise prediction's error would be divided by it."""
    assert process_of("cosine").at(999)[0] < 1e-4
    first = process_of("cosine", "noise").times(10)[0]
    assert 990 < first < 999
    assert process_of("cosine").at(first)[0] >= 0.005 > process_of("cosine").at(first + 1)[0]
    assert process_of("cosine", "velocity").times(10)[0] == process_of("cosine", "noise").times(1000)[0] == 999
    assert process_of("linear", "noise").times(10)[0] == process_of("scaled_linear", "noise").times(10)[0] == 999


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_multistep_times_are_even_in_the_log_of_the_signal_to_noise_ratio(schedule: str) -> None:
    """To the rounding to whole timesteps, which is coarse only next to the clean latent; never one time twice."""
    process = process_of(schedule)
    times = process.multistep_times(15)
    assert times[0] >= 990
    assert times[-1] == 0
    lambdas = [math.log(alpha / sigma) for alpha, sigma in map(process.at, times)]
    even = torch.linspace(lambdas[0], lambdas[-1], 15)
    torch.testing.assert_close(torch.tensor(lambdas), even, atol=0.3, rtol=0)
    for steps in (1, 2, 100, 400, 998, 1000):
        times = process.multistep_times(steps)
        assert len(set(times)) == steps
        assert times == sorted(times, reverse=True)
        assert 0 <= times[-1] <= times[0] <= 999
    with pytest.raises(ValueError, match="--steps 1001: "):
        process.multistep_times(1001)
    assert process_of("flow").multistep_times(10) == process_of("flow").times(10)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"schedule": "flow", "target": "noise"}, ["target noise"]),
        ({"schedule": "flow", "target": "x0", "min_snr": 5.0, "shift": 0.0}, ["min_snr", "shift 0.0, expected"]),
        ({"shift": 2.0, "time_mean": -1.0}, ["shift 2.0 with schedule linear", "time_mean -1.0"]),
        ({"timesteps": 0, "min_snr": math.nan}, ["timesteps 0, expected a finite number, at least 1", "min_snr nan"]),
    ],
)
def test_settings_that_cannot_be_are_refused_together(settings: dict, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        build_process(ProcessConfig(**settings))
    assert all(word in str(error.value) for word in words)


def test_the_usual_settings_are_accepted() -> None:
    assert isinstance(process_of("flow", min_snr=0.0, shift=3.0), Flow)
    for schedule in SCHEDULES:
        assert process_of(schedule, min_snr=5.0).timesteps == 1000


def test_noising_compiles_without_a_break() -> None:
    """The tables are copied to a device once, in whatever graph asks first."""

    def noised(z: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return process.clean(process.wanted(z, eps, t), process.noised(z, eps, t), t)

    z, eps = normal(2, 2, 3, 3, 3), normal(2, 2, 3, 3, 3, seed=1)
    for schedule, t in (("linear", torch.tensor([3, 700])), ("flow", torch.tensor([3.0, 700.0]))):
        process = process_of(schedule)
        close(torch.compile(noised, backend="eager", fullgraph=True)(z, eps, t), noised(z, eps, t))
