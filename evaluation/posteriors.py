"""What a generator's VAE makes of real scans, once for all parts of an evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from runtime.device import Device
from VAE.checkpoint import LoadedVAE


class Posteriors(NamedTuple):
    """Of N scans, (N, C, d, h, w) float32 each."""

    mu: np.ndarray
    logvar: np.ndarray


@torch.inference_mode()
def encode(volumes: Sequence[np.ndarray], vae: LoadedVAE, device: Device) -> Posteriors:
    """Volumes (D, H, W) in [0, 1], one at a time."""
    model = device.module(vae.model)
    found = []
    for volume in volumes:
        mu, logvar = model.encode(device.tensor(torch.from_numpy(np.array(volume))[None, None]))
        found.append((mu[0].float().cpu().numpy(), logvar[0].float().cpu().numpy()))
    return Posteriors(*(np.stack(part) for part in zip(*found, strict=True)))


@torch.inference_mode()
def decode(z: np.ndarray, vae: LoadedVAE, device: Device) -> np.ndarray:
    """One latent (C, d, h, w) as volume (D, H, W), float32."""
    return device.module(vae.model).decode(device.tensor(torch.from_numpy(z)[None]))[0, 0].float().cpu().numpy()
