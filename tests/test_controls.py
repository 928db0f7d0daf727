"""The study of the whole chain refuses, by its command, settings that answer nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import script


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [(("--seeds", 1, 1), "--seeds (1, 1): different ones"), (("--darker", 0), "--darker 0: above 0")],
)
def test_settings_that_answer_nothing_are_refused(tmp_path: Path, words: tuple, message: str) -> None:
    done = script("benchmarks.controls", "smoke", "--out", tmp_path / "out", *words, ok=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
