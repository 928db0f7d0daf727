"""Studies of generators refuse, by their commands, what they cannot measure, before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import run_here


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("benchmarks.memorisation", "--recipes", "plane"), "--recipes plane: expected some of plain, unmirrored"),
        (
            ("benchmarks.recipes", "--recipes", "guidance", "swiglu"),
            "--recipes swiglu: expected some of plain, guidance",
        ),
        (("benchmarks.recipes", "--recipes", "interval"), "diffusion/checkpoints/best.pt: no such file; make demo"),
        (("benchmarks.memorisation", "--recipes", "refused"), "diffusion/checkpoints/best.pt: no such file; make demo"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path: Path, words: tuple, message: str) -> None:
    done = run_here(*words, "--demo", tmp_path / "demo", "--out", tmp_path / "out.json", ok=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_cohorts_too_small_or_larger_than_there_is_are_refused(cohort_dir: Path, tmp_path: Path) -> None:
    words = ("benchmarks.small_cohorts", "smoke", "--tables", cohort_dir, "--out", tmp_path / "out")
    done = run_here(*words, "--counts", 8, 12, 25, ok=False)
    assert done.returncode == 2
    assert "--counts 8, 25: expected 12 to 12 training subjects" in done.stderr
    assert not list(tmp_path.iterdir())
