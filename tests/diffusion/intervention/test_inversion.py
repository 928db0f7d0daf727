"""Inversion of DDIM: against flows known in closed form, exact at any number of steps, changes where means differ."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion.config import ModelConfig, ProcessConfig
from diffusion.intervention.inversion import fixed_point, generate, invert
from diffusion.model import DiT
from diffusion.process import Process, build_process
from diffusion.sampler import Denoise, ddim, guided

SHAPE = (1, 4, 4, 4)
SIZE = 64
VARIANCES = (400.0, 9.0, 0.3)
"""Along three axes over a rest of 0.5: people differ most in what all of a latent shares."""
REST = 0.5
PROCESSES = {
    "diffusion": ProcessConfig(target="velocity"),
    "noise": ProcessConfig(target="noise"),
    "cosine": ProcessConfig(schedule="cosine", target="velocity"),
    "flow": ProcessConfig(schedule="flow", target="velocity"),
}


def network(process: Process, planted: torch.Tensor | None = None) -> DiT:
    """A DiT whose transformer is silent: the exact denoiser of a Gaussian, whose class 1 is `planted` off class 0."""
    model = DiT(ModelConfig(dim=12, depth=1, heads=1, patch=(2, 2, 2), linear_rank=3), SHAPE, process).eval()
    start = model.start
    start.axes.copy_(torch.linalg.qr(torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(0)))[0].T)
    start.variances.copy_(torch.tensor(VARIANCES))
    start.spectrum.fill_(REST)
    start.means.copy_(torch.randn(1, SIZE, generator=torch.Generator().manual_seed(1)).expand(3, -1))
    if planted is not None:
        start.means[1] += planted.flatten()
    return model


def latents(model: DiT, count: int = 3) -> torch.Tensor:
    """Draws of the Gaussian of class 0."""
    generator = torch.Generator().manual_seed(2)
    z = math.sqrt(REST) * torch.randn(count, SIZE, generator=generator)
    z = z - z @ model.start.axes.T @ model.start.axes
    along = torch.randn(count, 3, generator=generator) * model.start.variances.sqrt()
    return (model.start.means[0] + z + along @ model.start.axes).view(count, *SHAPE)


def of_class(model: DiT, process: Process, label: int, count: int = 3) -> Denoise:
    return guided(model, process, torch.full((count,), label))


def rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def exact_noise(model: DiT, z: torch.Tensor, process: Process) -> torch.Tensor:
    """The probability flow of a Gaussian: deviations along an axis of variance s follow their standard deviation."""
    alpha, sigma = process.at(process.multistep_times(10)[0])
    start, deviation = model.start, (z.flatten(1) - model.start.means[0])
    along = deviation @ start.axes.T
    grown = [math.sqrt((alpha**2 * s + sigma**2) / s) for s in (*VARIANCES, REST)]
    rest = (deviation - along @ start.axes) * grown[3]
    return (alpha * start.means[0] + rest + along * torch.tensor(grown[:3]) @ start.axes).view_as(z)


@pytest.mark.parametrize("name", PROCESSES)
def test_inversion_tends_to_the_known_flow_and_is_undone_at_every_number_of_steps(name: str) -> None:
    process = build_process(PROCESSES[name])
    model = network(process)
    z, denoise = latents(model), of_class(model, process, 0)
    gaps = []
    for steps in (5, 20, 80):
        noise = invert(denoise, z, process, steps)
        assert rms(generate(denoise, noise, process, steps) - z) < 3e-5 * rms(z)
        gaps.append(rms(noise - exact_noise(model, z, process)))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]
    assert gaps[2] < 0.1


def test_running_ddim_backwards_is_a_thousand_times_less_exact() -> None:
    process = build_process(PROCESSES["diffusion"])
    model = network(process)
    z, denoise, times = latents(model), of_class(model, process, 0), process.multistep_times(20)
    noise = z
    for t, before in zip(times[::-1], [times[-1], *times[:0:-1]], strict=True):  # the velocity of the less noisy end
        alpha, sigma = process.at(t)
        velocity = (process.at(before)[0] * noise - denoise(noise, before)) / process.at(before)[1]
        z_hat = process.at(before)[0] * noise - process.at(before)[1] * velocity
        noise = alpha * z_hat + sigma * (process.at(before)[1] * noise + process.at(before)[0] * velocity)
    backwards = rms(generate(denoise, noise, process, 20) - z)
    exact = rms(generate(denoise, invert(denoise, z, process, 20), process, 20) - z)
    assert backwards > 1000 * exact


def test_a_planted_difference_of_means_is_found_at_its_place_and_nowhere_else() -> None:
    process = build_process(PROCESSES["diffusion"])
    planted = torch.zeros(SHAPE)
    planted[0, 1:3, 2, 1] = 0.8
    model = network(process, planted)
    model.start.variances.fill_(REST)  # white: what differs at a place says nothing of others
    z = latents(network(process))
    noise = invert(of_class(model, process, 0), z, process, 10)
    change = generate(of_class(model, process, 1), noise, process, 10) - z
    place = planted != 0
    assert change[:, place].mean() == pytest.approx(0.8, rel=0.02)
    assert change[:, ~place].abs().max() < 1e-4
    null = generate(of_class(model, process, 0), noise, process, 10) - z
    assert null.abs().max() < 1e-4


def test_guidance_scales_the_change_and_is_undone_too() -> None:
    process = build_process(PROCESSES["diffusion"])
    model = network(process, torch.full(SHAPE, 0.5))
    z, changes = latents(model), {}
    for w in (1.0, 3.0):
        own, other = (guided(model, process, torch.full((3,), label), guidance=w) for label in (0, 1))
        noise = invert(own, z, process, 10)
        assert rms(generate(own, noise, process, 10) - z) < 1e-4 * rms(z)
        changes[w] = float((generate(other, noise, process, 10) - z).mean())
    assert changes[3.0] == pytest.approx(3 * changes[1.0], rel=0.05)


def test_generation_is_ddim_where_both_have_the_same_times() -> None:
    process = build_process(PROCESSES["flow"])
    model = network(process)
    noise, denoise = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(3)), of_class(model, process, 0)
    torch.testing.assert_close(
        generate(denoise, noise, process, 7), ddim(denoise, noise, process, 7, lambda: torch.empty(0))
    )


def test_a_fixed_point_is_found_where_plain_iteration_diverges() -> None:
    slopes = torch.tensor([-3.0, 0.5, 0.1]).expand(2, 3)
    found = fixed_point(lambda z: slopes * z + 1, torch.zeros(2, 3))
    torch.testing.assert_close(found, 1 / (1 - slopes))
