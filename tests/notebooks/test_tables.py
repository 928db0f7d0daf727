"""Tables of the report, of results as small as they get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from notebooks import report, tables
from runtime.files import write_json

MEASURES = {
    "scans": {"HC": 2}, "guidance": 1.5,
    "errors": {
        "round_trip": {"mean": 4e-6}, "reversibility": {"over_vae": 1.0004}, "reversibility_volume": {"over_vae": 1.2},
    },
    "effectiveness": [
        {"from": "HC", "region": "Left Hippocampus", "moved_d": -0.22, "cohort_d": -0.28},
        {"from": "HC", "region": "Right Hippocampus", "moved_d": 0.004, "cohort_d": -0.1},
    ],
    "minimality": {"regions": {"each_scan": {"outside_over_inside": 0.0731}}},
}  # fmt: skip
SAID = [
    {"to": "TLE-L", "own": "HC", "of": kind, "scans": 2, "tle": tle, "logit": logit}
    for kind, tle, logit in (("scan", 0.0, -0.8), ("reconstruction", 0.0, -0.9), ("counterfactual", 0.5, 0.1))
]


def test_counterfactuals_stand_beside_their_goals_and_the_cohort() -> None:
    table = tables.counterfactuals({"TLE-L": MEASURES, "HC": {**MEASURES, "effectiveness": []}})
    assert list(table.columns) == ["TLE-L", "HC"]
    assert table.loc["change outside over inside (goal 0.2)", "TLE-L"] == "0.07"
    assert table.loc["HC: Left Hippocampus, d (cohort)"].tolist() == ["-0.22 (-0.28)", ""]


def test_what_the_classifier_says_of_a_scan_stands_beside_its_counterfactual() -> None:
    table = tables.opinions({"requests": {"TLE-L": {"classifier": SAID}}})
    assert table.loc[("HC", "TLE-L")].to_dict() == {
        "scan": "-0.80, 0%", "reconstruction": "-0.90, 0%", "counterfactual": "+0.10, 50%",
    }  # fmt: skip


@pytest.mark.slow
def test_a_report_of_counterfactuals_shows_them(tmp_path: Path) -> None:
    folder = tmp_path / "runs/tiny/counterfactuals/TLE-L"
    write_json(folder / "measures.json", MEASURES)
    figure = Figure()
    figure.add_subplot().imshow(np.eye(4))
    figure.savefig(folder / "s01.png")
    write_json(tmp_path / "fid_results/tiny_counterfactuals.json", {"requests": {"TLE-L": {"classifier": SAID}}})
    report.main(report.ReportConfig("tiny", root=tmp_path))
    html = (tmp_path / "runs/tiny/report.html").read_text()
    section = html[html.rindex("What another label changes") :]
    assert "reversibility, latent (goal 1.1)" in section
    assert "data:image/png" in section
    assert "+0.10, 50%" in section
