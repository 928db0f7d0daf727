"""Parts of a cohort that are alike in every trait: the search behind every split, and a table and a picture of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cohort.pictures import COLOURS, new_figure
from cohort.splitting.ties import tied
from cohort.tables import CLASS_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

VOLUME = "ml of "
"""Begins the names of columns with volumes that are balanced, too: thirds of each class, by rank."""
VOLUME_BANDS = 3
AGE_BAND_YEARS, AGE_BIN_YEARS = 10, 5
"""Of the balance, and of the histograms."""

# How much an uneven share of a trait costs. Each step down gives way to the one above: the size of the parts and the
# class first, then the side, then what confounds the class when it is uneven.
_WEIGHTS = {"all": 1000.0, "class": 1000.0, "diagnosis": 100.0, "age": 10.0, "sex": 10.0, "site": 10.0, VOLUME: 10.0}
_EMPTY_CLASS = 1e9
_PROPOSALS_PER_UNIT = 20

_MOST_VALUES, _OTHERS = 6, "others"
# Opacity tells the sides apart, the class keeps its colour.
_DIAGNOSIS_COLOURS = {
    "HC": COLOURS["HC"], "TLE": COLOURS["TLE"], "TLE-L": COLOURS["TLE"] + "c0", "TLE-R": COLOURS["TLE"] + "70",
}  # fmt: skip


def place_rows(frame: pd.DataFrame, shares: Sequence[float], draw: np.random.Generator) -> np.ndarray:
    """Divides a table's rows, in whatever order, among parts, by subject and group, balanced as far as it goes.

    Units are what subjects and groups tie together (subjects of one group, groups that share a subject). The largest
    units are placed first, each where the shares of all its traits (class, side, age band, sex, site, volume) stay
    nearest to the wanted ones; then random moves and exchanges are tried and kept when they bring the shares nearer.

    `shares` of the subjects are above 0, their sum is 1. Returns the part of each row, int (rows,); a class may be
    missing from a part when it has too few units.
    """
    units = tied(frame["subject"], frame["group"])
    traits, weights, classes = _traits(frame, units)
    wanted = np.asarray(shares, dtype=float)[:, None] * traits.sum(axis=0)

    def cost(counts: np.ndarray) -> float:
        off = ((counts - wanted) ** 2 / np.maximum(wanted, 1)).sum(axis=0) @ weights
        return float(off + _EMPTY_CLASS * np.count_nonzero(counts[:, classes] == 0))

    counts = np.zeros_like(wanted)
    places = np.zeros(len(traits), dtype=int)
    parts = np.eye(len(shares))[:, :, None]
    shuffled = draw.permutation(len(traits))
    for unit in shuffled[np.argsort(-traits[shuffled].sum(axis=1), kind="stable")]:
        places[unit] = int(np.argmin([cost(counts + part * traits[unit]) for part in parts]))
        counts[places[unit]] += traits[unit]

    now = cost(counts)
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
    return places[units]


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
    for column in people.filter(like=VOLUME):
        bands = np.ceil(VOLUME_BANDS * people.groupby("label")[column].rank(pct=True))
        traits[column] = names + " " + bands.map("{:g}".format)
    counts = {kind: pd.crosstab(people["unit"], values).to_numpy(float) for kind, values in traits.items()}
    kinds = np.repeat(list(counts), [table.shape[1] for table in counts.values()])
    return (
        np.hstack(list(counts.values())),
        np.array([_WEIGHTS.get(kind, _WEIGHTS[VOLUME]) for kind in kinds]),
        kinds == "class",
    )


def balance(splits: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How alike the splits are: one row per split and class, and one per split for all.

    Counts are of subjects (each with its first scan), `scans` excepted; `age` is mean and standard deviation in years.
    """
    rows = {}
    for name, frame in splits.items():
        for label in (*CLASS_NAMES, "all"):
            scans = frame if label == "all" else frame[frame["label"] == CLASS_NAMES.index(label)]
            people = scans.drop_duplicates("subject")
            ages, sites = people["age"].dropna(), sorted(people["site"].value_counts().items())
            rows[name, label] = {
                "scans": len(scans), "subjects": len(people),
                "left": sum(people["side"] == "L"), "right": sum(people["side"] == "R"),
                "female": sum(people["sex"] == "F"), "male": sum(people["sex"] == "M"),
                "age": f"{ages.mean():.1f} ({ages.std(ddof=0):.1f})" if len(ages) else "",
                "site": ", ".join(f"{site or '?'} {count}" for site, count in sites),
            }  # fmt: skip
            for column, values in people.filter(like=VOLUME).items():
                rows[name, label][column] = f"{values.mean():.2f} ({values.std(ddof=0):.2f})"
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["split", "class"])


def balance_figure(splits: Mapping[str, pd.DataFrame]) -> Figure:
    """Ages above (one panel per split), composition below (diagnosis, sex, site); subjects with their first scan."""
    people = {name: frame.drop_duplicates("subject") for name, frame in splits.items()}
    figure = new_figure(figsize=(12, 6.6), layout="constrained")
    above, below = figure.subfigures(2, 1)
    _ages(above, people)
    axes = below.subplots(1, 3)
    _stacked(axes[0], "diagnosis", {name: rows["diagnosis"] for name, rows in people.items()})
    classes = [(name, code, label) for name in people for code, label in enumerate(CLASS_NAMES)]
    for axis, trait in zip(axes[1:], ("sex", "site"), strict=True):
        columns = {
            f"{name}\n{label}": people[name].loc[people[name]["label"] == code, trait] for name, code, label in classes
        }
        _stacked(axis, f"{trait} by class", columns)
    return figure


def _ages(figure: SubFigure, people: Mapping[str, pd.DataFrame]) -> None:
    """One histogram per split and class, in percent of the class, so that splits of any size compare."""
    ages = pd.concat([rows["age"] for rows in people.values()]).dropna()
    axes = np.atleast_1d(figure.subplots(1, len(people), sharex=True, sharey=True))
    low, high = (ages.min(), ages.max()) if len(ages) else (0, 0)
    bins = np.arange(low // AGE_BIN_YEARS, high // AGE_BIN_YEARS + 2) * AGE_BIN_YEARS
    for axis, (name, rows) in zip(axes, people.items(), strict=True):
        for code, label in enumerate(CLASS_NAMES):
            known = rows.loc[rows["label"] == code, "age"].dropna()
            shares = np.full(len(known), 100 / max(len(known), 1))
            look = {"histtype": "stepfilled", "alpha": 0.45, "color": COLOURS[label]}
            axis.hist(known, bins, weights=shares, label=f"{label}, {len(known)} ages", **look)
        axis.set(title=f"{name}, {len(rows)} subjects", xlabel="age (years)")
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("% of the class")


def _stacked(axis: Axes, title: str, columns: Mapping[str, pd.Series]) -> None:
    """One bar of 100 % per column, divided by value; few greys can be told apart, so the rarest values are one."""
    columns = {name: column.replace("", "not known") for name, column in columns.items()}
    counts = pd.concat(columns.values()).value_counts()
    frequent = sorted(counts.index[:_MOST_VALUES])
    values = [*frequent, _OTHERS] if len(counts) > _MOST_VALUES else frequent
    greys = dict(zip(values, np.linspace(0.3, 0.9, len(values)).astype(str), strict=True))
    bottom = np.zeros(len(columns))
    for value in values:
        taken = [column == value if value in frequent else ~column.isin(frequent) for column in columns.values()]
        height = np.array([100 * rows.mean() if len(rows) else 0.0 for rows in taken])
        colour = _DIAGNOSIS_COLOURS.get(value, greys[value])
        axis.bar(list(columns), height, bottom=bottom, color=colour, edgecolor="white", label=value)
        bottom += height
    axis.set(title=title, ylabel="% of subjects")
    axis.tick_params(axis="x", labelsize=8)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
