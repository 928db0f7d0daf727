"""Realism as distances between sets of volumes, and the draws that make them comparable. Pure functions of features.

A Frechet distance between finite samples of one distribution is not zero, and how far it is from zero depends on the
number of samples, the number of features and the distribution itself (Chong and Forsyth 2020, arXiv 1911.07023). So no
figure stands alone here: `compare` measures the synthetic set, the floor (real against other real subjects) and the
controls on samples of one size, over the same draws of the reference, and the kernel distance, which has no such bias,
carries the tests of `compare_all`. Sets are handled view by view: memory does not grow with the number of views.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from cohort.tables import CLASS_NAMES
from evaluation.distances import (
    frechet,
    kid,
    mmd_of_memberships,
    nearer_training,
    permutation_p_value,
    polynomial_kernel,
)
from evaluation.features import AXES
from runtime import seeding

MINIMUM_PER_CLASS = 4
"""Fewest volumes of a class on either side: two disjoint halves of two. Enough to compute, not to trust."""
TRUSTED_PER_SIDE = 50
"""Below this many volumes on either side of a comparison, a figure is only a sign that the code ran."""
MAX_DIMENSIONS = 16
"""Principal components kept for the Frechet distance; more raise the floor faster than they raise the controls."""
FALSE_ALARMS = 0.05
"""Probability that `warnings_of` says anything where synthetic volumes do not depend on which reals were trained on."""

ROLES = ("train", "test", "synthetic")
"""The sets that are drawn from; every other one is a control, which follows the draws of ``test``."""

Draw = dict[str, dict[int, np.ndarray]]
"""Rows drawn from each set: role, then class code, to row numbers."""


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
    """One vector per volume and view."""

    pooled: np.ndarray
    """(V, N, F); may be mapped from a file."""
    labels: np.ndarray
    """(N,) class codes."""
    views: tuple[str, ...] = AXES
    """Name of each view, an axis for example; the figures of views of one name are averaged."""

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray, views: tuple[str, ...]) -> FeatureSet:
        """From the features of a `evaluation.networks.VolumeNetwork`, (N, V, F), without reading them."""
        return cls(np.moveaxis(features, 1, 0), labels, views)

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        """(V, len(chosen), F)."""
        return self.pooled[:, chosen]

    def view(self, index: int) -> FeatureSet:
        """One view alone, in memory and in float64."""
        features = np.asarray(self.pooled[index : index + 1], dtype=np.float64)
        return FeatureSet(features, self.labels, self.views[index : index + 1])


def project(sets: Mapping[str, FeatureSet], dimensions: int) -> dict[str, FeatureSet]:
    """All sets in the principal axes of the set called ``train``, view by view."""
    projections = [Projection.fit(features, dimensions) for features in sets["train"].pooled]
    return {
        name: FeatureSet(
            np.stack([fit(x) for fit, x in zip(projections, one.pooled, strict=True)]), one.labels, one.views
        )
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
        rows = {name: draw.permutation(np.flatnonzero(sets[name].labels == code)) for name in sorted(ROLES)}
        drawn["reference"][code], drawn["partner"][code] = rows["test"][:n], rows["test"][n : 2 * n]
        drawn["train"][code], drawn["train_partner"][code] = rows["train"][:n], rows["train"][n : 2 * n]
        drawn["synthetic"][code] = rows["synthetic"][:n]
    return drawn


def pairs(sets: Mapping[str, FeatureSet], drawn: Draw, classes: tuple[int, ...]) -> dict[str, dict[str, tuple]]:
    """What is compared with what in one draw: reference, then name, to two arrays (V, n, F).

    Every sample under ``held_out`` is measured against the same reals. A control is made from the partner half,
    so that it shares no subject with the reference, exactly as the floor.
    """

    def pick(name: str, role: str, codes: Iterable[int] = classes) -> np.ndarray:
        return sets[name].rows(np.concatenate([drawn[role][code] for code in codes]))

    reference, train = pick("test", "reference"), pick("train", "train")
    partner = pick("test", "partner")
    held_out = {"floor": partner, "training": train, "synthetic": pick("synthetic", "synthetic")}
    held_out |= {name: pick(name, "partner") for name in sets if name not in ROLES}
    held_out["repeated"] = np.repeat(partner[:, :1], partner.shape[1], axis=1)
    mixed = [_relabelled(drawn["partner"], code) for code in classes]
    held_out["relabelled"] = sets["test"].rows(np.concatenate(mixed))
    if len(classes) == 1:
        held_out["other_class"] = pick("test", "partner", [1 - classes[0]])
    return {
        "held_out": {name: (reference, sample) for name, sample in held_out.items()},
        "training": {
            "floor": (train, pick("train", "train_partner")),
            "synthetic": (train, pick("synthetic", "synthetic")),
        },
    }


def _relabelled(rows: dict[int, np.ndarray], code: int) -> np.ndarray:
    """As many rows as the class has, half of them of the other class: what permuted labels leave of it."""
    half = len(rows[code]) // 2
    return np.concatenate([rows[code][half:], rows[1 - code][:half]])


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
        and ``high`` (2.5 and 97.5 percentiles over draws) of the average of the views, the mean of each name of views,
        ``n`` (volumes on each side) and, for the FID, ``dimensions``. Besides ``fid_minus_floor`` and
        ``kid_minus_floor``, draw by draw, and for the synthetic sample against ``training`` also ``fid_minus_held_out``
        and ``kid_minus_held_out``: what is left above the floor there less what is left above it to the held-out reals.
    """
    views = shared_views(sets)
    drawn = [draw_once(sets, n, seeding.rng(seed, "fid draw", repeat)) for repeat in range(repeats)]
    measured: dict[tuple[str, str, str, str], np.ndarray] = {}
    for view in range(len(views)):
        raw = {name: one.view(view) for name, one in sets.items()}
        spaces = (("fid", project(raw, dimensions), frechet), ("kid", raw, kid))
        for (repeat, one), (group, classes), (metric, space, distance) in product(
            enumerate(drawn), GROUPS.items(), spaces
        ):
            for reference, samples in pairs(space, one, classes).items():
                for name, (a, b) in samples.items():
                    values = measured.setdefault((group, reference, name, metric), np.empty((repeats, len(views))))
                    values[repeat, view] = distance(a[0], b[0])
    used = min(dimensions, sets["train"].pooled.shape[2])
    results: dict = {}
    for (group, reference, name, metric), values in measured.items():
        place = results.setdefault(group, {}).setdefault(reference, {}).setdefault(name, {})
        place[metric] = summary(values, views) | {"n": n * len(GROUPS[group])}
        if metric == "fid":
            place[metric]["dimensions"] = used
        if name != "floor":
            excess = values - measured[group, reference, "floor", metric]
            place[f"{metric}_minus_floor"] = summary(excess, views)
            if (reference, name) == ("training", "synthetic"):
                held_out = (measured[group, "held_out", one, metric] for one in ("synthetic", "floor"))
                place[f"{metric}_minus_held_out"] = summary(excess - np.subtract(*held_out), views)
    return results


def shared_views(sets: Mapping[str, FeatureSet]) -> tuple[str, ...]:
    """The names of the views, which all sets must share."""
    names = {one.views for one in sets.values()}
    if len(names) != 1 or {len(one.pooled) for one in sets.values()} != {len(next(iter(names)))}:
        raise ValueError(f"sets of different views: { {name: one.views for name, one in sets.items()} }")
    return names.pop()


def summary(values: np.ndarray, views: tuple[str, ...] = AXES) -> dict[str, float]:
    """Mean and 95 % range over draws of the average of the views, and the mean of each name, from (repeats, V)."""
    averages = values.mean(axis=1)
    low, high = np.percentile(averages, (2.5, 97.5))
    figures = {"mean": float(averages.mean()), "low": float(low), "high": float(high)}
    return figures | by_name(values.mean(axis=0), views)


def by_name(values: np.ndarray, views: tuple[str, ...]) -> dict[str, float]:
    """The mean over the views of each name, from (V,)."""
    named = np.array(views)
    return {name: float(values[named == name].mean()) for name in dict.fromkeys(views)}


def compare_all(sets: Mapping[str, FeatureSet], *, dimensions: int, permutations: int, seed: int) -> dict:
    """Distances with every volume there is, and the tests that need no floor. Memory: 8 bytes times the square of N.

    Returns:
        group -> ``to_held_out`` and ``to_training``: numbers of volumes, ``dimensions``, ``fid``, ``kid`` (averages of
        the views) and ``fid_by_view``; ``kid_p_value`` of the synthetic set against the held-out reals; and
        ``kid_to_training_minus_held_out`` with ``nearer_training_p_value``, see `nearer_training`. A ``fid`` here has
        no floor beside it, for no two disjoint real sets of this size exist: it may only be compared with itself.
    """
    views = shared_views(sets)
    labels = {name: sets[name].labels for name in ROLES}
    origin = np.repeat(ROLES, [len(labels[name]) for name in ROLES])
    strata = np.concatenate([labels[name] for name in ROLES])
    kernel = np.zeros((len(strata), len(strata)))  # a mean of kernels is a kernel
    distances: dict[tuple[str, str], list[float]] = {}
    for view in range(len(views)):
        raw = {name: sets[name].view(view) for name in ROLES}
        projected = project(raw, dimensions)
        joined = np.concatenate([raw[name].pooled[0] for name in ROLES])
        kernel += polynomial_kernel(joined, joined) / len(views)
        for (group, classes), name in product(GROUPS.items(), ("test", "train")):
            real, made = (projected[one].pooled[0][np.isin(labels[one], classes)] for one in (name, "synthetic"))
            distances.setdefault((group, name), []).append(frechet(real, made))
    results: dict = {}
    for group, classes in GROUPS.items():
        inside = np.flatnonzero(np.isin(strata, classes))
        results[group] = tested(kernel[np.ix_(inside, inside)], origin[inside], strata[inside], permutations, seed)
        for key, name in (("to_held_out", "test"), ("to_training", "train")):
            fids = np.array(distances[group, name])
            place = {"fid": float(fids.mean()), "fid_by_view": by_name(fids, views)}
            results[group][key] |= place | {"dimensions": min(dimensions, sets["train"].pooled.shape[2])}
    return results


def tested(kernel: np.ndarray, origin: np.ndarray, strata: np.ndarray, permutations: int, seed: int) -> dict:
    """What `compare_all` says of one group by the kernel (N, N), given each volume's role and class code."""
    found: dict = {}
    for key, name in (("to_held_out", "test"), ("to_training", "train")):
        pair = np.flatnonzero(origin != ("train" if name == "test" else "test"))
        part, first = kernel[np.ix_(pair, pair)], origin[pair] == name
        distance = float(mmd_of_memberships(part, first[None])[0])
        found[key] = {"n_real": int(first.sum()), "n_synthetic": int((~first).sum()), "kid": distance}
        if name == "test":
            draw = seeding.rng(seed, "kid permutations", *np.unique(strata))
            found["kid_p_value"] = permutation_p_value(part, first, strata[pair], permutations, draw)
    draw = seeding.rng(seed, "nearer training", *np.unique(strata))
    difference, chance = nearer_training(kernel, origin == "train", origin != "synthetic", strata, permutations, draw)
    return found | {"kid_to_training_minus_held_out": difference, "nearer_training_p_value": chance}


def warnings_of(results: Mapping, all_volumes: Mapping, network: str) -> list[str]:
    """What a reader has to be told: groups in which the synthetic volumes are too near to the training reals.

    Copies are one reason, and a generator that fits the averages of its training sample more closely than those of the
    population another; single copies among many volumes remain unseen (`privacy.copying` looks for them). The
    probability of any such sentence where synthetic volumes do not depend on which reals were trained on is
    FALSE_ALARMS, shared among the groups (Bonferroni).

    Args:
        results: of `compare`.
        all_volumes: of `compare_all`, on the same sets.
        network: name of the features.
    """
    warnings = []
    for group, one in all_volumes.items():
        if one["nearer_training_p_value"] > FALSE_ALARMS / len(GROUPS):
            continue
        train, test = (results[group][key]["synthetic"]["fid_minus_floor"]["mean"] for key in ("training", "held_out"))
        warnings.append(
            f"NEARER TO TRAINING ({network}, {group}): synthetic volumes are closer to training than to held-out reals "
            f"beyond what two real sets differ by (KID difference {one['kid_to_training_minus_held_out']:.3g}, "
            f"p {one['nearer_training_p_value']:.2g}; FID above its floor {train:.3g} to training, {test:.3g} to "
            "held-out): it reproduces its training sample, by copies or by its averages"
        )
    return warnings
