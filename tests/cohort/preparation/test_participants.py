"""What is listed: folders, tables and BIDS datasets, their masks, and who is on one side only."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from cohort.listing.reading import Reading
from cohort.preparation.participants import list_scans
from runtime.errors import InputError
from tests.support.scans import template_bids, template_scan, template_table


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return template_table(tmp_path)


def test_a_folder_gives_names_and_the_diagnosis_where_a_folder_says_it(tmp_path):
    template_scan(tmp_path / "HC/a.nii.gz")
    template_scan(tmp_path / "TLE-L/b.nii")
    template_scan(tmp_path / "more/c d.nii.gz")
    (tmp_path / "notes.txt").write_text("no scan")
    (tmp_path / "more/circle").symlink_to(tmp_path)
    frame = list_scans(tmp_path).frame
    assert dict(zip(frame["subject"], frame["diagnosis"], strict=True)) == {"a": "HC", "b": "TLE-L", "c d": ""}
    assert all(name.replace("-", "").replace("_", "").isalnum() for name in frame["name"])
    shutil.copy(tmp_path / "HC/a.nii.gz", tmp_path / "more/a.nii.gz")
    with pytest.raises(InputError, match=r"another file is called a too"):
        list_scans(tmp_path)


def test_names_of_files_keep_people_apart(tmp_path):
    for subject in ("p/1", "p_1", "P_1", "x"):
        template_scan(tmp_path / f"{abs(hash(subject))}.nii")
    names = ["p/1", "p_1", "P_1", "x"]
    rows = [{"subject": name, "file": f"{abs(hash(name))}.nii", "diagnosis": "HC"} for name in names]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    found = list_scans(tmp_path / "t.csv").frame["name"].tolist()
    assert len({name.lower() for name in found}) == 4
    assert found[3] == "x"
    assert not any("/" in name for name in found)


def test_a_bids_dataset_with_and_without_a_table_and_its_masks(tmp_path):
    folder = template_bids(tmp_path / "bids")
    frame = list_scans(folder).frame
    assert frame["subject"].tolist() == ["sub-1", "sub-2"]
    assert frame["session"].tolist() == ["ses-a", "ses-a"]
    assert all(Path(mask).name.endswith("_ses-a_desc-brain_mask.nii.gz") for mask in frame["mask"])
    (folder / "participants.tsv").write_text("participant_id\tgroup\nsub-1\tHC\nsub-2\tTLE\n")
    frame = list_scans(folder).frame
    assert frame["diagnosis"].tolist() == ["HC", "TLE"]
    assert [Path(mask).exists() for mask in frame["mask"]] == [True, True]
    shutil.copytree(folder / "derivatives/first", folder / "derivatives/two")
    with pytest.raises(InputError, match=r"first, two.*--derivatives"):
        list_scans(folder)
    assert "derivatives/two" in list_scans(folder, derivatives="two").frame["mask"][0]
    with pytest.raises(InputError, match="no folder"):
        list_scans(folder, derivatives="three")


def test_a_tables_masks_are_beside_it_and_may_be_missing(table):
    frame = pd.read_csv(table)
    frame["mask"] = ["raw/P1.nii.gz", "", "n/a", ""]
    frame.to_csv(table, index=False)
    assert list_scans(table).frame["mask"].tolist() == [str(table.parent / "raw/P1.nii.gz"), "", "", ""]


def test_nothing_found_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no such table or folder"):
        list_scans(tmp_path / "no")
    with pytest.raises(InputError, match=r"no \.nii"):
        list_scans(tmp_path)
    (tmp_path / "sub-1").mkdir()
    with pytest.raises(InputError, match=r"none of the scans is there \(1\):\n  - sub-1: no anat/\*_T1w"):
        list_scans(tmp_path).there()


def test_a_folders_own_table_is_read(table):
    assert list_scans(table.parent).frame["subject"].tolist() == ["P0", "P1", "P2", "P3"]


def test_scans_beside_those_of_a_table_that_no_row_names_are_said(table):
    raw = table.parent / "raw"
    for name in ("P7.nii.gz", "P8.nii.gz", "P0_mask.nii.gz", "._P9.nii.gz", "T2.nii.gz"):
        (raw / name).touch()
    frame = pd.read_csv(table)
    frame["old"] = ["raw/P8.nii.gz", "", "", ""]
    frame.to_csv(table, index=False)
    assert list_scans(table).notes == [f"{table}: no row names 1 scans that lie beside its own: P7.nii.gz"]


def test_a_folder_without_a_table_hidden_files_and_links_that_lead_nowhere(tmp_path):
    """As DataLad leaves a dataset, and a Mac a disk."""
    for name in ("a.nii", "._a.nii", ".git/annex/objects/k.nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b.nii.gz").symlink_to(".git/annex/objects/b.nii.gz")
    listed = list_scans(tmp_path, Reading(all_hc=True))
    assert listed.frame["subject"].tolist() == ["a", "b"]
    assert listed.frame["diagnosis"].tolist() == ["HC", "HC"]
    (difference,) = listed.differences()
    assert "not fetched: a symbolic link that leads nowhere (to .git/annex/objects/b.nii.gz); datalad get" in difference
    (tmp_path / "TLE").mkdir()
    (tmp_path / "TLE/c.nii").touch()
    with pytest.raises(InputError, match="folders called TLE, but --all-hc"):
        list_scans(tmp_path, Reading(all_hc=True))


def test_a_table_that_is_not_fetched_is_not_taken_for_none(tmp_path):
    folder = template_bids(tmp_path / "bids")
    (folder / "participants.tsv").symlink_to(".git/annex/objects/qF/8V/MD5E-s9--43.tsv/MD5E-s9--43.tsv")
    with pytest.raises(InputError, match=rf"not fetched.*datalad get {folder}/participants.tsv"):
        list_scans(folder)


def test_people_of_a_folder_without_a_table_who_have_no_image_are_named(tmp_path):
    folder = template_bids(tmp_path / "bids")
    (folder / "sub-3/func").mkdir(parents=True)
    assert list_scans(folder).differences() == [f"sub-3: no anat/*_T1w.nii.gz in {folder}/sub-3 or its sessions"]
