"""Whether synthetic volumes give training subjects away: the spaces that are searched, their controls, the attacks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cohort.grids import Grid
from cohort.scans import normalise
from cohort.stacks import ScanStack
from diffusion.checkpoint import LoadedDiffusion
from evaluation.posteriors import Codec
from evaluation.privacy import membership
from evaluation.privacy.copying import audit_spaces
from evaluation.privacy.embedding import FINE_MM, EncoderConfig, VoxelSpace, embed, fit_encoder, mirrored, shrink
from evaluation.privacy.nearest import LEAST_SUBJECTS, Reals, Space
from evaluation.references import controls
from runtime import seeding
from runtime.device import Device

SIDES = ("train", "test")
MOST_ATTACKED = 100
"""Subjects on either side of the attack on the DiT's loss, at most: its cost grows with them, and the standard error of
an AUC is below 0.04 from here on."""


MOST_DECODED = 250
"""Subjects on either side of the attack on the VAE's error, at most."""


class Decoded(NamedTuple):
    """What the VAE gives back of N scans: volumes of about FINE_MM, and errors inside the head."""

    reconstructions: np.ndarray
    errors: np.ndarray


def measure(
    scans: dict[str, ScanStack],
    volumes: Sequence[np.ndarray],
    grid: Grid,
    codec: Codec | None,
    mus: dict[str, np.ndarray] | None,
    diffusion: LoadedDiffusion | None,
    device: Device,
    seed: int,
) -> dict:
    """``audit`` (`copying.audit_spaces`) and ``attacks``, or ``skipped``: too few volumes to say anything.

    `scans` are ``train`` and ``test`` (held out), `mus` the means of the VAE's posteriors of each (N, C, d, h, w),
    `volumes` synthetic, (D, H, W) each. Attacks on a checkpoint that was not given are skipped, with the reason.
    """
    fewest = min(len(volumes), *(scans[side].frame["subject"].nunique() for side in SIDES))
    if fewest < LEAST_SUBJECTS:
        return {"skipped": f"{fewest} volumes or subjects on a side, an audit needs {LEAST_SUBJECTS} of each"}
    decoded = None
    if codec is not None and mus is not None:
        decoded = {}
        for place, side in enumerate(SIDES):
            rows = np.arange(len(scans[side]))
            if side == "train":  # all of the others have a place among the controls
                rows = np.sort(seeding.rng(seed, "decoded subjects", place).permutation(rows)[:MOST_DECODED])
            decoded[side] = reconstruct(scans[side].volumes, mus[side], rows, codec, grid)
    spaces = build_spaces(scans, volumes, grid, codec, mus, decoded, device, seed)
    audit = audit_spaces(spaces, seed=seed)
    attacks: dict[str, dict | str] = {
        f"synthetic volumes alone, {name}": membership.exposure_attack(space["synthetic"]["exposure"])
        for name, space in audit["spaces"].items()
    }
    attacks["VAE: reconstruction error"] = (
        "skipped: no --vae" if decoded is None else membership.attack(*(-decoded[side].errors for side in SIDES))
    )
    attacks["DiT: loss"] = "skipped: needs --vae and --diffusion"
    if codec is not None and mus is not None and diffusion is not None:
        count = min(MOST_ATTACKED, *(len(scans[side]) for side in SIDES))
        attacked = []
        for place, side in enumerate(SIDES):
            rows = seeding.rng(seed, "membership subjects", place).permutation(len(scans[side]))[:count]
            attacked.append((mus[side][rows], scans[side].labels[rows]))
        attacks["DiT: loss"] = membership.dit_attack(diffusion, *attacked, codec.device, seed=seed)
    return {"audit": audit, "attacks": attacks}


def reconstruct(volumes: Sequence[np.ndarray], mus: np.ndarray, rows: np.ndarray, codec: Codec, grid: Grid) -> Decoded:
    """Decodes the posterior means of some scans, one at a time."""
    parts = []
    for row in rows:
        x_hat = codec.decode(mus[row])
        parts.append((shrink([normalise(x_hat)], grid.spacing_mm, FINE_MM)[0], head_error(volumes[int(row)], x_hat)))
    return Decoded(*(np.stack(part) for part in zip(*parts, strict=True)))


def head_error(x: np.ndarray, x_hat: np.ndarray) -> float:
    """Mean squared error of a reconstruction over the voxels of `x` that are not background."""
    squared = np.where(x > 0, (x - x_hat) ** 2, 0.0).sum(dtype=np.float64)
    return float(squared / max((x > 0).sum(), 1))


def build_spaces(
    scans: dict[str, ScanStack],
    volumes: Sequence[np.ndarray],
    grid: Grid,
    codec: Codec | None,
    mus: dict[str, np.ndarray] | None,
    decoded: dict[str, Decoded] | None,
    device: Device,
    seed: int,
) -> dict[str, Space]:
    """Down-sampled voxels, a learned embedding, and with a VAE its latents."""
    names = {side: scans[side].frame["subject"].to_numpy(dtype=str) for side in SIDES}
    fine = {side: shrink(scans[side].volumes, grid.spacing_mm, FINE_MM) for side in SIDES}
    made = shrink(volumes, grid.spacing_mm, FINE_MM)
    spacing = grid.spacing_mm * grid.shape[0] / made.shape[1]
    smooth = {"blurred": np.stack([controls.blurred(volume) for volume in fine["test"]])}
    if decoded is not None:
        smooth["through the VAE"] = decoded["test"].reconstructions
    spaces = spaces_of(fine, names, made, spacing, device, seed=seed, smooth=smooth)
    if codec is not None and mus is not None:
        spaces["latents"] = latent_space(mus, names, volumes, codec)
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


def latent_space(
    mus: dict[str, np.ndarray],
    names: dict[str, np.ndarray],
    volumes: Sequence[np.ndarray],
    codec: Codec,
) -> Space:
    """Posterior means as vectors: of real scans, (N, C, d, h, w) for each of SIDES, and of volumes (D, H, W)."""
    return Space(
        *(Reals(mus[side].reshape(len(names[side]), -1), names[side]) for side in SIDES),
        synthetic=codec.encode(volumes).mu.reshape(len(volumes), -1),
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
