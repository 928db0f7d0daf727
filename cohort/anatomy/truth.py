"""The true regional volumes of simulated scans, from the table truth.csv that `cohort.make_demo` writes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from cohort.atlas import REGIONS
from runtime.errors import InputError


def volume_column(region: str) -> str:
    """``Left Hippocampus`` to ``volume_left_hippocampus_mm3``."""
    return f"volume_{region.lower().replace(' ', '_')}_mm3"


def true_volumes(path: Path, subjects: Iterable[str]) -> np.ndarray:
    """True volumes (ml) of REGIONS, float64 (N, 16), a row for each subject asked for; InputError if it lacks any."""
    columns = [volume_column(region) for region in REGIONS]
    try:
        truth = pd.read_csv(path, dtype={"subject": str}, usecols=["subject", *columns])
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{path}: not the table that cohort.make_demo writes beside the scans: {error}") from None
    truth, wanted = truth.drop_duplicates("subject").set_index("subject"), list(subjects)
    unknown = sorted(set(wanted) - set(truth.index))
    if unknown:
        raise InputError.of(f"{path}: subjects that are not in it", unknown[:10])
    return truth.loc[wanted, columns].to_numpy(dtype=np.float64) / 1000
