"""Splits: nobody in two of them, alike in every trait, the same each time, and never overwritten unseen."""

import runpy
import sys

import numpy as np
import pandas as pd
import pytest

from cohort.partition import balance, partition, refuse_shared
from cohort.tables import DIAGNOSES, read_table, write_table
from runtime.errors import InputError

PERCENT = {"val_percent": 15, "test_percent": 25}


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
    """Runs the script as `python -m cohort.split` does: exit status, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["split", *map(str, arguments)])
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
    assert sorted(before) == ["test.csv", "train.csv", "val.csv"]
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
