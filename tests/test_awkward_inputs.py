"""Inputs from public bug reports, by the commands of docs/awkward_inputs.md: status and words are those of the page."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from cohort.grids import GRIDS
from cohort.preparation import job
from cohort.scans import load_scan
from cohort.tables import read_table
from runtime.files import ROOT, read_json
from tests.support import awkward
from tests.support.processes import run_here, script

GRID = GRIDS["smoke"]
PREPARE = "cohort.prepare --out O --index O/index.csv --grid smoke --assume-mni --workers 1"
STEPS = "--steps 2 --warmup-steps 0 --val-every-steps 2 --save-every-steps 2"
SHORT = {
    "prepare": PREPARE,
    "check": "cohort.check --out C",
    "split": "cohort.split --out S --no-figure",
    "VAE.train": f"VAE.train smoke {STEPS} --save-every-steps 30",
    "classifier.train": f"classifier.train smoke {STEPS} --resamples 20",
}
SLOW = ("train_longer", "nan_before_first_checkpoint", "odd_global_batch", "ten_to_one", "units_micron")


class Row(NamedTuple):
    """A command of the page, its exit status and the words that it says."""

    typed: str
    status: int
    says: list[str]


def read_page() -> dict[str, list[Row]]:
    """The rows of each input, in order."""
    found: dict[str, list[Row]] = {}
    rows: list[Row] = []
    for line in (ROOT / "docs/awkward_inputs.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| ") else []
        if len(cells) != 4 or cells[0] in ("input", "---"):
            continue
        name = re.match(r"`(\w+)`", cells[0])
        rows = found.setdefault(name[1], []) if name else rows
        rows.append(Row(cells[1].strip("`"), int(cells[2]), re.findall(r'"([^"]+)"', cells[3])))
    return found


PAGE = read_page()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("classifier.evaluation.PERMUTATIONS", 20)
    monkeypatch.setattr(job, "start_process", lambda: ThreadPoolExecutor(1))  # saves the start of a process


def type_in(row: Row) -> None:
    """Runs a row's command where the test is, and holds it against the row."""
    command, _, flags = row.typed.removeprefix("torchrun ").partition(" ")
    module, *words = shlex.split(f"{SHORT.get(command, command)} {flags}")
    if row.typed.startswith("torchrun "):
        absolute = [Path(word).absolute() if word == "R" or word.startswith("in/") else word for word in words]
        done = script(module, *absolute, processes=2, ok=False)
    else:
        done = run_here(module, *words, ok=False)
    told = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == row.status, f"{row.typed}\n{told}"
    for part in row.says:
        assert part in told, f"{row.typed}: {part!r} is not in\n{told}"


def index() -> dict[str, list]:
    return read_table(Path("O/index.csv")).to_dict("list")


def row_per_session() -> None:
    assert (index()["session"], index()["age"]) == (["ses-1", "ses-2", "ses-1"], [30, 32, 31])


def sex_other() -> None:
    assert index()["sex"] == ["F", "", "M", "M"]
    assert np.nan_to_num(index()["age"]).tolist() == [30, 31, 0, 0]


def several_t1_per_session() -> None:
    assert all("rec-norm" in file for file in index()["file"])


def healthy_only_bids() -> None:
    assert index()["diagnosis"] == ["HC"] * 3


def labels_to_leave_out() -> None:
    tables = [read_table(Path(f"S/{name}.csv")) for name in ("train", "val", "test")]
    assert sum(map(len, tables)) == 8
    assert set().union(*(table["diagnosis"] for table in tables)) == {"HC", "TLE-L", "TLE-R"}


def lies_where_the_template_lies() -> None:
    for path in Path("O/records").glob("*.json"):
        assert read_json(path)["measures"]["template_correlation"] > 0.6


def signed_intensities() -> None:
    made = {name: load_scan(Path(f"O/scans/{name}.nii.gz"), GRID) for name in ("plain", "minus1_to_1", "padded")}
    for name in ("minus1_to_1", "padded"):
        assert np.abs(made[name] - made["plain"]).max() < 0.01
    for name in ("zscore", "uni"):
        image = load_scan(Path(f"O/scans/{name}.nii.gz"), GRID)
        assert np.corrcoef(image.ravel(), made["plain"].ravel())[0, 1] > 0.95


def units_micron() -> None:
    plain = awkward.save(Path("mm.nii"), awkward.person(0))
    np.testing.assert_allclose(load_scan(Path("in/P0.nii"), GRID), load_scan(plain, GRID), atol=1e-4)


def ten_to_one() -> None:
    assert read_json(Path("R/results.json"))["metrics"]["test"]["auc"]["low"] is None


VALUES: dict[str, Callable[[], None]] = {
    **{own.__name__: own for own in (row_per_session, sex_other, several_t1_per_session, healthy_only_bids)},
    **{own.__name__: own for own in (labels_to_leave_out, signed_intensities, units_micron, ten_to_one)},
    **dict.fromkeys(
        ("identity_affine", "oasis_no_codes", "quaternion_rounding", "zero_sform_code1"), lies_where_the_template_lies
    ),
}
"""What the last command of an input has made, by numbers."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in PAGE])
def test_an_input_gets_what_the_page_says(name: str, tmp_path: Path, random_vae: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(random_vae, tmp_path / "VAE.pt")
    getattr(awkward, name)(tmp_path / "in")
    for row in PAGE[name]:
        type_in(row)
    VALUES.get(name, lambda: None)()


def test_every_value_is_of_an_input_of_the_page() -> None:
    assert len(PAGE) == 23
    assert VALUES.keys() | set(SLOW) <= PAGE.keys()
