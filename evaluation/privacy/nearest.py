"""Which real subjects are nearest to a volume, in any space in which volumes are vectors; distances are Euclidean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from runtime.errors import InputError

LEAST_SUBJECTS = 8
"""Fewest training and held-out subjects for distances to be compared at all."""
PAIRS_SHOWN = 10
BLOCK = 256
"""Rows of each side that are in memory in double precision at once."""
RECOMPUTED = 4
"""Nearest subjects of each query whose distances are computed again, difference by difference."""


@dataclass(frozen=True)
class Reals:
    """Real scans as vectors."""

    embeddings: np.ndarray
    """(N, F), finite."""
    subjects: np.ndarray
    """(N,) names; scans of one subject count as one neighbour."""
    mirrored: np.ndarray | None = None
    """(N, F): the same scans with left and right exchanged, or None where these were not embedded."""

    @cached_property
    def names(self) -> np.ndarray:
        """(S,) distinct subjects, sorted."""
        return np.unique(self.subjects)

    def of(self, names: np.ndarray) -> Reals:
        """The scans of some subjects."""
        rows = np.isin(self.subjects, names)
        return Reals(self.embeddings[rows], self.subjects[rows], None if self.mirrored is None else self.mirrored[rows])


@dataclass(frozen=True)
class Space:
    """One space, and everything that was embedded in it."""

    train: Reals
    held_out: Reals
    synthetic: np.ndarray
    """(Q, F), one row per synthetic volume."""
    controls: Mapping[str, Reals] = field(default_factory=dict)
    """Volumes that are not copies but as smooth as synthetic ones, for example held-out scans through the VAE or
    blurred. Their subjects are held-out ones or in neither set."""


@dataclass(frozen=True)
class Neighbours:
    """Distances of Q queries to S subjects, each by the subject's nearest scan."""

    squared: np.ndarray
    """float64 (Q, S), squared Euclidean."""
    scans: np.ndarray
    """(Q, S): row of that scan."""
    mirrored: np.ndarray
    """bool (Q, S): it was nearest with left and right exchanged."""


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (N_a, N_b), float64, of rows (N_a, F) and (N_b, F), in blocks.

    By |a|^2 + |b|^2 - 2 a.b around the mean of `b`, which loses digits only where a distance is small against the
    spread of the set: there, `exact_squared` is to be used.
    """
    centre = b.mean(axis=0, dtype=np.float64)
    out = np.empty((len(a), len(b)))
    for start in range(0, len(a), BLOCK):
        rows = a[start : start + BLOCK] - centre
        for first in range(0, len(b), BLOCK):
            columns = b[first : first + BLOCK] - centre
            norms = np.sum(rows**2, axis=1)[:, None] + np.sum(columns**2, axis=1)
            out[start : start + BLOCK, first : first + BLOCK] = norms - 2.0 * rows @ columns.T
    return np.maximum(out, 0.0)


def exact_squared(a: np.ndarray, b: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Squared distances (K,) of K pairs, rows (K,) of `a` and columns (K,) of `b`, by differences in float64."""
    out = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        out[part] = np.sum((a[rows[part]].astype(np.float64) - b[columns[part]]) ** 2, axis=1)
    return out


def radii(embeddings: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Distances (N,) of vectors (N, F) to one place (F,)."""
    starts = range(0, len(embeddings), BLOCK)
    return np.concatenate([np.linalg.norm(embeddings[start : start + BLOCK] - centre, axis=1) for start in starts])


def neighbours(queries: np.ndarray, reals: Reals) -> Neighbours:
    """Distances of queries (Q, F) to every subject; those to the nearest `RECOMPUTED` ones of each query are exact.

    A mirrored scan counts like the scan itself where there are any.

    Raises:
        InputError: values that are not finite.
    """
    for name, values in (("queries", queries), ("reals", reals.embeddings)):
        if not np.isfinite(values).all():
            raise InputError(f"{name}: values that are not finite")
    squared, scans, mirrored = _by_subject(queries, reals)
    nearest = np.argsort(squared, axis=1)[:, :RECOMPUTED]
    rows = np.repeat(np.arange(len(queries)), nearest.shape[1])
    columns = nearest.ravel()
    for flipped, stack in ((False, reals.embeddings), (True, reals.mirrored)):
        chosen = mirrored[rows, columns] == flipped
        if chosen.any():
            at = rows[chosen], columns[chosen]
            squared[at] = exact_squared(queries, stack, at[0], scans[at])
    return Neighbours(squared, scans, mirrored)


def _by_subject(queries: np.ndarray, reals: Reals) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared distance (Q, S) to each subject's nearest scan, which scan that is, and whether it is mirrored."""
    squared = squared_distances(queries, reals.embeddings)
    flipped = np.zeros(squared.shape, dtype=bool)
    if reals.mirrored is not None:
        other = squared_distances(queries, reals.mirrored)
        flipped = other < squared
        squared = np.minimum(squared, other)
    scans = np.empty((len(queries), len(reals.names)), dtype=np.int64)
    for place, name in enumerate(reals.names):
        own = np.flatnonzero(reals.subjects == name)
        scans[:, place] = own[squared[:, own].argmin(axis=1)]
    return np.take_along_axis(squared, scans, axis=1), scans, np.take_along_axis(flipped, scans, axis=1)


@dataclass(frozen=True)
class Pool:
    """Training and held-out scans together, and how near real people are to each other."""

    reals: Reals
    """Rows of the training scans first."""
    trained: np.ndarray
    """bool (S,): which subjects, in the order of their names, were trained on."""
    centre: np.ndarray
    """(F,): mean of all scans."""
    among: np.ndarray
    """(N, S): squared distance of every scan to every other subject; infinite to its own."""
    among_directions: np.ndarray
    """(N, S): the same of directions from the centre, see `directional_squared`."""

    @classmethod
    def of(cls, train: Reals, held_out: Reals) -> Pool:
        """Raises InputError for too few subjects, a subject on both sides, or mirrored scans of one side alone."""
        sizes = [len(side.names) for side in (train, held_out)]
        if min(sizes) < LEAST_SUBJECTS:
            raise InputError(
                f"{sizes} training and held-out subjects: an audit needs at least {LEAST_SUBJECTS} of each"
            )
        shared = np.intersect1d(train.names, held_out.names)
        if len(shared):
            raise InputError.of("subjects that are both in training and held out", [str(name) for name in shared])
        if (train.mirrored is None) != (held_out.mirrored is None):
            raise InputError("mirrored scans of one side only: its subjects would have twice the chances to be nearest")
        both = [(train.embeddings, held_out.embeddings), (train.subjects, held_out.subjects)]
        both += [] if train.mirrored is None else [(train.mirrored, held_out.mirrored)]
        reals = Reals(*map(np.concatenate, both))
        centre = reals.embeddings.mean(axis=0, dtype=np.float64)
        found = neighbours(reals.embeddings, reals)
        itself = reals.subjects[:, None] == reals.names
        among = np.where(itself, np.inf, found.squared)
        among_directions = np.where(itself, np.inf, directional_squared(reals.embeddings, found, reals, centre))
        return cls(reals, np.isin(reals.names, train.names), centre, among, among_directions)


def directional_squared(embeddings: np.ndarray, found: Neighbours, reals: Reals, centre: np.ndarray) -> np.ndarray:
    """Squared distances (Q, S) of directions from the centre (F,): 2 (1 - cosine), whatever the distances to it.

    An average volume is near to everybody, because it is near to the centre; in no subject's direction is it more
    than a new person is. A copy is, also when it was shrunk towards the mean. `found` are the distances of `embeddings`
    (Q, F) to `reals`.
    """
    stacks = [stack for stack in (reals.embeddings, reals.mirrored) if stack is not None]
    scans = np.stack([radii(stack, centre) for stack in stacks])[found.mirrored.astype(int), found.scans]
    own = radii(embeddings, centre)[:, None]
    scale = own * scans
    shared = np.divide(own**2 + scans**2 - found.squared, scale, out=np.zeros_like(scale), where=scale > 0)
    return 2.0 - shared


def from_near_to_far(squared: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Subjects from near to far for each query, (Q, S); equal distances fall in a random order."""
    shuffle = draw.permutation(squared.shape[1])
    return shuffle[np.argsort(squared[:, shuffle], axis=1, kind="stable")]


def closest_pairs(found: Neighbours, pool: Pool) -> list[dict]:
    """The closest ``volume`` and training ``scan`` (rows of their embeddings), nearest first; each volume at most once.

    With their ``distance``, and whether the scan was ``mirrored``.
    """
    columns = np.flatnonzero(pool.trained)
    nearest = columns[found.squared[:, columns].argmin(axis=1)]
    rows = np.arange(len(nearest))
    distance = np.sqrt(found.squared[rows, nearest])
    return [
        {
            "volume": int(row),
            "scan": int(found.scans[row, nearest[row]]),
            "mirrored": bool(found.mirrored[row, nearest[row]]),
            "distance": float(distance[row]),
        }
        for row in np.argsort(distance, kind="stable")[:PAIRS_SHOWN]
    ]


def exposure(found: Neighbours, pool: Pool) -> dict[str, dict[str, float]]:
    """Distance of each real subject to the nearest volume, over that to the nearest other real subject.

    Near 1 for everybody when volumes are new people; near 0 for a subject that was copied. Held-out subjects, who
    cannot have been copied, say what is usual. Without the division ordinary subjects, near to all, look exposed.

    Returns:
        ``training`` and ``held_out``: subject -> ratio.
    """
    names = pool.reals.names
    own = np.array([pool.among[pool.reals.subjects == name].min() for name in names])
    nearest = found.squared.min(axis=0)
    ratio = np.sqrt(np.divide(nearest, own, out=np.ones_like(own), where=own > 0))
    sides = {"training": pool.trained, "held_out": ~pool.trained}
    return {side: dict(zip(map(str, names[who]), map(float, ratio[who]), strict=True)) for side, who in sides.items()}
