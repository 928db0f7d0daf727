import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from classifier.validation import planted
from classifier.validation.config import ValidationConfig
from cohort.grids import GRIDS
from cohort.stacks import load_scans
from cohort.tables import read_table, write_table
from runtime.errors import InputError

GRID = GRIDS["smoke"]


def test_a_marked_cohort_differs_in_patients_corners_only(tmp_path):
    rng = np.random.default_rng(0)
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in GRID.shape), indexing="ij"))
    brain = (at**2).sum(0) < 0.7
    rows = []
    for number, diagnosis in enumerate(("HC", "TLE-L", "TLE-R", "HC")):
        path = tmp_path / f"s{number}.nii.gz"
        image = np.where(brain, rng.uniform(100, 900, GRID.shape), 0).astype(np.int16)
        nib.save(nib.Nifti1Image(image, GRID.affine), path)
        rows.append({"subject": f"s{number}", "file": str(path), "diagnosis": diagnosis})
    write_table(tmp_path / "index.csv", pd.DataFrame(rows))
    config = ValidationConfig(grid="smoke", out=tmp_path / "out")
    changed = planted.mark(config, planted.Condition("shortcut", mark=True), tmp_path / "index.csv")
    before, after = read_table(tmp_path / "index.csv"), read_table(changed)
    assert list(after["diagnosis"]) == list(before["diagnosis"])
    mark = planted.mark_of(GRID)
    assert not (mark & brain).any()
    for plain, marked, label in zip(before["file"], after["file"], before["label"], strict=True):
        a, b = (np.asarray(nib.load(path).dataobj) for path in (plain, marked))
        assert ((a != b) == (mark if label else False)).all()
    scaled = load_scans(after, GRID, cache_dir=tmp_path / "cache").volumes
    assert (scaled[1][mark] > 0.3).all()


def test_conditions_share_data_and_come_strongest_first():
    found = planted.conditions((0.3, 0.6), (0.0, 1.9, 0.5))
    names = [condition.name for condition in found]
    assert names == ["signal_0.6", "signal_0.3", "dose_1.9", "dose_0.5", "dose_0", "permuted", "shortcut"]
    assert [condition.data for condition in found[-2:]] == ["signal_0.6", "marked"]
    assert [condition.cohort for condition in found[-2:]] == ["signal_0.6", "dose_0"]
    assert planted.levels(found) == {
        "signal": {"signal_0.6": 0.6, "signal_0.3": 0.3, "dose_0": 0.0},
        "dose": {"dose_1.9": 1.9, "dose_0.5": 0.5, "dose_0": 0.0},
    }
    assert list(planted.levels(planted.conditions((), (1.9, 0.0)))) == ["dose"]


def test_a_script_that_fails_is_shown():
    with pytest.raises(InputError, match=r"cohort.split .*status 2:\n(.|\n)*nowhere.csv"):
        planted.run_script("cohort.split", "--index", "nowhere.csv")
