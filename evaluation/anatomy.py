"""Whether synthetic volumes have the anatomy of scans, and the disease where scans have it."""

from pathlib import Path

import numpy as np

from cohort.anatomy.regional_volumes import (
    METHOD,
    METHOD_OF_MAPS,
    T1,
    columns_of,
    contrast_of,
    region_table,
    true_volumes,
)
from cohort.atlas import LICENCE_NOTE, REGIONS
from cohort.scans import Grid
from cohort.stacks import ScanStack
from cohort.tables import CLASS_NAMES
from evaluation import figures
from evaluation.effects import class_effects, compare_distributions, effect_agreement, paired_effect, recovery
from evaluation.inputs import Synthetic
from runtime.errors import InputError

Table = tuple[np.ndarray, np.ndarray]
"""Measures (N, M) and class codes (N,)."""


def measure(
    scans: dict[str, ScanStack], synthetic: Synthetic, grid: Grid, truth: Path | None, figure: Path, seed: int
) -> dict:
    """Everything about regional volumes, as JSON values; draws the effects of the diagnosis.

    Returns:
        ``method``, ``licence``; ``distributions`` (class -> synthetic against held-out reals, and training against
        held-out reals as the same under no difference), ``effects`` (set -> Cohen's d by measure), ``agreement``
        (synthetic, and held-out reals, against training reals), ``label_swap`` (same seeds as HC and as TLE), and with
        a truth ``true_effects``, ``recovery`` and the agreement with it.
    """
    sets = {**{key: stack.volumes for key, stack in scans.items()}, "synthetic": synthetic.volumes}
    contrasts = {key: contrast_of(volumes, grid) for key, volumes in sets.items()}
    if len(set(contrasts.values())) > 1:
        raise InputError(f"volumes of different kinds cannot be compared: {contrasts}")
    tables: dict[str, Table] = {}
    for key, stack in (*scans.items(), ("synthetic", synthetic)):
        names, values = region_table(stack.volumes, grid)
        tables[key] = values, stack.labels
    columns = columns_of(names, REGIONS)
    modelled = tuple(names[column] for column in columns)
    narrow = {key: (values[:, columns], labels) for key, (values, labels) in tables.items()}

    def distributions(table: Table, code: int) -> dict:
        sides = (values[labels == code] for values, labels in (tables["test"], table))
        return compare_distributions(names, *sides, seed=seed)

    found: dict = {
        "method": METHOD if contrasts["train"] == T1 else METHOD_OF_MAPS,
        "licence": LICENCE_NOTE,
        "distributions": {
            key: {label: distributions(tables[key], code) for code, label in enumerate(CLASS_NAMES)}
            for key in ("synthetic", "train")
        },
        "effects": {key: class_effects(names, *table, seed=seed) for key, table in tables.items()},
        "agreement": {
            f"{key} with train": effect_agreement(narrow["train"], narrow[key], seed=seed)
            for key in ("synthetic", "test")
        },
        "label_swap": label_swap(modelled, narrow["synthetic"], synthetic.seeds, seed),
    }
    if truth is not None:
        true = [true_volumes(truth, scans[key].frame["subject"]) for key in ("train", "test")]
        seen = tuple(np.concatenate(parts) for parts in zip(narrow["train"], narrow["test"], strict=True))
        found |= against_truth(modelled, np.concatenate(true), seen, narrow["synthetic"], seed)
    shown = {"training scans": found["effects"]["train"], "synthetic": found["effects"]["synthetic"]}
    known = {name: effect["d"] for name, effect in found.get("true_effects", {}).get("measures", {}).items()}
    figures.draw_effects(figure, shown, names=modelled if known else None, truth=known)
    return found


def label_swap(names: tuple[str, ...], table: Table, seeds: list[int | None], seed: int) -> dict:
    """What the label alone changes: volumes of both classes from the same noise."""
    values, labels = table
    hc, tle = (
        {made_from: row for row, (made_from, label) in enumerate(zip(seeds, labels, strict=True)) if label == code}
        for code in range(len(CLASS_NAMES))
    )
    shared = sorted(hc.keys() & tle.keys() - {None})
    if len(shared) < 2:
        return {"skipped": f"{len(shared)} seeds were generated as both classes; 2 are needed"}
    first, second = (values[[rows[made_from] for made_from in shared]] for rows in (hc, tle))
    return paired_effect(names, first, second, seed=seed)


def against_truth(names: tuple[str, ...], true: np.ndarray, seen: Table, synthetic: Table, seed: int) -> dict:
    """How far measured volumes (`seen`) follow true ones (N, 16) of REGIONS, and measured effects true effects."""
    values = true[:, columns_of(REGIONS, names)]
    reference = (values, seen[1])
    return {
        "true_effects": class_effects(names, *reference, seed=seed),
        "recovery": recovery(names, seen[0], values, seed=seed),
        "agreement_with_truth": {
            "real": effect_agreement(reference, seen, seed=seed),
            "synthetic": effect_agreement(reference, synthetic, seed=seed),
        },
    }
