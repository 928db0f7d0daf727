"""What a generator has to beat, and what it cannot: Gaussians in its own latent space, and its VAE's reconstructions.

All are decoded by the VAE that decoded the synthetic volumes, so that the rungs differ in their latents only. From the
bottom: a Gaussian of RANK axes, one of as many axes as there are scans, the generator, held-out scans as the VAE gives
them back (the ceiling of every generator with this VAE), other real scans (the floor of the distances).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from cohort.stacks import VolumeStack
from cohort.tables import CLASS_NAMES
from evaluation.fid import BASELINES, RECONSTRUCTED
from evaluation.inputs import keep
from evaluation.posteriors import Codec, Posteriors
from runtime import seeding

RANK = 64
"""Principal axes of the narrower Gaussian."""
MOST_SCANS = 1000
"""Training scans that a Gaussian is made of, at most."""
TELLING = 0.1
"""Largest distance of an AUC from one half, for a number that sees no anatomy, that goes without a warning."""

Made = tuple[VolumeStack, np.ndarray]
"""Volumes and their class codes (N,)."""


def build(
    labels: Mapping[str, np.ndarray],
    posteriors: Mapping[str, Posteriors],
    codec: Codec,
    cache_dir: Path,
    *,
    per_class: int,
    seed: int,
) -> dict[str, Made]:
    """Volumes of every rung that has to be made: `per_class` of each Gaussian, and every scan of ``test`` again.

    A Gaussian has the class's own mean and the covariance that the classes share, of posterior samples of ``train``.
    """
    train = posteriors["train"]
    rows = np.unique(np.linspace(0, len(train.mu) - 1, min(len(train.mu), MOST_SCANS)).round().astype(int))
    classes, draw = labels["train"][rows], seeding.generator(seed, "ladder posterior")
    mu, logvar = (torch.from_numpy(value[rows]) for value in train)
    latents = (mu + torch.exp(0.5 * logvar) * torch.randn(mu.shape, generator=draw)).flatten(1)  # (N, F)
    means = torch.stack([latents[classes == code].mean(0) for code in range(len(CLASS_NAMES))])
    centred = latents - means[classes]

    def decoded(z: np.ndarray) -> Path:
        return keep(codec.decode(z), cache_dir)

    again = [decoded(mu) for mu in posteriors["test"].mu]
    shape = codec.vae.grid.shape
    made: dict[str, Made] = {RECONSTRUCTED: (VolumeStack(again, shape), labels["test"])}
    codes = np.repeat(np.arange(len(CLASS_NAMES)), per_class)
    for name, rank in zip(BASELINES, (RANK, None), strict=True):
        weights = gaussian_weights(centred, len(codes), rank, seeding.generator(seed, "ladder", name))
        latent_shape = train.mu.shape[1:]
        drawn = (means[code] + row @ centred for code, row in zip(codes, weights, strict=True))
        files = [decoded(z.view(latent_shape).numpy()) for z in drawn]
        made[name] = VolumeStack(files, shape), codes
    return made


def gaussian_weights(centred: torch.Tensor, count: int, rank: int | None, draw: torch.Generator) -> torch.Tensor:
    """Weights (count, N) whose products with `centred` (N, F) are normal with its covariance, or with what its first
    `rank` principal axes have of it.
    """
    weights = torch.randn(count, len(centred), generator=draw) / max(1, len(centred) - len(CLASS_NAMES)) ** 0.5
    if rank is None:
        return weights
    _, axes = torch.linalg.eigh((centred @ centred.T).double())  # ascending
    axes = axes[:, -rank:].float()
    return weights @ axes @ axes.T


def surroundings(volumes: Mapping[str, Sequence[np.ndarray]]) -> dict[str, dict]:
    """Whether two numbers that see no anatomy tell volumes (D, H, W) from the scans called ``test``.

    Returns:
        name -> ``zeros`` (share of voxels that are exactly 0) and ``dark`` (5th percentile of the others), each with
        ``mean`` and ``sd`` over volumes and, but for ``test``, ``auc``: the chance that a volume has more than a scan,
        0.5 where the number tells nothing.
    """
    numbers = {
        name: np.array([_zeros_and_dark(np.asarray(volume)) for volume in stack]) for name, stack in volumes.items()
    }
    found: dict[str, dict] = {}
    for name, values in numbers.items():
        found[name] = {}
        for column, key in enumerate(("zeros", "dark")):
            own, real = values[:, column], numbers["test"][:, column]
            found[name][key] = {"mean": float(own.mean()), "sd": float(own.std())}
            if name != "test":
                above = own[:, None] - real
                found[name][key]["auc"] = float(((above > 0) + 0.5 * (above == 0)).mean())
    return found


def warnings_of(found: dict[str, dict]) -> list[str]:
    """A sentence for each number of `surroundings` that tells synthetic volumes from scans beyond TELLING."""
    meanings = {"zeros": "the share of voxels that are exactly 0", "dark": "the 5th percentile of the other voxels"}
    return [
        f"TOLD FROM SCANS WITHOUT ANATOMY: {meaning} of synthetic volumes has an AUC of {auc:.2f} against held-out "
        f"scans ({0.5 - TELLING:g} to {0.5 + TELLING:g} goes without a word); distances and classifiers see this"
        for key, meaning in meanings.items()
        if abs((auc := found["synthetic"][key]["auc"]) - 0.5) > TELLING
    ]


def _zeros_and_dark(volume: np.ndarray) -> tuple[float, float]:
    inside = volume[volume != 0]
    return 1 - inside.size / volume.size, float(np.percentile(inside, 5)) if inside.size else 0.0
