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

FEW = {"measure": "regional_volumes", "scans": "generated, beyond", "region": "Left Hippocampus", "count": 2}
WANTED = [FEW, {**FEW, "scans": "generated, within", "r": 0.517, "slope": 0.338, "bias_ml": -0.4, "mean_error_ml": 1.2}]
LABELLED = [
    {"structure": "Hippocampus", "network, N": 20, "network, r": "0.52 0.36", "network, slope": "0.36 0.24",
     "network, bias, %": "4 5", "fixed regions, r": "0.35 0.39", "registration, r": "0.70 0.55"},
    {"structure": "median of 16", "network, r": "0.45", "fixed regions, r": "0.34", "registration, r": "0.49"},
]  # fmt: skip
FAULTS = [{"fault": "none", "N": 20, "failed": 0}, {"fault": "upside down", "N": 6, "failed": 5}]


def test_counterfactuals_stand_beside_their_goals_and_the_cohort() -> None:
    table = tables.counterfactuals({"TLE-L": MEASURES, "HC": {**MEASURES, "effectiveness": []}})
    assert list(table.columns) == ["TLE-L", "HC"]
    assert table.loc["change outside over inside (goal 0.2)", "TLE-L"] == "0.07"
    assert table.loc["HC: Left Hippocampus, d (cohort)"].tolist() == ["-0.22 (-0.28)", ""]


def test_what_could_not_be_measured_of_counterfactuals_is_unknown() -> None:
    """Of scans that all have the label asked for, and of volumes that do not vary."""
    still = {**MEASURES, "errors": {"round_trip": {"mean": 4e-6}}}
    still |= {"minimality": {"regions": {"each_scan": {"outside_over_inside": None}}}}
    still |= {"effectiveness": [{**MEASURES["effectiveness"][0], "cohort_d": None}]}
    shown = tables.counterfactuals({"HC": still})["HC"]
    assert (shown.filter(like="goal") == "unknown").all()
    assert shown["HC: Left Hippocampus, d (cohort)"] == "-0.22 (unknown)"


def test_what_the_classifier_says_of_a_scan_stands_beside_its_counterfactual() -> None:
    table = tables.opinions({"requests": {"TLE-L": {"classifier": SAID}}})
    assert table.loc[("HC", "TLE-L")].to_dict() == {
        "scan": "-0.80, 0%", "reconstruction": "-0.90, 0%", "counterfactual": "+0.10, 50%",
    }  # fmt: skip


def test_asked_and_measured_volumes_stand_beside_each_other_and_too_few_have_no_figures() -> None:
    table = tables.wanted({"rows": WANTED}).loc["regional_volumes"]
    assert table.loc[("generated, within", "Left Hippocampus"), ["r", "slope"]].tolist() == [0.52, 0.34]
    assert table.loc[("generated, beyond", "Left Hippocampus"), ["count", "r"]].tolist() == [2, ""]
    assert "r" in tables.wanted({"rows": [FEW]}).columns


def test_labelled_regions_stand_beside_the_goal_of_their_scans() -> None:
    table = tables.labelled({"network": "a1", "real heads": LABELLED, "real heads, planted faults": [{"N": 2}]})
    assert table.index.get_level_values(0).unique().tolist() == ["20 real heads"]
    assert table.loc[("20 real heads", "Hippocampus"), ["network, r", "goal of r"]].tolist() == ["0.52 0.36", "0.7"]
    assert table.loc["20 real heads"]["goal of r"].tolist() == ["0.7", ""]
    assert tables.labelled({"simulated scans": LABELLED}).iloc[0]["goal of r"] == "0.9"


def test_scans_that_failed_are_counted_by_fault_and_kind() -> None:
    table = tables.planted_faults({"real heads": LABELLED, "real heads, planted faults": FAULTS})
    assert table.to_dict() == {"real heads": {"none": "0 of 20", "upside down": "5 of 6"}}


@pytest.mark.slow
def test_a_report_shows_what_is_there_and_names_what_makes_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "runs/tiny/counterfactuals/TLE-L"
    write_json(folder / "measures.json", MEASURES)
    figure = Figure()
    figure.add_subplot().imshow(np.eye(4))
    figure.savefig(folder / "s01.png")
    write_json(tmp_path / "fid_results/tiny_counterfactuals.json", {"requests": {"TLE-L": {"classifier": SAID}}})
    write_json(
        tmp_path / "fid_results/tiny_labels.json",
        {"simulated scans": LABELLED, "simulated scans, planted faults": FAULTS},
    )
    report.main(report.ReportConfig("tiny", root=tmp_path))
    html = (tmp_path / "runs/tiny/report.html").read_text()
    section = html[html.rindex("What another label changes") :]
    assert "reversibility, latent (goal 1.1)" in section
    assert "data:image/png" in section
    assert "+0.10, 50%" in section
    assert "goal of r" in section
    assert "5 of 6" in section
    assert "<strong>Volumes that were asked for</strong>: left out. " in section
    assert "<code>make wanted-volumes</code> makes it" in section
