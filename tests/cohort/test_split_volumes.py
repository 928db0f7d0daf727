"""cohort.split with a table of volumes: balanced by them; what is wrong with a table is said at the command line."""

import json
import re

import numpy as np
import pandas as pd
import pytest

import cohort.split
from cohort.tables import read_table
from runtime.cli import parse
from runtime.errors import InputError, InputWarning
from tests.support.people import index_of_empty_scans
from tests.support.volumes import volumes_ml, write_synthseg


@pytest.fixture
def index(tmp_path):
    return index_of_empty_scans(tmp_path, 60)


def split(index, *words):
    """The command line, warnings as pytest sees them."""
    words = ("--index", index, "--no-check", "--no-figure", *words)
    cohort.split.main(parse(cohort.split.Config, list(map(str, words))))


def known(index, ml=None, people=slice(None), **changes):
    names = [f"sub-{name}" for name in read_table(index)["subject"][people]]
    return write_synthseg(index.parent, (volumes_ml(60) if ml is None else ml)[people], names, **changes)


def middles(index, out):
    """The hippocampi (ml) of each split's controls, in the middle."""
    ml = dict(zip(read_table(index)["subject"], volumes_ml(60)[:, :2].sum(axis=1), strict=True))
    tables = [read_table(out / f"{name}.csv").query("label == 0") for name in ("train", "val", "test")]
    return [np.median([ml[subject] for subject in table["subject"]]) for table in tables]


def test_volumes_are_balanced_within_each_class_and_are_not_in_the_tables(index, tmp_path, capsys):
    """Seeds in which they fall apart by chance: with the table they do not."""
    apart = []
    for name, words in (("without", ()), ("with", ("--volumes", known(index)))):
        found = []
        for seed in range(6):
            out = tmp_path / f"{name}{seed}"
            split(index, "--out", out, "--seed", seed, *words)
            found.append(np.ptp(middles(index, out)))
        apart.append(np.mean(found))
    assert apart[1] < 0.7 * apart[0]
    assert "ml of Hippocampus" in capsys.readouterr().out
    assert list(pd.read_csv(out / "train.csv").columns) == list(pd.read_csv(tmp_path / "without0/train.csv").columns)
    settings = json.loads((out / "split.json").read_text())["settings"]
    assert (len(settings["volumes"]), settings["structures"]) == (16, ["Hippocampus"])


def test_cubic_centimetres_give_the_same_split_and_a_warning(index, tmp_path):
    split(index, "--out", tmp_path / "mm3", "--volumes", known(index))
    with pytest.warns(InputWarning, match=r"volumes.csv: read in cm\^3"):
        split(index, "--out", tmp_path / "cm3", "--volumes", known(index, volumes_ml(60) / 1000))
    assert (tmp_path / "cm3/test.csv").read_bytes() == (tmp_path / "mm3/test.csv").read_bytes()


def test_subjects_without_a_row_and_failed_cases_are_named_and_divided_all_the_same(index, tmp_path):
    ml = volumes_ml(60)
    ml[3, 0] = 0
    with pytest.warns(InputWarning) as said:
        split(index, "--out", tmp_path / "out", "--volumes", known(index, ml, people=slice(0, 58)))
    title, *lines = str(said[0].message).splitlines()
    assert title.endswith("3 of 60 scans lack some of these volumes; nothing is filled in")
    assert lines == ["  - s003: no volume of Left Hippocampus (0 or empty)", "  - s058: no row", "  - s059: no row"]
    assert sum(len(read_table(tmp_path / f"out/{name}.csv")) for name in ("train", "val", "test")) == 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": "left hippocampus"}, "(SynthSeg) has no volumes of these regions"),
        ({"ml": volumes_ml(60) / 1e6}, "these are volumes neither in mm^3 nor in cm^3"),
    ],
)
def test_tables_that_cannot_be_used_are_refused_before_anything_is_written(index, tmp_path, change, message):
    with pytest.raises(InputError, match=re.escape(message)):
        split(index, "--out", tmp_path / "out", "--volumes", known(index, **change))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "subject,left hippocampus,right hippocampus\nx1,3000,3100\n",
            "has none of the 60 scans; it names x1, the scans s",
        ),
        (
            "subject,hippocampus gauche\ns000,3000\n",
            "none of its columns is a volume that is known (subject, hippocampus",
        ),
    ],
)
def test_tables_with_other_names_are_refused(index, tmp_path, text, message):
    (tmp_path / "other.csv").write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        split(index, "--out", tmp_path / "out", "--volumes", tmp_path / "other.csv")
