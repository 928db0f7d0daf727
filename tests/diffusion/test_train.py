"""The diffusion scripts as processes: train, resume after SIGKILL, two processes, sampling, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from cohort.scans import GRIDS
from cohort.volumes import read_volume
from diffusion.checkpoint import load_diffusion
from runtime.checkpoints import load_checkpoint
from tests.processes import kill_at_step, script

COMMON = ("--steps", 12, "--save-every-steps", 3, "--val-every-steps", 6, "--log-every-steps", 1, "--threads", 1)


@pytest.fixture(scope="module")
def vae(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a VAE after a few steps, with latents of both tables beside its run."""
    folder = tmp_path_factory.mktemp("stage1")
    script("VAE.train", "smoke", "--steps", 4, "--train-csv", cohort_dir / "train.csv", "--val-csv",
           cohort_dir / "val.csv", "--run-dir", folder / "vae", "--cache-dir", cohort_dir / "cache")  # fmt: skip
    checkpoint = folder / "vae/checkpoints/best.pt"
    script("VAE.save_latent", "--checkpoint", checkpoint, "--csv", cohort_dir / "train.csv", cohort_dir / "val.csv",
           "--out", folder / "latents", "--cache-dir", cohort_dir / "cache")  # fmt: skip
    return checkpoint


@pytest.fixture(scope="module")
def latents(vae: Path) -> Path:
    return vae.parents[2] / "latents"


@pytest.fixture(scope="module")
def trained(vae: Path, latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished short run."""
    run_dir = tmp_path_factory.mktemp("diffusion")
    words = ("--latents", latents, "--run-dir", run_dir, "--vae", vae, "--sample-every-steps", 6)
    script("diffusion.train", "smoke", *COMMON, *words)
    return run_dir


def weights(run_dir: Path, name: str = "last") -> dict[str, torch.Tensor]:
    record = load_checkpoint(run_dir / "checkpoints" / f"{name}.pt", "diffusion")
    return {f"{kind}/{key}": value for kind in ("weights", "ema") for key, value in record[kind].items()}


def test_a_run_leaves_what_design_promises(trained: Path, latents: Path) -> None:
    assert {"config.json", "environment.json", "log.jsonl"} <= {path.name for path in trained.iterdir()}
    assert len(list((trained / "samples").glob("samples_*.png"))) == 2
    records = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss/val" in record] == [6, 12]
    loaded = load_diffusion(trained / "checkpoints/best.pt")
    assert loaded.model.latent_shape == (4, 10, 12, 10)
    assert loaded.ledger == json.loads((latents / "statistics.json").read_text())["ledger"]


def test_killed_and_continued_equals_undisturbed(vae: Path, latents: Path, tmp_path: Path, trained: Path) -> None:
    words = ("smoke", *COMMON, "--latents", latents, "--run-dir", tmp_path, "--vae", vae, "--sample-every-steps", 6)
    kill_at_step("diffusion.train", *words, run_dir=tmp_path, step=8)
    assert load_checkpoint(tmp_path / "checkpoints/last.pt", "diffusion")["step"] < 12
    script("diffusion.train", *words)
    for name in ("last", "best"):
        expected, actual = weights(trained, name), weights(tmp_path, name)
        assert all(torch.equal(expected[key], actual[key]) for key in expected)


def test_two_processes_equal_one(latents: Path, tmp_path: Path) -> None:
    words = ("smoke", *COMMON, "--precision", "float32", "--latents", latents, "--run-dir")
    script("diffusion.train", *words, tmp_path / "one")
    script("diffusion.train", *words, tmp_path / "two", processes=2)
    expected, actual = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=2e-4, rtol=1e-3)


def synth(vae: Path, trained: Path, out: Path, *words: object, processes: int = 1, ok: bool = True):
    return script(
        "diffusion.save_synth", "--vae", vae, "--diffusion", trained / "checkpoints/best.pt", "--steps", 5,
        "--threads", 1, "--out", out, *words, processes=processes, ok=ok,
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*.pkl"))}


def test_volume_k_has_the_same_bytes_in_any_run(vae: Path, trained: Path, tmp_path: Path) -> None:
    synth(vae, trained, tmp_path / "all", "--label", "TLE", "--count", 5, "--sampler", "ddpm", "--nifti")
    expected = contents(tmp_path / "all")
    assert list(expected) == [f"TLE_{k:06d}.pkl" for k in range(5)]
    synth(vae, trained, tmp_path / "two", "--label", "TLE", "--count", 5, "--sampler", "ddpm", processes=2)
    assert contents(tmp_path / "two") == expected
    synth(vae, trained, tmp_path / "alone", "--label", "TLE", "--count", 1, "--first-seed", 3, "--sampler", "ddpm")
    assert contents(tmp_path / "alone") == {"TLE_000003.pkl": expected["TLE_000003.pkl"]}
    (tmp_path / "all/TLE_000002.pkl").unlink()  # as a kill would leave it
    (tmp_path / "all/.tmp-x1.pkl").write_bytes(expected["TLE_000002.pkl"][:100])
    synth(vae, trained, tmp_path / "all", "--label", "TLE", "--count", 5, "--sampler", "ddpm", "--nifti")
    assert contents(tmp_path / "all") == expected

    volume = read_volume(tmp_path / "all/TLE_000004.pkl")
    image = nib.load(tmp_path / "all/TLE_000004.nii.gz")
    np.testing.assert_allclose(image.affine, GRIDS["smoke"].affine)
    np.testing.assert_allclose(image.get_fdata(), volume.image, atol=1e-6)
    assert (image.get_sform(coded=True)[1], image.get_qform(coded=True)[1]) == (4, 4)
    manifest = pd.read_csv(tmp_path / "all/manifest.csv")
    assert manifest.seed.tolist() == list(range(5))
    assert set(manifest.vae) == {volume.vae}
    assert len(json.loads((tmp_path / "all/ledger.json").read_text())["ledger"]) == 32


def test_batches_give_the_same_volumes_to_rounding(vae: Path, trained: Path, tmp_path: Path) -> None:
    common = ("--count", 4, "--precision", "float32")
    synth(vae, trained, tmp_path / "one", *common)
    synth(vae, trained, tmp_path / "four", *common, "--batch-size", 4)
    for path in (tmp_path / "one").glob("*.pkl"):
        a, b = read_volume(path), read_volume(tmp_path / "four" / path.name)
        np.testing.assert_allclose(a.image, b.image, atol=1e-4)


def test_a_folder_of_other_settings_is_refused(vae: Path, trained: Path, tmp_path: Path) -> None:
    synth(vae, trained, tmp_path, "--count", 1)
    refused = synth(vae, trained, tmp_path, "--count", 2, "--guidance", 2.0, ok=False)
    assert refused.returncode == 2
    assert "HC_000000.pkl: guidance 1.0, not 2.0" in refused.stderr
    assert len(contents(tmp_path)) == 1


def test_another_vae_is_refused(vae: Path, trained: Path, latents: Path, tmp_path: Path) -> None:
    other = vae.with_name("last.pt")
    record = load_checkpoint(other, "vae")
    changed = tmp_path / "changed.pt"
    record["step"] += 1
    torch.save(record, changed)
    refused = synth(changed, trained, tmp_path / "out", ok=False)
    assert refused.returncode == 2
    assert "was trained on latents of" in refused.stderr
    assert not (tmp_path / "out").exists()
    refused = script(
        "diffusion.train", "smoke", "--latents", latents, "--run-dir", tmp_path, "--vae", changed, ok=False
    )
    assert refused.returncode == 2
    assert "the latents came from" in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model.patch", 32, 2, 2), "larger than the latent"),
        (("--model.latent-channels", 3), "latents of 4 channels"),
        (("--val-split", "nowhere"), "no latents"),
        (("--model.dim", 65, "--model.heads", 2), "does not divide"),
    ],
)
def test_models_that_do_not_fit_are_refused(latents: Path, tmp_path: Path, words: tuple, message: str) -> None:
    refused = script("diffusion.train", "smoke", "--latents", latents, "--run-dir", tmp_path, *words, ok=False)
    assert refused.returncode == 2
    assert message in refused.stderr


def test_latents_of_two_vaes_and_missing_statistics_are_refused(latents: Path, tmp_path: Path) -> None:
    copy = tmp_path / "latents"
    shutil.copytree(latents, copy)
    (copy / "statistics.json").unlink()
    refused = script("diffusion.train", "smoke", "--latents", copy, "--run-dir", tmp_path / "run", ok=False)
    assert refused.returncode == 2
    assert "statistics.json: no such file" in refused.stderr
    (copy / "statistics.json").write_text((latents / "statistics.json").read_text().replace('"vae": "', '"vae": "0'))
    refused = script("diffusion.train", "smoke", "--latents", copy, "--run-dir", tmp_path / "run", ok=False)
    assert refused.returncode == 2
    assert "statistics.json is of" in refused.stderr


def test_more_steps_than_the_schedule_has_are_refused(vae: Path, trained: Path, tmp_path: Path) -> None:
    refused = synth(vae, trained, tmp_path / "out", "--steps", 1001, ok=False)
    assert refused.returncode == 2
    assert "the schedule has 1000" in refused.stderr
