"""Continuous conditions besides the class: age in years and sex, as numbers that a network can take.

Standardised by the training subjects' mean and standard deviation, which travel in the checkpoint; NaN is unknown.
"""

import math
from pathlib import Path

import torch

from cohort.tables import read_table
from runtime.errors import InputError

SEX_CODES = {"F": 0.0, "M": 1.0, "": math.nan}
KNOWN = ("age", "sex")

Scales = dict[str, tuple[float, float]]
"""Mean and standard deviation of each covariate, in the order in which the network takes them."""


def covariates_of(subjects: list[str], names: tuple[str, ...], tables: tuple[Path, ...]) -> torch.Tensor:
    """Covariates ``age`` (years) and ``sex`` (F 0, M 1) of N subjects from tables that hold them all between them:
    (N, K) float32 in the order of `names`, NaN where a table leaves a value out.
    """
    if not set(names) <= set(KNOWN) or len(set(names)) < len(names):
        raise InputError(f"--model.covariates {' '.join(names)}: expected each of {', '.join(KNOWN)} at most once")
    if not names:
        return torch.zeros(len(subjects), 0)
    if not tables:
        raise InputError("--model.covariates needs --tables, for example data_csvs/train.csv data_csvs/val.csv")
    known = {
        row.subject: {"age": float(row.age), "sex": SEX_CODES[row.sex]}
        for path in tables
        for row in read_table(path).itertuples()
    }
    missing = [subject for subject in subjects if subject not in known]
    if missing:
        shown = ", ".join(missing[:5])
        raise InputError(f"--tables: {len(missing)} of {len(subjects)} subjects are in no table: {shown}")
    return torch.tensor([[known[subject][name] for name in names] for subject in subjects])


def fit_scales(values: torch.Tensor, names: tuple[str, ...]) -> Scales:
    """Mean and standard deviation of each covariate (N, K) over the subjects that have it; NaN is missing."""
    scales = {}
    for name, column in zip(names, values.T.double(), strict=True):
        known = column[~column.isnan()]
        if len(known) < 2 or known.std() == 0:
            raise InputError(f"--model.covariates {name}: {len(known)} training subjects have it, and it does not vary")
        scales[name] = (float(known.mean()), float(known.std()))
    return scales


def standardise(values: torch.Tensor, scales: Scales) -> torch.Tensor:
    """(N, K) in their own units to zero mean and unit variance over the training subjects; NaN stays NaN."""
    if not scales:
        return values
    mean, std = (torch.tensor(column) for column in zip(*scales.values(), strict=True))
    return (values - mean) / std
