"""A cohort divided into training, validation and test subjects, and how alike the three are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from cohort.splitting.balancing import place_rows
from cohort.tables import CLASS_NAMES
from runtime.errors import InputError
from runtime.seeding import rng

SPLITS = ("train", "val", "test")


def partition(frame: pd.DataFrame, *, val_percent: float, test_percent: float, seed: int) -> dict[str, pd.DataFrame]:
    """Divides a table by subject and group, balanced by class, side, age band, sex and site as far as it goes.

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
    splits = by_place(frame, place_rows(frame, shares, rng(seed, "split")))
    refuse_missing_class(splits)
    refuse_shared(splits)
    return splits


def by_place(frame: pd.DataFrame, places: np.ndarray) -> dict[str, pd.DataFrame]:
    """The three splits of a table; `places` (rows,) holds 0 for train, 1 for val, 2 for test, -1 for none of them."""
    return {name: frame[places == number].reset_index(drop=True) for number, name in enumerate(SPLITS)}


def refuse_missing_class(splits: Mapping[str, pd.DataFrame]) -> None:
    """Raises InputError if a split lacks a class; names each."""
    problems = [
        f"{name} would have no {label}"
        for name, frame in splits.items()
        for code, label in enumerate(CLASS_NAMES)
        if not (frame["label"] == code).any()
    ]
    if problems:
        raise InputError.of("too few subjects (or groups) of a class for so many splits", problems)


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
