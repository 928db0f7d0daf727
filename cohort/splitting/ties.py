"""What must stay together in a split: scans tied by a subject, by a group, or by being copies of one another."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cohort.listing.delimited import read_delimited
from cohort.tables import CLASS_NAMES
from runtime.errors import InputError


def tied(keys: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """Numbers the sets of rows that are connected, in however many steps, by an equal value in one of two columns.

    A value of `keys` never equals one of `others`. Returns int (rows,), counted in the order of each set's smallest
    value of `keys`, not in that of the rows.
    """
    names, key = np.unique(np.asarray(keys, dtype=object), return_inverse=True)
    groups, other = np.unique(np.asarray(others, dtype=object), return_inverse=True)
    nodes = len(names) + len(groups)
    edges = coo_array((np.ones(len(key)), (key, len(names) + other)), shape=(nodes, nodes))
    labels = connected_components(edges, directed=False)[1][: len(names)]
    _, first, numbers = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbers][key]


def join_groups(frame: pd.DataFrame, copies: Sequence[str]) -> pd.DataFrame:
    """The table with `group` changed where copies connect different groups: to the smallest name among them.

    `copies` names the set of each row, empty where the scan is in none. Raises InputError, with the subjects, where
    copies of one scan are labelled HC in one row and TLE in another.
    """
    copies = np.asarray(copies, dtype=object)
    known = copies != ""
    problems = [
        f"{name}: {', '.join(f'{row.subject} ({CLASS_NAMES[row.label]})' for row in rows.itertuples())}"
        for name, rows in frame[known].groupby(copies[known])
        if rows["label"].nunique() > 1
    ]
    if problems:
        raise InputError.of(
            "copies of one scan have different classes; correct the diagnosis or remove one; if they are two people, "
            "list the copies by --groups, without these",
            problems,
        )
    # A scan in no set is tied to nothing but its own group.
    sets = np.where(known, "copies " + copies, "group " + frame["group"].to_numpy(dtype=object))
    return frame.assign(group=frame["group"].groupby(tied(frame["group"], sets)).transform("min"))


def read_copies(path: Path, files: Sequence[str]) -> list[str]:
    """Which set of copies each of some scans is in, by groups.csv of cohort.check; empty for none.

    `file` there is absolute or relative to its folder; scans that are not listed, and rows with an empty `group`, are
    in no set. Raises InputError where none of its files is among `files`: it is of another cohort.
    """
    table = read_delimited(path)
    missing = [f"column {name} is missing" for name in ("file", "group") if name not in table.columns]
    if missing or table.problems:
        raise InputError.of(f"{path}: expected what cohort.check writes", missing + table.problems)
    sets = {os.path.realpath(path.parent / row["file"]): row["group"] for row in table.rows}
    real = [os.path.realpath(file) for file in files]
    if not set(real) & set(sets):
        raise InputError(f"{path}: none of its {len(sets)} files is in the index; is it of another cohort?")
    return [sets.get(file, "") for file in real]
