"""Samplers: pure functions that turn noise into latents, with one signature and noise passed in.

    sample(denoise, z, process, steps, draw) -> z

`denoise(z_t, t)` returns the clean latent that the network believes in; `guided` binds network and conditions to one.
`draw()` returns fresh standard normal noise, from one generator per sample, so that a sample does not depend on which
others share its batch. A sampler's coefficients are float64 numbers, its latents stay in the precision of `z`.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from diffusion.config import NO_SIDE
from diffusion.model import DiT
from diffusion.process import Process
from runtime.errors import InputError

Denoise = Callable[[torch.Tensor, float], torch.Tensor]
Draw = Callable[[], torch.Tensor]
Point = tuple[float, float]
"""alpha and sigma at one time."""
CLEAN: Point = (1.0, 0.0)


class Guide(NamedTuple):
    """A worse model of the same latents, away from which another is guided (Karras et al. 2024,
    https://arxiv.org/abs/2406.02507): one of fewer steps, fewer weights or both.
    """

    network: DiT
    process: Process


def guided(
    network: DiT,
    process: Process,
    y: torch.Tensor,
    *,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    covariates: torch.Tensor | None = None,
    side: torch.Tensor | None = None,
    guide: Guide | None = None,
) -> Denoise:
    """The network as a `Denoise`, with classifier-free guidance on all channels and one batched forward, or with
    autoguidance.

    Guidance w gives unconditional + w (conditional - unconditional) (Ho and Salimans 2022,
    https://arxiv.org/abs/2207.12598, with w = 1 + their w). The prediction targets are affine in each other at a given
    z_t, so guiding the clean latent is guiding any of them. With a `guide`, its prediction under the same conditions
    stands for the unconditional one.

    Args:
        network, process: in evaluation mode; that it was trained with.
        y: classes (B,).
        guidance: w; 1 is the plain conditional model.
        interval: shares of t / timesteps between which guidance acts; outside, only the conditional half runs
            (Kynkäänniemi et al. 2024, https://arxiv.org/abs/2404.07724).
        covariates: (B, K), NaN where unknown. Both halves are given them: guidance is towards the class.
        side: (B,) by `config.SIDE_CODES`. It is the conditional half's alone: guidance is towards class and side.
        guide: in evaluation mode; of the same latents and noise levels, whatever its target.
    """
    one = (y, covariates, side)
    both = (
        torch.cat([y, torch.full_like(y, network.null_class)]),
        None if covariates is None else torch.cat([covariates, covariates]),
        None if side is None else torch.cat([side, torch.full_like(side, NO_SIDE)]),
    )
    own = Guide(network, process)
    # A process copies its tables to a device at their first use, which must not be inside a captured CUDA graph.
    for model in (own, guide or own):
        model.process.coefficients(time_tensor(0, 1, model.process, y.device))

    def clean(z_t: torch.Tensor, t: float, conditions: tuple[torch.Tensor | None, ...], model: Guide) -> torch.Tensor:
        times = time_tensor(t, len(z_t), model.process, z_t.device)
        return model.process.clean(model.network(z_t, times, *conditions), z_t, times)

    def denoise(z_t: torch.Tensor, t: float) -> torch.Tensor:
        if guidance == 1.0 or not interval[0] <= t / process.timesteps <= interval[1]:
            return clean(z_t, t, one, own)
        if guide is None:
            conditional, other = clean(torch.cat([z_t, z_t]), t, both, own).chunk(2)
        else:
            conditional, other = clean(z_t, t, one, own), clean(z_t, t, one, guide)
        return other + guidance * (conditional - other)

    return denoise


def time_tensor(t: float, count: int, process: Process, device: torch.device) -> torch.Tensor:
    """One time for `count` latents as the network takes it: float32 for a flow, else int64.

    Filled on the device: a copy to a GPU would wait, at every step, until it has done all steps before.
    """
    return torch.full((count,), t, dtype=torch.float32 if process.is_flow else torch.int64, device=device)


def toward(z: torch.Tensor, z_hat: torch.Tensor, now: Point, after: Point) -> torch.Tensor:
    """From z at `now` to `after` with the clean latent and the noise it implies held fixed.

    DDIM's step (Song et al. 2021, https://arxiv.org/abs/2010.02502, equation 12, eta 0), Euler's on a flow, and the
    first-order step of DPM-Solver++ are this one; the noise is written out, so that no logarithm and no division by
    alpha is left.
    """
    keep = after[1] / now[1]
    return keep * z + (after[0] - keep * now[0]) * z_hat


def posterior(z: torch.Tensor, z_hat: torch.Tensor, now: Point, after: Point) -> tuple[torch.Tensor, float]:
    """Mean and standard deviation of z at `after`, given z at `now` and the clean latent.

    Source: Kingma et al. 2021 (https://arxiv.org/abs/2107.00630), appendix A.2, for any alpha and sigma; equations 6
    and 7 of DDPM are the case of one timestep.
    """
    keep = now[0] / after[0]
    added = now[1] ** 2 - keep**2 * after[1] ** 2  # variance of the noise that comes on the way from `after` to `now`
    share = added / now[1] ** 2
    return keep * (after[1] / now[1]) ** 2 * z + after[0] * share * z_hat, math.sqrt(share) * after[1]


def half_log_snr(point: Point) -> float:
    """lambda = log(alpha / sigma), infinite at either end."""
    alpha, sigma = point
    if alpha == 0.0:
        return -math.inf
    return math.inf if sigma == 0.0 else math.log(alpha / sigma)


def transitions(process: Process, times: list[float]) -> Iterable[tuple[float, Point, Point]]:
    """Each time with its alpha and sigma and the next ones."""
    points = [*map(process.at, times), CLEAN]
    return zip(times, points[:-1], points[1:], strict=True)


@torch.no_grad()
def ddpm(denoise: Denoise, z: torch.Tensor, process: Process, steps: int, draw: Draw) -> torch.Tensor:
    """Ancestral sampling: each step draws from the posterior of the next time given z_t and z_hat.

    Starts from z, standard normal noise (B, C, D, H, W).
    """
    for t, now, after in transitions(process, process.times(steps)):
        z, std = posterior(z, denoise(z, t), now, after)
        if std > 0.0:
            z = z + std * draw()
    return z


@torch.no_grad()
def ddim(denoise: Denoise, z: torch.Tensor, process: Process, steps: int, draw: Draw) -> torch.Tensor:
    """Deterministic DDIM, first order; `draw` is not called."""
    for t, now, after in transitions(process, process.times(steps)):
        z = toward(z, denoise(z, t), now, after)
    return z


@torch.no_grad()
def dpmpp(denoise: Denoise, z: torch.Tensor, process: Process, steps: int, draw: Draw) -> torch.Tensor:
    """DPM-Solver++(2M), second order from one evaluation a step; `draw` is not called.

    Source: Lu et al. 2022 (https://arxiv.org/abs/2211.01095), algorithm 2. Steps next to an end where lambda is
    infinite are first order.
    """
    before, step_before = z, math.inf
    for t, now, after in transitions(process, process.multistep_times(steps)):
        z_hat = denoise(z, t)
        step = half_log_snr(after) - half_log_snr(now)
        slope = 0.0 if math.inf in (step, step_before) else step / (2.0 * step_before)
        z = toward(z, z_hat + slope * (z_hat - before), now, after)
        before, step_before = z_hat.clone(), step  # a copy: a compiled network writes each output over the last
    return z


@torch.no_grad()
def euler(denoise: Denoise, z: torch.Tensor, process: Process, steps: int, draw: Draw) -> torch.Tensor:
    """Euler's method along a flow, first order; `draw` is not called."""
    check_sampler("euler", process, steps)
    return ddim(denoise, z, process, steps, draw)


@torch.no_grad()
def heun(denoise: Denoise, z: torch.Tensor, process: Process, steps: int, draw: Draw) -> torch.Tensor:
    """Heun's method along a flow, second order from two evaluations a step; `draw` is not called.

    The last step is Euler's: at time 0 the velocity does not follow from a clean latent.
    """
    check_sampler("heun", process, steps)
    times = process.times(steps)
    for (t, now, after), t_after in zip(transitions(process, times), [*times[1:], 0.0], strict=True):
        z_hat = denoise(z, t)
        ahead = toward(z, z_hat, now, after)
        if after == CLEAN:
            return ahead
        velocity = (z - z_hat) / now[1]
        velocity_ahead = (ahead - denoise(ahead, t_after)) / after[1]
        z = z + (after[1] - now[1]) * 0.5 * (velocity + velocity_ahead)
    return z


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpmpp": dpmpp, "euler": euler, "heun": heun}
FOR_FLOWS = ("euler", "heun")
DEFAULT = "dpmpp"
"""One evaluation a step, and second order on diffusions and flows alike."""


def samplers_for(process: Process) -> list[str]:
    """Samplers that suit a process."""
    return [name for name in SAMPLERS if process.is_flow or name not in FOR_FLOWS]


def check_sampler(name: str, process: Process, steps: int) -> None:
    """Refuses, before any work, a sampler that does not suit the process, and more steps than its schedule has."""
    fitting = samplers_for(process)
    if name not in fitting:
        raise InputError(f"--sampler {name} follows a flow; this process is a diffusion: use {', '.join(fitting)}")
    process.times(steps)
