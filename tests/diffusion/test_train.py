"""Training as a process: what a run leaves, resume after SIGKILL, two processes, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from diffusion.checkpoint import load_diffusion
from runtime.checkpoints import load_checkpoint
from tests.support.processes import kill_at_step, script
from VAE.latents import read_latent

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
    states = {"raw": record["weights"], **record["ema"]}
    return {f"{kind}/{key}": value for kind, state in states.items() for key, value in state.items()}


def log(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_design_promises(trained: Path, latents: Path) -> None:
    assert {"config.json", "environment.json", "log.jsonl"} <= {path.name for path in trained.iterdir()}
    assert len(list((trained / "samples").glob("samples_*.png"))) == 2
    validations = [record for record in log(trained) if "loss/val" in record]
    assert [record["step"] for record in validations] == [6, 12]
    for record in validations:  # the better of two averages counts, and its loss by class and noise adds up to it
        assert record["loss/val"] == min(record["val/average_0.05"], record["val/average_0.15"])
        parts = [value for name, value in record.items() if name.startswith(("val/HC/", "val/TLE/"))]
        assert len(parts) == 10
        assert sum(parts) / 10 == pytest.approx(record["loss/val"], rel=1e-6)
    loaded = load_diffusion(trained / "checkpoints/best.pt")
    assert loaded.model.latent_shape == (4, 10, 12, 10)
    assert loaded.ledger == json.loads((latents / "statistics.json").read_text())["ledger"]
    assert loaded.label_dropout == 0.1


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


def test_another_vae_is_refused(vae: Path, latents: Path, tmp_path: Path) -> None:
    other = vae.with_name("last.pt")
    record = load_checkpoint(other, "vae")
    changed = tmp_path / "changed.pt"
    record["step"] += 1
    torch.save(record, changed)
    refused = script(
        "diffusion.train", "smoke", "--latents", latents, "--run-dir", tmp_path, "--vae", changed, ok=False
    )
    assert refused.returncode == 2
    assert "the latents came from" in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model.patch", 32, 2, 2), "larger than the latent"),
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


def test_training_stops_early_and_stays_stopped(latents: Path, tmp_path: Path) -> None:
    """At a learning rate of 0 nothing gets better, so that the second validation is one too many."""
    often = ("--val-every-steps", 2, "--lr", 0, "--patience", 1)
    words = ("smoke", *COMMON, "--latents", latents, "--run-dir", tmp_path, *often)
    assert "stopped early: 1 held-out losses without a better one" in script("diffusion.train", *words).stdout
    assert load_checkpoint(tmp_path / "checkpoints/last.pt", "diffusion")["step"] == 4
    script("diffusion.train", *words)
    assert log(tmp_path)[-1]["step"] == 4


def test_covariates_travel_from_the_tables_to_the_checkpoint(cohort_dir: Path, latents: Path, tmp_path: Path) -> None:
    words = ("smoke", *COMMON, "--latents", latents, "--run-dir", tmp_path, "--model.covariates", "age", "sex")
    refused = script("diffusion.train", *words, ok=False)
    assert refused.returncode == 2
    assert "needs --tables" in refused.stderr
    script("diffusion.train", *words, "--tables", cohort_dir / "train.csv", cohort_dir / "val.csv")
    loaded = load_diffusion(tmp_path / "checkpoints/best.pt")
    assert loaded.covariates["age"] == pytest.approx((25.5, 13**0.5))  # 12 training subjects aged 20 to 31
    assert loaded.model.config.covariates == ("age", "sex")


def test_a_run_goes_on_from_finished_weights_in_their_space(trained: Path, latents: Path, tmp_path: Path) -> None:
    best = trained / "checkpoints/best.pt"
    common = ("smoke", *COMMON, "--latents", latents, "--init", best)
    script("diffusion.train", *common, "--run-dir", tmp_path / "run", "--lr", 0)
    before, after = load_diffusion(best), load_diffusion(tmp_path / "run/checkpoints/best.pt")
    assert all(torch.equal(value, after.model.state_dict()[name]) for name, value in before.model.state_dict().items())
    assert torch.equal(before.space.spread, after.space.spread)
    refused = script("diffusion.train", *common, "--run-dir", tmp_path / "other", "--model.depth", 3, ok=False)
    assert refused.returncode == 2
    assert "model_config.depth: the checkpoint has 2, this run 3" in refused.stderr


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(latents: Path, tmp_path: Path) -> None:
    words = ("smoke", *COMMON, "--latents", latents, "--run-dir", tmp_path, "--clip-norm", 1e30, "--warmup-steps", 1)
    refused = script("diffusion.train", *words, "--lr", 1e30, ok=False)
    assert refused.returncode == 2
    assert "is not finite" in refused.stderr
    last = tmp_path / "checkpoints/last.pt"
    assert not last.exists() or all(value.isfinite().all() for value in weights(tmp_path).values())


def test_latents_of_one_class_are_refused(latents: Path, tmp_path: Path) -> None:
    copy = tmp_path / "latents"
    shutil.copytree(latents, copy)
    for path in (copy / "train").glob("*.pkl"):
        if read_latent(path).label == 1:
            path.unlink()
    refused = script("diffusion.train", "smoke", "--latents", copy, "--run-dir", tmp_path / "run", ok=False)
    assert refused.returncode == 2
    assert "labels [0], expected each of 0 to 1 at least once" in refused.stderr
    assert not (tmp_path / "run").exists()
