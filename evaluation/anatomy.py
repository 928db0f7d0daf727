"""Whether synthetic volumes have the anatomy of scans, and the disease where scans have it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cohort.anatomy.regional_volumes import METHOD, columns_of, region_table
from cohort.anatomy.truth import true_volumes
from cohort.atlas import LICENCE_NOTE, REGIONS
from cohort.scans import Grid, ScanStack
from cohort.tables import CLASS_NAMES
from evaluation import effects as morphometry
from evaluation.inputs import Synthetic
from evaluation.morphometry_chart import forest_plot

Table = tuple[np.ndarray, np.ndarray]
"""Measures (N, M) and class codes (N,)."""


def measure(
    scans: dict[str, ScanStack], synthetic: Synthetic, grid: Grid, truth: Path | None, figure: Path, seed: int
) -> dict:
    """Everything about regional volumes, as JSON values; draws the effects of the diagnosis.

    Args:
        scans: ``train`` and ``test``.
        synthetic: volumes of both classes.
        grid: of all.
        truth: true volumes of simulated scans (truth.csv), or None.
        figure: path of the PNG.
        seed: of resamples and permutations.

    Returns:
        ``method``, ``licence``; ``distributions`` (class -> synthetic against held-out reals, and training against
        held-out reals as the same under no difference), ``effects`` (set -> Cohen's d by measure), ``agreement``
        (synthetic, and held-out reals, against training reals), ``label_swap`` (same seeds as HC and as TLE), and with
        a truth ``true_effects``, ``recovery`` and the agreement with it.
    """
    tables: dict[str, Table] = {}
    names: tuple[str, ...] = ()
    for key, stack in (*scans.items(), ("synthetic", synthetic)):
        names, values = region_table(stack.volumes, grid)
        tables[key] = (values, stack.labels)
    chosen = columns_of(names, REGIONS)
    modelled = tuple(names[column] for column in chosen)
    narrow = {key: (values[:, chosen], labels) for key, (values, labels) in tables.items()}
    found: dict = {
        "method": METHOD,
        "licence": LICENCE_NOTE,
        "distributions": {
            key: {
                label: morphometry.compare_distributions(
                    names, *(values[labels == code] for values, labels in (tables["test"], tables[key])), seed=seed
                )
                for code, label in enumerate(CLASS_NAMES)
            }
            for key in ("synthetic", "train")
        },
        "effects": {key: morphometry.class_effects(names, *table, seed=seed) for key, table in tables.items()},
        "agreement": {
            f"{key} with train": morphometry.effect_agreement(narrow["train"], narrow[key], seed=seed)
            for key in ("synthetic", "test")
        },
        "label_swap": label_swap(modelled, narrow["synthetic"], synthetic.seeds, seed),
    }
    if truth is not None:
        true = {key: true_volumes(truth, stack.frame["subject"]) for key, stack in scans.items()}
        found |= against_truth(modelled, narrow, true, seed)
    effects = {name: found["effects"][key] for name, key in (("training scans", "train"), ("synthetic", "synthetic"))}
    known = {name: one["d"] for name, one in found.get("true_effects", {}).get("measures", {}).items()}
    forest_plot(figure, effects, names=modelled if known else None, truth=known or None)
    return found


def label_swap(names: tuple[str, ...], table: Table, seeds: list[int | None], seed: int) -> dict:
    """What the label alone changes: volumes of both classes from the same noise."""
    values, labels = table
    rows = [
        {one: row for row, (one, label) in enumerate(zip(seeds, labels, strict=True)) if label == code}
        for code in range(len(CLASS_NAMES))
    ]
    shared = sorted(seed for seed in rows[0].keys() & rows[1].keys() if seed is not None)
    if len(shared) < 2:
        return {"skipped": f"{len(shared)} seeds were generated as both classes; 2 are needed"}
    hc, tle = (values[[by_seed[one] for one in shared]] for by_seed in rows)
    return morphometry.paired_effect(names, hc, tle, seed=seed)


def against_truth(names: tuple[str, ...], measured: dict[str, Table], true: dict[str, np.ndarray], seed: int) -> dict:
    """How far measured volumes follow true ones, and measured effects true effects."""
    columns = columns_of(REGIONS, names)
    values = np.concatenate([true[key][:, columns] for key in ("train", "test")])
    labels = np.concatenate([measured[key][1] for key in ("train", "test")])
    seen = np.concatenate([measured[key][0] for key in ("train", "test")])
    reference = (values, labels)
    return {
        "true_effects": morphometry.class_effects(names, *reference, seed=seed),
        "recovery": morphometry.recovery(names, seen, values, seed=seed),
        "agreement_with_truth": {
            "real": morphometry.effect_agreement(reference, (seen, labels), seed=seed),
            "synthetic": morphometry.effect_agreement(reference, measured["synthetic"], seed=seed),
        },
    }
