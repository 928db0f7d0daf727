"""Negative controls: real volumes spoiled in a known way, which a distance must rank far behind the floor.

Their strengths were fixed before any generator was evaluated, and are part of every result.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

from cohort.scans import normalise
from runtime import seeding

BLUR_VOXELS = 1.0
"""Standard deviation of the Gaussian blur, in voxels."""
NOISE = 0.05
"""Standard deviation of the added noise, where the scan's intensities span 0 to 1."""
SHUFFLE_SHARE = 5
"""Blocks along the shortest axis when blocks are shuffled: each holds a fifth of it."""

NAMES = ("blurred", "noisy", "shuffled")


def blurred(volume: np.ndarray) -> np.ndarray:
    """A Gaussian blur: anatomy in place, detail gone, as from a decoder that averages."""
    return ndimage.gaussian_filter(volume, BLUR_VOXELS)


def noisy(volume: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """White noise in the voxels that are not background, folded at 0 as magnitudes are."""
    noise = draw.normal(0.0, NOISE, volume.shape).astype(np.float32)
    return np.where(volume > 0, np.abs(volume + noise), 0.0)


def shuffled(volume: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Cubic blocks in random order: every voxel and every local texture is real, the anatomy is not.

    What remains beyond whole blocks at the end of an axis stays in place.
    """
    edge = max(2, min(volume.shape) // SHUFFLE_SHARE)
    counts = [extent // edge for extent in volume.shape]
    whole = tuple(slice(0, count * edge) for count in counts)
    split = volume[whole].reshape(counts[0], edge, counts[1], edge, counts[2], edge).transpose(0, 2, 4, 1, 3, 5)
    blocks = split.reshape(-1, edge, edge, edge)[draw.permutation(int(np.prod(counts)))]
    joined = blocks.reshape(*counts, edge, edge, edge).transpose(0, 3, 1, 4, 2, 5)
    out = volume.copy()
    out[whole] = joined.reshape(out[whole].shape)
    return out


def make_controls(volumes: Iterable[np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Every control of every volume, scaled to [0, 1] like any other volume.

    Args:
        volumes: (D, H, W) each, in [0, 1].
        seed: of noise and order; volume i has its own draws.

    Returns:
        name -> float32 (N, D, H, W), in the order of `volumes`.
    """
    made: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    for index, volume in enumerate(volumes):
        volume = np.asarray(volume)
        made["blurred"].append(normalise(blurred(volume)))
        made["noisy"].append(normalise(noisy(volume, seeding.rng(seed, "control noise", index))))
        made["shuffled"].append(normalise(shuffled(volume, seeding.rng(seed, "control order", index))))
    return {name: np.stack(values) for name, values in made.items()}


def describe() -> dict[str, str]:
    """What each control is, for results."""
    return {
        "blurred": f"held-out reals, Gaussian blur, sigma {BLUR_VOXELS} voxels",
        "noisy": f"held-out reals, white noise of standard deviation {NOISE} of the intensity range",
        "shuffled": f"held-out reals, cubic blocks of 1/{SHUFFLE_SHARE} of the shortest axis in random order",
        "repeated": "one held-out real, repeated",
        "other_class": "held-out reals of the other class: what the distance sees of the diagnosis",
        "training": "training reals: what a generator that copies its training set would reach",
    }
