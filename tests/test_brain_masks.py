"""Both ways to a brain, beside labels, on small heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cohort.decoding import read_voxels
from cohort.preparation import steps
from cohort.preparation.steps import Scan, Space
from cohort.scans import to_ras
from runtime.errors import InputError
from runtime.files import read_json
from tests.support.labelled import people
from tests.support.processes import run_here


def test_each_way_has_its_figures_and_what_it_refuses_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One way knows where these heads lie, and that all of their box is brain; the other refuses the first three."""
    refusals = iter([True] * 3 + [False] * 5)

    def all_of_it(working: object, _: None) -> Space:
        return Space(np.eye(4), Scan(np.ones(working.image.shape, np.float32), working.affine))

    def some(working: object, given: None) -> Space:
        if next(refusals):
            raise InputError("no head")
        return all_of_it(working, given)

    def read(file: str, _: object) -> tuple[Scan, list[str]]:
        return Scan(*to_ras(*read_voxels(Path(file))[:2])), []

    monkeypatch.setattr(steps, "read_scan", read)  # as it is: these are no whole heads, and would be refused
    monkeypatch.setattr(steps, "by_brain", all_of_it)
    monkeypatch.setattr(steps, "by_head", some)
    run_here("benchmarks.brain_masks", "--participants", people(tmp_path), "--out", tmp_path / "found.json")
    found = read_json(tmp_path / "found.json")
    assert (found["heads"], found["labels not usable"]) == (8, 0)
    assert found["refused"] == {"brain first": 0, "whole head": 3}
    rows = {row["measure"]: row for row in found["table"]}
    assert len(rows) == 7
    cut = rows["cerebellum more than 3 mm outside the brain, %"]
    assert cut["wanted"] == "0 to 1"
    assert (cut["brain first"], cut["brain first, beyond"], cut["whole head, beyond"]) == ("0 [0, 0]", 0, 0)
    assert rows["distance from where the labels lay the template, mm"]["brain first, beyond"] == 8  # regions are cut
    assert rows["Dice of the brain with all labels, filled"]["brain first"].startswith("0.")
