"""Samplers: pure functions that turn noise into latents, with one signature and noise passed in.

    sample(denoise, z, y, process, steps, draw) -> z

`denoise(z_t, t, y)` returns the clean latent the network believes in. `draw()` returns fresh standard normal noise,
from one generator per sample, so that a sample does not depend on which others share its batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from tqdm import tqdm

from diffusion.process import Process

Denoise = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Draw = Callable[[], torch.Tensor]


def guided(network: nn.Module, process: Process, null_class: int, guidance: float) -> Denoise:
    """The network as a `Denoise`, with classifier-free guidance on all channels and one batched forward.

    guidance 1 is the plain conditional model; w mixes unconditional + w (conditional - unconditional) (Ho and Salimans
    2022, https://arxiv.org/abs/2207.12598, with w = 1 + their w). The prediction targets are affine in each other at a
    given z_t, so guiding the clean latent is guiding any of them.
    """

    def denoise(z_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if guidance == 1.0:
            return process.clean(network(z_t, t, y), z_t, t)
        twice = torch.cat([z_t, z_t])
        labels = torch.cat([y, torch.full_like(y, null_class)])
        prediction = process.clean(network(twice, t.repeat(2), labels), twice, t.repeat(2))
        conditional, unconditional = prediction.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    return denoise


def spaced(timesteps: int, steps: int) -> list[int]:
    """`steps` timesteps from the last one down, evenly spaced and ending at 0.

    Raises:
        ValueError: more steps than the schedule has, or none.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"{steps} sampling steps, the schedule has {timesteps}")
    if steps == 1:
        return [timesteps - 1]
    return [round((timesteps - 1) * (steps - 1 - k) / (steps - 1)) for k in range(steps)]


@torch.no_grad()
def ddpm(
    denoise: Denoise,
    z: torch.Tensor,
    y: torch.Tensor,
    process: Process,
    steps: int,
    draw: Draw,
    desc: str | None = None,
) -> torch.Tensor:
    """Ancestral sampling: each step draws from the posterior q(z_s | z_t, z_hat) (DDPM equations 6 and 7).

    With fewer steps than the schedule it uses the posterior between the kept timesteps.

    Args:
        denoise: clean latent from (z_t, t, y).
        z: standard normal noise (B, C, D, H, W).
        y: classes (B,).
        process: schedule.
        steps: network evaluations.
        draw: fresh noise in the shape of `z`.
        desc: title of a progress bar; none without.
    """
    times = spaced(process.timesteps, steps)
    bars = [float(process.alphas_bar[t]) for t in times] + [1.0]
    for k, t in enumerate(tqdm(times, desc=desc, leave=False, disable=desc is None)):
        z_hat = denoise(z, torch.full_like(y, t), y)
        now, after = bars[k], bars[k + 1]
        ratio = now / after  # alpha_t^2 / alpha_s^2: what one coarse step keeps of the signal's variance
        mean = (after**0.5 * (1 - ratio) * z_hat + ratio**0.5 * (1 - after) * z) / (1 - now)
        variance = (1 - ratio) * (1 - after) / (1 - now)
        z = mean + variance**0.5 * draw() if k < len(times) - 1 else mean
    return z


@torch.no_grad()
def ddim(
    denoise: Denoise,
    z: torch.Tensor,
    y: torch.Tensor,
    process: Process,
    steps: int,
    draw: Draw,
    desc: str | None = None,
) -> torch.Tensor:
    """Deterministic DDIM (Song et al. 2021, https://arxiv.org/abs/2010.02502, equation 12, eta 0); same arguments."""
    del draw  # one signature for all samplers; this one needs no noise
    times = spaced(process.timesteps, steps)
    bars = [float(process.alphas_bar[t]) for t in times] + [1.0]
    for k, t in enumerate(tqdm(times, desc=desc, leave=False, disable=desc is None)):
        z_hat = denoise(z, torch.full_like(y, t), y)
        now, after = bars[k], bars[k + 1]
        eps_hat = (z - now**0.5 * z_hat) / (1 - now) ** 0.5
        z = after**0.5 * z_hat + (1 - after) ** 0.5 * eps_hat
    return z


SAMPLERS: dict[str, Callable[..., torch.Tensor]] = {"ddpm": ddpm, "ddim": ddim}
