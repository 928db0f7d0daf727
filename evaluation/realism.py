"""How near synthetic volumes are to real ones, in every feature space there is, and how various they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cohort.stacks import ScanStack
from cohort.tables import CLASS_NAMES
from evaluation import controls, diversity, extrapolation, fid
from evaluation.features import FeatureNetwork, describe, features_of
from evaluation.inputs import Synthetic
from runtime.device import Device

PERMUTATIONS = 999
HEADLINE = "efficientnet_lite0"
"""The features whose figures stand first: they come with the installation, and rank controls as they should."""


def measure(
    scans: dict[str, ScanStack],
    synthetic: Synthetic,
    networks: Mapping[str, FeatureNetwork],
    device: Device,
    cache_dir: Path,
    *,
    repeats: int,
    seed: int,
) -> tuple[dict, dict, list[str]]:
    """Distances in all feature spaces, and diversity in the first.

    Returns:
        ``results``, ``all_volumes`` and ``infinite`` of the headline features and ``views`` of the others; precision
        and recall; and warnings.
    """
    spoiled = controls.make_controls(scans["test"].volumes, seed)
    volumes: dict[str, Sequence[np.ndarray]] = {name: stack.volumes for name, stack in scans.items()}
    volumes |= {"synthetic": synthetic.volumes, **spoiled}
    labels = {name: stack.labels for name, stack in scans.items()} | {"synthetic": synthetic.labels}
    n = fid.per_draw(labels["train"], labels["test"], labels["synthetic"])
    settings = {"dimensions": fid.dimensions_for(n * len(CLASS_NAMES)), "n": n, "repeats": repeats, "seed": seed}
    found: dict[str, dict] = {}
    support: dict = {}
    warnings: list[str] = []
    for name, network in networks.items():
        sets = {
            key: fid.FeatureSet.of(
                features_of(stack, network, device, cache_dir), labels.get(key, labels["test"]), network.views
            )
            for key, stack in volumes.items()
        }
        results = fid.compare(sets, **settings)
        everything = fid.compare_all(sets, dimensions=settings["dimensions"], permutations=PERMUTATIONS, seed=seed)
        found[name] = {"network": describe(network), "results": results, "all_volumes": everything}
        warnings += fid.warnings_of(results, everything, name)
        if name == HEADLINE:
            found[name]["infinite"] = extrapolation.extrapolate(sets, **settings)
            support = diversity.compare(sets, n=n, repeats=repeats, seed=seed)
    sizes = {"overall": n * len(CLASS_NAMES)} | dict.fromkeys(CLASS_NAMES, n)
    headline = found.pop(HEADLINE)
    return {**headline, "views": found, "per_draw": sizes, "dimensions": settings["dimensions"]}, support, warnings
