"""Negative controls: real volumes spoiled in a known way, which a distance must rank far behind the floor.

Their strengths were fixed before any generator was evaluated, and are part of every result.
"""

from collections.abc import Sequence

import numpy as np
from einops import rearrange
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
    counts = dict(zip("abc", (extent // edge for extent in volume.shape), strict=True))
    whole = tuple(slice(0, count * edge) for count in counts.values())
    blocks = rearrange(volume[whole], "(a i) (b j) (c k) -> (a b c) i j k", **counts)
    out = volume.copy()
    out[whole] = rearrange(blocks[draw.permutation(len(blocks))], "(a b c) i j k -> (a i) (b j) (c k)", **counts)
    return out


class Spoiled(Sequence):
    """Volumes spoiled as they are asked for, without memory: float32 in [0, 1], volume i with its own draws.

    ``stack[i]`` is (D, H, W); ``stack[a:b]`` and ``stack[[3, 1]]`` copy into one array.
    """

    def __init__(self, volumes: Sequence[np.ndarray], name: str, seed: int) -> None:
        self._volumes, self._name, self._seed = volumes, name, seed
        self.shape = (len(volumes), *volumes[0].shape)

    def __len__(self) -> int:
        return len(self._volumes)

    def __getitem__(self, index: int | slice | Sequence[int]) -> np.ndarray:
        if isinstance(index, int | np.integer):
            return self._make(int(index))
        return np.stack([self._make(int(i)) for i in np.arange(len(self))[index]])

    def _make(self, index: int) -> np.ndarray:
        volume = np.asarray(self._volumes[index])
        if self._name == "blurred":
            return normalise(blurred(volume))
        if self._name == "noisy":
            return normalise(noisy(volume, seeding.rng(self._seed, "control noise", index)))
        return normalise(shuffled(volume, seeding.rng(self._seed, "control order", index)))


def make_controls(volumes: Sequence[np.ndarray], seed: int) -> dict[str, Spoiled]:
    """Every control of every volume (N of (D, H, W), in [0, 1]); `seed` is that of noise and order."""
    return {name: Spoiled(volumes, name, seed) for name in NAMES}


def describe() -> dict[str, str]:
    """What each control is, for results."""
    return {
        "blurred": f"held-out reals, Gaussian blur, sigma {BLUR_VOXELS} voxels",
        "noisy": f"held-out reals, white noise of standard deviation {NOISE} of the intensity range",
        "shuffled": f"held-out reals, cubic blocks of 1/{SHUFFLE_SHARE} of the shortest axis in random order",
        "repeated": "one held-out real, repeated",
        "relabelled": "held-out reals with permuted class labels: no farther than the floor overall, farther by class",
        "other_class": "held-out reals of the other class: what the distance sees of the diagnosis",
        "reconstructed": "held-out reals, encoded and decoded by the VAE: the ceiling of a generator in its latents",
        "gaussian_64": "a Gaussian of 64 principal axes of training latents, with each class's mean, decoded",
        "gaussian": "a Gaussian of the whole covariance of training latents, with each class's mean, decoded",
        "training": "training reals: what a generator that copies its training set would reach",
    }
