"""The VAE scripts: train, resume after SIGKILL, two processes, infer, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from cohort.grids import GRIDS
from runtime.checkpoints import load_checkpoint
from runtime.device import Device
from tests.support.processes import fill, kill_at_step, run_here, script, small_disk
from tests.support.vae_runs import COMMON, tables
from VAE.checkpoint import load_vae
from VAE.config import PRESETS
from VAE.train import build


def weights(run_dir: Path, name: str = "last") -> dict[str, torch.Tensor]:
    record = load_checkpoint(run_dir / "checkpoints" / f"{name}.pt", "vae")
    return {f"{kind}/{key}": value for kind in ("weights", "ema") for key, value in record[kind].items()}


@pytest.mark.slow
def test_a_run_leaves_what_design_promises(trained: Path) -> None:
    assert {"config.json", "environment.json", "log.jsonl"} <= {path.name for path in trained.iterdir()}
    assert list(trained.glob("events.out.tfevents*"))
    assert list((trained / "samples").glob("reconstruction_*.png"))
    records = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss/kl" in record] == list(range(1, 13))
    held_out = {record["step"]: record["val/psnr_head"] for record in records if "val/psnr_head" in record}
    assert list(held_out) == [6, 12]
    assert held_out[12] > 15
    vae = load_vae(trained / "checkpoints/best.pt")
    assert vae.grid.name == "smoke"
    assert len(vae.ledger) == 16 * 2
    for name in ("best", "last"):
        assert load_vae(trained / f"checkpoints/{name}.pt").model.output.threshold > torch.finfo().min  # measured


@pytest.mark.slow
def test_killed_and_continued_equals_undisturbed(cohort_dir: Path, tmp_path: Path, trained: Path) -> None:
    words = ("smoke", *COMMON, *tables(cohort_dir, tmp_path))
    kill_at_step("VAE.train", *words, run_dir=tmp_path, step=8)
    assert load_checkpoint(tmp_path / "checkpoints/last.pt", "vae")["step"] < 12
    run_here("VAE.train", *words)
    for name in ("last", "best"):
        expected, actual = weights(trained, name), weights(tmp_path, name)
        assert all(torch.equal(expected[key], actual[key]) for key in expected)
    run_here("VAE.train", *words)  # a third time: nothing left to do
    assert all(torch.equal(expected[key], value) for key, value in weights(tmp_path, "best").items())


@pytest.mark.slow
def test_two_processes_equal_one(cohort_dir: Path, tmp_path: Path, trained: Path) -> None:
    script("VAE.train", "smoke", *COMMON, *tables(cohort_dir, tmp_path), processes=2)
    expected, actual = weights(trained), weights(tmp_path)
    # Adam turns the rounding of gradients near zero into steps of up to the learning rate (2e-3).
    apart = torch.cat([(actual[name] - expected[name]).flatten() for name in expected if "/output." not in name])
    for name in ("threshold", "decoded", "scans"):  # quantiles of what these weights decode
        assert (actual[f"ema/output.{name}"] - expected[f"ema/output.{name}"]).abs().max() < 0.02
    assert apart.abs().max() < 2e-3
    assert apart.norm() < 1e-3 * torch.cat([value.flatten() for value in expected.values()]).norm()
    start = build(PRESETS["smoke"], GRIDS["smoke"], Device(torch.device("cpu"), torch.float32))[0].state_dict()
    moved = [(expected[f"weights/{name}"] - value).norm() for name, value in start.items()]
    assert torch.stack(moved).norm() > 20 * apart.norm()  # training went further than the two are apart


@pytest.mark.slow
def test_infer_refuses_training_subjects_unless_told(cohort_dir: Path, tmp_path: Path, trained: Path) -> None:
    words = ("VAE.infer", "--checkpoint", trained / "checkpoints/best.pt", "--csv", cohort_dir / "train.csv",
             "--out", tmp_path, "--cache-dir", cohort_dir / "cache")  # fmt: skip
    refused = run_here(*words, ok=False)
    assert refused.returncode == 2
    assert "train00" in refused.stderr
    assert not list(tmp_path.iterdir())
    run_here(*words, "--allow-leak")
    assert json.loads((tmp_path / "summary.json").read_text())["subjects_seen_in_training"] is True


@pytest.mark.slow
def test_another_architecture_in_the_run_folder_is_refused(cohort_dir: Path, trained: Path) -> None:
    words = ("VAE.train", "smoke", *COMMON, *tables(cohort_dir, trained))
    refused = run_here(*words, "--model.latent-channels", 3, ok=False)
    assert refused.returncode == 2
    assert "'latent_channels': 4" in refused.stderr.replace('"', "'")
    (trained / "config.json").rename(trained / "config.old")
    try:
        refused = run_here(*words, "--model.latent-channels", 3, ok=False)
        assert refused.returncode == 2
        assert "latent_channels: the checkpoint has 4, this command 3" in refused.stderr
    finally:
        (trained / "config.old").replace(trained / "config.json")


@pytest.mark.slow
def test_a_run_of_an_older_version_goes_on(cohort_dir: Path, tmp_path: Path, trained: Path) -> None:
    """One whose configuration had fewer fields, in config.json and in the checkpoint."""
    shutil.copytree(trained, tmp_path / "run")
    last, config = tmp_path / "run/checkpoints/last.pt", tmp_path / "run/config.json"
    record, written = load_checkpoint(last, "vae"), json.loads(config.read_text())
    for model in (record["model_config"], written["model"]):
        for name in ("attention_side", "attention_levels", "upsampling"):
            del model[name]
    assert record["model_config"]["blocks"] == 1
    torch.save(record, last)
    config.write_text(json.dumps(written))
    assert load_vae(last).model.config == load_vae(trained / "checkpoints/last.pt").model.config
    done = run_here("VAE.train", "smoke", *COMMON, *tables(cohort_dir, tmp_path / "run"), "--steps", 13)
    assert "continuing at step 12" in done.stdout


def test_a_shared_subject_is_refused(cohort_dir: Path, tmp_path: Path) -> None:
    words = tables(cohort_dir, tmp_path / "shared")
    refused = run_here("VAE.train", "smoke", *words[:3], cohort_dir / "train.csv", *words[4:], ok=False)
    assert refused.returncode == 2
    assert "train00" in refused.stderr


@pytest.mark.slow
def test_parts_of_a_batch_are_the_batch_and_patches_are_of_its_volumes(cohort_dir: Path, tmp_path: Path) -> None:
    """Discriminator and autoencoder alike; a patch as large as the volume is the volume."""
    brief = ("--steps", 4, "--warmup-steps", 1, "--log-every-steps", 1, "--val-every-steps", 4, "--threads", 1,
             "--precision", "float32", "--loss.adversarial", 0.1, "--loss.adversarial-start-step", 2,
             "--loss.adversarial-warmup-steps", 1)  # fmt: skip
    changes = {"whole": (), "parts": ("--micro-batch", 2, "--recompute"), "cubes": ("--patch", 30),
               "small": ("--patch", 16)}  # fmt: skip
    lines = {}
    for name, words in changes.items():
        done = run_here("VAE.train", "smoke", *tables(cohort_dir, tmp_path / name), *brief, *words)
        assert ("--patch 30 cuts nothing" in done.stdout) == (name == "cubes")
        lines[name] = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
    for name in ("loss/train", "loss/discriminator", "scaled/adversarial", "grad/norm"):
        whole, parts, cubes, small = ([line[name] for line in lines[run] if name in line] for run in changes)
        assert len(whole) >= 3
        assert parts == pytest.approx(whole, rel=5e-3), name  # from 1e-7 rounding grows tenfold by each of these steps
        assert cubes == whole, name
        assert small != whole
    loaded = load_vae(tmp_path / "small/checkpoints/best.pt")
    assert loaded.grid == GRIDS["smoke"]


@pytest.mark.slow
def test_weights_of_another_grid_are_taken_on_request_alone(cohort_dir: Path, tmp_path: Path, trained: Path) -> None:
    start = trained / "checkpoints/best.pt"
    words = ("VAE.train", "smoke", *COMMON, *tables(cohort_dir, tmp_path), "--grid", "9@160x190x160", "--init", start)
    refused = run_here(*words, ok=False)
    assert refused.returncode == 2
    assert "trained on the grid smoke (20, 24, 20), this run has 9@162x198x162 (18, 22, 18)" in refused.stderr
    run_here(*words, "--init-other-grid", "--steps", 1, "--warmup-steps", 1, "--lr", 0)
    old, new = load_vae(start), load_vae(tmp_path / "checkpoints/last.pt", weights="raw")
    assert new.grid.shape == (18, 22, 18)
    expected = old.model.state_dict()
    moved = {name: value for name, value in new.model.state_dict().items() if not name.startswith("output.")}
    assert all(torch.equal(expected[name], value) for name, value in moved.items())


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(cohort_dir: Path, tmp_path: Path) -> None:
    done = run_here("VAE.train", "smoke", *COMMON, "--lr", "1e30", *tables(cohort_dir, tmp_path), ok=False)
    assert done.returncode == 2
    assert "is not finite" in done.stderr
    assert "loss of step" in done.stderr
    saved = tmp_path / "checkpoints/last.pt"
    assert not saved.exists() or all(value.isfinite().all() for value in weights(tmp_path).values())


@pytest.mark.slow
def test_what_was_advised_after_a_loss_that_is_not_finite_works(cohort_dir: Path, tmp_path: Path) -> None:
    """Before the first checkpoint a lower rate goes on in the same folder; and later more steps do."""
    words = ("VAE.train", "smoke", *COMMON[:2], "--threads", 1, *tables(cohort_dir, tmp_path))
    done = run_here(*words, "--lr", "1e30", "--clip-norm", "1e30", "--warmup-steps", 0, ok=False)
    assert done.returncode == 2
    assert "Nothing had been saved yet" in done.stderr
    validated = ("--val-every-steps", 1, "--lr", "1e6", "--clip-norm", "1e9", "--warmup-steps", 0)
    assert "is not finite" in run_here(*words, *validated, ok=False).stderr
    run_here(*words, "--steps", 6)
    longer = run_here(*words, "--steps", 8)
    assert "6 steps become 8" in longer.stdout
    assert load_checkpoint(tmp_path / "checkpoints/last.pt", "vae")["step"] == 8


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_one_sentence(cohort_dir: Path, tmp_path: Path) -> None:
    words = ("VAE.train", "smoke", "--batch-size", 3, *tables(cohort_dir, tmp_path / "run"))
    done = script(*words, processes=2, ok=False)
    assert "--batch-size 3 does not divide over 2 processes" in done.stderr
    assert "VAE/train.py" not in done.stderr  # no traceback of ours
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--patch", 7), "--patch 7: expected a multiple of 2"),
        (("--patch", 8, "--loss.perceptual", 0.1), "--patch 8: the networks of the loss need 16 voxels per side"),
        (
            (
                "--loss.perceptual",
                0.1,
                "--loss.perceptual-network",
                "medicalnet_resnet10_23datasets",
                "--micro-batch",
                2,
            ),
            "--loss.perceptual-network medicalnet_resnet10_23datasets is normalised over all",
        ),
        (("--patch", 8, "--loss.adversarial", 0.1), "--patch 8: the networks of the loss need 16 voxels per side"),
        (("--batch-size", 0), "--batch-size 0: expected 1 or more"),
        (("--micro-batch", -1), "--micro-batch -1: expected 1 or more"),
        (("--micro-batch", 1, "--fit", 24), "--fit chooses --micro-batch; give one of the two"),
        (("--fit", "nan"), "--fit nan"),
        (("--fit", 0.01), "--fit 0.01: "),
    ],
)
def test_what_cannot_be_trained_with_is_one_sentence(words: tuple, said: str, cohort_dir: Path, tmp_path: Path) -> None:
    refused = run_here("VAE.train", "smoke", *tables(cohort_dir, tmp_path / "run"), *words, ok=False)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "run").exists()


def test_missing_perceptual_weights_are_an_error_never_a_zero(cohort_dir: Path, tmp_path: Path) -> None:
    refused = run_here(
        "VAE.train", "smoke", *tables(cohort_dir, tmp_path / "run"), "--loss.perceptual", 0.1,
        "--loss.perceptual-network", "radimagenet_resnet50", ok=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "--loss.perceptual-weights" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_training_stops_early_and_stays_stopped(cohort_dir: Path, tmp_path: Path) -> None:
    """With no learning rate nothing improves: the first validation is the best, and two more end the run."""
    words = ("smoke", "--steps", 40, "--val-every-steps", 2, "--save-every-steps", 20, "--lr", 0, "--patience", 2,
             "--threads", 1, *tables(cohort_dir, tmp_path))  # fmt: skip
    run_here("VAE.train", *words)
    assert load_checkpoint(tmp_path / "checkpoints/last.pt", "vae")["step"] == 6
    assert load_checkpoint(tmp_path / "checkpoints/best.pt", "vae")["step"] == 2
    run_here("VAE.train", *words)
    assert load_checkpoint(tmp_path / "checkpoints/last.pt", "vae")["step"] == 6


def test_a_table_of_one_class_is_refused_unless_told(cohort_dir: Path, tmp_path: Path) -> None:
    table = pd.read_csv(cohort_dir / "train.csv")
    table["file"] = [str((cohort_dir / name).resolve()) for name in table.file]
    table[table.diagnosis == "HC"].to_csv(tmp_path / "hc.csv", index=False)
    words = ("VAE.train", "smoke", "--steps", 2, "--train-csv", tmp_path / "hc.csv", "--threads", 1,
             *tables(cohort_dir, tmp_path / "run")[2:])  # fmt: skip
    refused = run_here(*words, ok=False)
    assert refused.returncode == 2
    assert "no scan of class TLE" in refused.stderr
    run_here(*words, "--allow-one-class")


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_and_the_run_continues(cohort_dir: Path, tmp_path: Path, trained: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=24) as disk:
        words = ("VAE.train", "smoke", *COMMON, *tables(cohort_dir, disk / "run"))
        kill_at_step(*words, run_dir=disk / "run", step=8)
        last = disk / "run/checkpoints/last.pt"
        before = last.read_bytes()
        filler = fill(disk, leave_kilobytes=200)
        refused = run_here(*words, ok=False)
        assert refused.returncode == 2
        assert "error: " in refused.stderr
        assert "Traceback" not in refused.stderr
        assert last.read_bytes() == before
        filler.unlink()
        run_here(*words)
        expected, actual = weights(trained), weights(disk / "run")
        assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_scans_that_cannot_be_used_are_all_named_at_once(cohort_dir: Path, tmp_path: Path) -> None:
    """Outside the grid, of one value, cut off: one message with file and reason for each, and no run folder."""
    affine = GRIDS["smoke"].affine.copy()
    affine[:3, 3] += 5000
    nib.save(
        nib.Nifti1Image(np.ones((8, 8, 8), np.float32) + np.eye(8, dtype=np.float32), affine), tmp_path / "far.nii.gz"
    )
    nib.save(nib.Nifti1Image(np.full((8, 8, 8), 7, np.float32), GRIDS["smoke"].affine), tmp_path / "flat.nii.gz")
    (tmp_path / "cut.nii.gz").write_bytes((cohort_dir / "train00.nii.gz").read_bytes()[:900])
    frame = pd.read_csv(cohort_dir / "train.csv")
    frame["file"] = [str(cohort_dir / name) for name in frame["file"]]
    for row, name in enumerate(("far", "flat", "cut")):
        frame.loc[row, "file"] = str(tmp_path / f"{name}.nii.gz")
    frame.to_csv(tmp_path / "train.csv", index=False)
    refused = run_here(
        "VAE.train", "smoke", "--train-csv", tmp_path / "train.csv", "--val-csv", cohort_dir / "val.csv",
        "--cache-dir", tmp_path / "cache", "--run-dir", tmp_path / "run", ok=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    for name, reason in (("far", "no head"), ("flat", "constant"), ("cut", "truncated")):
        assert any(f"{name}.nii.gz" in line and reason in line for line in refused.stderr.splitlines()), refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script_name", ["VAE.infer", "VAE.save_latent"])
def test_a_checkpoint_of_another_format_is_refused(
    cohort_dir: Path, tmp_path: Path, trained: Path, script_name: str
) -> None:
    record = load_checkpoint(trained / "checkpoints/best.pt", "vae")
    torch.save({**record, "format": 99}, tmp_path / "future.pt")
    refused = run_here(
        script_name, "--checkpoint", tmp_path / "future.pt", "--csv", cohort_dir / "test.csv",
        "--out", tmp_path / "out", ok=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "kind 'vae', format 99, expected" in refused.stderr
    assert not (tmp_path / "out").exists()
