"""From two checkpoints and a seed to a volume: the models, what they are asked for, and one batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from diffusion.checkpoint import LoadedDiffusion
from diffusion.covariates import standardise
from diffusion.model import DiT
from diffusion.sampler import SAMPLERS, check_sampler, guided, schedule
from diffusion.synthetic_folder import Settings
from diffusion.wanted import Wanted
from runtime import seeding
from runtime.device import Device
from runtime.errors import InputError
from VAE.checkpoint import LoadedVAE


@dataclass(frozen=True)
class Models:
    """Both checkpoints on their device."""

    vae: LoadedVAE
    diffusion: LoadedDiffusion
    device: Device


def check_pair(vae: LoadedVAE, diffusion: LoadedDiffusion) -> None:
    """Refuses a decoder that does not know the latents.

    Raises:
        InputError: the VAE is not the one that the latents came from, or its latents have another shape.
    """
    origin, shape = diffusion.space.statistics.vae, diffusion.model.latent_shape
    # Files of other programs do not say which VAE their latents came from; the shape is all there is to check.
    if origin not in ("", vae.hash):
        raise InputError(
            f"the VAE is checkpoint {vae.hash}, but the diffusion model was trained on latents of {origin}"
        )
    if tuple(vae.model.latent_shape(vae.grid.shape)) != tuple(shape):
        raise InputError(
            f"the VAE's latents are {tuple(vae.model.latent_shape(vae.grid.shape))}, those of the diffusion model "
            f"{tuple(shape)}"
        )


def check_schedule(diffusion: LoadedDiffusion, name: str, steps: int) -> None:
    """Refuses a sampler or a number of steps that the process does not have.

    Raises:
        InputError: that.
    """
    try:
        check_sampler(name, diffusion.process, steps)
    except ValueError as error:
        raise InputError(f"--sampler {name} --steps {steps}: {error}") from None


def check_guidance(diffusion: LoadedDiffusion, guidance: float, interval: tuple[float, float]) -> None:
    """Refuses guidance without a null class.

    Raises:
        InputError: that, or an interval that is none.
    """
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise InputError(f"--guidance-interval {interval[0]:g} {interval[1]:g}: expected 0 <= low <= high <= 1")
    if guidance != 1 and diffusion.label_dropout == 0:
        raise InputError(
            f"--guidance {guidance:g}: the model was trained without label dropout: it has no null class to guide "
            "against"
        )


def compile_network(network: DiT) -> None:
    """Compiles what runs at every step, for one batch shape, into CUDA graphs."""
    compiled = torch.compile(network.apply_condition, mode="reduce-overhead", dynamic=False)

    def apply_condition(*arguments: object) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(*arguments).clone()  # the graph's own output is overwritten by the next step

    network.apply_condition = apply_condition


@torch.no_grad()
def synthesise(wanted: list[Wanted], size: int, models: Models, settings: Settings) -> np.ndarray:
    """Makes one batch of volumes, each from its own seed.

    Args:
        wanted: up to `size` volumes. Where they are fewer, the last is repeated: the network sees one shape.
        size: of every batch.
        models: on their device.
        settings: sampler, steps and guidance.

    Returns:
        (B, D, H, W) float32 in [0, 1], one volume for each of `wanted`.
    """
    diffusion, device = models.diffusion, models.device
    filled = wanted + wanted[-1:] * (size - len(wanted))
    draws = [seeding.generator(one.seed, "synthetic", device=device.kind) for one in filled]
    shape = diffusion.model.latent_shape

    def draw() -> torch.Tensor:
        return torch.stack([torch.randn(shape, generator=one, device=device.kind) for one in draws])

    y = torch.tensor([one.label for one in filled], device=device.kind)
    with device.autocast():
        denoise = guided(
            diffusion.model, diffusion.process, y, guidance=settings.guidance, interval=settings.guidance_interval,
            covariates=covariates_of(filled, diffusion, device),
            times=schedule(settings.sampler, diffusion.process, settings.steps),
        )  # fmt: skip
        z = SAMPLERS[settings.sampler](denoise, draw(), diffusion.process, settings.steps, draw)
        x = models.vae.model.decode(device.tensor(diffusion.space.leave(z)))
    return x[: len(wanted), 0].clamp(0.0, 1.0).float().cpu().numpy()


def covariates_of(wanted: list[Wanted], diffusion: LoadedDiffusion, device: Device) -> torch.Tensor | None:
    """Standardised covariates (B, K), NaN where not told; None when the model knows none."""
    if not diffusion.covariates:
        return None
    values = torch.tensor([[one.value(name) for name in diffusion.covariates] for one in wanted])
    return standardise(values, diffusion.covariates).to(device.kind)
