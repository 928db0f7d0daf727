"""The picture of how alike splits are: ages by split and class, and shares of side, sex and site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cohort.pictures import COLOURS
from cohort.tables import CLASS_NAMES

AGE_BIN_YEARS = 5
_MOST_VALUES = 6
_NOT_KNOWN, _OTHERS = "not known", "others"
# Opacity tells the sides apart, the class keeps its colour.
_DIAGNOSIS_COLOURS = {
    "HC": COLOURS["HC"], "TLE": COLOURS["TLE"], "TLE-L": COLOURS["TLE"] + "c0", "TLE-R": COLOURS["TLE"] + "70",
}  # fmt: skip


def balance_figure(splits: Mapping[str, pd.DataFrame]) -> Figure:
    """Ages above (one panel per split), composition below (diagnosis, sex, site); subjects with their first scan.

    Args:
        splits: tables by name, such as train, val and test; each may lack ages, sexes, sites or a class.
    """
    people = {name: frame.drop_duplicates("subject") for name, frame in splits.items()}
    figure = Figure(figsize=(12, 6.6), layout="constrained")
    above, below = figure.subfigures(2, 1)
    _ages(above, people)
    axes = below.subplots(1, 3)
    _stacked(axes[0], "diagnosis", {name: rows["diagnosis"] for name, rows in people.items()}, _DIAGNOSIS_COLOURS)
    by_class = {
        f"{name}\n{label}": rows[rows["label"] == code]
        for name, rows in people.items()
        for code, label in enumerate(CLASS_NAMES)
    }
    for axis, trait in zip(axes[1:], ("sex", "site"), strict=True):
        _stacked(axis, f"{trait} by class", {name: rows[trait] for name, rows in by_class.items()})
    return figure


def _ages(figure: Any, people: Mapping[str, pd.DataFrame]) -> None:
    """One histogram per split and class, in percent of the class, so that splits of any size compare."""
    ages = pd.concat([rows["age"] for rows in people.values()]).dropna()
    axes = np.atleast_1d(figure.subplots(1, len(people), sharex=True, sharey=True))
    low, high = (ages.min(), ages.max()) if len(ages) else (0, 0)
    bins = np.arange(low // AGE_BIN_YEARS, high // AGE_BIN_YEARS + 2) * AGE_BIN_YEARS
    for axis, (name, rows) in zip(axes, people.items(), strict=True):
        for code, label in enumerate(CLASS_NAMES):
            known = rows.loc[rows["label"] == code, "age"].dropna()
            axis.hist(
                known, bins, weights=np.full(len(known), 100 / max(len(known), 1)), histtype="stepfilled", alpha=0.45,
                color=COLOURS[label], label=f"{label}, {len(known)} ages",
            )  # fmt: skip
        axis.set(title=f"{name}, {len(rows)} subjects", xlabel="age (years)")
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("% of the class")


def _stacked(
    axis: Axes, title: str, columns: Mapping[str, pd.Series], colours: Mapping[str, str] | None = None
) -> None:
    """One bar of 100 % per column, divided by value; few colours, so the rarest values are taken together."""
    everything = pd.concat(columns.values()).replace("", _NOT_KNOWN).value_counts()
    frequent = sorted(everything.index[:_MOST_VALUES])
    values = [*frequent, _OTHERS] if len(everything) > _MOST_VALUES else frequent
    greys = {value: str(level) for value, level in zip(values, np.linspace(0.3, 0.9, len(values)), strict=True)}
    bottom = np.zeros(len(columns))
    shares = {name: _shares(column, frequent) for name, column in columns.items()}
    for value in values:
        height = np.array([one.get(value, 0.0) for one in shares.values()])
        axis.bar(
            list(columns), height, bottom=bottom, color=(colours or greys)[value], edgecolor="white", label=value
        )  # fmt: skip
        bottom += height
    axis.set(title=title, ylabel="% of subjects")
    axis.tick_params(axis="x", labelsize=8)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)


def _shares(column: pd.Series, frequent: list[str]) -> dict[str, float]:
    """Percent of a column's rows by value; empty for an empty column."""
    known = column.replace("", _NOT_KNOWN)
    counts = known.where(known.isin(frequent), _OTHERS).value_counts()
    return {str(value): 100 * int(count) / len(column) for value, count in counts.items()}
