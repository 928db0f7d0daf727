"""Error by region: closed forms, a planted error is found, small regions are listed, the figure is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cohort.atlas import Atlas, atlas
from cohort.grids import GRIDS
from VAE import metrics


def small_atlas() -> Atlas:
    """Three regions in a volume of 8^3: two halves of a slab, and one of 4 voxels."""
    labels = np.zeros((8, 8, 8), np.int16)
    labels[:4, :4] = 3
    labels[4:, :4] = 7
    labels[0, 7, :4] = 9
    return Atlas(labels, {3: "Left part", 7: "Right part", 9: "Speck", 11: "Nowhere"})


def test_closed_forms() -> None:
    labels = small_atlas()
    x = np.full((8, 8, 8), 0.5, np.float32)
    x[4:] = 0
    x_hat = x + np.where(labels.labels == 3, -0.1, 0).astype(np.float32)
    x_hat[:4, :2] += 0.2  # half of the left part is 0.1 too bright, half 0.1 too dark
    x_hat[4:] = -1  # clipped: no error where there is no signal
    table = metrics.region_errors(x_hat, x, labels).set_index("region")
    assert table["voxels"].to_dict() == {"Left part": 128, "Right part": 128}
    assert table.loc["Left part", ["mae", "bias", "nmse"]].tolist() == pytest.approx([0.1, 0, 0.04], abs=1e-6)
    assert table.loc["Right part", ["mae", "bias"]].tolist() == [0, 0]
    assert np.isnan(table.loc["Right part", "nmse"])


def test_subjects_count_once_and_small_regions_are_left_out() -> None:
    rows = [("a", 0.1), ("a", 0.3), ("b", 0.4)]
    errors = pd.DataFrame(
        [{"region": "R", "voxels": 50, "mae": mae, "bias": -mae, "nmse": np.nan, "subject": s} for s, mae in rows]
    )
    summary = metrics.summarise_regions(errors)
    row = summary.iloc[0]
    assert (row.mae, row.mae_sd, row.bias, row.subjects) == pytest.approx((0.3, 0.1, -0.3, 2))
    said = metrics.region_report(summary, small_atlas())
    assert said["left_out"] == {"Speck": 4, "Nowhere": 0}
    assert said["worst"][0]["nmse"] is None
    json.dumps(said, allow_nan=False)


def test_a_planted_error_is_ranked_worst(tmp_path: Path) -> None:
    """On the demo grid, with noise everywhere and a bias in one hippocampus."""
    grid = GRIDS["demo"]
    labels, random = atlas(grid), np.random.default_rng(0)
    parts = []
    for subject in range(3):
        x = random.uniform(0.3, 0.7, grid.shape).astype(np.float32)
        x_hat = x + 0.02 * random.standard_normal(grid.shape) - 0.1 * labels.mask("Right Hippocampus")
        parts.append(metrics.region_errors(x_hat, x, labels).assign(subject=f"s{subject}"))
    table = metrics.summarise_regions(pd.concat(parts))
    assert table.region[0] == "Right Hippocampus"
    assert table.bias[0] == pytest.approx(-0.1, abs=0.01)
    assert table.mae[1] < 0.03
    assert (table.subjects == 3).all()
    said = metrics.region_report(table, labels)
    assert [row["region"] for row in said["worst"]] == table.region[:10].tolist()
    assert said["left_out"].keys().isdisjoint(table.region)
    assert len(said["left_out"]) + len(table) == len(labels.names)
    assert "Neuromorphometrics" in said["licence"]
    metrics.draw_regions(tmp_path / "regions.png", table)
    assert (tmp_path / "regions.png").read_bytes().startswith(b"\x89PNG")
