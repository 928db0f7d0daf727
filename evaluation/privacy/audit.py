"""Whether synthetic volumes give training subjects away: spaces, controls, attacks, and the card about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cohort.scans import Grid, normalise
from cohort.stacks import ScanStack
from diffusion.checkpoint import LoadedDiffusion
from evaluation import controls
from evaluation.privacy import membership
from evaluation.privacy.closeness import LEAST_SUBJECTS
from evaluation.privacy.copying import Space, audit_spaces
from evaluation.privacy.embedding import FINE_MM, EncoderConfig, VoxelSpace, embed, fit_encoder, mirrored, shrink
from evaluation.privacy.nearest import Reals
from evaluation.privacy.privacy_card import draw_pairs, write_card
from runtime import seeding
from runtime.device import Device
from runtime.files import atomic_write
from VAE.checkpoint import LoadedVAE

SIDES = ("train", "test")


@dataclass(frozen=True)
class Posteriors:
    """What the VAE makes of scans: mu and logvar (N, C, d, h, w), and the scans as it gives them back."""

    mu: np.ndarray
    logvar: np.ndarray
    reconstructions: np.ndarray
    """(N, D, H, W) in [0, 1], averaged to about FINE_MM."""
    errors: np.ndarray
    """(N,) mean squared error inside the head."""


def measure(
    scans: dict[str, ScanStack],
    volumes: Sequence[np.ndarray],
    grid: Grid,
    vae: LoadedVAE | None,
    diffusion: LoadedDiffusion | None,
    device: Device,
    seed: int,
) -> dict:
    """The audit of `memorization.audit_spaces` and all attacks there can be.

    Args:
        scans: ``train`` and ``test`` (held out).
        volumes: synthetic, (D, H, W) each, normalised like scans.
        grid: of all.
        vae, diffusion: the generator's checkpoints; without them what needs them is skipped, with the reason.
        device: of the networks.
        seed: of everything random.

    Returns:
        ``audit`` and ``attacks``; or ``skipped`` with the reason, where there are too few to say anything.
    """
    fewest = min(len(volumes), *(scans[side].frame["subject"].nunique() for side in SIDES))
    if fewest < LEAST_SUBJECTS:
        return {"skipped": f"{fewest} volumes or subjects on a side, an audit needs {LEAST_SUBJECTS} of each"}
    posteriors = None if vae is None else {side: encode(scans[side].volumes, vae, grid, device) for side in SIDES}
    spaces = build_spaces(scans, volumes, grid, vae, posteriors, device, seed)
    audit = audit_spaces(spaces, seed=seed)
    attacks: dict[str, dict | str] = {
        f"synthetic volumes alone, {name}": membership.exposure_attack(one["synthetic"]["exposure"])
        for name, one in audit["spaces"].items()
    }
    if posteriors is None:
        attacks["VAE: reconstruction error"] = "skipped: no --vae"
    else:
        attacks["VAE: reconstruction error"] = membership.reconstruction_attack(
            *(posteriors[side].errors for side in SIDES)
        )
    if posteriors is None or diffusion is None:
        attacks["DiT: loss"] = "skipped: needs --vae and --diffusion"
    else:
        attacks["DiT: loss"] = dit_attack(scans, posteriors, diffusion, device, seed)
    return {"audit": audit, "attacks": attacks}


@torch.inference_mode()
def encode(volumes: Sequence[np.ndarray], vae: LoadedVAE, grid: Grid, device: Device) -> Posteriors:
    """Runs scans through the VAE, one at a time."""
    model = device.module(vae.model)
    parts: list[tuple] = []
    for volume in volumes:
        volume = np.asarray(volume)
        x = device.tensor(torch.from_numpy(volume.copy())[None, None])
        mu, logvar = model.encode(x)
        x_hat = model.decode(mu).clamp(0.0, 1.0)[0, 0].float().cpu().numpy()
        error = membership.reconstruction_errors(volume[None], x_hat[None])[0]
        small = shrink([normalise(x_hat)], grid.spacing_mm, FINE_MM)[0]
        parts.append((mu[0].float().cpu().numpy(), logvar[0].float().cpu().numpy(), small, error))
    return Posteriors(*(np.stack(part) for part in zip(*parts, strict=True)))


def build_spaces(
    scans: dict[str, ScanStack],
    volumes: Sequence[np.ndarray],
    grid: Grid,
    vae: LoadedVAE | None,
    posteriors: dict[str, Posteriors] | None,
    device: Device,
    seed: int,
) -> dict[str, Space]:
    """Down-sampled voxels, a learned embedding, and with a VAE its latents; the first two fitted to all reals alike."""
    names = {side: scans[side].frame["subject"].to_numpy(dtype=str) for side in SIDES}
    fine = {side: shrink(scans[side].volumes, grid.spacing_mm, FINE_MM) for side in SIDES}
    made = shrink(volumes, grid.spacing_mm, FINE_MM)
    spacing = grid.spacing_mm * grid.shape[0] / made.shape[1]
    smooth = {"blurred": np.stack([controls.blurred(volume) for volume in fine["test"]])}
    if posteriors is not None:
        smooth["through the VAE"] = posteriors["test"].reconstructions
    spaces = spaces_of(fine, names, made, spacing, device, seed=seed, smooth=smooth)
    if vae is not None and posteriors is not None:
        spaces["latents"] = Space(
            *(Reals(posteriors[side].mu.reshape(len(names[side]), -1), names[side]) for side in SIDES),
            synthetic=latents(volumes, vae, device),
        )
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
        spacing_mm: edge of the voxels of all.
        device: where the encoder is trained.
        seed: of the encoder.
        smooth: controls made from the held-out scans, row by row.
        config: of the encoder.
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
def latents(volumes: Sequence[np.ndarray], vae: LoadedVAE, device: Device) -> np.ndarray:
    """Posterior means of volumes as vectors, (N, C d h w)."""
    model = device.module(vae.model)
    rows = [model.encode(device.tensor(torch.from_numpy(np.array(volume))[None, None]))[0] for volume in volumes]
    return np.stack([row.flatten().float().cpu().numpy() for row in rows])


def dit_attack(
    scans: dict[str, ScanStack],
    posteriors: dict[str, Posteriors],
    diffusion: LoadedDiffusion,
    device: Device,
    seed: int,
) -> dict | str:
    """The loss attack on as many training subjects as there are held-out ones: more would cost, and say little more."""
    count = min(len(scans[side]) for side in SIDES)
    if count < 2 * membership.LEAST:
        return f"skipped: {count} subjects on a side, {2 * membership.LEAST} are needed"
    rows = {
        side: seeding.rng(seed, "membership subjects", place).permutation(len(scans[side]))[:count]
        for place, side in enumerate(SIDES)
    }
    mu, logvar = (
        np.concatenate([getattr(posteriors[side], name)[rows[side]] for side in SIDES]) for name in ("mu", "logvar")
    )
    labels = np.concatenate([scans[side].labels[rows[side]] for side in SIDES])
    losses = membership.dit_losses(diffusion, mu, logvar, labels, device, seed=seed)
    return membership.loss_attack(losses, range(count), range(count, 2 * count), membership.LEVELS, seed=seed)


def draw_card(path: Path, found: dict, facts: dict[str, object]) -> None:
    """The privacy card as Markdown; it names no subject."""
    with atomic_write(path) as temporary:
        temporary.write_text(write_card(found["audit"], attacks=found["attacks"], facts=facts), encoding="utf-8")


def draw_closest(path: Path, found: dict, scans: ScanStack, volumes: Sequence[np.ndarray]) -> None:
    """The ten closest pairs in voxels: training scans are shown."""
    pairs = found["audit"]["spaces"]["voxels"]["synthetic"]["pairs"]
    draw_pairs(path, volumes, scans.volumes, pairs)


def without_names(found: dict) -> dict:
    """The result as it may be passed on: no subject is named, neither in the pairs nor in the exposures."""
    spaces = {
        name: {
            "synthetic": _anonymous(one["synthetic"]),
            "controls": {control: _anonymous(measured) for control, measured in one["controls"].items()},
        }
        for name, one in found["audit"]["spaces"].items()
    }
    return {"audit": {**found["audit"], "spaces": spaces}, "attacks": found["attacks"]}


def _anonymous(measured: dict) -> dict:
    pairs = [{name: value for name, value in pair.items() if name != "subject"} for pair in measured["pairs"]]
    return {**{name: value for name, value in measured.items() if name != "exposure"}, "pairs": pairs}
