"""Run folders of several stages side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from notebooks import report, run_folders
from runtime.checkpoints import checkpoint_hash
from runtime.errors import InputError
from runtime.files import ROOT, write_json
from runtime.runs import read_log


def write_run(folder: Path, stage: str, rows: list[dict], **config) -> Path:
    write_json(folder / "config.json", {"stage": stage, "seed": 0, "steps": 20, **config})
    write_json(folder / "environment.json", {"commit": "abc", "device": "cpu"})
    lines = [json.dumps({"time/run_s": 60.0 * (row["step"] // 10), **row}) + "\n" for row in rows]
    (folder / "log.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two VAEs and a diffusion model; the one without figures of its checkpoint is `vae/b`."""
    runs = tmp_path / "runs"
    losses = [{"step": 10, "loss/reconstruction": 0.2, "loss/train": 3.0}, {"step": 10, "val/psnr_head": 30.0},
              {"step": 20, "loss/reconstruction": 0.1}, {"step": 20, "val/psnr_head": 29.0}]  # fmt: skip
    a = write_run(runs / "vae/a", "VAE.train", losses, model={"blocks": 1, "channels": [8]}, lr=0.1, threads=1)
    b = write_run(runs / "vae/b", "VAE.train", losses[:2], model={"blocks": 2, "channels": [8]}, lr=0.1, threads=2)
    rows = [{"step": 10, "loss/train": 1.0, "loss/val": 0.9}, {"step": 20, "loss/train": 0.8, "loss/val": 0.7}]
    dit = write_run(runs / "dit", "diffusion.train", rows, lr=0.1)
    for path in (a, dit):
        (path / "checkpoints").mkdir()
        (path / "checkpoints/best.pt").write_bytes(path.name.encode())
    vae, diffusion = (checkpoint_hash(path / "checkpoints/best.pt") for path in (a, dit))
    measured = {"psnr_head": 31.0, "ssim_head": 0.9}
    write_json(
        runs / "vae/infer/summary.json",
        {"scans": 4, "vae": vae, "mean": measured, "std": {"psnr_head": 2.0, "ssim_head": 0.1}},
    )
    cell = {"mean": 17.0, "low": 15.5, "high": 19.25}
    for name, checkpoint, distance in (("one", diffusion, cell), ("other", "another", {**cell, "mean": 18.0})):
        found = {"overall": {"held_out": {"synthetic": {"fid": distance, "kid": distance}}}}
        result = {"checkpoints": {"diffusion": [checkpoint]}, "results": found}
        write_json(tmp_path / f"fid_results/{name}.json", result)
    write_json(tmp_path / "fid_results/one_steps.json", {"rows": []})
    return [dit, b, a]


def test_runs_are_named_by_where_they_part_and_sorted_by_stage(folders: list[Path]) -> None:
    runs = run_folders.read_runs(folders)
    assert [(run.name, run.stage) for run in runs] == [
        ("vae/b", "VAE.train"), ("vae/a", "VAE.train"), ("dit", "diffusion.train"),
    ]  # fmt: skip
    assert run_folders.read_runs([folders[0]])[0].name == "dit"
    overview = run_folders.overview(runs)
    assert overview.loc["steps"].tolist() == ["10 of 20", "20 of 20", "20 of 20"]
    assert overview.loc["minutes", "vae/a"] == "2.0"


def test_a_panel_holds_the_runs_of_its_stage_and_one_legend_all(folders: list[Path]) -> None:
    runs = run_folders.read_runs(folders)
    figure = run_folders.curves_figure(runs)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["VAE: reconstruction loss", "VAE: PSNR in the head (dB)", "diffusion: loss"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["vae/b", "vae/a", "dit"]
    psnr, loss = ([line for line in figure.axes[place].lines if len(line.get_xdata())] for place in (1, 2))
    assert [line.get_ydata().tolist() for line in psnr] == [[30.0], [30.0, 29.0]]
    assert [line.get_ydata().tolist() for line in loss] == [[1.0, 0.8], [0.9, 0.7]]
    assert len({line.get_color() for line in (*psnr, *loss)}) == 3
    assert not any(axis.get_legend() for axis in figure.axes)


def test_measures_are_those_of_the_very_checkpoint_with_intervals(folders: list[Path], tmp_path: Path) -> None:
    runs = run_folders.read_runs(folders)
    vae = run_folders.measures(runs, "VAE.train", tmp_path)
    assert vae["validation: PSNR in the head (dB)"].tolist() == ["30 at step 10", "30 at step 10"]
    # 31 +- t(0.975, 3) 2 / sqrt(4)
    assert vae["4 held-out scans: PSNR in the head (dB)"].tolist() == ["", "31 [27.82, 34.18]"]
    dit = run_folders.measures(runs, "diffusion.train", tmp_path)
    assert dit.loc["dit", "FID to held-out scans"] == "17 [15.5, 19.2]"
    assert dit.loc["dit", "validation: loss"] == "0.7 at step 20"


def test_differences_are_settings_before_places(folders: list[Path]) -> None:
    runs = run_folders.read_runs(folders)
    table = run_folders.differences(runs, "VAE.train")
    assert table.index.tolist() == ["model.blocks", "threads"]
    assert table.loc["model.blocks"].tolist() == ["2", "1"]
    assert run_folders.differences(runs, "diffusion.train").empty


def test_what_is_no_run_folder_is_named(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"/none: no config.json\n.*/none: no environment.json"):
        run_folders.read_runs([folders[0], tmp_path / "none"])
    with pytest.raises(InputError, match="there is none; `make demo`"):
        run_folders.read_runs(run_folders.inside(tmp_path / "runs/nowhere"))
    assert "two different runs" in run_folders.paired_tests(run_folders.read_runs(folders))


def test_half_a_line_of_a_killed_run_is_left_out_and_other_text_refused(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_log(tmp_path) == [{"step": 1}]
    (tmp_path / "log.jsonl").write_text("loss 3\n")
    with pytest.raises(InputError, match="not a log of a training run"):
        read_log(tmp_path)
    with pytest.raises(InputError, match=r"no log\.jsonl"):
        read_log(tmp_path / "none")


@pytest.mark.slow
def test_the_notebook_executes_on_runs_of_two_stages(home: Path) -> None:
    parameters = {"REPORT_ROOT": str(home), "REPORT_PRESET": "tiny"}
    done = report.execute(ROOT / "notebooks/compare_runs.ipynb", parameters)
    outputs = [output["data"] for cell in done.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("image/png" in data for data in outputs) == 1
    text = "".join(data.get("text/html", "") for data in outputs)
    assert "<b>VAE.train</b>one run, or all alike" in text
    assert "8 held-out scans: PSNR in the head (dB)" in text
    assert "1e-05" in text  # the learning rate of one of the two classifiers
    assert "classifier_slow" in text
    assert "AUC minus the reference" in text
