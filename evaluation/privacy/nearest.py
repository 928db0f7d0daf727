"""Which real subjects are nearest to a volume, in any space in which volumes are vectors. Pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from runtime.errors import InputError

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


def joined(first: Reals, second: Reals) -> Reals:
    """Both sets, rows of the first before those of the second.

    Raises:
        InputError: a subject is in both, the vectors differ in length, or only one side has mirrored scans.
    """
    shared = np.intersect1d(first.names, second.names)
    if len(shared):
        raise InputError.of("subjects that are both in training and held out", [str(name) for name in shared])
    if first.embeddings.shape[1] != second.embeddings.shape[1]:
        raise InputError(f"vectors of {first.embeddings.shape[1]} and of {second.embeddings.shape[1]} numbers")
    if (first.mirrored is None) != (second.mirrored is None):
        raise InputError("mirrored scans of one side only: its subjects would have twice the chances to be nearest")
    mirrored = None if first.mirrored is None else np.concatenate([first.mirrored, second.mirrored])
    return Reals(
        np.concatenate([first.embeddings, second.embeddings]),
        np.concatenate([first.subjects, second.subjects]),
        mirrored,
    )


@dataclass(frozen=True)
class Neighbours:
    """Distances of Q queries to S subjects, each by the subject's nearest scan."""

    squared: np.ndarray
    """float64 (Q, S), squared Euclidean."""
    scans: np.ndarray
    """(Q, S): row of that scan."""
    mirrored: np.ndarray
    """bool (Q, S): it was nearest with left and right exchanged."""
    subjects: np.ndarray
    """(S,) names, sorted."""


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (N_a, N_b), float64, in blocks of rows.

    By |a|^2 + |b|^2 - 2 a.b around the mean of `b`, which loses digits only where a distance is small against the
    spread of the set: there, `exact_squared` is to be used.

    Args:
        a, b: (N_a, F) and (N_b, F).
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


def exact_squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances (K,) of K pairs of rows, by their differences in float64."""
    out = np.empty(len(a))
    for start in range(0, len(a), BLOCK):
        part = slice(start, start + BLOCK)
        out[part] = np.sum((a[part].astype(np.float64) - b[part]) ** 2, axis=1)
    return out


def radii(embeddings: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Distances (N,) of vectors (N, F) to one place (F,)."""
    starts = range(0, len(embeddings), BLOCK)
    return np.concatenate([np.linalg.norm(embeddings[start : start + BLOCK] - centre, axis=1) for start in starts])


def neighbours(queries: np.ndarray, reals: Reals) -> Neighbours:
    """Distances to every subject; those to the nearest `RECOMPUTED` ones of each query are exact.

    Args:
        queries: (Q, F).
        reals: a mirrored scan counts like the scan itself where there are any.

    Raises:
        InputError: vectors of another length, or values that are not finite.
    """
    if queries.ndim != 2 or queries.shape[1] != reals.embeddings.shape[1]:
        raise InputError(f"queries {queries.shape}, the reals are vectors of {reals.embeddings.shape[1]} numbers")
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
            squared[at] = exact_squared(queries[at[0]], stack[scans[at]])
    return Neighbours(squared, scans, mirrored, reals.names)


def _by_subject(queries: np.ndarray, reals: Reals) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared distance (Q, S) to each subject's nearest scan, which scan that is, and whether it is mirrored."""
    squared = squared_distances(queries, reals.embeddings)
    flipped = np.zeros(squared.shape, dtype=bool)
    if reals.mirrored is not None:
        other = squared_distances(queries, reals.mirrored)
        flipped = other < squared
        squared = np.minimum(squared, other)
    out = np.empty((len(queries), len(reals.names)))
    scans = np.empty(out.shape, dtype=np.int64)
    for place, name in enumerate(reals.names):
        own = np.flatnonzero(reals.subjects == name)
        scans[:, place] = own[squared[:, own].argmin(axis=1)]
        out[:, place] = np.take_along_axis(squared, scans[:, place, None], axis=1)[:, 0]
    return out, scans, np.take_along_axis(flipped, scans, axis=1)
