"""Continuous conditions besides the class: age in years, sex, and volumes in ml, as numbers that a network can take.

Standardised by the training subjects' mean and standard deviation, which travel in the checkpoint; NaN is unknown.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cohort.anatomy.volume_tables import VolumeTable
from cohort.atlas import SIDES, STRUCTURES, other_side
from cohort.tables import read_table
from runtime.errors import InputError

SEX_CODES = {"F": 0.0, "M": 1.0, "": math.nan}
VOLUMES = {
    f"{structure}_{side}".lower().replace(" ", "_"): (f"{side} {structure}",)
    for structure in STRUCTURES
    for side in SIDES
} | {"ventricles": ("Left Lateral Ventricle", "Right Lateral Ventricle")}
"""Names of volumes (hippocampus_left and so on), and the regions of the atlas that each is the sum of."""
KNOWN = ("age", "sex", *VOLUMES)

Scales = dict[str, tuple[float, float]]
"""Mean and standard deviation of each covariate, in the order in which the network takes them."""


def covariates_of(
    subjects: list[str], names: tuple[str, ...], tables: tuple[Path, ...], volumes: VolumeTable | None = None,
    mirrored: Sequence[bool] = (),
) -> torch.Tensor:  # fmt: skip
    """Covariates ``age`` (years) and ``sex`` (F 0, M 1) of N subjects from tables that hold them all between them, and
    VOLUMES (ml) of a table: (N, K) float32 in the order of `names`, NaN where a table leaves a value out.

    `mirrored` (N,) says which are mirror images, whose left is the subject's right; without it, none is.
    """
    if not set(names) <= set(KNOWN) or len(set(names)) < len(names):
        raise InputError(f"--model.covariates {' '.join(names)}: expected each of {', '.join(KNOWN)} at most once")
    columns = of_people(subjects, tables) if {"age", "sex"} & set(names) else {}
    if asked := {name: VOLUMES[name] for name in names if name in VOLUMES}:
        if volumes is None:
            raise InputError(f"--model.covariates {' '.join(asked)} needs --volumes, a table of them")
        turned = {name: tuple(map(other_side, parts)) for name, parts in asked.items()} if any(mirrored) else {}
        frame, regions = (
            pd.DataFrame({"subject": subjects}),
            [*dict.fromkeys(sum((*asked.values(), *turned.values()), ()))],
        )
        ml = pd.DataFrame(volumes.of(frame, regions), columns=regions)
        volumes.warn(frame, regions)
        columns |= {name: ml[list(parts)].sum(axis=1, skipna=False).to_list() for name, parts in asked.items()}
        for name, parts in turned.items():
            columns[name] = np.where(mirrored, ml[list(parts)].sum(axis=1, skipna=False), columns[name]).tolist()
    return torch.tensor([columns[name] for name in names], dtype=torch.float32).reshape(len(names), len(subjects)).T


def of_people(subjects: list[str], tables: tuple[Path, ...]) -> dict[str, list[float]]:
    """``age`` and ``sex`` of the subjects; InputError for one that is in no table."""
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
    return {name: [known[subject][name] for subject in subjects] for name in ("age", "sex")}


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
