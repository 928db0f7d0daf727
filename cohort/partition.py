"""Dividing a cohort into training, validation and test subjects: what must stay together, what should be balanced."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from cohort.tables import CLASS_NAMES
from runtime.errors import InputError
from runtime.seeding import rng

SPLITS = ("train", "val", "test")
AGE_BAND_YEARS = 10

# How much an uneven share of a trait costs. Each step down gives way to the one above: the size of the splits and the
# class first, then the side, then what confounds the class when it is uneven.
_WEIGHTS = {"all": 1000.0, "class": 1000.0, "diagnosis": 100.0, "age": 10.0, "sex": 10.0, "site": 10.0}
_EMPTY_CLASS = 1e9
_PROPOSALS_PER_UNIT = 20


def partition(frame: pd.DataFrame, *, val_percent: float, test_percent: float, seed: int) -> dict[str, pd.DataFrame]:
    """Divides a table by subject and group, balanced by class, side, age band, sex and site as far as it goes.

    Units are what subjects and groups tie together (subjects of one group, groups that share a subject). The largest
    units are placed first, each where the shares of all its traits stay nearest to the wanted ones; then random moves
    and exchanges are tried and kept when they bring the shares nearer.

    Args:
        frame: a table (`cohort.tables.read_table`).
        val_percent: share of the subjects that go to validation, above 0.
        test_percent: share of the subjects that go to test, above 0; the sum below 100.
        seed: the same seed and the same rows, in whatever order, give the same splits.

    Returns:
        "train", "val" and "test", each with its rows in the order of `frame`.

    Raises:
        InputError: impossible percentages, or a class that would be missing from a split.
    """
    if not (val_percent > 0 and test_percent > 0 and val_percent + test_percent < 100):
        raise InputError(f"val-percent {val_percent:g} and test-percent {test_percent:g}: each above 0, sum below 100")
    shares = np.array([100 - val_percent - test_percent, val_percent, test_percent]) / 100
    units = _units(frame)
    traits, weights, classes = _traits(frame, units)
    places = _place(traits, weights, classes, shares, rng(seed, "split"))
    splits = {name: frame[places[units] == number].reset_index(drop=True) for number, name in enumerate(SPLITS)}
    _refuse_missing_class(splits)
    refuse_shared(splits)
    return splits


def refuse_shared(splits: Mapping[str, pd.DataFrame]) -> None:
    """Raises InputError if a subject, a group or a file is in two of the tables; names each."""
    problems = []
    for column in ("subject", "group", "file"):
        homes: dict[str, list[str]] = {}
        for name, frame in splits.items():
            for value in sorted(set(frame[column])):
                homes.setdefault(value, []).append(name)
        problems += [
            f"{column} {value} is in {' and '.join(names)}" for value, names in homes.items() if len(names) > 1
        ]
    if problems:
        raise InputError.of("the splits are not apart", problems)


def balance(splits: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How alike the splits are: one row per split and class, and one per split for all.

    Counts are of subjects (each with its first scan), `scans` excepted. `age` is mean and standard deviation in years,
    `site` the number of subjects at each site.
    """
    rows = []
    for name, frame in splits.items():
        for label in (*CLASS_NAMES, "all"):
            scans = frame if label == "all" else frame[frame["label"] == CLASS_NAMES.index(label)]
            rows.append({"split": name, "class": label, "scans": len(scans), **_describe(scans)})
    return pd.DataFrame(rows).set_index(["split", "class"])


def _describe(scans: pd.DataFrame) -> dict[str, object]:
    people = scans.drop_duplicates("subject")
    ages = people["age"].dropna()
    return {
        "subjects": len(people),
        "left": int((people["side"] == "L").sum()),
        "right": int((people["side"] == "R").sum()),
        "female": int((people["sex"] == "F").sum()),
        "male": int((people["sex"] == "M").sum()),
        "age": f"{ages.mean():.1f} ({ages.std(ddof=0):.1f})" if len(ages) else "",
        "site": ", ".join(f"{site or '?'} {count}" for site, count in sorted(people["site"].value_counts().items())),
    }


def _units(frame: pd.DataFrame) -> np.ndarray:
    """int (rows,): number of the unit each row belongs to, counted in the order of the units' names."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    subjects = [("subject", name) for name in frame["subject"]]
    for subject, group in zip(subjects, frame["group"], strict=True):
        one, other = sorted((root(subject), root(("group", group))))
        parent[other] = one
    names: dict[tuple[str, str], str] = {}
    for subject in sorted(set(subjects)):
        names.setdefault(root(subject), subject[1])
    numbers = {unit: number for number, unit in enumerate(sorted(names, key=lambda unit: names[unit]))}
    return np.array([numbers[root(subject)] for subject in subjects])


def _traits(frame: pd.DataFrame, units: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Subjects per unit and trait (units, traits), the weight of each trait, and which traits are the classes."""
    people = frame.assign(unit=units).sort_values(["subject", "session", "file"]).drop_duplicates("subject")
    names = people["label"].map(lambda label: CLASS_NAMES[label])
    bands = people["age"].map(lambda age: "" if np.isnan(age) else str(int(age // AGE_BAND_YEARS)))
    traits = {
        "all": names.map(lambda _: ""),
        "class": names,
        "diagnosis": people["diagnosis"],
        # Within the class: splits of equal age say little if the young are controls in one and patients in another.
        "age": names + " " + bands,
        "sex": names + " " + people["sex"],
        "site": names + " " + people["site"],
    }
    counts, weights, classes = [], [], []
    for kind, values in traits.items():
        for value in sorted(set(values)):
            of_trait = people["unit"][values == value]
            counts.append(np.bincount(of_trait, minlength=units.max() + 1))
            weights.append(_WEIGHTS[kind])
            classes.append(kind == "class")
    return np.stack(counts, axis=1).astype(float), np.array(weights), np.array(classes)


def _place(
    traits: np.ndarray, weights: np.ndarray, classes: np.ndarray, shares: np.ndarray, draw: np.random.Generator
) -> np.ndarray:
    """int (units,): 0 train, 1 validation, 2 test."""
    wanted = shares[:, None] * traits.sum(axis=0)

    def cost(counts: np.ndarray) -> float:
        off = ((counts - wanted) ** 2 / np.maximum(wanted, 1)).sum(axis=0) @ weights
        return float(off + _EMPTY_CLASS * np.count_nonzero(counts[:, classes] == 0))

    counts = np.zeros_like(wanted)
    places = np.zeros(len(traits), dtype=int)
    shuffled = draw.permutation(len(traits))
    for unit in shuffled[np.argsort(-traits[shuffled].sum(axis=1), kind="stable")]:
        tried = [cost(counts + _one_hot(place) * traits[unit]) for place in range(len(SPLITS))]
        places[unit] = int(np.argmin(tried))
        counts[places[unit]] += traits[unit]
    return _improve(places, counts, traits, cost, draw)


def _improve(
    places: np.ndarray, counts: np.ndarray, traits: np.ndarray, cost: Callable, draw: np.random.Generator
) -> np.ndarray:
    """Tries random moves of one unit and exchanges of two; keeps those that lower the cost."""
    places, now = places.copy(), cost(counts)
    for _ in range(_PROPOSALS_PER_UNIT * len(places)):
        first, second, place = (int(draw.integers(limit)) for limit in (len(places), len(places), len(SPLITS)))
        if draw.random() < 0.5:
            change = (_one_hot(place) - _one_hot(places[first])) * traits[first]
            moves = {first: place}
        else:
            change = (_one_hot(places[second]) - _one_hot(places[first])) * (traits[first] - traits[second])
            moves = {first: places[second], second: places[first]}
        if (then := cost(counts + change)) < now - 1e-9:
            counts, now = counts + change, then
            for unit, home in moves.items():
                places[unit] = home
    return places


def _one_hot(place: int) -> np.ndarray:
    return np.eye(len(SPLITS))[place][:, None]


def _refuse_missing_class(splits: Mapping[str, pd.DataFrame]) -> None:
    problems = [
        f"{name} would have no {label}"
        for name, frame in splits.items()
        for code, label in enumerate(CLASS_NAMES)
        if not (frame["label"] == code).any()
    ]
    if problems:
        raise InputError.of("too few subjects (or groups) of a class for three splits", problems)
