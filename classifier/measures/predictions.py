"""predictions.csv: one row per held-out scan of a run."""

from pathlib import Path

import numpy as np
import pandas as pd

from cohort.tables import write_csv
from runtime.errors import InputError

COLUMNS = ("subject", "session", "group", "label", "side", "probability", "logit", "split")
OPTIONAL = ("side_probability", "mri_negative", "seed", "fold")
"""Probability that the side is the right (empty where none was learned), 1 for patients without sclerosis (empty where
nothing says so), training seed and fold; older files lack them.
"""


def write_predictions(path: Path, frame: pd.DataFrame) -> None:
    """Writes COLUMNS, and those of OPTIONAL that are there; numbers in full precision."""
    columns = [*COLUMNS, *(name for name in OPTIONAL if name in frame.columns)]
    write_csv(path, frame[columns])


def read_predictions(path: Path) -> pd.DataFrame:
    """Reads predictions. Of OPTIONAL, the columns that the file has; not a number where a cell is empty."""
    try:
        texts = dict.fromkeys(("subject", "session", "group", "side", "split"), str)
        frame = pd.read_csv(path, dtype=texts, keep_default_na=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; has the run finished?") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a table of predictions: {error}") from None
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise InputError(f"{path}: not a table of predictions: no column {', '.join(missing)}")
    names = [name for name in ("label", "probability", *OPTIONAL) if name in frame.columns]
    numbers = frame[names].apply(pd.to_numeric, errors="coerce").astype(float)
    bad = np.zeros(len(frame), dtype=bool)
    for name, column in numbers.items():
        fits = column.between(0, 1) if "probability" in name else column % 1 == 0
        fits &= name != "label" or column.isin([0, 1])
        bad |= ~(fits | (frame[name].eq("") & (name in OPTIONAL)))
    if bad.any():
        lines = [f"line {row + 2}: subject {frame['subject'][row]}" for row in np.flatnonzero(bad)]
        what = "a label is 0 or 1, a probability in [0, 1], a seed or fold a whole number"
        raise InputError.of(f"{path}: {what}", lines)
    return frame.assign(**numbers).astype({"label": int})


def by_subject(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per subject, as paired tests assume: sorted, with the label and the mean probability of its scans."""
    return frame.groupby("subject", as_index=False).agg(label=("label", "first"), probability=("probability", "mean"))
