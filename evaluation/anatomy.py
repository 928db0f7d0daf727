"""Whether synthetic volumes have the anatomy of scans, and the disease where scans have it."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cohort.anatomy.regional_volumes import (
    METHOD,
    METHOD_OF_MAPS,
    T1,
    by_side,
    columns_of,
    contrast_of,
    region_table,
)
from cohort.anatomy.volume_tables import SHOWN, VolumeTable, crossed_sides
from cohort.atlas import LICENCE_NOTE, REGIONS
from cohort.grids import Grid
from cohort.labelling.reading import METHOD as READING
from cohort.labelling.reading import Reader
from cohort.stacks import ScanStack, VolumeStack
from cohort.tables import CLASS_NAMES, SIDES
from cohort.volumes import volume_name
from evaluation import figures
from evaluation.effects import (
    class_counts,
    class_effects,
    compare_distributions,
    effect_agreement,
    paired_effect,
    recovery,
)
from evaluation.inputs import Synthetic
from runtime import seeding
from runtime.errors import InputError, InputWarning

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
    scans: dict[str, ScanStack], synthetic: Synthetic, grid: Grid, known: VolumeTable | None, figure: Path, seed: int,
    reader: Reader | None = None,
) -> dict:  # fmt: skip
    """Everything about regional volumes, as JSON values; draws the effects of the diagnosis.

    They are measured by a network where there is one (`reader`), else as tissue in fixed regions.

    Returns:
        ``method``, ``licence``, with a network ``failed`` (set -> volumes in which it could measure nothing; they are
        left out); ``distributions`` (class -> synthetic against held-out reals, and training against held-out reals
        as the same under no difference), ``effects`` (set -> Cohen's d by measure), ``agreement`` (synthetic, and
        held-out reals, against training reals), ``label_swap`` (same seeds as HC and as TLE), ``laterality`` (all this
        by the side of the epilepsy), and with a table of volumes `against_known`.
    """
    sets = {**{key: stack.volumes for key, stack in scans.items()}, "synthetic": synthetic.volumes}
    contrasts = {key: contrast_of(volumes, grid) for key, volumes in sets.items()}
    if len(set(contrasts.values())) > 1:
        raise InputError(f"volumes of different kinds cannot be compared: {contrasts}")
    if reader is not None and contrasts["train"] != T1:
        raise InputError("--labels-from: its network reads T1-weighted volumes, these are grey-matter maps")
    sides = {key: stack.frame["side"].to_numpy(dtype=str) for key, stack in scans.items()}
    sides["synthetic"] = synthetic.sides
    tables: dict[str, Table] = {}
    kept: dict[str, np.ndarray] = {}
    for key, stack in (*scans.items(), ("synthetic", synthetic)):
        names, values, kept[key] = measurable(key, stack.volumes, grid, reader)
        tables[key], sides[key] = (values, stack.labels[kept[key]]), sides[key][kept[key]]
    seeds = [synthetic.seeds[row] for row in kept["synthetic"]]
    lost = {key: len(sets[key]) - len(rows) for key, rows in kept.items()}
    columns = columns_of(names, REGIONS)
    modelled = tuple(names[column] for column in columns)
    narrow = {key: (values[:, columns], labels) for key, (values, labels) in tables.items()}

    def distributions(table: Table, code: int) -> dict:
        sides = (values[labels == code] for values, labels in (tables["test"], table))
        return compare_distributions(names, *sides, seed=seed)

    found: dict = {
        "method": READING if reader else METHOD if contrasts["train"] == T1 else METHOD_OF_MAPS,
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
        "label_swap": label_swap(modelled, narrow["synthetic"], seeds, seed),
    }
    found |= {"failed": lost} if reader else {}
    sided = {key: Sided(names, *table, sides[key]) for key, table in tables.items()}
    if known is not None:
        frames = [scans[key].frame.iloc[kept[key]].assign(side=sides[key]) for key in ("train", "test")]
        own = pd.concat(frames, ignore_index=True)
        seen = tuple(np.concatenate(parts) for parts in zip(narrow["train"], narrow["test"], strict=True))
        shared, ml = volumes_in_table(known, own, modelled, seen[0])
        there, places = np.isfinite(ml).all(axis=1), columns_of(modelled, shared)
        real, measured = (ml[there], seen[1][there]), (seen[0][there][:, places], seen[1][there])
        ours = narrow["synthetic"][0][:, places], narrow["synthetic"][1]
        found |= against_known(shared, real, measured, ours, same_tool(known, synthetic, shared), seed)
        found["known"] = {"tool": known.tool, "scans": int(there.sum()), "of": len(there), "regions": list(shared)}
        sided["known"] = Sided(shared, *real, own["side"].to_numpy(dtype=str)[there])
    found["laterality"] = laterality(sided, modelled, seed)
    if "skipped" not in found["laterality"]:
        made, swapped = sided["synthetic"].by_seed(seeds, modelled), {}
        if (other := synthetic.swapped) is not None:
            _, values, rows = measurable("swapped", other.volumes, grid, reader)
            swapped = Sided(names, values, other.labels[rows], other.sides[rows])
            swapped = swapped.by_seed([other.seeds[row] for row in rows], modelled)
        found["laterality"]["label_swap"] = swaps_by_side(modelled, made, swapped, seed)
    shown = {"training scans": found["effects"]["train"], "synthetic": found["effects"]["synthetic"]}
    d = {name: effect["d"] for name, effect in found.get("known_effects", {}).get("measures", {}).items()}
    figures.draw_effects(figure, shown, names=tuple(d) or None, known=d)
    return found


def measurable(
    key: str, volumes: VolumeStack, grid: Grid, reader: Reader | None
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names and values (M, measures) of regional volumes, and the M rows that have them; warns of the others."""
    names, values = region_table(volumes, grid) if reader is None else reader.table(volumes)
    there = np.isfinite(values).all(axis=1)
    if not there.all():
        numbers = ", ".join(map(str, np.flatnonzero(~there)[:SHOWN]))
        told = f"{key}: nothing could be measured in {np.sum(~there)} of {len(values)} volumes, which are left out"
        warnings.warn(f"{told} (rows {numbers}{', ...' if np.sum(~there) > SHOWN else ''})", InputWarning, stacklevel=2)
    return names, values[there], np.flatnonzero(there)


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
    pairs = (("synthetic", "train"), ("test", "train"), ("synthetic", "known"), ("train", "known"))
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


def volumes_in_table(
    known: VolumeTable, frame: pd.DataFrame, modelled: tuple[str, ...], measured: np.ndarray
) -> tuple[tuple[str, ...], np.ndarray]:
    """Those of the modelled regions that a table has, and their volumes (ml, N rows of the frame; NaN where unknown).

    Warns of regions and scans that it lacks, and where left and right seem exchanged against what we `measured`
    (N, modelled).
    """
    shared = tuple(region for region in modelled if region in known.regions)
    if not shared:
        raise InputError(
            f"{known.name}: has none of the regions {', '.join(modelled)}; it has {', '.join(known.regions)}"
        )
    if absent := [region for region in modelled if region not in shared]:
        warnings.warn(f"{known.name}: has no volumes of {', '.join(absent)}", InputWarning, stacklevel=2)
    ml = known.of(frame, shared)
    known.warn(frame, shared)
    if told := crossed_sides(known, ml, measured[:, columns_of(modelled, shared)], shared):
        warnings.warn(told, InputWarning, stacklevel=2)
    labels = frame.loc[np.isfinite(ml).all(axis=1), "label"]
    if np.bincount(labels, minlength=2).min() < 2:
        raise InputError(f"{known.name}: the volumes of too few scans are known, two of each class are needed")
    return shared, ml


def same_tool(known: VolumeTable, synthetic: Synthetic, regions: tuple[str, ...]) -> Table | None:
    """What the tool that measured the scans says of the synthetic volumes, in rows called as their files (HC_000012);
    None where it has none, or not two of each class.
    """
    seeds = [-1 if number is None else number for number in synthetic.seeds]
    names = [Path(volume_name(*made)).stem for made in zip(synthetic.labels, seeds, strict=True)]
    frame = pd.DataFrame({"subject": names})
    if not known.knows_any(frame):
        return None
    ml = known.of(frame, regions)
    known.warn(frame, regions)
    there = np.isfinite(ml).all(axis=1)
    return (ml[there], synthetic.labels[there]) if min(class_counts(synthetic.labels[there]).values()) > 1 else None


def against_known(
    names: tuple[str, ...], known: Table, seen: Table, synthetic: Table, same: Table | None, seed: int
) -> dict:
    """How far measured volumes (`seen`) follow those of a table, of the same scans, and effects on them its effects.

    Where the table also has the synthetic volumes (`same`): effects on these, and their distributions, by one tool.
    """
    found: dict = {
        "known_effects": class_effects(names, *known, seed=seed),
        "recovery": recovery(names, seen[0], known[0], seed=seed),
        "agreement_with_known": {
            "real": effect_agreement(known, seen, seed=seed),
            "synthetic": effect_agreement(known, synthetic, seed=seed),
        },
    }
    if same is not None:
        found["agreement_with_known"]["synthetic by the same tool"] = effect_agreement(known, same, seed=seed)
        found["known_effects_synthetic"] = class_effects(names, *same, seed=seed)
        found["known_distributions"] = {
            label: compare_distributions(
                names, *(values[labels == code] for values, labels in (known, same)), seed=seed
            )
            for code, label in enumerate(CLASS_NAMES)
        }
    return found
