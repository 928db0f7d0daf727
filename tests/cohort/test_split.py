"""The script: what it writes and refuses, that it repeats itself, and that it overwrites nothing unseen."""

import hashlib
import json
import runpy
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from cohort.grids import GRIDS
from cohort.ledger import ledger_of
from cohort.splitting.folds import SPLITS, refuse_shared
from cohort.splitting.record import provenance, read_record
from cohort.tables import read_table, write_table
from runtime.errors import InputError, InputWarning
from tests.support.people import cohort, homes, index_of_empty_scans
from tests.support.scans import brain


@pytest.fixture
def index(tmp_path):
    return index_of_empty_scans(tmp_path, 30)


@pytest.fixture
def split(monkeypatch, capsys):
    """Runs the script as `python -m cohort.split` does: exit status, standard output, standard error.

    The fixture's scans are empty files, so copies are looked for only where a test brings a cache, and so real scans.
    """

    def run(*arguments):
        check = [] if "--cache-dir" in arguments else ["--no-check"]
        monkeypatch.setattr(sys, "argv", ["split", *map(str, arguments), *check])
        try:
            runpy.run_module("cohort.split", run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            return stop.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_script_writes_prints_repeats_and_does_not_overwrite(index, split):
    out = index.parent / "out"
    status, printed, _ = split("--index", index, "--out", out)
    assert status == 0
    assert "female" in printed
    splits = {name: read_table(out / f"{name}.csv") for name in ("train", "val", "test")}
    refuse_shared(splits)
    assert sum(map(len, splits.values())) == 30
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(before) == ["balance.png", "split.json", "test.csv", "train.csv", "val.csv"]
    assert split("--index", index, "--out", out)[0] == 0
    status, _, error = split("--index", index, "--out", out, "--seed", 1)
    assert status == 2
    assert "train.csv exists and would change" in error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert split("--index", index, "--out", out, "--seed", 1, "--overwrite", "--no-figure")[0] == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} != before


def test_script_warns_of_splits_with_few_subjects_of_a_class(index, split):
    table = pd.read_csv(index, dtype=str)
    patients = table["diagnosis"] != "HC"
    few = pd.concat([table[~patients], table[patients].drop_duplicates("subject").head(4)])
    few.to_csv(index, index=False)
    _, printed, _ = split("--index", index, "--out", index.parent / "out")
    assert "test.csv has 1 subject of class TLE" in printed
    out = index.parent / "least"
    status, _, error = split("--index", index, "--out", out, "--least", 2)
    assert status == 2
    assert f"{out / 'test.csv'}: 1 of class TLE" in error
    assert "of class HC" not in error
    assert not out.exists()
    assert split("--index", index, "--out", out, "--least", 1)[0] == 0


def test_a_training_split_that_names_no_side_is_refused_where_sides_are_needed(index, split):
    table = pd.read_csv(index, dtype=str)
    table["diagnosis"] = table["diagnosis"].replace("TLE-R", "TLE")
    table.to_csv(index, index=False)
    out = index.parent / "out"
    status, _, error = split("--index", index, "--out", out, "--least-sides", 2)
    assert status == 2
    assert f"{out / 'train.csv'}: TLE-L" in error
    assert "volumes: {swap: 0}" in error
    assert not out.exists()
    assert split("--index", index, "--out", out, "--least-sides", 1, "--no-figure")[0] == 0


def test_flagged_scans_are_refused_by_name_unless_asked_for(index, split):
    why = "brain mask, ml: 2912, expected 800 to 2050"
    table = pd.read_csv(index, dtype=str)
    table["qc"] = ["ok", why, "", "n/a", "look: noisy", *["ok"] * (len(table) - 5)]
    table.to_csv(index, index=False)
    out = index.parent / "out"
    status, _, error = split("--index", index, "--out", out, "--no-figure")
    assert status == 2
    assert "(1):" in error
    for part in (table["subject"][1], why, "qc.html", "--keep-flagged"):
        assert part in error
    assert not out.exists()
    status, printed, _ = split("--index", index, "--out", out, "--no-figure", "--keep-flagged")
    assert status == 0
    assert "1 scans that cohort.prepare found worth a look" in printed
    kept = pd.concat([read_table(out / f"{name}.csv") for name in SPLITS])
    assert len(kept) == len(table)
    assert (kept["qc"] == why).sum() == 1  # the flag travels


def test_script_reads_other_tables_by_label_map(index, split):
    text = index.read_text().replace("diagnosis", "kind").replace(",TLE-L,", ",left,").replace(",TLE-R,", ",right,")
    index.write_text(text)
    mapping = ("--label-column", "kind", "--label-map", "HC", "HC", "left", "TLE-L", "right", "TLE-R")
    assert split("--index", index, "--out", index.parent / "out", "--no-figure", *mapping)[0] == 0
    frame = read_table(index.parent / "out" / "train.csv")
    assert set(frame["diagnosis"]) == {"HC", "TLE-L", "TLE-R"}


def test_script_refuses_a_bad_index_with_status_2_and_writes_nothing(index, split):
    index.write_text(index.read_text().replace(",HC,", ",AD,"))
    out = index.parent / "out"
    status, _, error = split("--index", index, "--out", out)
    assert status == 2
    assert "unknown diagnosis 'AD'" in error
    assert not out.exists()


def test_record_holds_ledgers_and_notices_changed_tables(index, split):
    out = index.parent / "out"
    assert provenance(index.parent).endswith("not recorded")
    assert split("--index", index, "--out", out, "--no-figure")[0] == 0
    record = read_record(out)
    assert record["index"] == {"name": "index.csv", "sha256": hashlib.sha256(index.read_bytes()).hexdigest()}
    assert record["settings"] == {
        "val_percent": 15.0, "test_percent": 25.0, "seed": 0, "copies": "not looked for",
    }  # fmt: skip
    assert record["left_out"] == {"scans": 0, "subjects": 0, "ledger": []}
    for name, entry in record["splits"].items():
        table = read_table(out / f"{name}.csv")
        assert entry["ledger"] == ledger_of(table)
        assert (entry["scans"], entry["subjects"]) == (len(table), table["subject"].nunique())
        assert not [subject for subject in table["subject"] if subject in (out / "split.json").read_text()]
    assert "index.csv with val_percent 15.0, test_percent 25.0, seed 0" in provenance(out)
    moved = (out / "test.csv").read_text().splitlines()[1]
    with (out / "train.csv").open("a") as table:
        table.write(moved + "\n")
    (out / "val.csv").unlink()
    with pytest.raises(InputError) as refusal:
        read_record(out)
    assert "train.csv has been changed since" in str(refusal.value)
    assert "val.csv is missing" in str(refusal.value)
    assert "test.csv" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(format=2), "format 2"),
        (lambda record: record["splits"].pop("val"), "with train, test, expected 1 with train, val, test"),
        (
            lambda record: record["splits"]["val"].update(ledger=record["splits"]["test"]["ledger"]),
            "val and test share",
        ),
    ],
)
def test_record_of_another_kind_is_refused(index, split, change, message):
    out = index.parent / "out"
    assert split("--index", index, "--out", out, "--no-figure")[0] == 0
    record = json.loads((out / "split.json").read_text())
    change(record)
    (out / "split.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=message):
        read_record(out)


def test_script_writes_folds_and_refuses_another_number_beside_them(index, split):
    out = index.parent / "out"
    arguments = ("--index", index, "--out", out, "--no-figure")
    status, printed, _ = split(*arguments, "--folds", 4)
    assert status == 0
    assert "fold_3" in printed
    tested = [read_table(out / f"fold_{fold}" / "test.csv") for fold in range(4)]
    assert sorted(pd.concat(tested)["subject"]) == sorted(read_table(index)["subject"])
    assert not list(out.glob("*.csv"))
    for fold in range(4):
        refuse_shared({name: read_table(out / f"fold_{fold}" / f"{name}.csv") for name in SPLITS})
        settings = read_record(out / f"fold_{fold}")["settings"]
        assert settings == {
            "fold": fold, "folds": 4, "fold_validation": "next", "seed": 0, "copies": "not looked for",
        }  # fmt: skip
    status, _, error = split(*arguments, "--folds", 3, "--overwrite")
    assert status == 2
    assert f"{out / 'fold_3'}" in error
    status, _, error = split(*arguments, "--folds", 4, "--fold-validation", "share")
    assert status == 2
    assert "fold_0/train.csv exists and would change" in error
    assert split(*arguments, "--folds", 4, "--fold-validation", "share", "--overwrite")[0] == 0
    assert read_record(out / "fold_0")["settings"]["val_percent"] == 15.0


def test_script_holds_out_each_site_or_some(index, split):
    frame = read_table(index)
    frame["site"] = [("York/1", "Oslo")[number % 2] for number in range(len(frame))]
    write_table(index, frame)
    out = index.parent / "sites"
    arguments = ("--index", index, "--no-figure", "--val-percent", 20)
    assert split(*arguments, "--out", out, "--holdout-site", "all")[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["site_Oslo", "site_York_1"]
    assert set(read_table(out / "site_York_1" / "test.csv")["site"]) == {"York/1"}
    assert split(*arguments, "--out", index.parent / "one", "--holdout-site", "Oslo")[0] == 0
    assert set(read_table(index.parent / "one" / "train.csv")["site"]) == {"York/1"}
    settings = read_record(index.parent / "one")["settings"]
    assert settings["holdout_site"] == ["Oslo"]
    status, _, error = split(*arguments, "--out", out, "--holdout-site", "Oslo", "--folds", 3)
    assert status == 2
    assert "give one of the two" in error


def test_script_names_every_site_that_cannot_be_held_out(index, split):
    frame = read_table(index)
    frame["site"] = np.where(frame["label"] == 0, "York", "Oslo")
    write_table(index, frame)
    out = index.parent / "sites"
    status, _, error = split("--index", index, "--out", out, "--holdout-site", "all")
    assert status == 2
    assert "Oslo: only TLE" in error
    assert "York: only HC" in error
    frame["site"] = [("York 1", "York/1")[number % 2] for number in range(len(frame))]
    write_table(index, frame)
    status, _, error = split("--index", index, "--out", out, "--holdout-site", "all")
    assert status == 2
    assert "'York 1', 'York/1' would share a folder" in error
    assert not out.exists()


def test_script_divides_a_cohort_of_one_class_when_asked(index, split):
    """The VAE can be trained on controls alone."""
    frame = read_table(index)
    write_table(index, frame[frame["label"] == 0])
    out = index.parent / "out"
    status, _, error = split("--index", index, "--out", out)
    assert status == 2
    assert "the table has only HC" in error
    assert "--allow-one-class" in error
    assert split("--index", index, "--out", out, "--allow-one-class")[0] == 0
    splits = {name: read_table(out / f"{name}.csv") for name in SPLITS}
    assert sum(map(len, splits.values())) == (frame["label"] == 0).sum()
    assert (out / "balance.png").exists()
    assert (
        split("--index", index, "--out", index.parent / "k", "--folds", 3, "--no-figure", "--allow-one-class")[0] == 0
    )
    sites = ("--holdout-site", "all", "--no-figure", "--allow-one-class")
    assert split("--index", index, "--out", index.parent / "sites", *sites)[0] == 0
    # The flag lets no class get lost that the table has.
    few = pd.concat([frame[frame["label"] == 0], frame[frame["label"] == 1].head(2)])
    write_table(index, few)
    status, _, error = split("--index", index, "--out", index.parent / "few", "--allow-one-class")
    assert status == 2
    assert "would have no TLE" in error


def test_script_leaves_rows_out_by_label_and_says_how_many(index, split):
    frame = read_table(index)
    index.write_text(index.read_text().replace(",TLE-L,", ",left,", 2).replace(",TLE-R,", ",bilateral,", 2))
    mapping = ("--label-map", "left", "TLE-L", "bilateral", "exclude")
    with pytest.warns(InputWarning, match="2 rows left out by --label-map: bilateral 2"):
        assert split("--index", index, "--out", index.parent / "out", "--no-figure", *mapping)[0] == 0
    kept = pd.concat(read_table(index.parent / "out" / f"{name}.csv") for name in SPLITS)
    assert len(kept) == len(frame) - 2


def test_script_needs_every_scan_unless_partial(index, split):
    frame = read_table(index)
    Path(frame["file"][3]).unlink()
    arguments = ("--index", index, "--out", index.parent / "out", "--no-figure")
    status, _, error = split(*arguments)
    assert status == 2
    assert "no such file" in error
    assert "--partial" in error
    with pytest.warns(InputWarning, match="differ"):
        assert split(*arguments, "--partial")[0] == 0
    kept = pd.concat(read_table(index.parent / "out" / f"{name}.csv") for name in SPLITS)
    assert sorted(kept["subject"]) == sorted(set(frame["subject"]) - {frame["subject"][3]})


def test_script_keeps_copies_together(index, split):
    frame = read_table(index)
    out = index.parent / "out"
    assert split("--index", index, "--out", out, "--no-figure")[0] == 0
    splits = {name: read_table(out / f"{name}.csv") for name in SPLITS}
    pair = [splits[name].loc[splits[name]["label"] == 0].iloc[0] for name in ("train", "test")]
    groups = index.parent / "check" / "groups.csv"
    groups.parent.mkdir()
    listed = pd.DataFrame({"file": [f"../scans/{row.file.rsplit('/')[-1]}" for row in pair], "group": "copies-1"})
    listed.to_csv(groups, index=False)
    kept = ("--index", index, "--out", out, "--groups", groups, "--no-figure")
    status, _, error = split(*kept)
    assert status == 2
    assert "would change" in error
    assert split(*kept, "--overwrite")[0] == 0
    where = homes({name: read_table(out / f"{name}.csv") for name in SPLITS})
    assert where[pair[0].subject] == where[pair[1].subject]
    record = read_record(out)
    assert record["groups"] == {"name": "groups.csv", "sha256": hashlib.sha256(groups.read_bytes()).hexdigest()}
    assert len(frame) == sum(entry["scans"] for entry in record["splits"].values())
    # The group goes into the tables, so that later stages' ledgers know of it.
    tables = pd.concat(read_table(out / f"{name}.csv") for name in SPLITS).set_index("subject")
    assert tables.loc[pair[0].subject, "group"] == tables.loc[pair[1].subject, "group"]


@pytest.fixture
def scanned(tmp_path):
    """An index of 24 readable scans, smooth noise in the shape of a brain on the demo grid, and its cache."""
    frame = cohort(24)
    draw = np.random.default_rng(0)
    inside = brain((40, 48, 40)) > 0
    frame["file"] = [str(tmp_path / f"{subject}.nii.gz") for subject in frame["subject"]]
    for file in frame["file"]:
        own = ndimage.gaussian_filter(draw.random((40, 48, 40)) - 0.5, 2)
        write_scan(file, inside * np.maximum(1 + 20 * own, 0.05))
    write_table(tmp_path / "index.csv", frame)
    return tmp_path / "index.csv"


def write_scan(file, volume):
    nib.save(nib.Nifti1Image(volume.astype(np.float32), GRIDS["demo"].affine), file)


def test_script_finds_copies_itself_and_keeps_them_together(scanned, split):
    arguments = ("--index", scanned, "--no-figure", "--cache-dir", scanned.parent / "cache")
    status, printed, _ = split(*arguments, "--out", scanned.parent / "before")
    assert status == 0
    assert "are copies" not in printed
    splits = {name: read_table(scanned.parent / "before" / f"{name}.csv") for name in SPLITS}
    assert all((rows["group"] == rows["subject"]).all() for rows in splits.values())
    pair = [splits[name].loc[splits[name]["label"] == 0].iloc[0] for name in ("train", "test")]
    original = np.asarray(nib.load(pair[0].file).dataobj)
    noise = np.random.default_rng(1).normal(0, 0.002, original.shape)
    write_scan(pair[1].file, 3 * original[::-1] + noise)
    status, printed, _ = split(*arguments, "--out", scanned.parent / "after")
    assert status == 0
    assert "2 scans are copies of others" in printed
    after = pd.concat(read_table(scanned.parent / "after" / f"{name}.csv").assign(home=name) for name in SPLITS)
    two = after[after["subject"].isin([row.subject for row in pair])]
    assert two["home"].nunique() == two["group"].nunique() == 1
    assert read_record(scanned.parent / "after")["settings"]["copies"] == "looked for"


def test_script_refuses_copies_of_two_classes_and_unreadable_scans(scanned, split):
    frame = read_table(scanned)
    one, other = (frame.loc[frame["label"] == code].iloc[0] for code in (0, 1))
    shutil.copy(one.file, other.file)
    arguments = ("--index", scanned, "--out", scanned.parent / "out", "--cache-dir", scanned.parent / "cache")
    status, _, error = split(*arguments)
    assert status == 2
    assert f"{one.subject} (HC)" in error
    assert f"{other.subject} (TLE)" in error
    with open(other.file, "r+b") as file:
        file.truncate(200)
    status, _, error = split(*arguments)
    assert status == 2
    assert other.file in error
    assert not (scanned.parent / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,group\n/elsewhere/a.nii,x\n", "none of its 1 files is in the index"),
        ("subject,group\ns001,x\n", "column file is missing"),
        ("", "the table is empty"),
    ],
)
def test_script_refuses_groups_of_something_else(index, split, content, message):
    groups = index.parent / "groups.csv"
    groups.write_text(content)
    status, _, error = split("--index", index, "--out", index.parent / "out", "--groups", groups)
    assert status == 2
    assert message in error
    status, _, error = split("--index", index, "--out", index.parent / "out", "--groups", index.parent / "none.csv")
    assert status == 2
    assert "no such table" in error
