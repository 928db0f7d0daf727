"""A folder of synthetic volumes: cheap to open, continued after kills, closed to other settings; and what is wanted."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cohort.volumes import Volume, volume_name, write_volume
from diffusion import synthetic_folder
from diffusion.synthetic_folder import COLUMNS, Settings, SyntheticFolder, Wanted, read_wanted
from runtime.checkpoints import plain_fields
from runtime.errors import InputError
from runtime.files import locked, read_json, sha256

SETTINGS = Settings(0, "v" * 16, "d" * 16, "ema", "dpmpp", 25, 1.5, (0.0, 0.8))


def volume(seed: int, **changes: object) -> Volume:
    settings = SETTINGS
    made = Volume(
        np.full((2, 3, 2), seed, np.float32), settings.label, seed, np.eye(4), settings.vae, settings.diffusion,
        settings.sampler, settings.steps, settings.guidance,
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> SyntheticFolder:
    folder = SyntheticFolder(tmp_path / "made", SETTINGS)
    with locked(folder.path):
        folder.settle(["b", "a", "b"], adopt=True)
    return folder


def fill(folder: SyntheticFolder, wanted: list[Wanted]) -> None:
    for item in wanted:
        folder.add(volume(item.seed), item, seconds=0.5, refused=0)


def test_rows_say_everything_and_are_sorted_by_seed(folder: SyntheticFolder) -> None:
    fill(folder, [Wanted(0, 12, 40.0, "F"), Wanted(0, 3)])
    assert len(folder.missing([Wanted(0, seed) for seed in range(4)])) == 4  # rows count once they are merged
    folder.merge()
    table = pd.read_csv(folder.path / "manifest.csv")
    assert tuple(table.columns) == COLUMNS
    assert table["seed"].tolist() == [3, 12]
    row = table.iloc[1]
    assert (row["file"], row["label"], row["age"], row["sex"]) == ("HC_000012.pkl", "HC", 40, "F")
    assert (row["sampler"], row["steps"], row["guidance"], row["seconds"]) == ("dpmpp", 25, 1.5, 0.5)
    assert row["sha256"] == sha256(folder.path / row["file"])
    assert row["made"].endswith("+00:00")
    assert read_json(folder.path / "settings.json") == plain_fields(SETTINGS)
    assert read_json(folder.path / "ledger.json")["ledger"] == ["a", "b"]
    assert not list(folder.path.glob(".rows-*"))


def test_a_start_reads_nothing_but_volumes_without_a_row(
    folder: SyntheticFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [Wanted(0, seed) for seed in range(60)]
    fill(folder, wanted)
    folder.merge()
    write_volume(folder.path / volume_name(0, 60), volume(60))  # as a kill between volume and row leaves it
    damaged = folder.path / volume_name(0, 7)
    damaged.write_bytes(damaged.read_bytes()[:50])
    read = []
    real = synthetic_folder.read_volume
    monkeypatch.setattr(synthetic_folder, "read_volume", lambda path: read.append(path.name) or real(path))
    folder.settle([], adopt=True)
    assert read == ["HC_000060.pkl"]
    assert folder.missing([Wanted(0, seed) for seed in range(62)]) == [Wanted(0, 61)]

    with pytest.raises(InputError, match="HC_000007") as refusal:
        folder.verify()
    assert len(str(refusal.value).splitlines()) == 2
    damaged.unlink()
    folder.settle([], adopt=True)
    assert folder.missing(wanted) == [Wanted(0, 7)]
    fill(folder, [Wanted(0, 7)])
    folder.merge()
    folder.verify()


def test_parts_of_a_killed_run_are_merged_by_the_next(folder: SyntheticFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in range(3):
        monkeypatch.setattr("runtime.distributed.rank", lambda rank=rank: rank)
        fill(folder, [Wanted(0, rank), Wanted(0, rank + 10)])
    part = folder.path / ".rows-2.jsonl"
    part.write_text(part.read_text()[:-40])  # the kill came while the last row was written
    (folder.path / volume_name(0, 1)).unlink()
    folder.settle([], adopt=True)
    rows = folder.rows()
    assert sorted(int(row["seed"]) for row in rows.values()) == [0, 2, 10, 11, 12]
    assert rows["HC_000012.pkl"]["made"] == ""
    assert rows["HC_000012.pkl"]["sha256"] == sha256(folder.path / "HC_000012.pkl")
    assert rows["HC_000002.pkl"]["seconds"] == "0.500"
    assert not list(folder.path.glob(".rows-*"))


def test_volumes_whose_covariates_nobody_recorded_are_made_anew(folder: SyntheticFolder) -> None:
    write_volume(folder.path / volume_name(0, 0), volume(0))
    folder.settle([], adopt=False)
    assert folder.missing([Wanted(0, seed) for seed in range(1)]) == [Wanted(0, 0)]


def test_older_folders_without_a_column_side_go_on(folder: SyntheticFolder) -> None:
    fill(folder, [Wanted(0, 0, 40.0, "F")])
    folder.merge()
    file = folder.path / "manifest.csv"
    pd.read_csv(file, dtype=str, keep_default_na=False).drop(columns="side").to_csv(file, index=False)
    folder.settle([], adopt=True)
    assert folder.missing([Wanted(0, 0, 40.0, "F")]) == []
    assert folder.rows()["HC_000000.pkl"]["side"] == ""


def test_a_volume_without_a_row_keeps_its_side(tmp_path: Path) -> None:
    folder = SyntheticFolder(tmp_path / "made", replace(SETTINGS, label=1))
    write_volume(folder.path / volume_name(1, 0), volume(0, label=1, side="R"))
    with locked(folder.path):
        folder.settle([], adopt=True)
    assert folder.missing([Wanted(1, 0, side="R")]) == []
    with pytest.raises(InputError, match="side R, wanted L"):
        folder.missing([Wanted(1, 0, side="L")])


def test_another_age_or_sex_for_a_volume_that_is_there_is_refused(folder: SyntheticFolder) -> None:
    fill(folder, [Wanted(0, 0, 40.0, "F"), Wanted(0, 1)])
    folder.merge()
    assert folder.missing([Wanted(0, 0, 40.0, "F"), Wanted(0, 1)]) == []
    with pytest.raises(InputError) as refusal:
        folder.missing([Wanted(0, 0, 41.0, "F"), Wanted(0, 1, None, "M")])
    assert "HC_000000.pkl: age 40, wanted 41" in str(refusal.value)
    assert "HC_000001.pkl: sex unknown, wanted M" in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 50}, "steps: the folder has 25, this command 50"),
        ({"diffusion": "e" * 16}, f"diffusion: the folder has '{'d' * 16}', this command '{'e' * 16}'"),
        ({"guidance_interval": (0.0, 1.0)}, "guidance_interval: the folder has [0.0, 0.8], this command [0.0, 1.0]"),
        ({"label": 1}, "label: the folder has 0, this command 1"),
    ],
)
def test_other_settings_are_refused(folder: SyntheticFolder, changes: dict, message: str) -> None:
    folder.refuse_others()
    with pytest.raises(InputError) as refusal:
        SyntheticFolder(folder.path, replace(SETTINGS, **changes)).refuse_others()
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("HC_000000.pkl", {"guidance": 1.0}, "guidance 1.0, not 1.5"),
        ("TLE_000000.pkl", {"label": 1}, "label 1, not 0"),
        ("HC_000001.pkl", {}, "its seed is 0"),
    ],
)
def test_other_volumes_without_a_row_are_refused_by_name(
    folder: SyntheticFolder, name: str, changes: dict, message: str
) -> None:
    write_volume(folder.path / name, volume(0, **changes))
    with pytest.raises(InputError) as refusal:
        folder.settle([], adopt=True)
    assert f"{name}: {message}" in str(refusal.value)


def test_one_run_at_a_time_and_only_manifests_of_this_version(folder: SyntheticFolder) -> None:
    with locked(folder.path), pytest.raises(InputError, match="another process is running"), locked(folder.path):
        pass
    with locked(folder.path):
        (folder.path / "manifest.csv").write_text("file,label,seed\nHC_000000.pkl,0,0\n")
        with pytest.raises(InputError, match="columns sampler, steps"):
            folder.settle([], adopt=True)


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
    assert read_wanted(write(tmp_path, "label\nTLE\nTLE\n"), first_seed=5) == [Wanted(1, seed) for seed in range(5, 7)]


def test_covariates_as_numbers_and_as_text() -> None:
    wanted = Wanted(0, 0, 40.0, "M")
    assert [wanted.value("age"), wanted.value("sex"), Wanted(0, 0, sex="F").value("sex")] == [40.0, 1.0, 0.0]
    assert math.isnan(Wanted(0, 0).value("age"))
    assert math.isnan(Wanted(0, 0).value("sex"))
    assert wanted.texts() == {"side": "", "age": "40", "sex": "M"}
    assert Wanted(1, 0, 33.5, side="L").texts() == {"side": "L", "age": "33.5", "sex": ""}


def test_volumes_are_wanted_in_ml_and_kept_beside_the_volume(folder: SyntheticFolder, tmp_path: Path) -> None:
    path = write(tmp_path, "label,seed,hippocampus_left,ventricles\nHC,0,2.5,\nHC,1,n/a,31\n")
    first, second = read_wanted(path)
    assert (first.value("hippocampus_left"), second.value("ventricles")) == (2.5, 31)
    assert math.isnan(first.value("ventricles"))
    folder.settle([], adopt=True)
    folder.add(volume(0), first, 1.0, 0)
    folder.merge()
    assert folder.rows()["HC_000000.pkl"]["hippocampus_left"] == "2.5"
    assert "ventricles" not in folder.rows()["HC_000000.pkl"]
    assert folder.missing([first, second]) == [second]
    for other, found in ((Wanted(0, 0), "2.5, wanted unknown"), (replace(first, volumes=()), "2.5, wanted unknown")):
        with pytest.raises(InputError, match=f"HC_000000.pkl: hippocampus_left {found}"):
            folder.missing([other])
    with pytest.raises(InputError, match="line 2, column ventricles: '-3'; expected a volume in ml, above 0"):
        read_wanted(write(tmp_path, "label,ventricles\nHC,-3\n"))


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
    assert "line 10: 4 fields where the header names 5 columns" in lines[0]
    found = [f"line {number}, column {column}" for number, column in enumerate(columns, start=2)]
    assert all(any(said in line for line in lines) for said in found)
    assert len(lines) == len(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,seed\nHC,3\nHC,3\n", "line 3, column seed: HC has seed 3 on line 2 already"),
        ("label,seed,count\nHC,0,5\nHC,4,1\n", "HC has seed 4 on line 2 already"),
        ("label,hippocampus\nHC,1\n", "columns label, hippocampus"),
        ("label,side\nTLE,left\n", "line 2, column side: 'left'; expected L or R"),
        ("label,side\nTLE,L\nHC,L\n", "line 3, column side: L, but HC has no side"),
        ("label,age,age\nHC,1,2\n", "named more than once: age"),
        ("seed\n1\n", "expected label"),
        ("label\n", "no rows"),
        ("", "the table is empty"),
    ],
)
def test_tables_that_mean_nothing_certain_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_wanted(write(tmp_path, text))


def test_one_seed_may_serve_both_classes(tmp_path: Path) -> None:
    assert len(read_wanted(write(tmp_path, "label,seed\nHC,3\nTLE,3\n"))) == 2
    with pytest.raises(InputError, match="no such table"):
        read_wanted(tmp_path / "nowhere.csv")
