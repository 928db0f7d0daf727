"""The search behind every kind of split: subjects placed so that the parts of a cohort are alike in every trait."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from cohort.splitting.ties import tied
from cohort.tables import CLASS_NAMES

AGE_BAND_YEARS = 10

# How much an uneven share of a trait costs. Each step down gives way to the one above: the size of the parts and the
# class first, then the side, then what confounds the class when it is uneven.
_WEIGHTS = {"all": 1000.0, "class": 1000.0, "diagnosis": 100.0, "age": 10.0, "sex": 10.0, "site": 10.0}
_EMPTY_CLASS = 1e9
_PROPOSALS_PER_UNIT = 20


def place_rows(frame: pd.DataFrame, shares: Sequence[float], draw: np.random.Generator) -> np.ndarray:
    """Divides a table's rows among parts, by subject and group, balanced as far as it goes.

    Units are what subjects and groups tie together (subjects of one group, groups that share a subject). The largest
    units are placed first, each where the shares of all its traits (class, side, age band, sex, site) stay nearest to
    the wanted ones; then random moves and exchanges are tried and kept when they bring the shares nearer.

    Args:
        frame: a table (`cohort.tables.read_table`).
        shares: wanted share of the subjects in each part, above 0, sum 1.
        draw: the only source of chance. The order of the rows has no influence.

    Returns:
        int (rows,): the part of each row. A class may be missing from a part when it has too few units.
    """
    units = tied(frame["subject"], frame["group"])
    traits, weights, classes = _traits(frame, units)
    return _place(traits, weights, classes, np.asarray(shares, dtype=float), draw)[units]


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
    """int (units,): the part of each unit."""
    wanted = shares[:, None] * traits.sum(axis=0)

    def cost(counts: np.ndarray) -> float:
        off = ((counts - wanted) ** 2 / np.maximum(wanted, 1)).sum(axis=0) @ weights
        return float(off + _EMPTY_CLASS * np.count_nonzero(counts[:, classes] == 0))

    counts = np.zeros_like(wanted)
    places = np.zeros(len(traits), dtype=int)
    parts = np.eye(len(shares))[:, :, None]
    shuffled = draw.permutation(len(traits))
    for unit in shuffled[np.argsort(-traits[shuffled].sum(axis=1), kind="stable")]:
        tried = [cost(counts + part * traits[unit]) for part in parts]
        places[unit] = int(np.argmin(tried))
        counts[places[unit]] += traits[unit]
    return _improve(places, counts, traits, cost, draw)


def _improve(
    places: np.ndarray, counts: np.ndarray, traits: np.ndarray, cost: Callable, draw: np.random.Generator
) -> np.ndarray:
    """Tries random moves of one unit and exchanges of two; keeps those that lower the cost."""
    places, now = places.copy(), cost(counts)
    parts = np.eye(len(counts))[:, :, None]
    for _ in range(_PROPOSALS_PER_UNIT * len(places)):
        first, second, place = (int(draw.integers(limit)) for limit in (len(places), len(places), len(parts)))
        if draw.random() < 0.5:
            change = (parts[place] - parts[places[first]]) * traits[first]
            moves = {first: place}
        else:
            change = (parts[places[second]] - parts[places[first]]) * (traits[first] - traits[second])
            moves = {first: places[second], second: places[first]}
        if (then := cost(counts + change)) < now - 1e-9:
            counts, now = counts + change, then
            for unit, home in moves.items():
                places[unit] = home
    return places
