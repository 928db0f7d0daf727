import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from classifier.validation import planted
from classifier.validation.config import ValidationConfig
from cohort.atlas import atlas
from cohort.scans import GRIDS
from cohort.stacks import load_scans
from cohort.tables import read_table, write_table
from runtime.errors import InputError

GRID = GRIDS["smoke"]
LEFT = atlas(GRID).mask("Left Hippocampus")


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
    changed = planted.plant(config, planted.Condition("shortcut", mark=True), tmp_path / "index.csv")
    before, after = read_table(tmp_path / "index.csv"), read_table(changed)
    assert list(after["diagnosis"]) == list(before["diagnosis"])
    mark = planted.mark_of(GRID)
    assert not (mark & brain).any()
    for plain, marked, label in zip(before["file"], after["file"], before["label"], strict=True):
        a, b = (np.asarray(nib.load(path).dataobj) for path in (plain, marked))
        assert ((a != b) == (mark if label else False)).all()
    scaled = load_scans(after, GRID, cache_dir=tmp_path / "cache").volumes
    assert (scaled[1][mark] > 0.3).all()


def test_a_signal_is_lost_where_the_region_is_and_nowhere_else():
    share = np.where(LEFT, 1.0, 0.0)
    share[tuple(np.argwhere(LEFT)[0])] = 0.5
    image = np.full(GRID.shape, 200, np.int16)
    found = planted.planted_scan(image, planted.Condition("signal_0.6", signal=0.6), GRID, share)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, np.where(share == 1, 80, np.where(share == 0.5, 140, 200)))


def test_conditions_share_data_and_come_strongest_first():
    found = planted.conditions((0.3, 0.6), (0.0, 1.9, 0.5))
    names = [condition.name for condition in found]
    assert names == ["signal_0.6", "signal_0.3", "dose_1.9", "dose_0.5", "dose_0", "permuted", "shortcut"]
    assert [condition.data for condition in found[-2:]] == ["signal_0.6", "marked"]
    assert {condition.cohort for condition in found if condition.signal or condition.mark} == {"dose_0"}
    assert planted.levels(found) == {
        "signal": {"signal_0.6": 0.6, "signal_0.3": 0.3, "dose_0": 0.0},
        "dose": {"dose_1.9": 1.9, "dose_0.5": 0.5, "dose_0": 0.0},
    }
    assert list(planted.levels(planted.conditions((), (1.9, 0.0)))) == ["dose"]


def test_a_script_that_fails_is_shown():
    with pytest.raises(InputError, match=r"cohort.split .*status 2:\n(.|\n)*nowhere.csv"):
        planted.run_script("cohort.split", "--index", "nowhere.csv")
