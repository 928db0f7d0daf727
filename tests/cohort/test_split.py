"""Splits: nobody in two of them, alike in every trait, the same each time, and never overwritten unseen."""

import hashlib
import json
import re
import runpy
import shlex
import shutil
import sys
import time

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from cohort.balance_chart import balance_figure
from cohort.effects import subjects
from cohort.folding import folds, hold_out, site_names
from cohort.ledger import ledger_of
from cohort.partition import SPLITS, balance, partition, refuse_shared
from cohort.split_record import provenance, read_record
from cohort.tables import DIAGNOSES, read_table, write_table
from cohort.ties import join_groups, tied
from runtime.errors import InputError
from runtime.files import ROOT

PERCENT = {"val_percent": 15, "test_percent": 25}
# Results measured on the demo's split hold for this division of its 300 subjects and no other.
DEMO_SPLIT = "5ff8ac04b2c32d9536d4a147052bee8c08bf90de9425bee83569db73d340c13b"


def cohort(count=200, seed=0, sessions=1):
    draw = np.random.default_rng(seed)
    diagnosis = draw.choice(["HC", "TLE-L", "TLE-R"], count, p=[0.5, 0.3, 0.2])
    people = pd.DataFrame(
        {
            "subject": [f"s{number:03d}" for number in range(count)],
            "diagnosis": diagnosis,
            "label": [DIAGNOSES[name] for name in diagnosis],
            "side": ["" if name == "HC" else name[-1] for name in diagnosis],
            "age": draw.normal(35, 11, count).clip(10, 80),
            "sex": draw.choice(["F", "M"], count),
            "site": draw.choice(["A", "B", "C"], count, p=[0.6, 0.3, 0.1]),
        }
    )
    frame = pd.concat([people.assign(session=str(number)) for number in range(sessions)], ignore_index=True)
    frame["group"] = frame["subject"]
    frame["file"] = frame["subject"] + "_" + frame["session"] + ".nii"
    return frame


def homes(splits, column="subject"):
    return {value: name for name, frame in splits.items() for value in frame[column]}


@pytest.mark.parametrize("seed", range(3))
def test_sizes_and_traits_are_balanced(seed):
    frame = cohort(seed=seed)
    splits = partition(frame, **PERCENT, seed=seed)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 120, "val": 30, "test": 50}
    for name, share in (("train", 0.6), ("val", 0.15), ("test", 0.25)):
        rows = splits[name]
        for label in (0, 1):
            assert abs((rows["label"] == label).sum() - share * (frame["label"] == label).sum()) <= 1
        for side in "LR":
            assert abs((rows["side"] == side).sum() - share * (frame["side"] == side).sum()) <= 1.5
        for label, site in (("HC", "A"), ("HC", "B"), ("TLE-L", "A")):
            whole = ((frame["diagnosis"] == label) & (frame["site"] == site)).sum()
            here = ((rows["diagnosis"] == label) & (rows["site"] == site)).sum()
            assert abs(here - share * whole) <= 4
        assert abs(rows["age"].mean() - frame["age"].mean()) < 4


def test_every_row_is_in_one_split_and_in_its_order():
    frame = cohort(60, sessions=3)
    splits = partition(frame, **PERCENT, seed=0)
    assert sorted(pd.concat(splits.values())["file"]) == sorted(frame["file"])
    for rows in splits.values():
        assert rows["file"].tolist() == [file for file in frame["file"] if file in set(rows["file"])]


def test_subjects_and_chains_of_groups_stay_together():
    frame = cohort(60, sessions=2)
    frame.loc[frame["subject"].isin(["s001", "s002"]), "group"] = "family"
    # s003 belongs to the family by one of its two sessions only; s004 shares the group of the other.
    third = frame.index[frame["subject"] == "s003"]
    frame.loc[third[0], "group"] = "family"
    frame.loc[third[1], "group"] = "other"
    frame.loc[frame["subject"] == "s004", "group"] = "other"
    for seed in range(5):
        splits = partition(frame, **PERCENT, seed=seed)
        where = homes(splits)
        assert len({where[name] for name in ("s001", "s002", "s003", "s004")}) == 1
        refuse_shared(splits)


def test_a_group_named_like_a_subject_ties_nothing():
    frame = cohort(30)
    frame.loc[frame["subject"] == "s000", "group"] = "s001"
    frame.loc[frame["subject"] == "s001", "group"] = "s002"
    # Only equal groups tie: s001's own group is s002 here, and s002's is s002.
    splits = partition(frame, **PERCENT, seed=0)
    assert homes(splits)["s001"] == homes(splits)["s002"]


def test_same_seed_same_split_whatever_the_order_of_rows():
    frame = cohort()
    first = homes(partition(frame, **PERCENT, seed=4))
    assert first == homes(partition(frame.sample(frac=1, random_state=1), **PERCENT, seed=4))
    assert first != homes(partition(frame, **PERCENT, seed=5))


def test_the_demo_is_divided_as_ever():
    people = subjects(0, 300)
    frame = pd.DataFrame(
        {
            "subject": [person.name for person in people],
            "diagnosis": [person.diagnosis for person in people],
            "label": [DIAGNOSES[person.diagnosis] for person in people],
            "side": [person.side for person in people],
            "age": [person.age for person in people],
            "sex": [person.sex for person in people],
            "site": [person.site for person in people],
        }
    ).assign(session="", group=lambda table: table["subject"], file=lambda table: table["subject"])
    where = homes(partition(frame, **PERCENT, seed=0))
    text = "\n".join(f"{subject},{where[subject]}" for subject in sorted(where))
    assert hashlib.sha256(text.encode()).hexdigest() == DEMO_SPLIT


def test_ten_thousand_subjects_would_take_well_under_a_minute():
    # The time grows in proportion to the subjects: 4,000 in 12 s are 10,000 in 30 s.
    frame = cohort(4_000)
    frame["site"] = [f"s{number % 25}" for number in range(len(frame))]
    begin = time.process_time()
    splits = partition(frame, **PERCENT, seed=0)
    assert time.process_time() - begin < 12
    assert [len(rows) for rows in splits.values()] == [2400, 600, 1000]


def test_missing_values_are_no_obstacle():
    frame = cohort(50)
    frame["age"], frame["sex"], frame["site"] = np.nan, "", ""
    assert len(partition(frame, **PERCENT, seed=0)) == 3


def test_three_of_a_class_are_enough_and_two_are_not():
    frame = cohort(60)
    for keep in (3, 2):
        few = pd.concat([frame[frame["label"] == 0], frame[frame["label"] == 1].head(keep)])
        if keep == 3:
            assert all((rows["label"] == 1).sum() == 1 for rows in partition(few, **PERCENT, seed=0).values())
        else:
            with pytest.raises(InputError, match="would have no TLE"):
                partition(few, **PERCENT, seed=0)


@pytest.mark.parametrize(("val", "test"), [(0, 25), (15, 0), (60, 40), (-5, 20), (float("nan"), 20)])
def test_impossible_percentages(val, test):
    with pytest.raises(InputError, match="percent"):
        partition(cohort(30), val_percent=val, test_percent=test, seed=0)


def test_shared_subjects_groups_and_files_are_named():
    one = pd.DataFrame({"subject": ["a", "b"], "group": ["a", "fam"], "file": ["1", "2"]})
    two = pd.DataFrame({"subject": ["a", "c"], "group": ["a", "fam"], "file": ["3", "2"]})
    with pytest.raises(InputError) as refusal:
        refuse_shared({"train": one, "test": two})
    message = str(refusal.value)
    assert "subject a is in train and test" in message
    assert "group fam is in train and test" in message
    assert "file 2 is in train and test" in message


def test_balance_counts_subjects():
    frame = cohort(40, sessions=2)
    table = balance(partition(frame, **PERCENT, seed=0))
    everyone = table.xs("all", level="class")
    assert everyone["subjects"].sum() == 40
    assert everyone["scans"].sum() == 80
    assert table.xs("TLE", level="class")["left"].sum() == (frame["side"] == "L").sum() / 2


# What is tied together ------------------------------------------------------------------------------------------------


def test_tied_rows_are_those_connected_by_either_column():
    draw = np.random.default_rng(0)
    for _ in range(20):
        one = [f"s{number}" for number in draw.integers(40, size=60)]
        other = [f"s{number}" for number in draw.integers(60, size=60)]
        numbers = tied(one, other)
        # By definition: give connected rows the smaller number of the two until nothing changes.
        expected = list(range(60))
        for _ in range(60):
            expected = [
                min(e for e, a, b in zip(expected, one, other, strict=True) if a == mine or b == ours)
                for mine, ours in zip(one, other, strict=True)
            ]
        assert len(set(zip(numbers, expected, strict=True))) == len(set(numbers)) == len(set(expected))
        smallest = pd.Series(one).groupby(numbers).min()
        assert smallest.is_monotonic_increasing


def test_copies_join_groups_and_then_stay_together():
    frame = cohort(60)
    frame.loc[frame["subject"].isin(["s010", "s011"]), "group"] = "family"
    same = [name for name in frame["subject"] if frame.set_index("subject").loc[name, "label"] == 0][:2]
    copies = ["same scan" if name in same else "" for name in frame["subject"]]
    joined = join_groups(frame, copies)
    changed = joined["group"] != frame["group"]
    assert joined.loc[frame["subject"].isin(same), "group"].nunique() == 1
    assert changed.sum() == 1
    assert set(joined.loc[changed, "subject"]) == {max(same)}
    for seed in range(8):
        where = homes(partition(joined, **PERCENT, seed=seed))
        assert len({where[name] for name in same}) == 1
    pd.testing.assert_frame_equal(join_groups(frame, [""] * len(frame)), frame)


def test_a_copy_of_a_family_member_brings_the_family_along():
    frame = cohort(40)
    patients = frame.loc[frame["label"] == 1, "subject"].tolist()
    frame.loc[frame["subject"].isin(patients[:2]), "group"] = "family"
    copies = ["twins" if name in patients[1:3] else "" for name in frame["subject"]]
    joined = join_groups(frame, copies)
    assert joined.loc[joined["subject"].isin(patients[:3]), "group"].nunique() == 1


def test_a_scan_that_is_control_and_patient_at_once_is_refused():
    frame = cohort(20)
    one, other = (frame.loc[frame["label"] == code, "subject"].iloc[0] for code in (0, 1))
    copies = ["set-1" if name in (one, other) else "" for name in frame["subject"]]
    with pytest.raises(InputError) as refusal:
        join_groups(frame, copies)
    for words in (f"{one} (HC)", f"{other} (TLE)", "set-1"):
        assert words in str(refusal.value)


# Folds ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "val_percent"), [(5, None), (10, None), (5, 20), (2, 25)])
def test_every_subject_is_tested_in_exactly_one_fold(count, val_percent):
    frame = cohort(100, sessions=2)
    frame.loc[frame["subject"].isin(["s001", "s002"]), "group"] = "family"
    found = folds(frame, count=count, val_percent=val_percent, seed=0)
    assert len(found) == count
    tested = pd.concat(splits["test"] for splits in found)
    assert sorted(tested["file"]) == sorted(frame["file"])
    for splits in found:
        assert sorted(pd.concat(splits.values())["file"]) == sorted(frame["file"])
        refuse_shared(splits)
        where = homes(splits)
        assert where["s001"] == where["s002"]
        for name in SPLITS:
            assert set(splits[name]["label"]) == {0, 1}


def test_folds_are_of_one_size_and_balanced():
    frame = cohort(200, seed=2)
    for splits in folds(frame, count=5, val_percent=None, seed=1):
        assert [len(splits[name]) for name in SPLITS] == [120, 40, 40]
        for label in (0, 1):
            assert abs((splits["test"]["label"] == label).sum() - (frame["label"] == label).sum() / 5) <= 1
        for side in "LR":
            assert abs((splits["test"]["side"] == side).sum() - (frame["side"] == side).sum() / 5) <= 1.5
        assert abs(splits["test"]["age"].mean() - frame["age"].mean()) < 4


def test_a_fold_validates_on_the_next_or_on_a_share_of_the_rest():
    frame = cohort(100)
    found = folds(frame, count=4, val_percent=None, seed=0)
    for one, following in zip(found, [*found[1:], found[0]], strict=True):
        assert set(one["val"]["subject"]) == set(following["test"]["subject"])
    for splits in folds(frame, count=4, val_percent=20, seed=0):
        assert [len(splits[name]) for name in SPLITS] == [60, 15, 25]


def test_folds_do_not_depend_on_the_order_of_rows():
    frame = cohort(80)
    for val_percent in (None, 20):
        options = {"count": 4, "val_percent": val_percent}
        first = [homes(splits) for splits in folds(frame, **options, seed=3)]
        shuffled = folds(frame.sample(frac=1, random_state=5), **options, seed=3)
        assert first == [homes(splits) for splits in shuffled]
        assert first != [homes(splits) for splits in folds(frame, **options, seed=4)]


def test_too_many_folds_name_the_fold_and_the_class():
    frame = cohort(60)
    few = pd.concat([frame[frame["label"] == 0], frame[frame["label"] == 1].head(4)])
    assert len(folds(few, count=4, val_percent=None, seed=0)) == 4
    with pytest.raises(InputError, match=r"fold \d test would have no TLE"):
        folds(few, count=5, val_percent=None, seed=0)


@pytest.mark.parametrize(("count", "val_percent"), [(1, None), (2, None), (-3, 20), (1, 20), (4, 0), (4, 100)])
def test_impossible_folds(count, val_percent):
    with pytest.raises(InputError, match=r"folds|val-percent"):
        folds(cohort(40), count=count, val_percent=val_percent, seed=0)


# Sites that are held out ----------------------------------------------------------------------------------------------


def test_a_held_out_site_is_the_test_split_and_nowhere_else():
    frame = cohort(150)
    for sites in (["A"], ["B", "C"]):
        splits, left_out = hold_out(frame, sites, val_percent=20, seed=0)
        assert set(splits["test"]["file"]) == set(frame.loc[frame["site"].isin(sites), "file"])
        assert not set(sites) & {*splits["train"]["site"], *splits["val"]["site"]}
        rest = (~frame["site"].isin(sites)).sum()
        assert abs(len(splits["val"]) - 0.2 * rest) <= 1
        assert len(splits["train"]) + len(splits["val"]) == rest
        assert left_out.empty
        shuffled, _ = hold_out(frame.sample(frac=1, random_state=1), sites, val_percent=20, seed=0)
        assert homes(shuffled) == homes(splits)


def test_subjects_and_groups_of_two_sites_are_refused_or_left_out():
    frame = cohort(120, sessions=2)
    frame["site"] = np.where(frame["subject"] < "s040", "A", "B")
    moved = (frame["subject"] == "s010") & (frame["session"] == "1")
    frame.loc[moved, "site"] = "B"
    frame.loc[frame["subject"].isin(["s020", "s100"]), "group"] = "family"
    with pytest.raises(InputError) as refusal:
        hold_out(frame, ["A"], val_percent=20, seed=0)
    message = str(refusal.value)
    assert "subject s010 (group s010) has a scan at B" in message
    assert "subject s100 (group family) has a scan at B" in message
    assert "--leave-out-shared" in message
    splits, left_out = hold_out(frame, ["A"], val_percent=20, seed=0, leave_out_shared=True)
    assert set(left_out["file"]) == {"s010_1.nii", "s100_0.nii", "s100_1.nii"}
    assert "s010_0.nii" in set(splits["test"]["file"])
    assert not {"s010", "s100"} & {*splits["train"]["subject"], *splits["val"]["subject"]}
    assert len(left_out) + sum(map(len, splits.values())) == len(frame)


def test_a_site_of_one_class_is_refused_unless_told():
    frame = cohort(100)
    frame.loc[frame["site"] == "C", ["label", "diagnosis", "side"]] = [1, "TLE-L", "L"]
    with pytest.raises(InputError, match="C: only TLE"):
        hold_out(frame, ["C"], val_percent=20, seed=0)
    splits, _ = hold_out(frame, ["C"], val_percent=20, seed=0, allow_one_class=True)
    assert set(splits["test"]["label"]) == {1}
    assert set(splits["train"]["label"]) == {0, 1}
    both, _ = hold_out(frame, ["B", "C"], val_percent=20, seed=0)
    assert set(both["test"]["label"]) == {0, 1}


def test_unknown_missing_and_all_sites():
    frame = cohort(60)
    assert site_names(frame) == ["A", "B", "C"]
    with pytest.raises(InputError, match="site D is not in the table, which has A, B, C"):
        hold_out(frame, ["D"], val_percent=20, seed=0)
    with pytest.raises(InputError, match="no scan of another site is left"):
        hold_out(frame, ["A", "B", "C"], val_percent=20, seed=0)
    with pytest.raises(InputError, match="val-percent 0"):
        hold_out(frame, ["A"], val_percent=0, seed=0)
    frame.loc[3, "site"] = ""
    with pytest.raises(InputError, match=r"without a site.*\n.*subject s003"):
        hold_out(frame, ["A"], val_percent=20, seed=0)


# The figure -----------------------------------------------------------------------------------------------------------


def test_figure_shows_what_the_table_counts():
    frame = cohort(120)
    frame.loc[0, "age"] = np.nan
    splits = partition(frame, **PERCENT, seed=0)
    above, below = balance_figure(splits).subfigs
    for axis, (name, rows) in zip(above.axes, splits.items(), strict=True):
        assert axis.get_title() == f"{name}, {len(rows)} subjects"
        known = [int(rows.loc[rows["label"] == code, "age"].notna().sum()) for code in (0, 1)]
        assert [text.get_text() for text in axis.get_legend().get_texts()] == [
            f"HC, {known[0]} ages", f"TLE, {known[1]} ages",
        ]  # fmt: skip
        counted, _ = np.histogram(rows.loc[rows["label"] == 1, "age"].dropna(), np.arange(0, 105, 5))
        drawn = axis.patches[1].get_path().vertices
        assert drawn[:, 1].max() == pytest.approx(100 * counted.max() / known[1])
    diagnosis, sex, _ = below.axes
    for axis in below.axes:
        totals = np.sum([[bar.get_height() for bar in values] for values in axis.containers], axis=0)
        np.testing.assert_allclose(totals, 100)
    left = diagnosis.containers[[one.get_label() for one in diagnosis.containers].index("TLE-L")]
    for bar, rows in zip(left, splits.values(), strict=True):
        assert bar.get_height() == pytest.approx(100 * (rows["side"] == "L").mean())
    women = sex.containers[[one.get_label() for one in sex.containers].index("F")]
    expected = [(rows.loc[rows["label"] == code, "sex"] == "F").mean() for rows in splits.values() for code in (0, 1)]
    np.testing.assert_allclose([bar.get_height() for bar in women], 100 * np.array(expected))


def test_figure_needs_no_age_and_takes_rare_sites_together():
    frame = cohort(120)
    frame["age"], frame["sex"] = np.nan, ""
    frame["site"] = [f"s{min(number % 40, 12)}" for number in range(len(frame))]
    splits = partition(frame, **PERCENT, seed=0)
    splits["test"] = splits["test"][splits["test"]["label"] == 1]
    _, below = balance_figure(splits).subfigs
    sites = below.axes[2].containers
    assert len(sites) == 7
    assert sites[-1].get_label() == "others"
    totals = np.sum([[bar.get_height() for bar in values] for values in sites], axis=0)
    np.testing.assert_allclose(totals, [100, 100, 100, 100, 0, 100])


# The script ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path):
    frame = cohort(30)
    (tmp_path / "scans").mkdir()
    frame["file"] = [str(tmp_path / "scans" / name) for name in frame["file"]]
    for file in frame["file"]:
        open(file, "w").close()
    write_table(tmp_path / "index.csv", frame)
    return tmp_path / "index.csv"


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
    assert split("--index", index, "--out", out, "--seed", 1, "--overwrite")[0] == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} != before


def test_script_reads_other_tables_by_label_map(index, split):
    text = index.read_text().replace("diagnosis", "kind").replace(",TLE-L,", ",left,").replace(",TLE-R,", ",right,")
    index.write_text(text)
    mapping = ("--label-column", "kind", "--label-map", "HC", "HC", "left", "TLE-L", "right", "TLE-R")
    assert split("--index", index, "--out", index.parent / "out", *mapping)[0] == 0
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
    assert split("--index", index, "--out", out)[0] == 0
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
        (lambda record: record["splits"].pop("val"), "expected the splits"),
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
    """An index of 24 readable scans, smooth noise of 40x48x40 voxels of 4 mm, and its cache."""
    frame = cohort(24)
    draw = np.random.default_rng(0)
    frame["file"] = [str(tmp_path / f"{subject}.nii.gz") for subject in frame["subject"]]
    for file in frame["file"]:
        write_scan(file, ndimage.gaussian_filter(draw.random((40, 48, 40)), 2) + 1)
    write_table(tmp_path / "index.csv", frame)
    return tmp_path / "index.csv"


def write_scan(file, volume):
    nib.save(nib.Nifti1Image(volume.astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0])), file)


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
        ("subject,group\ns001,x\n", "file missing"),
        ("", "file and group missing"),
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


# The documentation ----------------------------------------------------------------------------------------------------


def commands_of(page):
    """The commands of a page's indented blocks, lines that end in a backslash joined."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.startswith("    python -m cohort.")]


def test_every_command_of_the_documentation_is_understood(monkeypatch, capsys):
    commands = commands_of("docs/your_own_data.md") + commands_of("data_csvs/README.md")
    assert {command.split()[2] for command in commands} == {"cohort.prepare", "cohort.check", "cohort.split"}
    for command in commands:
        _, _, module, *arguments = shlex.split(command)
        monkeypatch.setattr(sys, "argv", [module, *arguments, "--dry-run"])
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        resolved = json.loads(capsys.readouterr().out)
        assert resolved["dry_run"] is True


def test_pages_link_to_files_that_are_there():
    for page in ("docs/your_own_data.md", "data_csvs/README.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
        assert links
        for link in links:
            assert (ROOT / page).parent.joinpath(link).exists(), f"{page}: {link}"
