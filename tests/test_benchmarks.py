"""Benchmarks at their smallest, by their command."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.files import read_json
from tests.support.processes import run_here


@pytest.mark.slow
def test_planted_copies_are_found_beside_scans_of_another_size(tmp_path: Path) -> None:
    """The folder of a run has scans of another, among whose names the copies must not be."""
    (tmp_path / "folder/scans").mkdir(parents=True)
    (tmp_path / "folder/scans/p000040.nii").write_bytes(b"of a larger cohort")
    done = run_here("benchmarks.check", "--scans", 40, "--folder", tmp_path / "folder", "--out", tmp_path / "out.json")
    assert done.stdout.startswith("about 1 minutes on two cores")
    found = read_json(tmp_path / "out.json")
    assert (found["found"], found["false"]) == (20, 0)


def test_a_cohort_smaller_than_its_copies_is_refused() -> None:
    done = run_here("benchmarks.check", "--scans", 3, ok=False)
    assert done.returncode == 2
    assert "--scans 3: expected 20 or more" in done.stderr
