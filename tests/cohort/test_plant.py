"""Patients made of healthy people, by the command."""

import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from cohort.atlas import native_atlas
from cohort.plant import PlantConfig, main, with_scans
from cohort.simulation import planting
from cohort.tables import read_table
from runtime.errors import InputError
from tests.support.labelled import head, people, write_head

pytestmark = pytest.mark.slow

COLUMN = {"L": "volume_left_hippocampus_mm3", "R": "volume_right_hippocampus_mm3"}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """Eight healthy people, one whose hippocampus was segmented as half a lobe, and a patient."""
    folder = tmp_path_factory.mktemp("healthy")
    table = people(folder)
    image, labels = head()
    failed = np.where(labels == 47, 48, labels)
    failed[20:, :, :12] = 47
    rows = pd.read_csv(table)
    for name, regions, diagnosis in (("failed", failed, "HC"), ("patient", labels, "TLE-L")):
        file, written = write_head(folder, name, image, regions)
        rows.loc[len(rows)] = [name, file, diagnosis, 30, "M", written]
    rows.to_csv(table, index=False)
    return table


@pytest.fixture(scope="module")
def planted(healthy, tmp_path_factory):
    out = tmp_path_factory.mktemp("planted")
    config = PlantConfig(participants=healthy, out=out / "out", index=out / "index.csv", effect_size=2.0, partial=True)
    main(config)
    return config


def truth_of(config):
    return pd.read_csv(config.out / "truth.csv", keep_default_na=False).set_index("subject")


def test_half_become_patients_of_both_sides_and_controls_keep_their_files(planted, healthy):
    frame = read_table(planted.index)
    assert frame["diagnosis"].value_counts().to_dict() == {"HC": 4, "TLE-L": 2, "TLE-R": 2}
    originals = read_table(healthy).set_index("subject")["file"]
    for row in frame.itertuples():
        assert (row.file == originals[row.subject]) == (row.diagnosis == "HC")
    assert (planted.out / "planted.png").stat().st_size > 10_000


def test_patients_lose_the_share_that_was_asked_for_on_their_side(planted, healthy):
    truth, files = truth_of(planted), pd.read_csv(healthy).set_index("subject")["labels"]
    sick = truth[truth["side"] != ""]
    assert sick["change"].nunique() == 1
    assert -0.6 < sick["change"].iloc[0] < -0.02
    for name, row in truth.iterrows():
        labels = np.asarray(nib.load(healthy.parent / files[name]).dataobj)
        for side, code in (("L", 48), ("R", 47)):
            expected = 1 + (row["change"] if side == row["side"] else 0)
            assert row[COLUMN[side]] / ((labels == code).sum() * 8) == pytest.approx(expected, abs=0.01)
    assert (sick["min_jacobian"].astype(float) > 0).all()
    assert (sick["far_mm"].astype(float) < 0.2).all()


def test_a_patients_scan_differs_around_the_hippocampus_alone_and_has_the_same_header(planted, healthy):
    frame, originals = read_table(planted.index), read_table(healthy).set_index("subject")
    row = frame[frame["diagnosis"] == "TLE-L"].iloc[0]
    old, new = nib.load(originals["file"][row.subject]), nib.load(row.file)
    assert new.get_data_dtype() == old.get_data_dtype()
    assert (new.dataobj.slope, new.dataobj.inter) == (old.dataobj.slope, old.dataobj.inter) == (0.5, 3.0)
    np.testing.assert_array_equal(new.affine, old.affine)
    changed = np.argwhere(np.asarray(new.dataobj) != np.asarray(old.dataobj)) @ old.affine[:3, :3].T + old.affine[:3, 3]
    assert len(changed) > 100
    assert (changed[:, 0] < 0).mean() > 0.99  # millimetres, left of the midline
    middle = np.array([-27, -21, -16])
    assert np.abs(changed.mean(axis=0) - middle).max() < 6


def test_who_was_left_out_is_named(planted):
    problems = pd.read_csv(planted.out / "left_out.csv").set_index("subject")["problem"]
    assert set(problems.index) == {"failed", "patient"}
    assert "of the median; a failed segmentation?" in problems["failed"]
    assert problems["patient"].endswith("TLE-L; only HC can become patients")


def test_people_left_out_end_with_status_1_unless_that_was_said(planted, healthy, capsys):
    again = replace(planted, partial=False)
    before = {path: path.stat().st_mtime_ns for path in (planted.out / "scans").iterdir()}
    with pytest.raises(SystemExit) as ended:
        main(again)
    assert ended.value.code == 1
    assert "left out: failed: " in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (planted.out / "scans").iterdir()}


def test_a_folder_holds_one_cohort(planted):
    with pytest.raises(InputError, match="choose another --out"):
        main(replace(planted, effect_size=1.0))


def test_the_same_people_are_patients_at_every_effect_size(planted, healthy, tmp_path):
    config = PlantConfig(
        participants=healthy, out=tmp_path / "out", index=tmp_path / "index.csv", effect_size=0.0, partial=True
    )
    main(config)
    none, some = (read_table(each.index)["diagnosis"].tolist() for each in (config, planted))
    assert none == some
    old, new = (read_table(table).set_index("subject")["file"] for table in (healthy, config.index))
    for name in new.index:  # at d = 0 patients are controls
        np.testing.assert_array_equal(nib.load(old[name]).dataobj, nib.load(new[name]).dataobj)


def test_one_head_without_a_map_does_not_stop_the_others(planted, healthy, tmp_path):
    rows = read_table(planted.index).query("diagnosis != 'HC'").head(2)
    originals = read_table(healthy).set_index("subject")
    frame = rows.assign(
        name=rows["subject"],
        file=originals["file"][rows["subject"]].tolist(),
        labels=[str(healthy.parent / originals["labels"][rows["subject"].iloc[0]]), str(tmp_path / "gone.nii.gz")],
    )
    codes = {name: code for name, code in native_atlas()[0].codes.items() if code > 0}
    made, lost = with_scans(replace(planted, out=tmp_path), codes, frame, -0.1)
    assert list(made["subject"]) == list(frame["subject"])[:1]
    assert (tmp_path / "scans" / f"{made['name'].iloc[0]}.nii.gz").exists()
    assert list(lost["subject"]) == list(frame["subject"])[1:]
    assert "no such file" in lost["problem"].iloc[0]


def spoiled(healthy, folder, change):
    """A copy of the people whose table or files were changed."""
    shutil.copytree(healthy.parent, folder, dirs_exist_ok=True)
    table = folder / healthy.name
    change(folder, frame := pd.read_csv(table))
    frame.to_csv(table, index=False)
    return PlantConfig(participants=table, out=folder / "out", index=folder / "index.csv")


def without_labels(folder, frame):
    frame.pop("labels")


def labels_of_another_shape(folder, frame):
    for name in frame["labels"]:
        image = nib.load(folder / name)
        nib.save(image.slicer[1:], folder / name)


def soft_labels(folder, frame):
    for name in frame["labels"]:
        image = nib.load(folder / name)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * np.float32(0.9), image.affine), folder / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_labels, "no column labels"),
        (labels_of_another_shape, r"got shape \(35, 30, 44\), expected shape \(36, 30, 44\)"),
        (soft_labels, "labels are whole numbers"),
    ],
)
def test_labels_of_no_use_are_refused_with_the_reason(healthy, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        main(spoiled(healthy, tmp_path, change))


def test_codes_are_checked(healthy, tmp_path):
    config = PlantConfig(participants=healthy, out=tmp_path / "out", index=tmp_path / "index.csv")
    with pytest.raises(InputError, match="--codes: no label for Right Hippocampus, Left Inf Lat Vent"):
        main(replace(config, codes={"Left Hippocampus": 17}))
    with pytest.raises(InputError, match="a hippocampus has no voxel; are --codes needed"):
        main(replace(config, codes=dict.fromkeys(planting.NEEDED, 250)))
    with pytest.raises(InputError, match="--effect-size 7: expected 0 to 6"):
        main(replace(config, effect_size=7.0))
