"""Where else a region could lie: the null hypothesis that a map is no stronger in a region than in other places.

The region is moved, not the map: turned by one of the 48 symmetries of the cube (rotations by right angles and mirror
images) and shifted to a place, drawn uniformly among those where it lies inside the brain and does not meet the true
region. Moving the region inside a map is the same as moving the map under the region, so a null map of this kind has
the very values, smoothness and texture of the map itself; nothing is interpolated or estimated. It is the idea of the
spin test (Alexander-Bloch et al. 2018, NeuroImage 178:540) for volumes, where there is no sphere to spin.

The hypothesis that it tests is of a map whose strength has no preferred places. A map that is stronger in, say, all
deep grey matter than in cortex rejects it without any knowledge of the disease; the network trained on no effect shows
how much of that there is.

To be used with one set of places for all subjects, each turning and shifting the subject's own region in the same way:
maps of one network resemble one another, and independent places would make the mean over subjects look too certain.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from runtime.errors import InputError

MOST_DRAWS = 2000
"""Draws for each place wanted before a region counts as too large to be moved."""


@dataclass(frozen=True)
class Moves:
    """Ways of moving a region; move k takes a voxel v to turns[k] (v - pivot) + pivot + shifts[k]. Move 0 is none."""

    turns: np.ndarray
    """int (K, 3, 3), signed permutations."""
    shifts: np.ndarray
    """int (K, 3), in voxels."""
    pivot: np.ndarray
    """int (3,), near the middle of the reference region."""

    def places(self, region: np.ndarray) -> np.ndarray:
        """Flat voxel indices of a region (D, H, W) after each move, int64 (K, n); -1 outside the grid."""
        voxels = np.argwhere(region) - self.pivot
        moved = np.einsum("kij,nj->kni", self.turns, voxels) + (self.pivot + self.shifts)[:, None]
        inside = ((moved >= 0) & (moved < region.shape)).all(axis=2)
        flat = np.ravel_multi_index(tuple(np.moveaxis(np.where(inside[..., None], moved, 0), 2, 0)), region.shape)
        return np.where(inside, flat, -1)


def moves(region: np.ndarray, brain: np.ndarray, count: int, rng: np.random.Generator) -> Moves:
    """No move, and then `count` random ones that leave a reference region in the brain and off its true place.

    What is moved later resembles the region, bool (D, H, W), in place and size. InputError where too few places exist.
    """
    if not region.any():
        raise InputError("spatial null: the region has no voxel on this grid")
    voxels = np.argwhere(region)
    pivot = voxels.mean(axis=0).round().astype(int)
    middles = np.argwhere(brain)
    free = (brain & ~region).ravel()
    turns, shifts = [np.eye(3, dtype=int)], [np.zeros(3, int)]
    symmetries = cube_symmetries()
    for _ in range(MOST_DRAWS * count):
        if len(turns) > count:
            return Moves(np.array(turns), np.array(shifts), pivot)
        turn = symmetries[rng.integers(len(symmetries))]
        shift = middles[rng.integers(len(middles))] - pivot
        moved = (voxels - pivot) @ turn.T + pivot + shift
        inside = ((moved >= 0) & (moved < region.shape)).all()
        if inside and free[np.ravel_multi_index(tuple(moved.T), region.shape)].all():
            turns.append(turn)
            shifts.append(shift)
    text = f"{len(turns) - 1} of {count} places found for a region of {len(voxels)} voxels in a brain of {len(middles)}"
    raise InputError(f"spatial null: only {text}; the grid is too coarse or the region too large")


def cube_symmetries() -> np.ndarray:
    """The 48 signed permutation matrices of three axes, int (48, 3, 3); the identity is the first."""
    ways = itertools.product(itertools.product((1, -1), repeat=3), itertools.permutations(range(3)))
    return np.array([np.diag(signs) @ np.eye(3, dtype=int)[list(order)] for signs, order in ways])


def p_value(measured: np.ndarray) -> float:
    """One-sided p of a measure (K,) whose first entry is of the true place: the share of all K at least as large.

    The true place counts in, so that p is never 0 and, when all places are alike, at most alpha with probability alpha.
    """
    return float(np.mean(measured >= measured[0] - 1e-12 * abs(measured[0])))
