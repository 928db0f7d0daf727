"""Continuous conditions besides the class: age in years and sex, as numbers that a network can take.

Standardised by the training subjects' mean and standard deviation, which travel in the checkpoint; NaN is "not told".
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from cohort.tables import read_table
from runtime.errors import InputError

SEX_CODES = {"F": 0.0, "M": 1.0, "": math.nan}
KNOWN = ("age", "sex")

Scales = dict[str, tuple[float, float]]
"""Mean and standard deviation of each covariate, in the order in which the network takes them."""


def check_names(names: tuple[str, ...]) -> None:
    """Refuses names that tables have no column for, or one name twice.

    Raises:
        InputError: names them.
    """
    unknown = [name for name in names if name not in KNOWN]
    if unknown or len(set(names)) < len(names):
        raise InputError(f"--model.covariates {' '.join(names)}: expected each of {', '.join(KNOWN)} at most once")


def covariates_of(subjects: list[str], names: tuple[str, ...], tables: tuple[Path, ...]) -> torch.Tensor:
    """Covariates of subjects, in their own units, from tables.

    Args:
        subjects: N of them.
        names: K covariates out of ``age`` (years) and ``sex`` (F 0, M 1).
        tables: tables that hold all subjects between them.

    Returns:
        (N, K) float32, NaN where a table leaves a value out.

    Raises:
        InputError: no table given, or subjects that are in none.
    """
    check_names(names)
    if not names:
        return torch.zeros(len(subjects), 0)
    if not tables:
        raise InputError("--model.covariates needs --tables, for example data_csvs/train.csv data_csvs/val.csv")
    known: dict[str, list[float]] = {}
    for path in tables:
        for row in read_table(path).itertuples():
            values = {"age": float(row.age), "sex": SEX_CODES[row.sex]}
            known[row.subject] = [values[name] for name in names]
    missing = [subject for subject in subjects if subject not in known]
    if missing:
        shown = ", ".join(missing[:5])
        raise InputError(f"--tables: {len(missing)} of {len(subjects)} subjects are in no table: {shown}")
    return torch.tensor([known[subject] for subject in subjects])


def fit_scales(values: torch.Tensor, names: tuple[str, ...]) -> Scales:
    """Mean and standard deviation of each covariate over the subjects that have it.

    Args:
        values: (N, K), NaN for missing.
        names: K names.

    Raises:
        InputError: a covariate that nobody has, or that is the same for everybody.
    """
    scales = {}
    for name, column in zip(names, values.T.double(), strict=True):
        told = column[~column.isnan()]
        if len(told) < 2 or told.std() == 0:
            raise InputError(f"--model.covariates {name}: {len(told)} training subjects have it, and it does not vary")
        scales[name] = (float(told.mean()), float(told.std()))
    return scales


def standardise(values: torch.Tensor, scales: Scales) -> torch.Tensor:
    """(N, K) in their own units to zero mean and unit variance over the training subjects; NaN stays NaN."""
    if not scales:
        return values
    mean, std = (torch.tensor(column) for column in zip(*scales.values(), strict=True))
    return (values - mean) / std
