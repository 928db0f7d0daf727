"""Benchmarks at their smallest, by their command."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import diffusion
from benchmarks.timing import count_flops
from diffusion.config import VARIANTS, ModelConfig
from runtime.device import Device
from runtime.files import ROOT, read_json
from runtime.layers.convolution import Conv3d, FewOutputs
from tests.support.processes import run_here

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


def test_a_long_one_says_how_long_the_other_turns_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a clock that gains a minute at every look."""
    clock = itertools.count(0, 60)
    monkeypatch.setattr("benchmarks.timing.now", lambda _: next(clock))
    monkeypatch.setattr("benchmarks.diffusion.LATENT", (4, 4, 4, 4))
    monkeypatch.setitem(VARIANTS, "S/4", ModelConfig(dim=16, depth=1, heads=1, patch=(2, 2, 2)))
    device = Device(torch.device("cpu"), torch.float32)
    rows = diffusion.training("S/4", diffusion.BenchmarkConfig(train_batch=1, repeats=3), device, rate=1e9)
    assert {"attention": "fused", "precision": "float32", "median s": 60}.items() <= rows[1].items()
    said = re.findall(r"about \d+ minutes for 4 more turns of (.*)", capsys.readouterr().out)
    assert [name.split(", ")[:2] for name in said] == [["materialised", "float32"]]


def test_operations_of_our_own_convolutions_are_those_of_pytorchs() -> None:
    x = torch.randn(1, 4, 6, 6, 6)
    for own, reference in (
        (Conv3d(4, 8, 3, padding=1), nn.Conv3d(4, 8, 3, padding=1)),
        (FewOutputs(4, 2), nn.Conv3d(4, 2, 3, padding=1)),
    ):
        with torch.no_grad():
            assert count_flops(lambda: own(x)) == count_flops(lambda: reference(x)) > 0  # noqa: B023


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
