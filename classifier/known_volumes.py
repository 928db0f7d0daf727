"""What tables know besides diagnoses: volumes of structures, for an auxiliary task, and who has no sclerosis."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cohort.anatomy.volume_readers import of_columns
from cohort.anatomy.volume_tables import VolumeTable, as_ml
from cohort.atlas import SIDES
from cohort.listing.cells import MISSING
from runtime.errors import InputError

MRI_NEGATIVE = "mri_negative"
"""A column of 0 and 1: 1 for a patient whose scan shows no sclerosis."""


def volume_targets(frame: pd.DataFrame, table: VolumeTable | None, structures: Sequence[str]) -> np.ndarray:
    """Volumes of structures for a training table, left and right, float32 (N, S, 2); NaN where unknown.

    They are from the table of --volumes, else from columns of the training table. Standardised by the known rows of
    this very table, both sides together, so that they mirror as the scans do. Nobody knows the volumes of synthetic
    scans: with no others there is nothing to learn, and all are NaN.
    """
    found = np.full((len(frame), len(structures), 2), np.nan, np.float32)
    real = frame[~frame["synthetic"].to_numpy(dtype=bool)]
    if real.empty:
        return found
    table = as_ml("the training table", of_columns(real)) if table is None else table
    regions = [f"{side} {structure}" for structure in structures for side in SIDES]
    ml = table.of(real, regions).reshape(len(real), -1, 2)  # (N, S, 2)
    table.warn(real, regions)
    for place, structure in enumerate(structures):
        known = ml[:, place][np.isfinite(ml[:, place])]
        if len(known) < 2 or known.std() == 0:
            raise InputError(f"--volumes-weight: {table.name} holds no two volumes of {structure} for these scans")
        ml[:, place] = (ml[:, place] - known.mean()) / known.std()
    found[~frame["synthetic"].to_numpy(dtype=bool)] = ml
    return found


def mri_negative(frame: pd.DataFrame, table: VolumeTable | None) -> np.ndarray:
    """Who has no sclerosis, float64 (N,) of 0 and 1, by a column of --volumes, else of the table of scans; NaN where
    neither says so.
    """
    texts = None if table is None else table.text(frame, MRI_NEGATIVE)
    texts = frame.get(MRI_NEGATIVE) if texts is None else texts
    if texts is None:
        return np.full(len(frame), np.nan)
    return pd.to_numeric(texts.where(~texts.isin(MISSING)), errors="coerce").to_numpy(dtype=np.float64)
