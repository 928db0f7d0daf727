"""The benchmark of a GPU at its smallest, on a CPU: its rows, a row that fails, a process that dies, its scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from runtime.files import read_json
from tests.support.processes import run_here

TINY = ("benchmarks.gpu", "--tiny", "--seconds", 0.001, "--minutes", 60)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_at_once(tmp_path: Path) -> None:
    done = run_here("benchmarks.gpu", "--out", tmp_path, ok=False)
    assert done.returncode == 2
    assert "no GPU here" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_scripts_end_well_and_rows_are_measured(tmp_path: Path) -> None:
    done = run_here(*TINY, "--scripts", "VAE.save_latent", "--parts", "dit", "--out", tmp_path)
    result = read_json(tmp_path / "gpu.json")
    assert [(row["script"], row["ended"]) for row in result["scripts"]] == [("VAE.save_latent", "well")]
    rows = {(row["row"], row["network"]): row for row in result["rows"]}
    assert not [row for row in rows.values() if "failed" in row]
    assert {name.split(",")[0] for name, _ in rows} == {f"DiT-{name}" for name in
        ("S/4", "B/4", "L/4", "XL/4", "S/2", "B/2", "XL/2")}  # fmt: skip
    ours = rows["DiT-S/4, train", "ours"]
    assert ours["per s"] == pytest.approx(1000 * ours["batch"] / ours["ms"])
    assert (ours["least"], ours["aim"]) == (1200, 1750)
    assert 0 < ours["TFLOP/s"] < 100
    assert sum(ours["largest kernels"].values()) <= 1.001
    assert "| DiT-S/4, train | materialised attention |" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("part", ["classifier", "sampling", "vae"])
def test_all_rows_of_the_other_parts_are_measured(tmp_path: Path, part: str) -> None:
    run_here(*TINY, "--scripts", "--parts", "--out", tmp_path)  # the data alone
    out = tmp_path / "rows.jsonl"
    run_here(
        "benchmarks.gpu_rows", "--part", part, "--data", tmp_path / "data", "--out", out, "--seconds", 0.001, "--tiny"
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    measured = [row for row in rows if len(row) > 3]
    assert 2 * len(measured) == len(rows)
    assert all(row.get("per s", 0) > 0 for row in measured), measured


@pytest.mark.slow
def test_a_row_that_fails_says_why_and_one_at_which_the_process_died_is_not_tried_again(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text(json.dumps({"row": "DiT-S/4, train", "network": "ours", "batch": 2}) + "\n")
    words = ("--part", "dit", "--data", tmp_path / "none", "--out", out, "--seconds", 0.001, "--tiny")
    run_here("benchmarks.gpu_rows", *words)
    first, *rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(first) == 3
    failed = [row for row in rows if "failed" in row]
    assert len(failed) == len(rows) // 2 == 10
    assert all("statistics.json" in row["failed"] for row in failed)
    assert not [row for row in rows if (row["row"], row["network"]) == ("DiT-S/4, train", "ours")]
