"""Benchmarks at their smallest, by their command."""

from __future__ import annotations

import itertools
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from diffusion.config import VARIANTS, ModelConfig
from runtime.files import ROOT, read_json
from tests.support.processes import run_here
from VAE.config import PRESETS as VAES

BENCH = [
    line.split()[-1]
    for line in (ROOT / "Makefile").read_text().split("\nbench: venv\n", 1)[1].split("\nbench-gpu:", 1)[0].splitlines()
]
"""Modules that `make bench` runs."""


@pytest.mark.slow
@pytest.mark.parametrize("module", BENCH)
def test_each_says_how_long_it_takes_before_it_starts(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended as soon as it has said so: by then it has done and said nothing else."""

    def say(text: str, **_: object) -> None:
        sys.stdout.write(text)
        sys.exit("enough")

    monkeypatch.setattr("benchmarks.timing.print", say, raising=False)
    done = run_here(module, ok=False)
    assert done.returncode == "enough"
    assert re.fullmatch(r"about [1-9]\d* minutes? on two cores, with nothing else running", done.stdout)


@pytest.mark.slow
def test_a_long_one_says_how_long_the_other_turns_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks, by a clock that gains a minute at every look."""
    clock, paper = itertools.count(0, 60), VAES["paper"]
    monkeypatch.setattr("benchmarks.timing.now", lambda _: next(clock))
    monkeypatch.setitem(VARIANTS, "S/4", ModelConfig(dim=16, depth=1, heads=1, patch=(14, 17, 14)))
    small = replace(paper.model, channels=(8, 8, 8), groups=4, blocks=1)
    monkeypatch.setitem(VAES, "paper", replace(paper, model=small))
    done = run_here("benchmarks.diffusion", "--train-batch", 1, "--repeats", 3)
    said = re.findall(r"about \d+ minutes for \d more turns of (.*)", done.stdout)
    assert [name.split(", ")[:2] for name in said] == [["materialised", "float32"], ["dpmpp", "decoding"]]
    assert "| DiT-S/4 | ours | float32 | 60 |" in done.stdout


@pytest.mark.slow
def test_the_same_network_has_the_same_number_of_operations() -> None:
    """As small a volume is convolved by an operator of our choice."""
    shown = run_here("benchmarks.vae", "--shape", 16, 16, 16, "--repeats", 1).stdout
    rows = [line.split(" | ") for line in shown.splitlines() if line.startswith("| encode") and line.count("|") == 10]
    counts = {row[1]: float(row[6]) for row in rows}
    assert counts["ours, float32"] == pytest.approx(counts["MONAI, float32, contiguous"], rel=0.01)


@pytest.mark.slow
def test_the_memory_of_a_gpu_is_what_the_readme_says_wherever_it_is_predicted() -> None:
    """On a CPU, whose layers take memory that a GPU's do not."""
    shown = run_here("benchmarks.memory", "--grids", "2mm", "--variants", "S/4").stdout
    vae, dit = ([cell.strip() for cell in line.split("|")[3:-1]] for line in shown.splitlines() if "| 2mm |" in line)
    one_row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `2mm` |"))
    said = [cell.strip() for part in one_row.split("|")[2:-1] for cell in part.split(",")]
    full, one, again, patched, *both = vae
    assert [full, one, again, patched, *both, dit[0]] == said[:7]


@pytest.mark.slow
def test_planted_copies_are_found_beside_scans_of_another_size(tmp_path: Path) -> None:
    """The folder of a run has scans of another, among whose names the copies must not be."""
    (tmp_path / "folder/scans").mkdir(parents=True)
    (tmp_path / "folder/scans/p000040.nii").write_bytes(b"of a larger cohort")
    done = run_here("benchmarks.check", "--scans", 40, "--folder", tmp_path / "folder", "--out", tmp_path / "out.json")
    assert done.stdout.startswith("about 1 minute on two cores")
    found = read_json(tmp_path / "out.json")
    assert (found["found"], found["false"]) == (20, 0)


def test_a_cohort_smaller_than_its_copies_is_refused() -> None:
    done = run_here("benchmarks.check", "--scans", 3, ok=False)
    assert done.returncode == 2
    assert "--scans 3: expected 20 or more" in done.stderr


def test_a_curve_of_two_amounts_is_refused() -> None:
    done = run_here("benchmarks.curves", "--steps", 5, 10, ok=False)
    assert done.returncode == 2
    assert "--steps: expected three or more amounts" in done.stderr
