"""Tables of wanted volumes: seeds given and given out, and every fault at once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from diffusion.wanted import Wanted, count_wanted, read_wanted
from runtime.errors import InputError


def write(folder: Path, text: str) -> Path:
    path = folder / "wanted.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_become_volumes_and_free_seeds_are_given_out(tmp_path: Path) -> None:
    path = write(tmp_path, "label,seed,age,sex,count\nHC,,40,F,3\nTLE,7,,male,\nHC,1,33.5,n/a,1\n")
    assert read_wanted(path) == [
        Wanted(0, 0, 40.0, "F"),
        Wanted(0, 2, 40.0, "F"),  # seed 1 is named further down
        Wanted(0, 3, 40.0, "F"),
        Wanted(1, 7, None, "M"),
        Wanted(0, 1, 33.5, ""),
    ]
    assert read_wanted(write(tmp_path, "label\nTLE\nTLE\n"), first_seed=5) == count_wanted(1, 2, 5)


def test_covariates_as_numbers_and_as_text() -> None:
    told = Wanted(0, 0, 40.0, "M")
    assert [told.value("age"), told.value("sex"), Wanted(0, 0, sex="F").value("sex")] == [40.0, 1.0, 0.0]
    assert math.isnan(Wanted(0, 0).value("age"))
    assert math.isnan(Wanted(0, 0).value("sex"))
    assert told.texts() == {"age": "40", "sex": "M"}
    assert Wanted(0, 0, 33.5).texts() == {"age": "33.5", "sex": ""}


def test_every_fault_is_named_with_its_line_and_column(tmp_path: Path) -> None:
    rows = [
        "XX,0,40,F,1", "HC,-1,40,F,1", "HC,0,inf,F,1", "HC,0,121,F,1", "HC,0,old,F,1", 'HC,0,"40,5",F,1',
        "HC,0,40,2,1", "HC,0,40,F,0", "HC,0,40,F",
    ]  # fmt: skip
    path = write(tmp_path, "\n".join(["label,seed,age,sex,count", *rows]) + "\n")
    with pytest.raises(InputError) as refusal:
        read_wanted(path)
    lines = str(refusal.value).splitlines()[1:]
    columns = ["label", "seed", "age", "age", "age", "age", "sex", "count"]
    for number, (line, column) in enumerate(zip(lines[:-1], columns, strict=True), start=2):
        assert f"line {number}, column {column}" in line
    assert "line 10: more or fewer fields" in lines[-1]
    assert len(lines) == len(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,seed\nHC,3\nHC,3\n", "line 3, column seed: HC has seed 3 on line 2 already"),
        ("label,seed,count\nHC,0,5\nHC,4,1\n", "HC has seed 4 on line 2 already"),
        ("label,hippocampus\nHC,1\n", "columns label, hippocampus"),
        ("label,age,age\nHC,1,2\n", "at most once"),
        ("seed\n1\n", "expected label"),
        ("label\n", "no rows"),
        ("", "columns none"),
    ],
)
def test_tables_that_mean_nothing_certain_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_wanted(write(tmp_path, text))


def test_one_seed_may_serve_both_classes(tmp_path: Path) -> None:
    assert len(read_wanted(write(tmp_path, "label,seed\nHC,3\nTLE,3\n"))) == 2
    with pytest.raises(InputError, match="no such table"):
        read_wanted(tmp_path / "nowhere.csv")
