"""What tables know besides diagnoses: volumes of structures, for an auxiliary task, and who has no sclerosis."""

from pathlib import Path

import numpy as np
import pandas as pd

from classifier.config import TrainConfig
from cohort.anatomy.regional_volumes import volume_column
from cohort.atlas import SIDES
from cohort.listing.cells import MISSING
from cohort.listing.delimited import read_delimited
from runtime.errors import InputError

MRI_NEGATIVE = "mri_negative"
"""A column of 0 and 1: 1 for a patient whose scan shows no sclerosis."""


def volume_targets(frame: pd.DataFrame, config: TrainConfig) -> np.ndarray:
    """Volumes of --structures for a training table, left and right, float32 (N, S, 2); NaN where unknown.

    Standardised by the known rows of this very table, both sides together, so that they mirror as the scans do. Nobody
    knows the volumes of synthetic scans: with no others there is nothing to learn, and all are NaN.
    """
    if frame["synthetic"].all():
        return np.full((len(frame), len(config.structures), 2), np.nan, np.float32)
    names = [volume_column(f"{side} {structure}") for structure in config.structures for side in SIDES]
    columns = [column_of(frame, name, config.volumes) for name in names]
    where = config.volumes or "the training table"
    if absent := [name for name, column in zip(names, columns, strict=True) if column is None]:
        raise InputError.of(f"--volumes-weight: {where} lacks columns", absent)
    found = np.stack(columns, axis=1).reshape(len(frame), -1, 2)  # (N, S, 2)
    for place, structure in enumerate(config.structures):
        known = found[:, place][np.isfinite(found[:, place])]
        if len(known) < 2 or known.std() == 0:
            raise InputError(f"--volumes-weight: {where} holds no two volumes of {structure} for the training scans")
        found[:, place] = (found[:, place] - known.mean()) / known.std()
    return found.astype(np.float32)


def column_of(frame: pd.DataFrame, name: str, table: Path | None) -> np.ndarray | None:
    """A column of numbers for the rows of a table of scans: from another table by subject (and session, if that has
    one), else the table's own; float64 (N,), NaN where it says nothing, None where there is no such column.
    """
    if table is not None:
        other = _read(table)
        keys = [key for key in ("subject", "session") if key in other]
        if name in other:
            frame = frame[keys].merge(other[[*keys, name]], on=keys, how="left", validate="many_to_one")
    if name not in frame:
        return None
    texts = frame[name].where(~frame[name].isin(MISSING))
    numbers = pd.to_numeric(texts, errors="coerce")
    if (wrong := texts.notna() & numbers.isna()).any():
        raise InputError(f"{table or 'the table of scans'}: column {name}: {texts[wrong].iloc[0]!r} is not a number")
    return numbers.to_numpy(dtype=np.float64)


def _read(path: Path) -> pd.DataFrame:
    raw = read_delimited(path)
    if "subject" not in raw.columns:
        raw.problems.append(f"{path}: column subject is missing; the table has {', '.join(raw.columns)}")
    if raw.problems:
        raise InputError.of(f"{path}: the table of volumes was refused", raw.problems)
    table = pd.DataFrame(raw.rows)
    keys = [key for key in ("subject", "session") if key in table]
    if table.duplicated(keys).any():
        raise InputError(f"{path}: {table[keys][table.duplicated(keys)].iloc[0].to_list()} is there twice")
    return table


def mri_negative(frame: pd.DataFrame, config: TrainConfig) -> np.ndarray:
    """Who has no sclerosis, float64 (N,) of 0 and 1, by --volumes or the table of scans; NaN where neither says so."""
    found = column_of(frame, MRI_NEGATIVE, config.volumes)
    return np.full(len(frame), np.nan) if found is None else found
