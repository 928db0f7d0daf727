"""A grid whose sizes divide by nothing goes through all stages, by the commands that a user types."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cohort.grids import parse_grid
from cohort.scans import load_scan
from cohort.volumes import read_volume
from runtime.files import read_json
from tests.support.processes import run_here
from VAE.latents import read_latent

TEXT = "7.5@161x187x150"
GRID = parse_grid(TEXT)
BRIEF = ("--steps", 2, "--warmup-steps", 1, "--val-every-steps", 2, "--save-every-steps", 2, "--batch-size", 2)


@pytest.mark.slow
def test_all_stages_work_on_it(cohort_dir: Path, tmp_path: Path) -> None:
    assert GRID.shape == (22, 25, 20)
    tables = {name: cohort_dir / f"{name}.csv" for name in ("train", "val", "test")}
    splits = ("--train-csv", tables["train"], "--val-csv", tables["val"], "--cache-dir", tmp_path / "cache")
    vae, diffusion = (tmp_path / stage / "checkpoints/best.pt" for stage in ("vae", "diffusion"))
    model = ("--model.channels", 8, 8, "--model.groups", 4)  # a reduction by 4: 22 and 25 do not divide
    run_here("VAE.train", "smoke", "--grid", TEXT, *splits, *model, "--run-dir", tmp_path / "vae", *BRIEF)

    words = ("--checkpoint", vae, "--csv", tables["test"], "--cache-dir", tmp_path / "cache")
    for name, tile in (("whole", 0), ("tiles", 16)):
        run_here("VAE.infer", *words, "--out", tmp_path / name, "--tile", tile, "--nifti")
        image = nib.load(tmp_path / name / "test00_reconstruction.nii.gz")
        assert image.shape == GRID.shape
        assert np.allclose(image.affine, GRID.affine)
    scan = nib.load(tmp_path / "whole/test00_scan.nii.gz").get_fdata(dtype=np.float32)
    assert np.array_equal(scan, load_scan(cohort_dir / "test00.nii.gz", GRID))

    words = ("--checkpoint", vae, "--csv", tables["train"], tables["val"], "--cache-dir", tmp_path / "cache")
    run_here("VAE.save_latent", *words, "--out", tmp_path / "latents")
    latent = read_latent(tmp_path / "latents/train/train00.pkl")
    assert latent.mu.shape == (4, 6, 7, 5)
    assert latent.grid == GRID.to_dict()
    words = ("smoke", "--latents", tmp_path / "latents", "--vae", vae, "--sample-every-steps", 2)  # patches of 2: 7, 5
    run_here("diffusion.train", *words, "--run-dir", tmp_path / "diffusion", *BRIEF)
    for label in ("HC", "TLE"):
        out = ("--label", label, "--out", tmp_path / label, "--count", 4, "--steps", 2)
        run_here("diffusion.save_synth", "--vae", vae, "--diffusion", diffusion, *out)
    volume = read_volume(tmp_path / "HC/HC_000000.pkl")
    assert volume.image.shape == GRID.shape
    assert np.allclose(volume.affine, GRID.affine)

    made = ("--synth-hc", tmp_path / "HC", "--synth-tle", tmp_path / "TLE")
    real = ("--real-train", tables["train"], "--real-test", tables["test"], "--vae", vae)
    brief = ("--cache-dir", tmp_path / "features", "--repeats", 2, "--parts")
    run_here("evaluation.evaluate_synth", *real, *made, "--grid", TEXT, "--out", tmp_path / "evaluation.json", *brief)
    assert read_json(tmp_path / "evaluation.json")["protocol"]["grid"] == GRID.to_dict()
    out = ("--grid", "smoke", "--out", tmp_path / "other.json")
    other = run_here("evaluation.evaluate_synth", *real, *made, *out, *brief, ok=False)
    assert "shape (22, 25, 20), the grid smoke has (20, 24, 20)" in other.stderr

    words = ("smoke", "--grid", TEXT, *splits, "--test-csv", tables["test"], *made, "--synth-percent", 50)
    for network in ("hemispheres", "resnet"):
        run = ("--model.name", network, "--run-dir", tmp_path / network, *BRIEF[:-2])
        run_here("classifier.train", *words, *run)
    words = ("--checkpoint", tmp_path / "hemispheres/checkpoints/best.pt", "--csv", tables["test"], "--limit", 2)
    run_here("classifier.generate_saliency_maps", *words, "--methods", "occlusion", "--out", tmp_path / "maps")
    assert nib.load(next((tmp_path / "maps").rglob("*.nii.gz"))).shape == GRID.shape
