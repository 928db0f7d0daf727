"""Whether synthetic volumes have the anatomy of scans, and the disease where scans have it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cohort.anatomy.regional_volumes import (
    METHOD,
    METHOD_OF_MAPS,
    T1,
    by_side,
    columns_of,
    contrast_of,
    region_table,
    true_volumes,
)
from cohort.atlas import LICENCE_NOTE, REGIONS
from cohort.scans import Grid
from cohort.stacks import ScanStack
from cohort.tables import CLASS_NAMES, SIDES
from evaluation import figures
from evaluation.effects import class_effects, compare_distributions, effect_agreement, paired_effect, recovery
from evaluation.inputs import Synthetic
from runtime import seeding
from runtime.errors import InputError

Table = tuple[np.ndarray, np.ndarray]
"""Measures (N, M) and class codes (N,)."""
Rows = dict[tuple[str, int], np.ndarray]
"""Measures (M,) by what a volume was generated as (HC, TLE-L, TLE-R, or TLE- of unknown side) and its seed."""
OF_SIDES = (
    "patients of known side, measures ipsilateral and contralateral to it; controls, who have no side, were dealt one "
    "at random in the proportion of these patients; left and right were brought to the same mean of controls before"
)


@dataclass(frozen=True)
class Sided:
    """Measures (N, M) by their names, class codes (N,), and sides (N,): L or R of a TLE, else empty."""

    names: tuple[str, ...]
    values: np.ndarray
    labels: np.ndarray
    sides: np.ndarray

    def ordered(self, seed: int) -> "Sided | None":
        """Controls and patients of known side with measures `by_side` (OF_SIDES); None with fewer than 2 of either."""
        patients = np.flatnonzero((self.labels == 1) & (self.sides != ""))
        controls = np.flatnonzero(self.labels == 0)
        if min(len(patients), len(controls)) < 2:
            return None
        left = round(np.mean(self.sides[patients] == "L") * len(controls))
        dealt = np.repeat(["L", "R"], [left, len(controls) - left])
        dealt = seeding.rng(seed, "sides of controls").permutation(dealt)
        rows, sides = np.concatenate([controls, patients]), np.concatenate([dealt, self.sides[patients]])
        usual = self.values[controls].mean(axis=0)
        names, values = by_side(self.names, self.values[rows], sides)
        left, right = (by_side(self.names, usual[None], np.array([side]))[1] for side in ("L", "R"))
        values = values - np.where(sides[:, None] == "L", left, right) + (left + right) / 2
        return Sided(names, values, self.labels[rows], sides)

    def table(self, names: tuple[str, ...]) -> Table:
        """Some of the measures."""
        return self.values[:, columns_of(self.names, names)], self.labels

    def by_seed(self, seeds: list[int | None], names: tuple[str, ...]) -> Rows:
        """Some of the measures of synthetic volumes that say their seed."""
        kinds = np.where(self.labels == 0, "HC", np.char.add("TLE-", self.sides)).tolist()
        values = self.table(names)[0]
        numbered = zip(kinds, seeds, values, strict=True)
        return {(kind, number): row for kind, number, row in numbered if number is not None}


def measure(
    scans: dict[str, ScanStack], synthetic: Synthetic, grid: Grid, truth: Path | None, figure: Path, seed: int
) -> dict:
    """Everything about regional volumes, as JSON values; draws the effects of the diagnosis.

    Returns:
        ``method``, ``licence``; ``distributions`` (class -> synthetic against held-out reals, and training against
        held-out reals as the same under no difference), ``effects`` (set -> Cohen's d by measure), ``agreement``
        (synthetic, and held-out reals, against training reals), ``label_swap`` (same seeds as HC and as TLE),
        ``laterality`` (all this by the side of the epilepsy), and with a truth ``true_effects``, ``recovery`` and the
        agreement with it.
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
    sides = {key: stack.frame["side"].to_numpy(dtype=str) for key, stack in scans.items()}
    sides["synthetic"] = synthetic.sides
    sided = {key: Sided(names, *table, sides[key]) for key, table in tables.items()}
    if truth is not None:
        true = [true_volumes(truth, scans[key].frame["subject"]) for key in ("train", "test")]
        seen = tuple(np.concatenate(parts) for parts in zip(narrow["train"], narrow["test"], strict=True))
        found |= against_truth(modelled, np.concatenate(true), seen, narrow["synthetic"], seed)
        values = np.concatenate(true)[:, columns_of(REGIONS, modelled)]
        sided["truth"] = Sided(modelled, values, seen[1], np.concatenate([sides["train"], sides["test"]]))
    found["laterality"] = laterality(sided, modelled, seed)
    if "skipped" not in found["laterality"]:
        made, swapped = sided["synthetic"].by_seed(synthetic.seeds, modelled), {}
        if (other := synthetic.swapped) is not None:
            swapped = Sided(*region_table(other.volumes, grid), other.labels, other.sides)
            swapped = swapped.by_seed(other.seeds, modelled)
        found["laterality"]["label_swap"] = swaps_by_side(modelled, made, swapped, seed)
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


def laterality(sets: dict[str, Sided], modelled: tuple[str, ...], seed: int) -> dict:
    """Effects of the diagnosis on the side of the epilepsy and on the other.

    Returns:
        ``sides`` (set -> patients by side); ``method``, ``effects`` (set -> Cohen's d by measure) and ``agreement``
        (over `modelled` regions, ipsilateral and contralateral), or ``skipped`` where no set has patients with a side.
    """
    names = {"left": "L", "right": "R", "unknown": ""}
    counts = {
        key: {name: int(np.sum(own.sides[own.labels == 1] == side)) for name, side in names.items()}
        for key, own in sets.items()
    }
    known = {key: found for key, own in sets.items() if (found := own.ordered(seed)) is not None}
    if not known:
        return {"skipped": "of no patients the side is known", "sides": counts}
    wanted = by_side(modelled, np.zeros((1, len(modelled))), np.array(["L"]))[0]
    pairs = (("synthetic", "train"), ("test", "train"), ("synthetic", "truth"), ("train", "truth"))
    return {
        "method": OF_SIDES,
        "sides": counts,
        "effects": {key: class_effects(own.names, own.values, own.labels, seed=seed) for key, own in known.items()},
        "agreement": {
            f"{sample} with {reference}": effect_agreement(
                known[reference].table(wanted), known[sample].table(wanted), seed=seed
            )
            for sample, reference in pairs
            if sample in known and reference in known
        },
    }


def swaps_by_side(names: tuple[str, ...], made: Rows, swapped: Rows, seed: int) -> dict:
    """What label and side change from the same noise.

    Returns:
        `effects.paired_effect` of ``HC to TLE`` by side, among the volumes `made`; and from each of HC, TLE-L and TLE-R
        to the next, left and right as they are, `swapped` volumes (the same seeds, the other side) included.
    """
    patients = [(kind, number) for kind, number in made if kind in SIDES and ("HC", number) in made]
    controls = [("HC", number) for _, number in patients]
    own = np.array([SIDES[kind] for kind, _ in patients])
    (ordered, hc), (_, tle) = (by_side(names, stacked(made, keys, names), own) for keys in (controls, patients))
    found, everything = {"HC to TLE": paired(ordered, hc, tle, seed)}, swapped | made
    for first, second in (("HC", "TLE-L"), ("HC", "TLE-R"), ("TLE-L", "TLE-R")):
        shared = sorted(number for kind, number in everything if kind == first and (second, number) in everything)
        ends = (stacked(everything, [(kind, number) for number in shared], names) for kind in (first, second))
        found[f"{first} to {second}"] = paired(names, *ends, seed)
    return found


def stacked(rows: Rows, keys: list[tuple[str, int]], names: tuple[str, ...]) -> np.ndarray:
    """The rows of some volumes, (keys, names), also of none."""
    return np.array([rows[key] for key in keys]).reshape(len(keys), len(names))


def paired(names: tuple[str, ...], first: np.ndarray, second: np.ndarray, seed: int) -> dict:
    """`paired_effect`, or why there is none."""
    if len(first) < 2:
        return {"skipped": f"{len(first)} seeds were generated as both; 2 are needed"}
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
