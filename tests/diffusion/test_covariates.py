"""Age and sex from tables: units, order, scales, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from diffusion.covariates import covariates_of, fit_scales, standardise
from runtime.errors import InputError


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.nii.gz").touch()
    rows = {
        "subject": ["a", "b", "c"],
        "file": ["a.nii.gz", "b.nii.gz", "c.nii.gz"],
        "diagnosis": ["HC", "TLE", "HC"],
        "age": [20.0, None, 40.0],
        "sex": ["F", "M", "M"],
    }
    pd.DataFrame(rows).to_csv(tmp_path / "train.csv", index=False)
    return tmp_path / "train.csv"


def test_values_follow_the_subjects_and_the_names(table: Path) -> None:
    values = covariates_of(["c", "a", "b"], ("sex", "age"), (table,))
    assert values[:2].tolist() == [[1.0, 40.0], [0.0, 20.0]]
    assert values[2, 0] == 1.0
    assert values[2, 1].isnan()
    assert covariates_of(["c", "a"], (), ()).shape == (2, 0)


def test_scales_standardise_what_is_known_and_keep_what_is_not(table: Path) -> None:
    values = covariates_of(["a", "b", "c"], ("age", "sex"), (table,))
    scales = fit_scales(values, ("age", "sex"))
    assert scales["age"] == pytest.approx((30.0, 200**0.5))
    standard = standardise(values, scales)
    known = standard[~standard.isnan()].view(-1)
    assert standard.isnan().sum() == 1
    assert standard[:, 0].nanmean() == pytest.approx(0.0, abs=1e-6)
    assert known.isfinite().all()


def test_what_is_refused(table: Path) -> None:
    with pytest.raises(InputError, match=r"weight.*expected each of age, sex"):
        covariates_of(["a"], ("weight",), (table,))
    with pytest.raises(InputError, match="needs --tables"):
        covariates_of(["a"], ("age",), ())
    with pytest.raises(InputError, match="1 of 2 subjects are in no table: x"):
        covariates_of(["a", "x"], ("age",), (table,))
    with pytest.raises(InputError, match="sex: 3 training subjects have it, and it does not vary"):
        fit_scales(torch.ones(3, 1), ("sex",))
