"""Training: what a run leaves, resume after SIGKILL, two processes, refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cohort.grids import parse_grid
from diffusion import train
from diffusion.checkpoint import load_diffusion
from diffusion.config import PRESETS
from diffusion.model.dit import resized
from runtime.checkpoints import load_checkpoint
from runtime.cli import parse
from runtime.device import pick_device
from runtime.errors import InputError, InputWarning
from runtime.pickles import load_pickle, save_pickle
from tests.support.processes import kill_at_step, run_here, script
from tests.support.volumes import volumes_ml, write_synthseg
from VAE import save_latent
from VAE.checkpoint import load_vae, save_vae
from VAE.latents import read_latent, read_statistics, write_latent

COMMON = ("--steps", 12, "--save-every-steps", 3, "--val-every-steps", 6, "--log-every-steps", 1, "--threads", 1)


def run(*words: object) -> None:
    """``python -m diffusion.train smoke`` with short intervals, in this process."""
    train.main(parse(PRESETS, ["smoke", *map(str, COMMON), *map(str, words)]))


def refused(said: str, *words: object) -> None:
    with pytest.raises(InputError) as refusal:
        run(*words)
    assert said in str(refusal.value)


@pytest.fixture(scope="module")
def latents(random_vae: Path, cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of both tables."""
    folder = tmp_path_factory.mktemp("latents")
    tables = (cohort_dir / "train.csv", cohort_dir / "val.csv")
    save_latent.main(
        save_latent.SaveLatentConfig(random_vae, tables, folder, cache_dir=cohort_dir / "cache", threads=1)
    )
    return folder


@pytest.fixture(scope="module")
def trained(random_vae: Path, latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished short run."""
    run_dir = tmp_path_factory.mktemp("diffusion")
    run("--latents", latents, "--run-dir", run_dir, "--vae", random_vae, "--sample-every-steps", 6)
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
    assert set(json.loads((latents / "statistics.json").read_text())["ledger"]) < set(loaded.ledger)
    assert loaded.label_dropout == 0.1


@pytest.mark.slow
def test_killed_and_continued_equals_undisturbed(
    random_vae: Path, latents: Path, tmp_path: Path, trained: Path
) -> None:
    words = ("--latents", latents, "--run-dir", tmp_path, "--vae", random_vae, "--sample-every-steps", 6)
    kill_at_step("diffusion.train", "smoke", *COMMON, *words, run_dir=tmp_path, step=8)
    assert load_checkpoint(tmp_path / "checkpoints/last.pt", "diffusion")["step"] < 12
    run(*words)
    for name in ("last", "best"):
        expected, actual = weights(trained, name), weights(tmp_path, name)
        assert all(torch.equal(expected[key], actual[key]) for key in expected)


@pytest.mark.slow
def test_two_processes_equal_one(latents: Path, tmp_path: Path) -> None:
    words = ("--precision", "float32", "--latents", latents, "--run-dir")
    run(*words, tmp_path / "one")
    script("diffusion.train", "smoke", *COMMON, *words, tmp_path / "two", processes=2)
    expected, actual = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=2e-4, rtol=1e-3)


def test_another_vae_is_refused(random_vae: Path, latents: Path, tmp_path: Path) -> None:
    record = load_checkpoint(random_vae, "vae")
    torch.save({**record, "step": record["step"] + 1}, tmp_path / "changed.pt")
    words = ("--latents", latents, "--run-dir", tmp_path / "run", "--vae", tmp_path / "changed.pt")
    refused("the latents came from", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model.patch", 32, 2, 2), "larger than the latent"),
        (("--val-split", "nowhere"), "no latents"),
        (("--model.dim", 65, "--model.heads", 2), "does not divide"),
        (("--model.linear-rank", -1), "--model.linear-rank -1: expected 0 or more"),
        (("--model.means-window", -1), "--model.means-window -1: expected 0 or more"),
        (("--model.linear-rank", 0, "--model.means-window", 1), "--model.means-window 1 is of the start"),
    ],
)
def test_models_that_do_not_fit_are_refused(latents: Path, tmp_path: Path, words: tuple, message: str) -> None:
    refused(message, "--latents", latents, "--run-dir", tmp_path, *words)


@pytest.mark.parametrize(("asked", "taken"), [(6, 6), (7, 3)])
def test_a_linear_start_has_axes_that_the_latents_bear(
    latents: Path, tmp_path: Path, asked: int, taken: int, capsys: pytest.CaptureFixture
) -> None:
    """Of 12; a checkpoint says how many it has."""
    run("--latents", latents, "--run-dir", tmp_path, "--model.linear-rank", asked)
    assert load_diffusion(tmp_path / "checkpoints/best.pt").model.config.linear_rank == taken
    said = f"a linear start of {taken} axes instead of {asked}: a quarter of the 12 latents"
    assert (said in capsys.readouterr().out) == (taken < asked)


def test_latents_of_two_vaes_and_missing_statistics_are_refused(latents: Path, tmp_path: Path) -> None:
    copy = tmp_path / "latents"
    shutil.copytree(latents, copy)
    (copy / "statistics.json").unlink()
    refused("statistics.json: no such file", "--latents", copy, "--run-dir", tmp_path / "run")
    (copy / "statistics.json").write_text((latents / "statistics.json").read_text().replace('"vae": "', '"vae": "0'))
    refused("statistics.json is of", "--latents", copy, "--run-dir", tmp_path / "run")


def test_latents_of_other_programs_are_trained_on_once_their_statistics_are_made(
    latents: Path, random_vae: Path, tmp_path: Path
) -> None:
    for path in latents.glob("*/*.pkl"):
        record = load_pickle(path)
        save_pickle(
            tmp_path / "codes" / path.parent.name / path.name, {n: record[n] for n in ("mu", "logvar", "label")}
        )
    words = ("--latents", tmp_path / "codes", "--run-dir", tmp_path / "run")
    refused("--statistics-of", *words)
    run_here("VAE.save_latent", "--checkpoint", random_vae, "--statistics-of", tmp_path / "codes")
    ours, theirs = (read_statistics(folder) for folder in (latents, tmp_path / "codes"))
    assert (theirs.mean, theirs.std, theirs.count, theirs.vae) == (ours.mean, ours.std, ours.count, ours.vae)
    run(*words, "--vae", random_vae)
    assert load_diffusion(tmp_path / "run/checkpoints/best.pt").space.statistics.vae == ours.vae


def test_training_stops_early_and_stays_stopped(
    latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a learning rate of 0 nothing gets better, so that the second validation is one too many."""
    words = ("--latents", latents, "--run-dir", tmp_path, "--val-every-steps", 2, "--lr", 0, "--patience", 1)
    run(*words)
    assert "stopped early: 1 validations without a better one" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "checkpoints/last.pt", "diffusion")["step"] == 4
    run(*words)
    assert log(tmp_path)[-1]["step"] == 4


def test_means_are_learned_without_the_noise_of_posteriors(latents: Path) -> None:
    config = replace(PRESETS["smoke"], latents=latents, sample_posterior=False)
    data = train.load_latents(config, pick_device(threads=1))
    draws = train.load_latents(replace(config, sample_posterior=True), pick_device(threads=1))
    noise = torch.randn(data.train.mu.shape)
    for split, other in ((data.train, draws.train), (data.val, draws.val)):
        part = torch.arange(len(split))
        assert torch.equal(split.batch(part, noise[: len(part)]).z, split.mu)
        assert not torch.equal(other.batch(part, noise[: len(part)]).z, other.mu)
    assert torch.equal(data.space.spread, draws.space.spread)


def test_covariates_travel_from_the_tables_to_the_checkpoint(cohort_dir: Path, latents: Path, tmp_path: Path) -> None:
    words = ("--latents", latents, "--run-dir", tmp_path, "--model.covariates", "age", "sex")
    refused("needs --tables", *words)
    run(*words, "--tables", cohort_dir / "train.csv", cohort_dir / "val.csv")
    loaded = load_diffusion(tmp_path / "checkpoints/best.pt")
    assert loaded.covariates["age"] == pytest.approx((25.5, 13**0.5))  # 12 training subjects aged 20 to 31
    assert loaded.model.config.covariates == ("age", "sex")


def test_volumes_travel_from_a_tools_table_to_the_checkpoint(latents: Path, tmp_path: Path) -> None:
    """Of three of the subjects nothing is known; the scale is that of the others, in ml."""
    words = ("--latents", latents, "--run-dir", tmp_path / "run", "--model.covariates", "hippocampus_left")
    refused("hippocampus_left needs --volumes", *words)
    names = [path.stem for split in ("train", "val") for path in sorted((latents / split).glob("*.pkl"))]
    ml = volumes_ml(len(names))
    ml[:3, 0] = 0
    with pytest.warns(InputWarning, match="3 of 12 scans"):
        run(*words, "--volumes", write_synthseg(tmp_path, ml, names))
    loaded = load_diffusion(tmp_path / "run/checkpoints/best.pt")
    scale = loaded.covariates["hippocampus_left"]
    assert scale == pytest.approx((ml[3:12, 0].mean(), ml[3:12, 0].std(ddof=1)), rel=1e-4)
    assert loaded.model.start.slopes.abs().max() > 0.01


def test_mirror_images_have_the_volumes_of_the_other_side(latents: Path, tmp_path: Path) -> None:
    shutil.copytree(latents, tmp_path / "latents")
    paths = sorted((tmp_path / "latents/train").glob("*.pkl"))
    for path in paths[:4]:
        write_latent(path, replace(read_latent(path), mirrored=True))
    names = [path.stem for split in ("train", "val") for path in sorted((latents / split).glob("*.pkl"))]
    ml = volumes_ml(len(names))
    words = ("--latents", tmp_path / "latents", "--run-dir", tmp_path / "run", "--model.covariates", "hippocampus_left")
    run(*words, "--volumes", write_synthseg(tmp_path, ml, names))
    left = np.concatenate([ml[:4, 1], ml[4:12, 0]])
    scale = load_diffusion(tmp_path / "run/checkpoints/best.pt").covariates["hippocampus_left"]
    assert scale == pytest.approx((left.mean(), left.std(ddof=1)), rel=1e-4)


@pytest.mark.slow
def test_sides_are_a_condition_where_latents_name_both(
    random_vae: Path, latents: Path, tmp_path: Path, trained: Path
) -> None:
    """The patients of the fixture are all of one side: no condition. The label's dropout hides the side too."""
    assert not load_diffusion(trained / "checkpoints/best.pt").model.config.sides
    shutil.copytree(latents, tmp_path / "latents")
    patients = [path for path in sorted((tmp_path / "latents").rglob("*.pkl")) if read_latent(path).label == 1]
    for path in patients[::2]:
        write_latent(path, replace(read_latent(path), side="R"))
    words = ("--latents", tmp_path / "latents", "--steps", 6, "--vae", random_vae, "--sample-every-steps", 6)
    run(*words, "--run-dir", tmp_path / "run")
    model = load_diffusion(tmp_path / "run/checkpoints/best.pt").model
    assert model.config.sides
    assert not torch.equal(model.start.means[3], model.start.means[4])
    assert (tmp_path / "run/samples/samples_000006.png").exists()
    words = ("--latents", tmp_path / "latents", "--steps", 6, "--label-dropout", 0)
    for name, dropout, moved in (("always", 1.0, [False, False, True]), ("never", 0.0, [True, True, True])):
        run(
            *words,
            "--run-dir",
            tmp_path / name,
            "--side-dropout",
            dropout,
            "--init",
            tmp_path / "run/checkpoints/best.pt",
        )
        after = load_diffusion(tmp_path / name / "checkpoints/last.pt", weights="raw").model.side.weight
        assert (after != model.side.weight).any(dim=1).tolist() == moved
    run(*words, "--run-dir", tmp_path / "off", "--model.no-sides")
    assert load_diffusion(tmp_path / "off/checkpoints/best.pt").model.side is None


def test_a_run_goes_on_from_finished_weights_in_their_space(trained: Path, latents: Path, tmp_path: Path) -> None:
    best = trained / "checkpoints/best.pt"
    run("--latents", latents, "--init", best, "--run-dir", tmp_path / "run", "--lr", 0)
    before, after = load_diffusion(best), load_diffusion(tmp_path / "run/checkpoints/best.pt")
    assert all(torch.equal(value, after.model.state_dict()[name]) for name, value in before.model.state_dict().items())
    assert torch.equal(before.space.spread, after.space.spread)
    other = ("--latents", latents, "--init", best, "--run-dir", tmp_path / "other", "--model.depth", 3)
    refused("model_config.depth: the checkpoint has 2, this command 3", *other)


def test_parts_of_a_batch_with_recomputed_activations_are_the_batch(
    trained: Path, latents: Path, tmp_path: Path
) -> None:
    run("--latents", latents, "--run-dir", tmp_path, "--micro-batch", 2, "--recompute")
    whole, parts = (
        [record["loss/train"] for record in log(folder) if "loss/train" in record] for folder in (trained, tmp_path)
    )
    assert parts == pytest.approx(whole, rel=1e-3)
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)
    refused("--micro-batch 3 does not divide the 8 cases", "--latents", latents, "--run-dir", tmp_path / "no",
            "--micro-batch", 3)  # fmt: skip


@pytest.fixture(scope="module")
def coarser(random_vae: Path, cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of the same scans on another grid, by the same weights."""
    folder, loaded = tmp_path_factory.mktemp("coarser"), load_vae(random_vae)
    weights = loaded.model.state_dict()
    save_vae(folder / "vae.pt", loaded.model, grid=parse_grid("11@160x190x160"), ledger=[], step=1, ema=weights)
    tables = (cohort_dir / "train.csv", cohort_dir / "val.csv")
    config = save_latent.SaveLatentConfig(folder / "vae.pt", tables, folder / "latents", cache_dir=folder, threads=1)
    save_latent.main(config)
    return folder / "latents"


def test_weights_of_another_grid_are_taken_on_request_alone(trained: Path, coarser: Path, tmp_path: Path) -> None:
    """Their positions are interpolated; the latent space and the linear start are those of the latents here."""
    best = trained / "checkpoints/best.pt"
    words = ("--latents", coarser, "--init", best, "--run-dir", tmp_path / "run")
    refused("trained on the grid smoke (20, 24, 20), this run has 11@165x198x165 (15, 18, 15)", *words)
    run(*words, "--init-other-grid", "--lr", 0)
    run("--latents", coarser, "--run-dir", tmp_path / "new", "--lr", 0)
    old, moved, new = (
        load_diffusion(path / "checkpoints/best.pt") for path in (trained, tmp_path / "run", tmp_path / "new")
    )
    assert (old.model.tokens, moved.model.tokens) == ((5, 6, 5), (4, 5, 4))
    assert moved.model.latent_shape == (4, 8, 9, 8)
    before, after, fresh = (loaded.model.state_dict() for loaded in (old, moved, new))
    assert all(torch.equal(after[name], fresh[name]) for name in after if name.startswith("start."))
    before["positions"] = resized(before["positions"], (5, 6, 5), (4, 5, 4))
    assert all(torch.equal(after[name], before[name]) for name in after if not name.startswith("start."))
    assert torch.equal(moved.space.spread, new.space.spread)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(latents: Path, tmp_path: Path) -> None:
    words = ("--latents", latents, "--run-dir", tmp_path, "--clip-norm", 1e30, "--warmup-steps", 1, "--lr", 1e30)
    refused("is not finite", *words)
    last = tmp_path / "checkpoints/last.pt"
    assert not last.exists() or all(value.isfinite().all() for value in weights(tmp_path).values())


def test_latents_of_one_class_are_refused(latents: Path, tmp_path: Path) -> None:
    copy = tmp_path / "latents"
    shutil.copytree(latents, copy)
    for path in (copy / "train").glob("*.pkl"):
        if read_latent(path).label == 1:
            path.unlink()
    refused("labels [0], expected each of 0 to 1 at least once", "--latents", copy, "--run-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_choice_of_the_best_step_begins_anew_when_the_rate_has_halved() -> None:
    config = replace(PRESETS["demo"], steps=100, warmup_steps=10, decay_share=0.5, val_every_steps=20, lr=1.0)
    assert train.rate(60, config) > 0.5 >= train.rate(80, config)
    assert [step for step in range(20, 101, 20) if train.settles(step, config)] == [80]
    assert not any(train.settles(step, replace(config, decay_share=0.0)) for step in range(20, 101, 20))
    assert train.settles(100, replace(config, val_every_steps=100))
