"""What a generator's VAE makes of real scans, once for all parts of an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from runtime.device import Device
from VAE.checkpoint import LoadedVAE


class Posteriors(NamedTuple):
    """Of N scans, (N, C, d, h, w) float32 each."""

    mu: np.ndarray
    logvar: np.ndarray


@dataclass(frozen=True)
class Codec:
    """A VAE in the precision in which VAE.save_latent and diffusion.save_synth use it: scans and Gaussians that go
    through it then differ from synthetic volumes in nothing else."""

    vae: LoadedVAE
    device: Device

    @torch.inference_mode()
    def encode(self, volumes: Sequence[np.ndarray]) -> Posteriors:
        """Volumes (D, H, W) in [0, 1], one at a time."""
        model = self.device.module(self.vae.model)
        found = []
        for volume in volumes:
            with self.device.autocast():
                mu, logvar = model.encode(self.device.tensor(torch.from_numpy(np.array(volume))[None, None]))
            found.append((mu[0].float().cpu().numpy(), logvar[0].float().cpu().numpy()))
        return Posteriors(*(np.stack(part) for part in zip(*found, strict=True)))

    @torch.inference_mode()
    def decode(self, z: np.ndarray) -> np.ndarray:
        """One latent (C, d, h, w) as volume (D, H, W), float32."""
        with self.device.autocast():
            z = self.device.tensor(torch.from_numpy(z)[None])
            x = self.device.module(self.vae.model).decode(z, self.vae.grid.shape)
        return x[0, 0].float().cpu().numpy()
