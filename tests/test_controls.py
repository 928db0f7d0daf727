"""The study of the whole chain, by its command: what it refuses, and what it asks of classifiers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from classifier.config import PRESETS
from runtime.cli import parse
from tests.support.processes import run_here, script


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


def test_classifiers_learn_no_volumes_of_another_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the demo's grid the classifier's preset has those of the demo cohort, whose people have the same names."""

    def only_arms(module: str, *words: object, **_: object) -> dict[str, float]:
        if module == "classifier.run_arms":
            sys.exit([str(word) for word in words])
        return {"wall, s": 0.0, "processor, s": 0.0}

    monkeypatch.setattr("benchmarks.timing.time_command", only_arms)
    asked = run_here("benchmarks.controls", "demo", "--grid", "demo", "--out", tmp_path, ok=False).returncode
    first = next(place for place, word in enumerate(asked) if word.startswith("--train."))
    trained = parse(PRESETS, [asked[0], *(word.replace("--train.", "--") for word in asked[first:])])
    assert (trained.volumes, trained.volumes_weight) == (None, 0)
