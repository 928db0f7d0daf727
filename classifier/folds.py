"""Group k-fold: which subjects a run of a cross-validation learns from, is validated on and is tested on."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from cohort.splitting.folds import folds as divided
from runtime.errors import InputError

FEWEST_FOLDS = 3
"""One to test on, one to validate on, and the others to learn from."""


class Parts(NamedTuple):
    """The rows of one run, by what they are for."""

    train: pd.DataFrame
    val: pd.DataFrame
    test: pd.DataFrame


def divide(frame: pd.DataFrame, folds: int, fold: int, seed: int) -> Parts:
    """Fold `fold` to test on, the next one (the first after the last) to validate on, all others to learn from.

    Subjects that share a group stay together; class, side, age, sex and site are spread as evenly as they can be. The
    division is that of ``cohort.split --folds`` with the same table and seed, so that a VAE and a diffusion model may
    be fitted anew on its tables.

    Args:
        frame: a table (`cohort.tables.read_table`); the order of its rows does not matter.
        folds: how many, 3 or more. Each subject is tested on in exactly one.
        fold: from 0.
        seed: of the division.

    Returns:
        Rows sorted by subject, session and file.

    Raises:
        InputError: too few folds, no such fold, or too few subjects of a class for all of them.
    """
    if folds < FEWEST_FOLDS:
        raise InputError(
            f"--folds {folds}: at least {FEWEST_FOLDS}, one to test on, one to validate on, the others to learn from"
        )
    if not 0 <= fold < folds:
        raise InputError(f"--fold {fold}: the {folds} of --folds are numbered from 0 to {folds - 1}")
    frame = frame.sort_values(["subject", "session", "file"]).reset_index(drop=True)
    return Parts(**divided(frame, count=folds, val_percent=None, seed=seed)[fold])
