"""Distances between sets of feature vectors, and the draws that make them comparable. Pure functions of arrays.

A Frechet distance between finite samples of one distribution is not zero, and how far it is from zero depends on the
number of samples, the number of features and the distribution itself (Chong and Forsyth 2020, arXiv 1911.07023). So no
figure stands alone here: `compare` measures the synthetic set, the floor (real against other real subjects) and the
controls on samples of one size, over the same draws of the reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from cohort.tables import CLASS_NAMES
from diffusion.features import AXES
from runtime import seeding

MINIMUM_PER_CLASS = 4
"""Fewest volumes of a class on either side: two disjoint halves of two. Enough to compute, not to trust."""
TRUSTED_PER_SIDE = 50
"""Below this many volumes on either side of a comparison, a figure is only a sign that the code ran."""
MAX_DIMENSIONS = 16
"""Principal components kept for the Frechet distance; more raise the floor faster than they raise the controls."""

Draw = dict[str, dict[int, np.ndarray]]
"""Rows drawn from each set: role, then class code, to row numbers."""


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance between the Gaussians fitted to two samples.

    The trace of the root of the product of the covariances is taken as the sum of the singular values of A B^T, where A
    and B are the centred samples over sqrt(n - 1). That is exact, also where there are fewer samples than features and
    the covariances are singular; no matrix root, no complex parts, no epsilon.

    Args:
        a, b: (N_a, F) and (N_b, F), at least 2 rows each.

    Source: Heusel et al. 2017 (arXiv 1706.08500), equation 6.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"samples of shapes {a.shape} and {b.shape}: need 2 rows or more, and the same features")
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    root_a, root_b = (a - mean_a) / np.sqrt(len(a) - 1), (b - mean_b) / np.sqrt(len(b) - 1)
    if max(len(a), len(b)) > a.shape[1]:  # singular values do not change under rotation: (F, F) instead of (N_a, N_b)
        root_a, root_b = np.linalg.qr(root_a, mode="r"), np.linalg.qr(root_b, mode="r")
    shared = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    distance = np.sum((mean_a - mean_b) ** 2) + np.sum(root_a**2) + np.sum(root_b**2) - 2 * shared
    return float(max(distance, 0.0))


def polynomial_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(a.b / F + 1)^3 for all pairs of rows: the kernel of the KID (Binkowski et al. 2018, arXiv 1801.01401)."""
    return (a @ b.T / a.shape[1] + 1.0) ** 3


def kid(a: np.ndarray, b: np.ndarray) -> float:
    """Kernel inception distance: the unbiased estimate of the squared maximum mean discrepancy; about 0 for equals.

    Source: Gretton et al. 2012 (JMLR 13), equation 3, with `polynomial_kernel`. Negative values are chance.
    """
    within_a, within_b = polynomial_kernel(a, a), polynomial_kernel(b, b)
    mean_a = (within_a.sum() - np.trace(within_a)) / (len(a) * (len(a) - 1))
    mean_b = (within_b.sum() - np.trace(within_b)) / (len(b) * (len(b) - 1))
    return float(mean_a + mean_b - 2.0 * polynomial_kernel(a, b).mean())


def permutation_p_value(
    kernel: np.ndarray, first: np.ndarray, strata: np.ndarray, permutations: int, draw: np.random.Generator
) -> float:
    """Probability of an MMD as large as the one seen if both sets were one.

    Args:
        kernel: (N, N) kernel of all volumes of both sets.
        first: bool (N,), which belong to the first set.
        strata: (N,) class codes; memberships are exchanged within a class only, so that a different mix of classes in
            the two sets is not mistaken for a difference between them.
        permutations: how many; the smallest possible value is 1 / (permutations + 1).
        draw: source of the permutations.
    """
    memberships = np.tile(first, (permutations + 1, 1))
    for stratum in np.unique(strata):
        columns = np.flatnonzero(strata == stratum)
        memberships[1:, columns] = draw.permuted(memberships[1:, columns], axis=1)
    distances = _mmd_of_memberships(kernel, memberships)
    return float(np.mean(distances >= distances[0] - 1e-12 * abs(distances[0])))


def _mmd_of_memberships(kernel: np.ndarray, memberships: np.ndarray) -> np.ndarray:
    inside, outside = memberships.astype(float), (~memberships).astype(float)
    n, m = inside.sum(axis=1), outside.sum(axis=1)
    diagonal = np.diag(kernel)
    towards = inside @ kernel
    within = np.sum(towards * inside, axis=1) - inside @ diagonal
    across = np.sum(towards * outside, axis=1)
    rest = kernel.sum() - 2 * across - np.sum(towards * inside, axis=1) - outside @ diagonal
    return within / (n * (n - 1)) + rest / (m * (m - 1)) - 2 * across / (n * m)


@dataclass(frozen=True)
class Projection:
    """Principal axes of the training reals, by which all sets are projected alike."""

    mean: np.ndarray
    """(F,)."""
    components: np.ndarray
    """(dimensions, F), orthonormal."""

    @classmethod
    def fit(cls, features: np.ndarray, dimensions: int) -> Projection:
        """From (N, F); `dimensions` below N."""
        mean = features.mean(axis=0)
        return cls(mean, np.linalg.svd(features - mean, full_matrices=False)[2][:dimensions])

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(N, F) to (N, dimensions)."""
        return (features - self.mean) @ self.components.T


@dataclass(frozen=True)
class FeatureSet:
    """One vector per volume and axis."""

    pooled: np.ndarray
    """float64 (3, N, F), axes in the order of `diffusion.features.AXES`."""
    labels: np.ndarray
    """(N,) class codes."""

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        """(3, len(chosen), F)."""
        return self.pooled[:, chosen]


def project(sets: Mapping[str, FeatureSet], dimensions: int) -> dict[str, FeatureSet]:
    """All sets in the principal axes of the set called ``train``, axis by axis."""
    projections = [Projection.fit(features, dimensions) for features in sets["train"].pooled]
    return {
        name: FeatureSet(np.stack([fit(x) for fit, x in zip(projections, one.pooled, strict=True)]), one.labels)
        for name, one in sets.items()
    }


def per_draw(train: np.ndarray, test: np.ndarray, synthetic: np.ndarray) -> int:
    """Volumes per class in each sample: half the held-out or training reals, or all synthetic ones, whichever is least.

    Args:
        train, test, synthetic: class codes of the three sets.
    """
    classes = range(len(CLASS_NAMES))
    counts = [min(np.sum(test == c) // 2, np.sum(train == c) // 2, np.sum(synthetic == c)) for c in classes]
    return int(min(counts))


def dimensions_for(n: int) -> int:
    """Principal components for samples of `n` volumes: half as many as volumes, and at most MAX_DIMENSIONS."""
    return max(2, min(MAX_DIMENSIONS, n // 2))


def draw_once(sets: Mapping[str, FeatureSet], n: int, draw: np.random.Generator) -> Draw:
    """Draws n volumes per class for each role, without replacement.

    ``reference`` and ``partner`` are disjoint rows of ``test``, as ``train`` and ``train_partner`` are of ``train``.
    """
    drawn: Draw = {role: {} for role in ("reference", "partner", "train", "train_partner", "synthetic")}
    for code in range(len(CLASS_NAMES)):
        rows = {name: draw.permutation(np.flatnonzero(sets[name].labels == code)) for name in sorted(_DRAWN)}
        drawn["reference"][code], drawn["partner"][code] = rows["test"][:n], rows["test"][n : 2 * n]
        drawn["train"][code], drawn["train_partner"][code] = rows["train"][:n], rows["train"][n : 2 * n]
        drawn["synthetic"][code] = rows["synthetic"][:n]
    return drawn


_DRAWN = {"test", "train", "synthetic"}


def pairs(sets: Mapping[str, FeatureSet], drawn: Draw, classes: tuple[int, ...]) -> dict[str, dict[str, tuple]]:
    """What is compared with what in one draw: reference, then name, to two arrays (3, n, F).

    Every sample under ``held_out`` is measured against the same reals. A control is made from the partner half,
    so that it shares no subject with the reference, exactly as the floor.
    """

    def pick(name: str, role: str, codes: Iterable[int] = classes) -> np.ndarray:
        return sets[name].rows(np.concatenate([drawn[role][code] for code in codes]))

    reference, train = pick("test", "reference"), pick("train", "train")
    partner = pick("test", "partner")
    held_out = {"floor": partner, "training": train, "synthetic": pick("synthetic", "synthetic")}
    held_out |= {name: pick(name, "partner") for name in sets if name not in _DRAWN}
    held_out["repeated"] = np.repeat(partner[:, :1], partner.shape[1], axis=1)
    if len(classes) == 1:
        held_out["other_class"] = pick("test", "partner", [1 - classes[0]])
    return {
        "held_out": {name: (reference, sample) for name, sample in held_out.items()},
        "training": {
            "floor": (train, pick("train", "train_partner")),
            "synthetic": (train, pick("synthetic", "synthetic")),
        },
    }


GROUPS: dict[str, tuple[int, ...]] = {
    "overall": tuple(range(len(CLASS_NAMES))),
    **{name: (code,) for code, name in enumerate(CLASS_NAMES)},
}
"""Which classes a group of figures covers; the overall samples hold as many of each class."""


def compare(sets: Mapping[str, FeatureSet], *, dimensions: int, n: int, repeats: int, seed: int) -> dict:
    """Floor, synthetic set and controls at one sample size, over repeated draws of subjects.

    Args:
        sets: ``train``, ``test``, ``synthetic``; every other one is a control, made from ``test`` row by row.
        dimensions: of the projection before the Frechet distance; the KID takes all features.
        n: volumes per class in each sample (`per_draw`).
        repeats: number of draws.
        seed: of the draws.

    Returns:
        group -> reference (``held_out``, ``training``) -> sample -> ``fid`` and ``kid``, each with ``mean``, ``low``
        and ``high`` (2.5 and 97.5 percentiles over draws) of the average of the axes, and the mean of each axis.
    """
    projected = project(sets, dimensions)
    measured: dict[tuple[str, str, str, str], list[list[float]]] = {}
    for repeat in range(repeats):
        drawn = draw_once(sets, n, seeding.rng(seed, "fid draw", repeat))
        for group, classes in GROUPS.items():
            for metric, space, distance in (("fid", projected, frechet), ("kid", sets, kid)):
                for reference, samples in pairs(space, drawn, classes).items():
                    for name, (a, b) in samples.items():
                        values = [distance(a[axis], b[axis]) for axis in range(len(AXES))]
                        measured.setdefault((group, reference, name, metric), []).append(values)
    results: dict = {}
    for (group, reference, name, metric), values in measured.items():
        place = results.setdefault(group, {}).setdefault(reference, {}).setdefault(name, {})
        place[metric] = summary(np.array(values))
    return results


def summary(values: np.ndarray) -> dict[str, float]:
    """Mean and 95 % range over draws of the average of the axes, and each axis's mean, from (repeats, 3)."""
    averages = values.mean(axis=1)
    low, high = np.percentile(averages, (2.5, 97.5))
    axes = dict(zip(AXES, values.mean(axis=0).tolist(), strict=True))
    return {"mean": float(averages.mean()), "low": float(low), "high": float(high), **axes}


def compare_all(sets: Mapping[str, FeatureSet], *, dimensions: int, permutations: int, seed: int) -> dict:
    """Distances with every volume there is, and the test of the synthetic set against the held-out reals.

    Returns:
        group -> ``to_held_out`` and ``to_training``: numbers of volumes, ``fid``, ``kid`` (averages of the axes); and
        ``kid_p_value`` against the held-out reals. A ``fid`` here has no floor beside it, for no two disjoint real sets
        of this size exist: it may only be compared with itself.
    """
    projected = project(sets, dimensions)
    results: dict = {}
    for group, classes in GROUPS.items():
        rows = {name: np.flatnonzero(np.isin(sets[name].labels, classes)) for name in sorted(_DRAWN)}
        results[group] = {}
        for key, name in (("to_held_out", "test"), ("to_training", "train")):
            place = {"n_real": len(rows[name]), "n_synthetic": len(rows["synthetic"])}
            for metric, space, distance in (("fid", projected, frechet), ("kid", sets, kid)):
                real, made = (space[one].rows(rows[one]) for one in (name, "synthetic"))
                place[metric] = float(np.mean([distance(a, b) for a, b in zip(real, made, strict=True)]))
            results[group][key] = place
        joined = np.concatenate([sets[name].rows(rows[name]) for name in ("test", "synthetic")], axis=1)
        strata = np.concatenate([sets[name].labels[rows[name]] for name in ("test", "synthetic")])
        kernel = np.mean([polynomial_kernel(one, one) for one in joined], axis=0)  # a mean of kernels is a kernel
        first = np.arange(len(strata)) < len(rows["test"])
        draw = seeding.rng(seed, "kid permutations", *classes)
        results[group]["kid_p_value"] = permutation_p_value(kernel, first, strata, permutations, draw)
    return results
