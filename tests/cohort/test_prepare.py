"""The script: what it reads, what it writes, what one bad scan does to the others, and what a second run does."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from cohort import prepare
from cohort.grids import GRIDS, Grid
from cohort.preparation import job
from cohort.preparation.job import Job, finished
from cohort.preparation.quality import FEWEST
from cohort.prepare import Config, main
from cohort.reading.headers import Placement
from cohort.reading.intensities import plain
from cohort.scans import load_scan, resample
from cohort.stacks import load_scans
from cohort.tables import read_table
from runtime.cli import parse
from runtime.errors import InputError, InputWarning
from runtime.files import read_json, sha256
from tests.support.heads import dice
from tests.support.preparing import config, status, words
from tests.support.processes import run_here
from tests.support.scans import edit, template_bids, template_scan, template_table

GRID = GRIDS["smoke"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return template_table(tmp_path)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Saves the start of processes, which are tested as such by the tests that run the command."""
    monkeypatch.setattr(job, "start_process", lambda: ThreadPoolExecutor(1))


def content(folder: Path) -> dict[str, tuple[str, int]]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".gz", ".png", ".json")]
    return {str(path.relative_to(folder)): (sha256(path), path.stat().st_mtime_ns) for path in files}


@pytest.mark.slow
def test_index_scans_records_and_page(table, capsys):
    chosen = config(table)
    assert status(chosen) == 0
    index = read_table(chosen.index)
    assert index["subject"].tolist() == ["P0", "P1", "P2", "P3"]
    assert index["diagnosis"].tolist() == ["HC", "TLE-L", "HC", "TLE-L"]
    assert index["age"].tolist() == [30, 31, 32, 33]
    assert index["note"].tolist() == ["x"] * 4
    assert set(index["qc"]) == {"ok"}
    assert [sha256(file) for file in index["file"]] == index["sha256"].tolist()
    assert [sha256(file) for file in index["source"]] == index["source_sha256"].tolist()
    image = nib.load(index["file"][0])
    assert image.shape == GRID.shape
    assert np.allclose(image.affine, GRID.affine)
    # What was prepared is, for every later stage, what the raw scan would have been: it lay on the template already.
    raw = load_scan(table.parent / "raw/P0.nii.gz", GRID)
    assert np.abs(load_scan(index["file"][0], GRID) - raw).max() < 0.01
    assert len(load_scans(index, GRID, cache_dir=table.parent / "cache")) == 4
    record = read_json(chosen.out / "records/P0.json")
    assert record["matrix"] == np.eye(4).tolist()
    assert record["measures"]["template_correlation"] > 0.9
    assert "4 scans prepared, 0 flagged, 0 worth a look, 0 failed" in (chosen.out / "qc.html").read_text()
    assert "4 scans" in capsys.readouterr().out


@pytest.mark.slow
def test_a_flagged_scan_is_told_by_status_last_line_and_index(table, capsys):
    path = table.parent / "raw/P2.nii.gz"
    whole = nib.load(path)
    nib.save(whole.slicer[: whole.shape[0] * 2 // 3], path)
    chosen = config(table)
    assert status(chosen) == 1
    index = read_table(chosen.index)
    assert [why == "ok" for why in index["qc"]] == [True, True, False, True]
    assert "field of view" in index["qc"][2]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("flagged: P2;")
    assert "qc.html" in last
    (table.parent / "raw/P1.nii.gz").write_bytes(b"no scan")
    assert status(chosen) == 1
    assert status(replace(chosen, keep_flagged=True)) == 0
    for name in ("P0", "P2", "P3"):
        (table.parent / f"raw/{name}.nii.gz").write_bytes(b"no scan")
    assert status(replace(chosen, keep_flagged=True)) == 1  # nothing to go on with


@pytest.mark.slow
def test_an_outlier_of_the_cohort_is_named_and_is_no_reason_to_stop(tmp_path, capsys):
    rows = ["subject,file,diagnosis", *(f"P{k},P{k}.nii.gz,HC" for k in range(FEWEST))]
    (tmp_path / "participants.csv").write_text("\n".join(rows))
    for k in range(FEWEST):
        template_scan(tmp_path / f"P{k}.nii.gz", k, noise=30.0 if k == 5 else 3.0)
    chosen = config(tmp_path / "participants.csv")
    assert status(chosen) == 0
    qc = read_table(chosen.index)["qc"]
    assert [why.startswith("look: ") for why in qc] == [k == 5 for k in range(FEWEST)]
    assert "signal-to-noise" in qc[5]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("worth a look (outliers of this cohort, odd intensities), and kept: P5;")
    assert "qc.html" in last


def test_a_guess_at_what_is_air_is_worth_a_look():
    """What is known of such a scan's edge is less than of others: the index says so."""
    draw = np.random.default_rng(0)
    bright = np.pad(draw.normal(0, 1, (20, 24, 20)), 10)  # a z-score with 0 outside
    notes = [plain(image.astype(np.float32))[1] for image in (bright, np.where(bright == 0, -1000, bright + 5))]
    first, second = prepare.verdicts_on([{"measures": {}, "notes": found} for found in notes])
    assert (len(notes[1]), second.text) == (1, "ok")
    assert first.text.startswith("look: ")


@pytest.mark.slow
def test_second_run_does_only_what_is_missing_or_changed(table):
    chosen = config(table)
    assert status(chosen) == 0
    before, index = content(chosen.out), chosen.index.read_bytes()
    assert status(chosen) == 0
    assert content(chosen.out) == before
    assert chosen.index.read_bytes() == index
    (chosen.out / "scans/P0.nii.gz").write_bytes(b"half")
    (chosen.out / "records/P1.json").write_text("{")
    template_scan(table.parent / "raw/P2.nii.gz", seed=99)
    assert status(chosen) == 0
    after = content(chosen.out)
    for kind in ("scans/P3.nii.gz", "pictures/P3.png", "records/P3.json"):
        assert after[kind] == before[kind]
    for name in ("P0", "P1"):
        assert after[f"scans/{name}.nii.gz"][0] == before[f"scans/{name}.nii.gz"][0]
        assert after[f"scans/{name}.nii.gz"][1] != before[f"scans/{name}.nii.gz"][1]
        assert after[f"records/{name}.json"][0] == before[f"records/{name}.json"][0]
    assert after["scans/P2.nii.gz"][0] != before["scans/P2.nii.gz"][0]
    first = Job("P0", str(table.parent / "raw/P0.nii.gz"), "", chosen.out, GRIDS["smoke"], assume_mni=True)
    assert finished(first)
    assert not finished(replace(first, grid=GRIDS["demo"]))
    assert not finished(replace(first, assume_mni=False))


@pytest.mark.slow
def test_one_bad_scan_stops_no_other_and_is_named(table, capsys):
    raw = table.parent / "raw"
    whole = (raw / "P1.nii.gz").read_bytes()
    (raw / "P1.nii.gz").write_bytes(whole[: len(whole) // 2])
    broken = nib.load(raw / "P2.nii.gz").get_fdata(dtype=np.float32)
    broken[10, 10, 10] = np.nan
    nib.save(nib.Nifti1Image(broken, nib.load(raw / "P0.nii.gz").affine), raw / "P2.nii.gz")
    chosen = config(table)
    assert status(chosen) == 1
    assert read_table(chosen.index)["subject"].tolist() == ["P0", "P3"]
    failed = pd.read_csv(chosen.out / "failures.csv")
    assert failed["name"].tolist() == ["P1", "P2"]
    assert "truncated" in failed["reason"][0]
    assert "1 of" in failed["reason"][1]
    assert "not finite" in failed["reason"][1]
    page = (chosen.out / "qc.html").read_text()
    assert "2 failed" in page
    assert str(raw / "P1.nii.gz") in page
    assert "failed: P1" in capsys.readouterr().out
    # Mended, the same command does what was missing and forgets the failures.
    (raw / "P1.nii.gz").write_bytes(whole)
    template_scan(raw / "P2.nii.gz", 2)
    kept = content(chosen.out)["scans/P0.nii.gz"]
    assert status(chosen) == 0
    assert content(chosen.out)["scans/P0.nii.gz"] == kept
    assert len(read_table(chosen.index)) == 4
    assert pd.read_csv(chosen.out / "failures.csv").empty


def test_an_absent_scan_stops_no_other_and_is_named(table):
    (table.parent / "raw/P1.nii.gz").unlink()
    folder = table.parent / "bids"
    (folder / "sub-1/anat").mkdir(parents=True)
    shutil.copy(table.parent / "raw/P0.nii.gz", folder / "sub-1/anat/sub-1_T1w.nii.gz")
    (folder / "participants.tsv").write_text("participant_id\tdiagnosis\nsub-1\tHC\nsub-2\tTLE\n")
    for source, kept, lost in ((table, ["P0", "P2", "P3"], "P1"), (folder, ["sub-1"], "sub-2")):
        chosen = replace(config(table, out=table.parent / f"out_{lost}"), participants=source)
        assert status(chosen) == 1
        assert read_table(chosen.index)["subject"].tolist() == kept
        failed = pd.read_csv(chosen.out / "failures.csv")
        assert failed["name"].tolist() == [lost]
        assert ("no such file" if lost == "P1" else "no anat/*_T1w.nii.gz") in failed["reason"][0]
        assert status(replace(chosen, partial=True)) == 0


def test_scans_without_an_orientation_are_prepared_by_the_users_word(table, capsys):
    raw = table.parent / "raw"
    for number, codes in enumerate(("LAS", "RAS", "LAS", "LAS")):
        # In the middle of its box, as what programs export from a grid is.
        own = nib.load(raw / f"P{number}.nii.gz")
        middle = Grid("middle", (28, 34, 28), 6.0, GRID.centre_mm)
        values, _ = resample(own.get_fdata(dtype=np.float32), own.affine, middle.affine, middle.shape)
        image = nib.Nifti1Image(values, middle.affine).as_reoriented(
            nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("RAS", codes)))
        )
        image.set_sform(None, code=0)
        image.set_qform(None, code=0)
        nib.save(image, raw / f"P{number}.nii.gz")
    assert status(config(table)) == 1
    assert "failed: P0: " in (told := capsys.readouterr().out)
    assert "--reset-affine" in told
    chosen = config(table, reset_affine="LAS")
    assert status(chosen) == 0
    records = [read_json(chosen.out / f"records/P{number}.json") for number in range(4)]
    assert all(record["measures"]["template_correlation"] > 0.7 for record in records)
    scans = [nib.load(chosen.out / f"scans/P{number}.nii.gz").get_fdata() for number in range(4)]
    # P1 lies the other way round in its file, so that the same word mirrors it.
    assert np.corrcoef(scans[0].ravel(), scans[2].ravel())[0, 1] > np.corrcoef(scans[0].ravel(), scans[1].ravel())[0, 1]
    assert finished(Job("P0", str(raw / "P0.nii.gz"), "", chosen.out, GRIDS["smoke"], True, Placement("LAS")))
    assert not finished(Job("P0", str(raw / "P0.nii.gz"), "", chosen.out, GRIDS["smoke"], True, Placement("RAS")))
    for wrong in (
        {"reset_affine": "LAX"},
        {"reset_affine": "LAS", "reset_spacing_mm": -1.0},
        {"reset_spacing_mm": 1.0},
    ):
        with pytest.raises(InputError, match="--reset-affine"):
            main(config(table, **wrong))


def test_a_half_turn_in_a_header_is_believed_and_the_way_on_that_is_named_works(tmp_path, capsys):
    """qform only, b2 + c2 + d2 beyond 1 by rounding: for FSL, ITK and SPM a half turn, which leads off the grid."""
    own = nib.load(template_scan(tmp_path / "own.nii"))
    middle = Grid("middle", (28, 34, 28), 6.0, GRID.centre_mm)
    values, _ = resample(own.get_fdata(dtype=np.float32), own.affine, middle.affine, middle.shape)
    image = nib.Nifti1Image(values, middle.affine)
    image.set_qform(middle.affine, code=1)
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "turned.nii")
    quaternion = {"quatern_b": 0.70710705, "quatern_c": 0.7071075, "quatern_d": 0}
    edit(tmp_path / "turned.nii", lambda header: [header.__setitem__(*pair) for pair in quaternion.items()])
    (tmp_path / "participants.csv").write_text("subject,file,diagnosis\nP0,turned.nii,HC\n")
    assert status(config(tmp_path / "participants.csv")) == 1
    assert "cohort.prepare --assume-mni --reset-affine RAS" in capsys.readouterr().out
    chosen = config(tmp_path / "participants.csv", reset_affine="RAS")
    assert status(chosen) == 0
    assert read_json(chosen.out / "records/P0.json")["measures"]["template_correlation"] > 0.7


def test_signed_scans_are_prepared_like_plain_ones_and_a_cut_brain_is_flagged(table, capsys):
    plain = nib.load(table.parent / "raw/P0.nii.gz")
    values = plain.get_fdata(dtype=np.float32)
    inside = values > 0
    other = {
        "P1": np.where(inside, (values - values[inside].mean()) / values[inside].std(), 0),
        "P2": 2 * values / values.max() - 1,
        "P3": np.where(inside, np.maximum(values, np.median(values[inside])), 0),
    }
    for name, image in other.items():
        nib.save(nib.Nifti1Image(image.astype(np.float32), plain.affine), table.parent / f"raw/{name}.nii.gz")
    chosen = config(table)
    assert status(chosen) == 1  # for P3
    made = {name: load_scan(chosen.out / f"scans/{name}.nii.gz", GRID) for name in ("P0", "P1", "P2")}
    assert np.abs(made["P2"] - made["P0"]).max() < 0.01
    # A z-score with 0 outside no longer says where 0 was, which counts where air and tissue are averaged: the edge.
    assert np.corrcoef(made["P1"].ravel(), made["P0"].ravel())[0, 1] > 0.99
    assert ["look: " in why for why in read_table(chosen.index)["qc"]] == [False, True, False, False]
    assert "share of the brain at one dark value" in read_table(chosen.index)["qc"][3]
    assert "intensities of 2 scans were not as expected" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["identity", "upside down"])
def test_prepared_scans_that_lie_elsewhere_are_refused(table, place, capsys):
    image = nib.load(table.parent / "raw/P0.nii.gz")
    if place == "identity":
        image = nib.Nifti1Image(image.get_fdata(), np.diag([6.0, 6, 6, 1]))
    else:
        about_the_middle = np.diag([1.0, 1, -1, 1])
        about_the_middle[2, 3] = 2 * GRID.centre_mm[2]
        image = nib.Nifti1Image(image.get_fdata(), about_the_middle @ image.affine)
    nib.save(image, table.parent / "raw/P0.nii.gz")
    assert status(config(table)) == 1
    told = capsys.readouterr().out
    assert "failed: P0: " in told
    assert "--reset-affine" in told


def test_a_number_of_processes_below_zero_is_refused(table):
    with pytest.raises(InputError, match="--workers -1"):
        main(config(table, workers=-1))


def test_people_in_no_row_are_listed_and_end_the_command_with_status_1(tmp_path, capsys):
    folder = template_bids(tmp_path / "bids")
    (folder / "participants.tsv").write_text("participant_id\tgroup\nsub-1\tHC\n")
    flags = [str(word) for word in words(config(folder))[3:]]
    with pytest.warns(InputWarning, match=r"differ \(1\):\n  - sub-2: .*/sub-2_ses-a_T1w.nii.gz is in no row"):
        assert status(parse(Config, flags)) == 1
    assert "1 left out, without a scan or without a row" in capsys.readouterr().out
    assert pd.read_csv(config(folder).out / "failures.csv")["name"].tolist() == ["sub-2"]
    with pytest.warns(InputWarning, match="differ"):
        assert status(parse(Config, [*flags, "--partial"])) == 0
    assert "accepted by --partial" in capsys.readouterr().out


def test_a_folder_without_diagnoses_is_prepared_and_the_user_told(tmp_path, capsys):
    template_scan(tmp_path / "raw/a.nii.gz")
    chosen = config(tmp_path / "raw")
    assert status(chosen) == 0
    assert "fill in the column diagnosis of 1 scans" in capsys.readouterr().out
    with pytest.raises(InputError, match="unknown diagnosis ''"):
        read_table(chosen.index)


# From end to end -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_raw_head_in_a_bids_dataset_comes_back(tmp_path, quick_steps):
    """The template as a scan of a cohort, made a raw head and prepared by the two commands, with all steps."""
    brain = template_scan(tmp_path / "cohort/scans/P-1.nii.gz", spacing_mm=2)
    (tmp_path / "cohort/truth.csv").write_text("subject,diagnosis,age,sex,site\nP-1,TLE-L,40,F,A\n")
    raw = tmp_path / "raw"
    run_here(
        "tests.support.raw_bids", "--cohort", tmp_path / "cohort", "--out", raw, "--subjects", 1, "--spacing-mm", 4
    )
    chosen = config(raw, assume_mni=False, grid="demo")
    assert status(chosen) == 0
    found = read_table(chosen.index)
    assert found[["subject", "diagnosis", "age", "qc"]].iloc[0].tolist() == ["sub-Px1", "TLE-L", 40, "ok"]
    assert found["source"][0] == str(raw / "sub-Px1/anat/sub-Px1_T1w.nii.gz")
    grid, source = GRIDS["demo"], nib.load(brain)
    made, true = (load_scan(file, grid) for file in (found["file"][0], brain))
    mask = resample((source.get_fdata() > 0).astype(np.float32), source.affine, grid.affine, grid.shape)[0] > 0.5
    assert dice(made > 0, mask) > 0.93
    inside = (made > 0) & mask
    assert np.corrcoef(made[inside], true[inside])[0, 1] > 0.8
