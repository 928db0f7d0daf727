"""predictions.csv: one row per held-out scan of a run. This module owns the format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from runtime.errors import InputError
from runtime.files import atomic_write

COLUMNS = ("subject", "session", "group", "label", "side", "probability", "logit", "split")
OPTIONAL = ("side_probability", "seed", "fold")
"""Probability of the side (empty where none was learned), training seed and fold; older files lack them."""


def table_of(frame: pd.DataFrame, logits: np.ndarray, probabilities: np.ndarray, split: str) -> pd.DataFrame:
    """Predictions (N,) for the rows of a table of scans, with the columns COLUMNS."""
    return frame[["subject", "session", "group", "label", "side"]].assign(
        probability=probabilities, logit=logits, split=split
    )


def write_predictions(path: Path, frame: pd.DataFrame) -> None:
    """Writes the columns COLUMNS, and those of OPTIONAL that are there, atomically; numbers in full precision."""
    columns = [*COLUMNS, *(name for name in OPTIONAL if name in frame.columns)]
    with atomic_write(path) as temporary:
        frame.to_csv(temporary, index=False, columns=columns, lineterminator="\n")


def read_predictions(path: Path) -> pd.DataFrame:
    """Reads predictions. Of OPTIONAL, the columns that the file has; not a number where a cell is empty.

    Raises:
        InputError: no such file, columns that are missing, labels other than 0 and 1, probabilities outside [0, 1],
            seeds or folds that are no whole numbers.
    """
    try:
        texts = dict.fromkeys(("subject", "session", "group", "side", "split"), str)
        frame = pd.read_csv(path, dtype=texts, keep_default_na=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; has the run finished?") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a table of predictions: {error}") from None
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise InputError(f"{path}: not a table of predictions: no column {', '.join(missing)}")
    names = [name for name in ("label", "probability", *OPTIONAL) if name in frame.columns]
    numbers = frame[names].apply(pd.to_numeric, errors="coerce").astype(float)
    bad = np.zeros(len(frame), dtype=bool)
    for name, column in numbers.items():
        fits = column.between(0, 1) if "probability" in name else column % 1 == 0
        if name in OPTIONAL:
            fits |= frame[name].astype(str) == ""
        bad |= ~(column.isin([0, 1]) if name == "label" else fits)
    if bad.any():
        lines = [f"line {row + 2}: subject {frame['subject'][row]}" for row in np.flatnonzero(bad)]
        what = "a label is 0 or 1, a probability in [0, 1], a seed or fold a whole number"
        raise InputError.of(f"{path}: {what}", lines)
    return frame.assign(**numbers).astype({"label": int})


def by_subject(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per subject, sorted: label and the mean probability of its scans (paired tests assume independent rows).

    Raises:
        InputError: a subject with scans of both classes.
    """
    grouped = frame.groupby("subject", sort=True)
    mixed = grouped["label"].nunique()
    if (mixed > 1).any():
        raise InputError.of("subjects with scans of both classes", list(mixed.index[mixed > 1]))
    return grouped.agg(label=("label", "first"), probability=("probability", "mean")).reset_index()
