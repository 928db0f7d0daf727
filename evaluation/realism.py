"""How near synthetic volumes are to real ones, in every feature space there is, and how various they are.

Frechet distances of finite samples are biased upwards: here they are also extrapolated to infinitely many volumes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cohort.stacks import ScanStack
from cohort.tables import CLASS_NAMES
from evaluation import diversity, fid
from evaluation.distances import frechet
from evaluation.features import FeatureNetwork, describe, features_of
from evaluation.fid import GROUPS, ROLES, Draw, FeatureSet, draw_all, pairs, project, shared_views, summary
from evaluation.inputs import Synthetic
from evaluation.posteriors import Codec, Posteriors
from evaluation.references import controls, ladder, sharpness
from runtime import seeding
from runtime.device import Device

PERMUTATIONS = 999
HEADLINE = "efficientnet_lite0"
"""The features whose figures stand first: they come with the installation, and rank controls as they should."""
SIZES = 6
"""Sample sizes from which a distance is extrapolated, from half of the largest to the largest."""
MINIMUM_SIZES = 5
"""Below so many different ones nothing is extrapolated."""
SUBSETS = 4
"""Random subsets of one draw at each size below the largest, over which the distance is averaged before the fit."""


def measure(
    scans: dict[str, ScanStack],
    synthetic: Synthetic,
    codec: Codec | None,
    posteriors: dict[str, Posteriors] | None,
    networks: Mapping[str, FeatureNetwork],
    device: Device,
    cache_dir: Path,
    *,
    repeats: int,
    seed: int,
) -> tuple[dict, dict, list[str]]:
    """``results``, ``all_volumes``, ``infinite`` of the headline features, ``views`` of others, ``surroundings``
    (`ladder.surroundings`) and ``sharpness`` (`sharpness.measure`); support; warnings.
    """
    spoiled = controls.make_controls(scans["test"].volumes, seed)
    volumes: dict[str, Sequence[np.ndarray]] = {name: stack.volumes for name, stack in scans.items()}
    labels = {name: stack.labels for name, stack in scans.items()} | {"synthetic": synthetic.labels}
    n = fid.per_draw(labels["train"], labels["test"], labels["synthetic"])
    rungs = {}
    if codec is not None and posteriors is not None:
        rungs = ladder.build(labels, posteriors, codec, cache_dir / "ladder", per_class=n, seed=seed)
    volumes |= {"synthetic": synthetic.volumes} | {name: made for name, (made, _) in rungs.items()}
    surroundings = ladder.surroundings(volumes)
    sharp = sharpness.measure(volumes | {"blurred": spoiled["blurred"]})
    volumes |= spoiled
    labels |= {name: codes for name, (_, codes) in rungs.items()}
    settings = {"dimensions": fid.dimensions_for(n * len(CLASS_NAMES)), "n": n, "repeats": repeats, "seed": seed}
    noises = [-1 - place if seed is None else seed for place, seed in enumerate(synthetic.seeds)]
    found: dict[str, dict] = {}
    support: dict = {}
    warnings: list[str] = []
    for name, network in networks.items():
        features = {key: features_of(stack, network, device, cache_dir) for key, stack in volumes.items()}
        sets = {
            key: FeatureSet.of(
                values, labels.get(key, labels["test"]), network.views, np.array(noises) if key == "synthetic" else None
            )
            for key, values in features.items()
        }
        results = fid.compare(sets, **settings)
        everything = fid.compare_all(sets, dimensions=settings["dimensions"], permutations=PERMUTATIONS, seed=seed)
        found[name] = {"network": describe(network), "results": results, "all_volumes": everything}
        warnings += fid.warnings_of(results, everything, name)
        if name == HEADLINE:
            found[name]["infinite"] = extrapolate(sets, **settings)
            support = diversity.compare(sets, n=n, repeats=repeats, seed=seed)
    sizes = {"overall": n * len(CLASS_NAMES)} | dict.fromkeys(CLASS_NAMES, n)
    headline = found.pop(HEADLINE)
    warnings += ladder.warnings_of(surroundings)
    facts = {
        "per_draw": sizes, "dimensions": settings["dimensions"], "surroundings": surroundings, "sharpness": sharp,
    }  # fmt: skip
    return {**headline, "views": found, **facts}, support, warnings


def sample_sizes(n: int) -> list[int]:
    """Different sample sizes, in volumes per class, from half of n to n; fewer than SIZES where n is small."""
    return sorted({int(size) for size in np.rint(np.linspace(max(2, n / 2), n, SIZES))}) if n > 1 else []


def extrapolate(sets: Mapping[str, FeatureSet], *, dimensions: int, n: int, repeats: int, seed: int) -> dict:
    """Frechet distances at an infinite number of volumes: a line through the distances at several N, against 1/N.

    Every draw of `fid.compare` gives one line and one intercept. A draw takes half of the reals, so that the spread of
    intercepts over draws is that of a delete-half jackknife; where the synthetic volumes are many more than a draw
    takes, it errs to the wide side. Both samples have N volumes. The intercept of the floor should be 0 and shows how
    well the line fits. What is left of the bias is of order 1/N^2: in simulations (Gaussian, variances as 1/k, 2 to 16
    dimensions, largest N from 18 to 200) at most a seventh of the floor at the largest N, mostly under a twentieth.

    Source: Chong and Forsyth 2020 (arXiv 1911.07023), section 4.

    Args:
        dimensions: at most; fewer, where the smallest sample has fewer volumes.
        n: volumes per class in the largest sample.

    Returns:
        group -> ``sizes`` (N), ``dimensions``, and reference -> ``floor`` and ``synthetic``, each with ``mean``,
        ``low``, ``high`` of the intercepts and the mean of each view, and ``at_sizes``, mean distance at each N; or
        ``skipped``, why not.
    """
    sizes = sample_sizes(n)
    if len(sizes) < MINIMUM_SIZES:
        reason = f"skipped: {n} volumes per class allow {len(sizes)} sample sizes, {MINIMUM_SIZES} are needed"
        return {group: {"skipped": reason} for group in GROUPS}
    views, draws = shared_views(sets), draw_all(sets, n, repeats, seed)
    space = project({name: sets[name] for name in ROLES}, dimensions)
    results: dict = {}
    for group, classes in GROUPS.items():
        kept, total = max(2, min(dimensions, sizes[0] * len(classes))), [size * len(classes) for size in sizes]
        narrow = {name: features.pooled[:, :, :kept] for name, features in space.items()}
        measured = [_at_sizes(narrow, drawn, classes, sizes, seed, repeat) for repeat, drawn in enumerate(draws)]
        results[group] = {"sizes": total, "dimensions": kept, "held_out": {}, "training": {}}
        for reference, name in measured[0]:
            values = np.stack([by_pair[reference, name] for by_pair in measured])  # (repeats, V, sizes)
            figures = summary(intercepts(np.array(total), values), views)
            results[group][reference][name] = figures | {"at_sizes": values.mean(axis=(0, 1)).tolist()}
    return results


def _at_sizes(
    features: dict[str, np.ndarray], drawn: Draw, classes: tuple[int, ...], sizes: list[int], seed: int, repeat: int
) -> dict[tuple[str, str], np.ndarray]:
    """Distances of one draw by reference and sample: (V, sizes). The views share their random subsets."""
    found = {}
    draws = [seeding.rng(seed, "fid sizes", repeat, *classes) for _ in features["train"]]
    for reference, ((real, rows), samples) in pairs(drawn, classes).items():
        for name in ("floor", "synthetic"):
            other, chosen = samples[name]
            found[reference, name] = np.array(
                [
                    [_at_size(a, b, size, len(classes), draw) for size in sizes]
                    for a, b, draw in zip(features[real][:, rows], features[other][:, chosen], draws, strict=True)
                ]
            )
    return found


def _at_size(a: np.ndarray, b: np.ndarray, size: int, classes: int, draw: np.random.Generator) -> float:
    """Frechet distance of `size` rows of each class of a and b (classes x n, F), averaged over random choices."""
    n = len(a) // classes
    starts = n * np.arange(classes)[:, None]

    def chosen(side: np.ndarray) -> np.ndarray:
        return side[(starts + draw.permuted(np.tile(np.arange(n), (classes, 1)), axis=1)[:, :size]).ravel()]

    return float(np.mean([frechet(chosen(a), chosen(b)) for _ in range(1 if size == n else SUBSETS)]))


def intercepts(sizes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """At 1/N = 0, the least-squares line through values (..., S) at S sizes: (...)."""
    inverse = 1.0 / sizes
    centred = inverse - inverse.mean()
    slope = (values @ centred) / (centred @ centred)
    return values.mean(axis=-1) - slope * inverse.mean()
