"""A VAE and a diffusion model in a notebook: reconstruct, sample, and what lies between two noises.

A sample is that of `diffusion.save_synth` with the same seed and settings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cohort.tables import LABELS
from diffusion.checkpoint import LoadedDiffusion, load_diffusion, refuse_other_vae
from diffusion.config import SIDE_CODES
from diffusion.sampler import DEFAULT, SAMPLERS, check_sampler, guided
from evaluation.posteriors import Codec
from runtime import seeding
from runtime.device import Device, pick_device
from runtime.errors import InputError
from VAE.checkpoint import LoadedVAE, load_vae

KINDS = {"HC": ("HC", ""), "TLE, left": ("TLE", "L"), "TLE, right": ("TLE", "R"), "TLE, side left open": ("TLE", "")}
"""Class and side of what is asked for."""


@dataclass(frozen=True)
class Models:
    """A VAE, and a diffusion model of its latents where there is one, on their device."""

    vae: LoadedVAE
    diffusion: LoadedDiffusion | None
    device: Device

    @property
    def codec(self) -> Codec:
        """The VAE as all other evaluations use it."""
        return Codec(self.vae, self.device)

    def encode(self, volume: np.ndarray) -> torch.Tensor:
        """Posterior mean (1, C, d, h, w) of a volume (D, H, W) in [0, 1] on the VAE's grid."""
        return torch.from_numpy(self.codec.encode([volume]).mu)

    def decode(self, mu: torch.Tensor) -> np.ndarray:
        """The volume, float32 (D, H, W), of a latent (1, C, d, h, w)."""
        return self.codec.decode(mu[0].cpu().numpy())

    def reconstruct(self, volume: np.ndarray) -> np.ndarray:
        """A volume (D, H, W) through the VAE and back, from the posterior's mean."""
        return self.decode(self.encode(volume))

    def noise(self, seed: int) -> torch.Tensor:
        """The noise (1, C, d, h, w) that seed begins from."""
        source = seeding.generator(seed, "synthetic", device=self.device.kind)
        return torch.randn(self.diffusion.model.latent_shape, generator=source, device=self.device.kind)[None]

    @torch.no_grad()
    def sample(self, z: torch.Tensor, kind: str, guidance: float = 1.0, steps: int = 25) -> np.ndarray:
        """The volume, float32 (D, H, W) in [0, 1], that noise (1, C, d, h, w) becomes as one of KINDS.

        InputError for what the diffusion model does not know. Age and sex, where it knows them, are left open.
        """
        diffusion, (name, side) = self.diffusion, KINDS[kind]
        check_sampler(DEFAULT, diffusion.process, steps)
        if side and not diffusion.model.config.sides:
            raise InputError("the diffusion model was trained without sides: leave the side open")
        if guidance != 1 and diffusion.label_dropout == 0:
            raise InputError("the diffusion model was trained without label dropout: guidance has to be 1")
        y, codes = (torch.tensor([code], device=self.device.kind) for code in (LABELS[name], SIDE_CODES[side]))
        unknown = torch.full((1, len(diffusion.covariates)), math.nan, device=self.device.kind)
        conditions = {"side": codes, "covariates": unknown if diffusion.covariates else None}
        denoise = guided(diffusion.model, diffusion.process, y, guidance=guidance, **conditions)
        with self.device.autocast():
            z = SAMPLERS[DEFAULT](denoise, z, diffusion.process, steps, lambda: torch.randn_like(z))
        return self.decode(diffusion.space.leave(z))


def load_models(vae: Path, diffusion: Path | None = None) -> Models:
    """Both checkpoints on the device; the second may be absent. InputError where they do not belong together."""
    device = pick_device()
    loaded = load_vae(vae)
    device.module(loaded.model)
    if diffusion is None or not diffusion.is_file():
        return Models(loaded, None, device)
    generator = load_diffusion(diffusion)
    refuse_other_vae(generator, loaded)
    device.module(generator.model)
    return Models(loaded, generator, device)


def slerp(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """From one noise (share 0) to another (1) along the sphere on which noise lies.

    In between, a straight line would pass where hardly any noise lies, and samples lose contrast. Source: Shoemake
    1985, Animating rotation with quaternion curves, equation 3.3, for vectors of any length.
    """
    cosine = torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0).clamp(-1, 1)
    angle = torch.arccos(cosine)
    if angle < 1e-3:  # one noise twice, up to rounding
        return first
    return (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * second) / torch.sin(angle)
