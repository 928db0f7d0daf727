"""Realism as distances between sets of volumes, and the draws that make them comparable. Pure functions of features.

A Frechet distance between finite samples of one distribution is not zero, and how far it is from zero depends on the
number of samples, the number of features and the distribution itself (Chong and Forsyth 2020, arXiv 1911.07023). So no
figure stands alone here: `compare` measures the synthetic set, the floor (real against other real subjects) and the
controls on samples of one size, over the same draws of the reference, and the kernel distance, which has no such bias,
carries the tests of `compare_all`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

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
"""The sets that every comparison draws from."""
RECONSTRUCTED = "reconstructed"
BASELINES = ("gaussian_64", "gaussian")
"""Sets that are drawn from like ``synthetic``, where there are such. Every further one, RECONSTRUCTED too, is made from
``test`` row by row, and follows its draws."""
REFERENCES = (("to_held_out", "test"), ("to_training", "train"))
"""What all volumes are compared with: key of the result, and set."""
GROUPS: dict[str, tuple[int, ...]] = {
    "overall": tuple(range(len(CLASS_NAMES))),
    **{name: (code,) for code, name in enumerate(CLASS_NAMES)},
}
"""Which classes a group of figures covers; the overall samples hold as many of each class."""

Draw = dict[str, dict[int, np.ndarray]]
"""Rows drawn from each set: role or baseline, then class code, to row numbers."""
Rows = tuple[str, np.ndarray]
"""Name of a set, and row numbers in it."""
T = TypeVar("T")


@dataclass(frozen=True)
class FeatureSet:
    """One vector per volume and view."""

    pooled: np.ndarray
    """float64 (V, N, F)."""
    labels: np.ndarray
    """(N,) class codes."""
    views: tuple[str, ...] = AXES
    """Name of each view, an axis for example; a figure is the average of the views."""
    noises: np.ndarray | None = None
    """(N,) what tells the noises apart that volumes were made from. HC and TLE of one noise are nearly one volume, so a
    draw takes both only when there are no others left. None: all differ."""

    @classmethod
    def of(
        cls, features: np.ndarray, labels: np.ndarray, views: tuple[str, ...], noises: np.ndarray | None = None
    ) -> FeatureSet:
        """From the features of a network, (N, V, F)."""
        return cls(np.ascontiguousarray(np.moveaxis(features, 1, 0), dtype=np.float64), labels, views, noises)


def project(sets: Mapping[str, FeatureSet], dimensions: int) -> dict[str, FeatureSet]:
    """All sets in the principal axes of the set called ``train``, view by view: (V, N, dimensions)."""
    means = sets["train"].pooled.mean(axis=1, keepdims=True)
    axes = [np.linalg.svd(view, full_matrices=False)[2][:dimensions].T for view in sets["train"].pooled - means]
    return {
        name: replace(
            features, pooled=np.stack([view @ axis for view, axis in zip(features.pooled - means, axes, strict=True)])
        )
        for name, features in sets.items()
    }


def per_draw(train: np.ndarray, test: np.ndarray, synthetic: np.ndarray) -> int:
    """Volumes per class in a sample, from class codes: half of the reals of a side or all synthetic, the least."""
    classes = range(len(CLASS_NAMES))
    counts = [min(np.sum(test == c) // 2, np.sum(train == c) // 2, np.sum(synthetic == c)) for c in classes]
    return int(min(counts))


def dimensions_for(n: int) -> int:
    """Principal components for samples of `n` volumes: half as many as volumes, and at most MAX_DIMENSIONS."""
    return max(2, min(MAX_DIMENSIONS, n // 2))


def draw_once(sets: Mapping[str, FeatureSet], n: int, draw: np.random.Generator) -> Draw:
    """Draws n volumes per class for each role; a partner is disjoint from the reference, and from ``train``."""
    drawn: Draw = {role: {} for role in ("reference", "partner", "train", "train_partner", "synthetic")}
    for code in range(len(CLASS_NAMES)):
        rows = {name: draw.permutation(np.flatnonzero(sets[name].labels == code)) for name in sorted(ROLES)}
        drawn["reference"][code], drawn["partner"][code] = rows["test"][:n], rows["test"][n : 2 * n]
        drawn["train"][code], drawn["train_partner"][code] = rows["train"][:n], rows["train"][n : 2 * n]
        drawn["synthetic"][code] = of_other_noises(rows["synthetic"], sets["synthetic"].noises, drawn["synthetic"])[:n]
    for name in sorted(sets.keys() & set(BASELINES)):  # last, so that the draws of the others do not depend on them
        labels = sets[name].labels
        drawn[name] = {code: draw.permutation(np.flatnonzero(labels == code))[:n] for code in range(len(CLASS_NAMES))}
    return drawn


def of_other_noises(rows: np.ndarray, noises: np.ndarray | None, before: Mapping[int, np.ndarray]) -> np.ndarray:
    """Rows in their order, but those of a noise that classes drawn `before` have taken come last."""
    if noises is None or not before:
        return rows
    taken = np.isin(noises[rows], noises[np.concatenate(list(before.values()))])
    return np.concatenate([rows[~taken], rows[taken]])


def draw_all(sets: Mapping[str, FeatureSet], n: int, repeats: int, seed: int) -> list[Draw]:
    """The draws that all figures of one evaluation share."""
    return [draw_once(sets, n, seeding.rng(seed, "fid draw", repeat)) for repeat in range(repeats)]


def pairs(
    drawn: Draw, classes: tuple[int, ...], controls: Iterable[str] = ()
) -> dict[str, tuple[Rows, dict[str, Rows]]]:
    """What is compared with what in one draw: the rows of each reference, and by name the samples measured against it.

    A control is made from the partner half, so that it shares no subject with the reference, exactly as the floor.
    """

    def pick(role: str) -> np.ndarray:
        return np.concatenate([drawn[role][code] for code in classes])

    partner, train, synthetic = pick("partner"), ("train", pick("train")), ("synthetic", pick("synthetic"))
    held_out: dict[str, Rows] = {"floor": ("test", partner), "training": train, "synthetic": synthetic}
    held_out |= {name: (name, pick(name)) for name in BASELINES if name in drawn}
    held_out |= {name: (name, partner) for name in controls}
    held_out["repeated"] = "test", np.repeat(partner[:1], len(partner))
    held_out["relabelled"] = "test", np.concatenate([_relabelled(drawn["partner"], code) for code in classes])
    if len(classes) == 1:
        held_out["other_class"] = "test", drawn["partner"][1 - classes[0]]
    training: dict[str, Rows] = {"floor": ("train", pick("train_partner")), "synthetic": synthetic}
    return {"held_out": (("test", pick("reference")), held_out), "training": (train, training)}


def _relabelled(rows: dict[int, np.ndarray], code: int) -> np.ndarray:
    """As many rows as the class has, half of them of the other class: what permuted labels leave of it."""
    half = len(rows[code]) // 2
    return np.concatenate([rows[code][half:], rows[1 - code][:half]])


def controls_of(sets: Iterable[str]) -> list[str]:
    """The sets that are made from ``test`` row by row."""
    return [name for name in sets if name not in (*ROLES, *BASELINES)]


def over_draws(
    draws: Sequence[Draw], classes: tuple[int, ...], controls: Sequence[str], measure: Callable[[Rows, Rows], T]
) -> dict[str, dict[str, list[T]]]:
    """Measures every pair of every draw: reference -> sample -> one value per draw."""
    measured: dict[str, dict[str, list[T]]] = {"held_out": {}, "training": {}}
    for drawn in draws:
        for reference, (real, samples) in pairs(drawn, classes, controls).items():
            for name, sample in samples.items():
                measured[reference].setdefault(name, []).append(measure(real, sample))
    return measured


def by_view(
    sets: Mapping[str, FeatureSet], distance: Callable[[np.ndarray, np.ndarray], float]
) -> Callable[[Rows, Rows], list[float]]:
    """A distance of two samples, in each view of some features."""

    def measure(real: Rows, sample: Rows) -> list[float]:
        a, b = (sets[name].pooled[:, rows] for name, rows in (real, sample))
        return [distance(x, y) for x, y in zip(a, b, strict=True)]

    return measure


def compare(sets: Mapping[str, FeatureSet], *, dimensions: int, n: int, repeats: int, seed: int) -> dict:
    """Floor, synthetic set and controls at one sample size, over repeated draws of subjects.

    Args:
        sets: ``train``, ``test``, ``synthetic``, BASELINES; every other one is made from ``test`` row by row.
        dimensions: of the projection before the Frechet distance; the KID takes all features.
        n: volumes per class in each sample (`per_draw`).

    Returns:
        group -> reference (``held_out``, ``training``) -> sample -> ``fid`` and ``kid``, each with ``mean``, ``low``
        and ``high`` (2.5 and 97.5 percentiles over draws) of the average of the views, the mean of each view,
        ``n`` (volumes on each side) and, for the FID, ``dimensions``. Besides ``fid_minus_floor`` and
        ``kid_minus_floor``, draw by draw, and for the synthetic sample against ``training`` also ``fid_minus_held_out``
        and ``kid_minus_held_out``: what is left above the floor there less what is left above it to the held-out reals.
    """
    views, draws = shared_views(sets), draw_all(sets, n, repeats, seed)
    controls = controls_of(sets)
    used = {"dimensions": min(dimensions, sets["train"].pooled.shape[2])}
    metrics = {"fid": by_view(project(sets, dimensions), frechet), "kid": by_view(sets, kid)}
    results: dict = {}
    for group, classes in GROUPS.items():
        size = {"n": n * len(classes)}
        fids, kids = (
            _figures(over_draws(draws, classes, controls, distance), metric, views, size | facts)
            for (metric, distance), facts in zip(metrics.items(), (used, {}), strict=True)
        )
        results[group] = {
            reference: {name: figures | kids[reference][name] for name, figures in samples.items()}
            for reference, samples in fids.items()
        }
    return results


def _figures(measured: dict[str, dict[str, list]], metric: str, views: tuple[str, ...], facts: dict) -> dict:
    """Of one group and metric, from its distances by draw and view: what `compare` returns."""
    figures: dict = {}
    above: dict[str, dict[str, np.ndarray]] = {}
    for reference, samples in measured.items():
        figures[reference] = {name: {metric: summary(np.array(rows), views) | facts} for name, rows in samples.items()}
        above[reference] = {name: np.subtract(rows, samples["floor"]) for name, rows in samples.items()}
        for name in samples.keys() - {"floor"}:
            figures[reference][name][f"{metric}_minus_floor"] = summary(above[reference][name], views)
    gap = above["training"]["synthetic"] - above["held_out"]["synthetic"]
    figures["training"]["synthetic"][f"{metric}_minus_held_out"] = summary(gap, views)
    return figures


def shared_views(sets: Mapping[str, FeatureSet]) -> tuple[str, ...]:
    """The names of the views, which all sets must share."""
    names = {features.views for features in sets.values()}
    if len(names) != 1 or {len(features.pooled) for features in sets.values()} != {len(next(iter(names)))}:
        raise ValueError(f"sets of different views: { {name: features.views for name, features in sets.items()} }")
    return names.pop()


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Mean and 95 % range over draws."""
    low, high = np.percentile(values, (2.5, 97.5))
    return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}


def summary(values: np.ndarray, views: tuple[str, ...] = AXES) -> dict[str, float]:
    """`spread` of the average of the views, and the mean of each view, from (repeats, V)."""
    return spread(values.mean(axis=1)) | dict(zip(views, values.mean(axis=0).tolist(), strict=True))


def compare_all(sets: Mapping[str, FeatureSet], *, dimensions: int, permutations: int, seed: int) -> dict:
    """Distances with every volume there is, and the tests that need no floor. Memory: 8 bytes times the square of N.

    Returns:
        group -> ``to_held_out`` and ``to_training``: numbers of volumes, ``dimensions``, ``fid`` and ``kid`` (averages
        of the views); ``kid_p_value`` of the synthetic set against the held-out reals; and
        ``kid_to_training_minus_held_out`` with ``nearer_training_p_value``, see `nearer_training`. A ``fid`` here has
        no floor beside it, for no two disjoint real sets of this size exist: it may only be compared with itself.
    """
    views = shared_views(sets)
    labels = {name: sets[name].labels for name in ROLES}
    origin = np.repeat(ROLES, [len(labels[name]) for name in ROLES])
    strata = np.concatenate([labels[name] for name in ROLES])
    joined = np.concatenate([sets[name].pooled for name in ROLES], axis=1)
    kernel = sum(polynomial_kernel(view, view) / len(views) for view in joined)  # a mean of kernels is a kernel
    distance = by_view(project({name: sets[name] for name in ROLES}, dimensions), frechet)
    results: dict = {}
    for group, classes in GROUPS.items():
        inside = np.flatnonzero(np.isin(strata, classes))
        results[group] = tested(kernel[np.ix_(inside, inside)], origin[inside], strata[inside], permutations, seed)
        rows = {name: (name, np.flatnonzero(np.isin(labels[name], classes))) for name in ROLES}
        for key, name in REFERENCES:
            fid = float(np.mean(distance(rows[name], rows["synthetic"])))
            results[group][key] |= {"fid": fid, "dimensions": min(dimensions, joined.shape[2])}
    return results


def tested(kernel: np.ndarray, origin: np.ndarray, strata: np.ndarray, permutations: int, seed: int) -> dict:
    """What `compare_all` says of one group by the kernel (N, N), given each volume's role and class code."""
    found: dict = {}
    for key, name in REFERENCES:
        pair = np.flatnonzero(np.isin(origin, (name, "synthetic")))
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
    """Sentences about groups whose synthetic volumes are too near to the training reals, by `compare`, `compare_all`.

    Copies are one reason, and a generator that fits the averages of its training sample more closely than those of the
    population another; single copies among many volumes remain unseen (`privacy.copying` looks for them). FALSE_ALARMS
    is shared among the groups (Bonferroni).
    """
    warnings = []
    for group, figures in all_volumes.items():
        if figures["nearer_training_p_value"] > FALSE_ALARMS / len(GROUPS):
            continue
        train, test = (results[group][key]["synthetic"]["fid_minus_floor"]["mean"] for key in ("training", "held_out"))
        warnings.append(
            f"NEARER TO TRAINING ({network}, {group}): synthetic volumes are closer to training than to held-out reals "
            f"beyond what two real sets differ by (KID difference {figures['kid_to_training_minus_held_out']:.3g}, "
            f"p {figures['nearer_training_p_value']:.2g}; FID above its floor {train:.3g} to training, {test:.3g} to "
            "held-out): it reproduces its training sample, by copies or by its averages"
        )
    return warnings
