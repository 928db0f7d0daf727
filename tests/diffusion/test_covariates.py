"""Age, sex and volumes from tables: units, order, scales, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cohort.anatomy.volume_tables import read_volumes
from cohort.atlas import REGIONS
from diffusion.covariates import covariates_of, fit_scales, standardise
from runtime.errors import InputError, InputWarning
from tests.support.volumes import volumes_ml, write_synthseg


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


def test_volumes_are_in_ml_beside_the_others_and_unknown_where_their_table_is(table: Path, tmp_path: Path) -> None:
    ml = volumes_ml()[:2]
    known = read_volumes(write_synthseg(tmp_path, ml, ["c", "a"]))
    with pytest.warns(InputWarning, match="1 of 3 scans .*\n  - b: no row"):
        values = covariates_of(["a", "b", "c"], ("ventricles", "age", "hippocampus_right"), (table,), known)
    places = [REGIONS.index(f"{side} Lateral Ventricle") for side in ("Left", "Right")]
    np.testing.assert_allclose(values[[2, 0], 0], ml[:, places].sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(values[[2, 0], 2], ml[:, 1], rtol=1e-4)
    assert values[0, 1] == 20
    assert values[1].isnan().all()  # nor is b's age known
    with pytest.raises(InputError, match="hippocampus_left needs --volumes"):
        covariates_of(["a"], ("age", "hippocampus_left"), (table,))


def test_a_mirror_image_has_the_volumes_of_the_other_side(tmp_path: Path) -> None:
    known = read_volumes(write_synthseg(tmp_path, volumes_ml()[:2], ["a", "b"]))
    names = ("hippocampus_left", "ventricles", "hippocampus_right")
    plain = covariates_of(["a", "a", "b"], names, (), known)
    turned = covariates_of(["a", "a", "b"], names, (), known, [False, True, False])
    assert torch.equal(turned[[0, 2]], plain[[0, 2]])
    assert torch.equal(turned[1], plain[1].flip(0))
    assert plain[1, 0] != plain[1, 2]
    left_alone = covariates_of(["a", "b"], ("hippocampus_left",), (), known, [True, True])
    assert torch.equal(left_alone[:, 0], plain[[0, 2], 2])


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
