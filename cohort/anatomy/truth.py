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
    """True volumes (ml) of REGIONS, float64 (N, 16), a row for each subject asked for.

    Raises:
        InputError: no such file, columns or subjects that are missing; names them.
    """
    try:
        truth = pd.read_csv(path, dtype={"subject": str})
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; cohort.make_demo writes it beside the scans") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a table of true volumes: {error}") from None
    columns = [volume_column(region) for region in REGIONS]
    missing = [f"no column {name}" for name in ("subject", *columns) if name not in truth.columns]
    if missing:
        raise InputError.of(f"{path}: not a table of true volumes", missing)
    truth, wanted = truth.drop_duplicates("subject").set_index("subject"), list(subjects)
    unknown = sorted(set(wanted) - set(truth.index))
    if unknown:
        raise InputError.of(f"{path}: subjects that are not in it", unknown[:10])
    return truth.loc[wanted, columns].to_numpy(dtype=np.float64) / 1000
