"""Whether synthetic volumes give training subjects away: the spaces that are searched, their controls, the attacks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from cohort.scans import Grid, normalise
from cohort.stacks import ScanStack
from diffusion.checkpoint import LoadedDiffusion
from evaluation.privacy import membership
from evaluation.privacy.copying import audit_spaces
from evaluation.privacy.embedding import FINE_MM, EncoderConfig, VoxelSpace, embed, fit_encoder, mirrored, shrink
from evaluation.privacy.nearest import LEAST_SUBJECTS, Reals, Space
from evaluation.references import controls
from runtime import seeding
from runtime.device import Device
from VAE.checkpoint import LoadedVAE

SIDES = ("train", "test")
MOST_ATTACKED = 100
"""Subjects on either side of the attack on the DiT's loss, at most: its cost grows with them, and the standard error of
an AUC is below 0.04 from here on."""


class Encoded(NamedTuple):
    """What the VAE makes of N scans: posteriors (N, C, d, h, w), volumes of about FINE_MM, errors inside the head."""

    mu: np.ndarray
    logvar: np.ndarray
    reconstructions: np.ndarray
    errors: np.ndarray


def measure(
    scans: dict[str, ScanStack],
    volumes: Sequence[np.ndarray],
    grid: Grid,
    vae: LoadedVAE | None,
    diffusion: LoadedDiffusion | None,
    device: Device,
    seed: int,
) -> dict:
    """``audit`` (`copying.audit_spaces`) and ``attacks``, or ``skipped``: too few volumes to say anything.

    `scans` are ``train`` and ``test`` (held out), `volumes` synthetic, (D, H, W) each. Attacks on a checkpoint that was
    not given are skipped, with the reason.
    """
    fewest = min(len(volumes), *(scans[side].frame["subject"].nunique() for side in SIDES))
    if fewest < LEAST_SUBJECTS:
        return {"skipped": f"{fewest} volumes or subjects on a side, an audit needs {LEAST_SUBJECTS} of each"}
    encoded = None if vae is None else {side: encode(scans[side].volumes, vae, grid, device) for side in SIDES}
    audit = audit_spaces(build_spaces(scans, volumes, grid, vae, encoded, device, seed), seed=seed)
    attacks: dict[str, dict | str] = {
        f"synthetic volumes alone, {name}": membership.exposure_attack(space["synthetic"]["exposure"])
        for name, space in audit["spaces"].items()
    }
    attacks["VAE: reconstruction error"] = (
        "skipped: no --vae" if encoded is None else membership.attack(*(-encoded[side].errors for side in SIDES))
    )
    attacks["DiT: loss"] = "skipped: needs --vae and --diffusion"
    if encoded is not None and diffusion is not None:
        count = min(MOST_ATTACKED, *(len(scans[side]) for side in SIDES))
        posteriors = []
        for place, side in enumerate(SIDES):
            rows = seeding.rng(seed, "membership subjects", place).permutation(len(scans[side]))[:count]
            posteriors.append((encoded[side].mu[rows], encoded[side].logvar[rows], scans[side].labels[rows]))
        attacks["DiT: loss"] = membership.dit_attack(diffusion, *posteriors, device, seed=seed)
    return {"audit": audit, "attacks": attacks}


@torch.inference_mode()
def encode(volumes: Sequence[np.ndarray], vae: LoadedVAE, grid: Grid, device: Device) -> Encoded:
    """Runs scans through the VAE, one at a time."""
    model = device.module(vae.model)
    parts: list[tuple] = []
    for volume in volumes:
        x = np.array(volume)
        mu, logvar = model.encode(device.tensor(torch.from_numpy(x)[None, None]))
        x_hat = model.decode(mu)[0, 0].float().cpu().numpy()
        small = shrink([normalise(x_hat)], grid.spacing_mm, FINE_MM)[0]
        parts.append((mu[0].float().cpu().numpy(), logvar[0].float().cpu().numpy(), small, head_error(x, x_hat)))
    return Encoded(*(np.stack(part) for part in zip(*parts, strict=True)))


def head_error(x: np.ndarray, x_hat: np.ndarray) -> float:
    """Mean squared error of a reconstruction over the voxels of `x` that are not background."""
    squared = np.where(x > 0, (x - x_hat) ** 2, 0.0).sum(dtype=np.float64)
    return float(squared / max((x > 0).sum(), 1))


def build_spaces(
    scans: dict[str, ScanStack],
    volumes: Sequence[np.ndarray],
    grid: Grid,
    vae: LoadedVAE | None,
    encoded: dict[str, Encoded] | None,
    device: Device,
    seed: int,
) -> dict[str, Space]:
    """Down-sampled voxels, a learned embedding, and with a VAE its latents."""
    names = {side: scans[side].frame["subject"].to_numpy(dtype=str) for side in SIDES}
    fine = {side: shrink(scans[side].volumes, grid.spacing_mm, FINE_MM) for side in SIDES}
    made = shrink(volumes, grid.spacing_mm, FINE_MM)
    spacing = grid.spacing_mm * grid.shape[0] / made.shape[1]
    smooth = {"blurred": np.stack([controls.blurred(volume) for volume in fine["test"]])}
    if encoded is not None:
        smooth["through the VAE"] = encoded["test"].reconstructions
    spaces = spaces_of(fine, names, made, spacing, device, seed=seed, smooth=smooth)
    if vae is not None and encoded is not None:
        spaces["latents"] = latent_space({side: encoded[side].mu for side in SIDES}, names, volumes, vae, device)
    return spaces


def spaces_of(
    reals: dict[str, np.ndarray],
    names: dict[str, np.ndarray],
    synthetic: np.ndarray,
    spacing_mm: float,
    device: Device,
    *,
    seed: int,
    smooth: dict[str, np.ndarray] | None = None,
    config: EncoderConfig | None = None,
) -> dict[str, Space]:
    """Down-sampled voxels and a learned embedding, both fitted to training and held-out scans alike.

    Args:
        reals: ``train`` and ``test`` (held out), (N, D, H, W) each, in [0, 1].
        names: their subjects (N,).
        synthetic: (Q, D, H, W).
        smooth: controls made from the held-out scans, row by row.
    """
    everybody = np.concatenate([reals[side] for side in SIDES])
    encoder = fit_encoder(everybody, spacing_mm, device, seed=seed, config=config)
    maps = {
        "voxels": VoxelSpace.fit(everybody, spacing_mm),
        "encoder": lambda stack: embed(encoder, stack, spacing_mm, device),
    }
    return {
        name: Space(
            *(Reals(place(reals[side]), names[side], place(mirrored(reals[side]))) for side in SIDES),
            synthetic=place(synthetic),
            controls={key: Reals(place(stack), names["test"]) for key, stack in (smooth or {}).items()},
        )
        for name, place in maps.items()
    }


@torch.inference_mode()
def latent_space(
    mus: dict[str, np.ndarray],
    names: dict[str, np.ndarray],
    volumes: Sequence[np.ndarray],
    vae: LoadedVAE,
    device: Device,
) -> Space:
    """Posterior means as vectors: of real scans, (N, C, d, h, w) for each of SIDES, and of volumes (D, H, W)."""
    model = device.module(vae.model)
    rows = [model.encode(device.tensor(torch.from_numpy(np.array(volume))[None, None]))[0] for volume in volumes]
    return Space(
        *(Reals(mus[side].reshape(len(names[side]), -1), names[side]) for side in SIDES),
        synthetic=np.stack([row.flatten().float().cpu().numpy() for row in rows]),
    )


def without_names(found: dict) -> dict:
    """The result of `measure` as it may be passed on: without the exposure of single subjects."""

    def anonymous(measured: dict) -> dict:
        return {key: value for key, value in measured.items() if key != "exposure"}

    spaces = {
        name: {
            "synthetic": anonymous(space["synthetic"]),
            "controls": {control: anonymous(measured) for control, measured in space["controls"].items()},
        }
        for name, space in found["audit"]["spaces"].items()
    }
    return {"audit": {**found["audit"], "spaces": spaces}, "attacks": found["attacks"]}
