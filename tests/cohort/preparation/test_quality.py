"""Measures against closed forms, rules against planted outliers, and a page that opens anywhere."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from cohort.atlas import load_template, resample, tissue
from cohort.grids import GRIDS
from cohort.preparation.qc_page import PLAIN_SHOWN, Entry, draw, write_page
from cohort.preparation.quality import (
    FEWEST,
    LOOK,
    PASSED,
    ROBUST_Z,
    Verdict,
    beyond_limits,
    flags,
    judge,
    looks,
    measure,
)

GRID = GRIDS["demo"]


@pytest.fixture(scope="module")
def template():
    source = load_template("icbm2009a")
    return resample(np.asarray(source.dataobj), source.affine, GRID)


def test_measures_of_a_scan_that_is_made_of_them(template):
    maps = tissue(GRID)
    draw = np.random.default_rng(0)
    image = 100 * (maps["gm"] > 0.9) + 160 * (maps["wm"] > 0.9) + draw.normal(0, 8, GRID.shape)
    found = measure(image, template > 0, np.ones(GRID.shape, bool), GRID)
    assert found["snr"] == pytest.approx(160 / 8, rel=0.05)
    assert found["contrast"] == pytest.approx(60 / (8 * np.sqrt(2)), rel=0.05)
    assert found["brain_seen"] == 1
    inside = template > 1
    same = measure(3 * template + 2, inside, np.ones(GRID.shape, bool), GRID)
    assert same["template_correlation"] == pytest.approx(1, abs=1e-3)
    seen = np.ones(GRID.shape, bool)
    seen[: GRID.shape[0] // 2] = False
    assert measure(template, inside, seen, GRID)["brain_seen"] == pytest.approx(0.5, abs=0.03)


def test_what_cannot_be_measured_is_none():
    flat = measure(np.ones(GRID.shape), np.ones(GRID.shape, bool), np.ones(GRID.shape, bool), GRID)
    assert flat["template_correlation"] is None
    assert flat["snr"] is None
    assert flat["contrast"] is None


def cohort(count: int) -> list[dict[str, float | None]]:
    draw = np.random.default_rng(1)
    return [
        {
            "template_correlation": float(draw.normal(0.9, 0.01)), "brain_ml": float(draw.normal(1500, 100)),
            "brain_seen": 1.0, "affine_jacobian": float(draw.normal(0.9, 0.06)), "warp_jacobian_min": None,
            "warp_jacobian_max": None, "snr": float(draw.normal(12, 1)), "contrast": float(draw.normal(2.5, 0.2)),
        }
        for _ in range(count)
    ]  # fmt: skip


def test_planted_outliers_are_worth_a_look_what_meets_no_limit_is_flagged_and_no_one_else_is_named():
    scans = cohort(60)
    scans[7]["template_correlation"] = 0.72
    scans[9]["brain_ml"] = 2250.0
    scans[11]["brain_seen"] = 0.8
    verdicts = judge(scans)
    assert {row for row, verdict in enumerate(verdicts) if verdict.look} == {7}
    assert {row for row, verdict in enumerate(verdicts) if verdict.flagged} == {9, 11}
    assert "correlation" in verdicts[7].text
    assert "median" in verdicts[7].text
    assert "expected 0.95 or more" in verdicts[11].flagged[0]
    assert "expected 800 to 2050" in verdicts[9].text
    assert "expected 0.03 or less" in judge([{"brain_at_floor": 0.2}])[0].text
    others = [verdict.score for row, verdict in enumerate(verdicts) if row not in (7, 9, 11)]
    assert min(verdicts[row].score for row in (7, 9, 11)) > max(others)


def test_outliers_of_a_large_site_are_those_among_its_own():
    """One site's scanner is noisier than all others; it has one scan that is noisy even there, the others one each."""
    noisy, quiet, few = (
        [scan | {"snr": snr} for scan in cohort(count)] for snr, count in ((5.0, 25), (16.0, 60), (5.0, 6))
    )
    noisy[3]["snr"], quiet[7]["snr"], few[2]["snr"] = 0.5, 11.0, 16.0
    scans, sites = noisy + quiet + few, ["A"] * 25 + ["B"] * 60 + ["C"] * 6
    named = {row for row, verdict in enumerate(judge(scans, sites)) if verdict.look}
    assert named == {3, 25 + 7} | {85 + row for row in (0, 1, 3, 4, 5)}  # C is small: it is held against all
    assert "median of A 5" in judge(scans, sites)[3].text
    assert {row for row, verdict in enumerate(judge(scans)) if verdict.look} >= {*range(25)}
    scans[0]["snr"], scans[1]["brain_ml"] = None, 2250.0
    assert [bool(verdict.flagged) for verdict in judge(scans, sites)[:3]] == [False, True, False]
    unknown = judge(scans, [""] * len(scans))
    assert [verdict.text for verdict in unknown] == [verdict.text for verdict in judge(scans)]


def test_a_good_surprise_is_none():
    scans = cohort(40)
    scans[3]["snr"] = 60.0
    scans[3]["template_correlation"] = 0.999
    assert judge(scans)[3].reasons == []


def test_few_scans_meet_only_the_fixed_limits():
    scans = cohort(FEWEST - 1)
    scans[0]["template_correlation"] = 0.72
    scans[1]["template_correlation"] = 0.3
    assert [bool(verdict.reasons) for verdict in judge(scans)][:3] == [False, True, False]
    assert [verdict.score for verdict in judge(scans)][:3] == [0, 2 * ROBUST_Z, 0]  # beyond a limit: at the top


def test_an_index_keeps_apart_what_is_flagged_and_what_is_worth_a_look():
    verdicts = [Verdict([], [], 0), Verdict(["a"], [], 9), Verdict([], ["b"], 4), Verdict(["a"], ["b"], 9)]
    table = pd.DataFrame({"qc": [*(verdict.text for verdict in verdicts), "n/a", None]})
    assert table["qc"].tolist()[:4] == [PASSED, "a", f"{LOOK}b", "a; b"]
    assert flags(table).tolist() == ["", "a", "", "a; b", "", ""]
    assert looks(table).tolist() == ["", "", "b", "", "", ""]
    assert flags(table.drop(columns="qc")).tolist() == looks(table.drop(columns="qc")).tolist() == [""] * 6


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("template_correlation", (0.41, 0.66), (0.25,)),
        ("affine_jacobian", (0.58, 1.02), (1.17, 2.84)),
        ("brain_ml", (1055.0, 1889.0), (2166.0, 4118.0)),
    ],
)
def test_limits_lie_between_real_heads_that_were_laid_right_and_wrong(name, good, bad):
    assert [beyond_limits({name: value}) for value in (*good, *bad)] == [[]] * len(good) + [[name]] * len(bad)


def test_what_was_not_measured_is_not_beyond_a_limit():
    assert beyond_limits({"affine_jacobian": None}) == []


def test_page_is_sorted_escaped_and_refers_to_pictures_beside_it(tmp_path, template):
    pictures = tmp_path / "pictures"
    draw(pictures / "a.png", template, template > 0, GRID)
    assert (pictures / "a.png").read_bytes().startswith(b"\x89PNG")
    values = {"snr": 12.0, "brain_ml": None}
    entries = [
        Entry("fine", pictures / "a.png", values, Verdict([], [], 0.2)),
        Entry("second", pictures / "a.png", values, Verdict([], ["snr low"], 14.0)),
        Entry("worst<script>", pictures / "a.png", values, Verdict(["correlation low"], [], 9.0)),
        Entry("near", pictures / "a.png", values, Verdict([], [], 2.0)),
    ]
    failures = pd.DataFrame([("lost", "x&y.nii", "no head <b>")], columns=["name", "file", "reason"])
    write_page(tmp_path / "qc.html", "Quality", entries, failures)
    page = (tmp_path / "qc.html").read_text()
    order = [page.index(f"<h2>{name}") for name in ("worst&lt;script&gt;", "second", "near", "fine")]
    assert order == sorted(order)
    assert page.index("no head &lt;b&gt;") < order[0]
    assert "<script" not in page
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links == ["pictures/a.png"] * 4
    assert (tmp_path / links[0]).is_file()


def test_a_large_page_leaves_out_scans_without_a_remark_and_says_so(tmp_path):
    verdicts = [Verdict([], ["snr low"], 4.0)] * 3 + [Verdict([], [], 0.1)] * (PLAIN_SHOWN + 2)
    entries = [Entry(f"P{row}", tmp_path / "a.png", {}, verdict) for row, verdict in enumerate(verdicts)]
    write_page(tmp_path / "qc.html", "Quality", entries, pd.DataFrame(columns=["name", "file", "reason"]))
    page = (tmp_path / "qc.html").read_text()
    assert page.count("<h2>") == 3 + PLAIN_SHOWN
    assert "The last 2, without a remark, are not shown." in page
    assert all(f"<h2>P{row}<" in page for row in range(3))
