"""How near synthetic volumes are to real ones, in every feature space there is, and how various they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cohort.scans import Grid, ScanStack
from cohort.tables import CLASS_NAMES
from evaluation import controls, diversity, extrapolation, fid
from evaluation.inputs import Synthetic
from evaluation.networks import PUBLISHED_POSITION_FID, WeightsFile, describe, features_of, open_networks
from runtime.device import Device
from runtime.errors import InputError

PERMUTATIONS = 999
HEADLINE = "efficientnet_lite0"
"""The features whose figures stand first: they come with the installation, and rank controls as they should."""


@dataclass(frozen=True)
class Protocol:
    """What all figures of one evaluation share."""

    slices: int
    """Slices per axis for EfficientNet."""
    every: int
    """RadImageNet and Inception see every so many-th slice."""
    repeats: int
    """Draws of subjects."""
    seed: int


def parse_weights(given: tuple[str, ...]) -> dict[str, WeightsFile]:
    """``NAME=FILE=SHA256`` as the networks take them.

    Raises:
        InputError: another form.
    """
    files = {}
    for text in given:
        parts = text.split("=")
        if len(parts) != 3:
            raise InputError(f"--weights {text}: expected NAME=FILE=SHA256")
        files[parts[0]] = WeightsFile(Path(parts[1]), parts[2])
    return files


def measure(
    scans: dict[str, ScanStack],
    synthetic: Synthetic,
    grid: Grid,
    protocol: Protocol,
    weights: dict[str, WeightsFile],
    device: Device,
    cache_dir: Path,
) -> tuple[dict, dict, list[str]]:
    """Distances in all feature spaces, and diversity in the first.

    Returns:
        ``results``, ``all_volumes`` and ``infinite`` of the headline features and ``views`` of the others; the
        diversity; and warnings.
    """
    stacks: dict[str, Sequence[np.ndarray]] = {name: stack.volumes for name, stack in scans.items()}
    spoiled = controls.make_controls(scans["test"].volumes, protocol.seed)
    stacks |= {"synthetic": synthetic.volumes, **spoiled}
    labels = {name: stack.labels for name, stack in scans.items()}
    labels |= {"synthetic": synthetic.labels, **dict.fromkeys(spoiled, labels["test"])}
    n = fid.per_draw(labels["train"], labels["test"], labels["synthetic"])
    dimensions = fid.dimensions_for(n * len(CLASS_NAMES))
    networks, skipped = open_networks(grid, weights, per_axis=protocol.slices, every=protocol.every)
    found: dict[str, dict] = {name: {"skipped": reason} for name, reason in skipped.items()}
    warnings: list[str] = []
    various: dict = {}
    for name, network in networks.items():
        features = {key: features_of(stack, network, device, cache_dir) for key, stack in stacks.items()}
        sets = {key: fid.FeatureSet.of(value, labels[key], network.views) for key, value in features.items()}
        settings = {"dimensions": dimensions, "n": n, "repeats": protocol.repeats, "seed": protocol.seed}
        figures = {
            "network": describe(network),
            "results": fid.compare(sets, **settings),
            "all_volumes": fid.compare_all(sets, dimensions=dimensions, permutations=PERMUTATIONS, seed=protocol.seed),
        }
        warnings += fid.warnings_of(figures["results"], figures["all_volumes"], name)
        if name == HEADLINE:
            figures["infinite"] = extrapolation.extrapolate(sets, **settings)
            various = {"support": diversity.compare(sets, n=n, repeats=protocol.repeats, seed=protocol.seed)}
        if name == "inception_v3":
            figures["published"] = PUBLISHED_POSITION_FID
        found[name] = figures
    headline = found.pop(HEADLINE)
    sizes = {"overall": n * len(CLASS_NAMES)} | dict.fromkeys(CLASS_NAMES, n)
    return {**headline, "views": found, "per_draw": sizes, "dimensions": dimensions}, various, warnings


def similarity(scans: ScanStack, synthetic: Synthetic, *, pairs: int, seed: int) -> dict:
    """MS-SSIM of pairs of synthetic volumes beside pairs of held-out scans."""
    real, made = ((one.volumes, one.labels) for one in (scans, synthetic))
    return diversity.compare_ms_ssim(real, made, pairs=pairs, seed=seed)
