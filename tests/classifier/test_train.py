import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from classifier import train
from classifier.checkpoint import load_classifier
from classifier.dataset import Answers, Volumes
from classifier.measures.predictions import COLUMNS, OPTIONAL, read_predictions
from cohort.tables import read_table, write_table
from runtime.device import Device
from runtime.errors import InputError
from runtime.files import ROOT, read_json
from runtime.training import State, balanced_rows
from tests.support.processes import run_here


def command(config, *extra: str) -> list[str]:
    """The command line of a configuration that differs from the smoke preset in these fields."""
    flags = [
        "--train-csv", config.train_csv, "--val-csv", config.val_csv, "--test-csv", config.test_csv,
        "--synth-hc", config.synth_hc, "--synth-tle", config.synth_tle, "--cache-dir", config.cache_dir,
        "--run-dir", config.run_dir, "--threads", "1", "--steps", config.steps,
        "--val-every-steps", config.val_every_steps, "--save-every-steps", config.save_every_steps,
        "--log-every-steps", config.log_every_steps, "--resamples", config.resamples,
    ]  # fmt: skip
    return [sys.executable, "-m", "classifier.train", "smoke", *map(str, flags), *extra]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def assert_same(a, b, where=""):
    """Equal to the last bit, through nested dicts and lists; the commit may differ."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a.keys() - {"commit"}:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, list | tuple):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


@pytest.fixture(autouse=True)
def _few_permutations(monkeypatch):
    monkeypatch.setattr("classifier.evaluation.PERMUTATIONS", 20)


@pytest.mark.slow
def test_a_run_learns_and_leaves_everything_and_the_same_command_does_nothing_more(config):
    model = dataclasses.replace(config.model, name="resnet")
    config = dataclasses.replace(config, model=model, steps=40, val_every_steps=10, save_every_steps=40)
    train.main(config)
    results = read_json(config.run_dir / "results.json")
    predictions = read_predictions(config.run_dir / "predictions.csv")
    assert tuple(predictions.columns) == (*COLUMNS, *OPTIONAL)
    assert predictions["side_probability"].isna().all()  # no side was learned
    assert "skipped" in results["side"]
    assert predictions["split"].value_counts().to_dict() == {"val": 12, "test": 12}
    assert set(predictions["side"]) == {"", "L", "R"}
    assert results["leak"] is False
    none = dict.fromkeys(("repeated_HC", "repeated_TLE", "synthetic_HC", "synthetic_TLE"), 0)
    assert results["counts"]["train"] == {"real_HC": 12, "real_TLE": 12, **none}
    assert 0 < results["seconds"] < 600
    assert {"hippocampus", "age_sex", "site"} <= set(results["baselines"])
    assert "network_minus_baseline" in results["baselines"]["hippocampus"]
    cell = results["metrics"]["test"]["auc"]
    assert 0 <= cell["low"] <= cell["value"] <= cell["high"] <= 1
    test = predictions[predictions["split"] == "test"]
    accuracy = ((test["probability"] >= results["threshold"]) == (test["label"] == 1)).mean()
    assert results["metrics"]["test"]["accuracy"]["value"] == pytest.approx(accuracy)
    np.testing.assert_allclose(
        test["probability"], 1 / (1 + np.exp(-test["logit"] / results["temperature"])), rtol=1e-9
    )
    loaded = load_classifier(config.run_dir / "checkpoints" / "best.pt")
    assert (loaded.threshold, loaded.hash) == (results["threshold"], results["checkpoint"])
    assert len(loaded.ledger) == 2 * 36  # subjects and groups of training and validation
    assert (config.run_dir / "curves.png").stat().st_size > 5000
    names = set().union(*(json.loads(line) for line in (config.run_dir / "log.jsonl").read_text().splitlines()))
    assert {"loss/train", "loss/val", "auc/val", "time/step_s"} <= names
    assert results["metrics"]["test"]["auc"]["value"] > 0.9
    stamp = (config.run_dir / "results.json").stat().st_mtime_ns
    train.main(config)
    assert (config.run_dir / "results.json").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_killed_run_ends_in_the_same_weights(config):
    straight = dataclasses.replace(config, run_dir=config.run_dir / "straight")
    train.main(straight)
    killed = dataclasses.replace(config, run_dir=config.run_dir / "killed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = killed.run_dir / "log.jsonl"
    process = subprocess.Popen(
        command(killed), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (log.exists() and '"step": 4' in log.read_text()):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed.run_dir / "results.json").exists()
    train.main(killed)
    for name in ("last", "best"):
        assert_same(*(weights(run.run_dir / "checkpoints" / f"{name}.pt") for run in (straight, killed)), name)
    tables = [(run.run_dir / "predictions.csv").read_text() for run in (straight, killed)]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_two_processes_equal_one(config):
    """Weights after a few steps of two gloo processes are those of one, to rounding."""
    config = dataclasses.replace(config, steps=4, warmup_steps=1, precision="float32", side_weight=0.5)
    one = dataclasses.replace(config, run_dir=config.run_dir / "one")
    train.main(one)
    two = dataclasses.replace(config, run_dir=config.run_dir / "two")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = command(two, "--warmup-steps", "1", "--precision", "float32", "--side-weight", "0.5")[1:]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, *arguments], cwd=ROOT, check=True, capture_output=True, env=environment)
    a, b = (weights(run.run_dir / "checkpoints" / "last.pt")["weights"] for run in (one, two))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-4, msg=name)


def test_refusal_ends_with_status_2_and_writes_no_results(config):
    done = run_here(*command(config, "--synth-percent", "400")[2:], ok=False)
    assert done.returncode == 2, done.stderr
    assert "48 synthetic HC volumes are asked for, 8 are there" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (config.run_dir / "results.json").exists()


@pytest.mark.slow
def test_continuing_on_other_data_is_refused(config, cohort, tmp_path):
    train.main(dataclasses.replace(config, steps=4, warmup_steps=1))
    table = pd.read_csv(config.train_csv)
    changed = cohort / "changed.csv"
    table.iloc[2:].to_csv(changed, index=False)
    settings = read_json(config.run_dir / "config.json")
    (config.run_dir / "config.json").write_text(json.dumps({**settings, "train_csv": str(changed)}))
    with pytest.raises(InputError, match="other subjects or volumes"):
        train.main(dataclasses.replace(config, steps=4, warmup_steps=1, train_csv=changed))


def test_non_finite_loss_stops_and_names_the_step(config):
    with pytest.raises(InputError, match=r"loss of step \d+ is not finite"):
        train.main(dataclasses.replace(config, lr=1e30, clip_norm=1e30, warmup_steps=1))
    assert not (config.run_dir / "results.json").exists()


@pytest.mark.slow
def test_allowed_leak_is_in_the_results(config):
    leaky = dataclasses.replace(config, steps=2, warmup_steps=1, test_csv=config.train_csv, allow_leak=True)
    train.main(leaky)
    results = read_json(config.run_dir / "results.json")
    assert results["leak"] is True
    assert "training table" in results["leaks"][0]


@pytest.mark.slow
def test_one_test_patient_gives_results_without_delongs_interval_and_more_steps_give_new_ones(config, tmp_path, capsys):
    table = read_table(config.test_csv)
    few = pd.concat([table[table["label"] == 0], table[table["label"] == 1].head(1)])
    write_table(tmp_path / "few.csv", few)
    config = dataclasses.replace(config, test_csv=tmp_path / "few.csv", steps=2, val_every_steps=2)
    train.main(config)
    said = capsys.readouterr().out
    assert "DeLong's variance needs two test subjects of each class" in said
    assert "few.csv (test): one subject (or group) of class TLE; what it enters has no interval" in said
    results = read_json(config.run_dir / "results.json")
    assert results["metrics"]["test"]["auc"]["low"] is None
    assert set(results["baselines"]["hippocampus"]["network_minus_baseline"]) == {"skipped"}
    assert results["metrics"]["test"]["auc"]["value"] >= 0
    train.main(dataclasses.replace(config, steps=4))
    assert read_json(config.run_dir / "results.json")["steps"] == 4


def test_network_too_deep_for_its_grid(config):
    deep = dataclasses.replace(config, model=dataclasses.replace(config.model, widths=(8, 8, 8, 8, 8, 8)))
    with pytest.raises(InputError, match="the last level keeps only 1 of an axis"):
        train.main(deep)


@pytest.mark.slow
def test_arms_take_the_same_steps(config):
    arms = {
        "few": {"real": 8}, "more": {"real": 12, "synth_percent": 50},
        "repeated": {"real": 8, "duplicate_percent": 100},
        "synthetic": {"real": 0, "synth_count": 16},
    }  # fmt: skip
    found = {}
    for name, fields in arms.items():
        arm = dataclasses.replace(config, run_dir=config.run_dir / name, steps=4, warmup_steps=1, **fields)
        train.main(arm)
        found[name] = results = read_json(arm.run_dir / "results.json")
        assert results["steps"] == weights(arm.run_dir / "checkpoints" / "last.pt")["step"] == 4
    made = {
        name: sum(count for key, count in results["counts"]["train"].items() if key.startswith("synthetic"))
        for name, results in found.items()
    }
    assert made == {"few": 0, "more": 6, "repeated": 0, "synthetic": 16}
    assert "skipped" in found["synthetic"]["baselines"]["site"]
    for name in ("hippocampus", "regional"):  # baselines learn from each scan once
        once, again = (found[arm]["baselines"][name] for arm in ("few", "repeated"))
        assert (once["threshold"], once["test"]) == (again["threshold"], again["test"])


def test_the_best_step_ranks_subjects_however_sure_of_itself_it_is(monkeypatch):
    labels = torch.arange(40) % 2
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0))
    ignorant, reckless = 0.01 * noise, 8 * (2.0 * labels - 1 + 2 * noise)  # AUC about 0.5 and 0.75
    logged = []
    run = SimpleNamespace(log=lambda step, numbers: logged.append(numbers))
    state = State(torch.nn.Identity(), optimiser=None, ema={})
    for logits, better in ((ignorant, True), (reckless, True), (ignorant, False)):
        monkeypatch.setattr(train, "predict", lambda model, val, logits=logits: logits.double().numpy()[:, None])
        assert train.validate(run, state, torch.nn.Identity(), SimpleNamespace(labels=labels)) is better
    assert logged[1]["loss/val"] > logged[0]["loss/val"]  # by the plain loss the ignorant step would stay the best


@pytest.mark.slow
def test_a_run_whose_patience_ends_saves_where_it_stopped(config, monkeypatch):
    monkeypatch.setattr(train, "validate", lambda run, state, network, val: state.note(1.0, better=state.step == 4))
    train.main(dataclasses.replace(config, patience=1))
    checkpoints = config.run_dir / "checkpoints"
    assert (load_classifier(checkpoints / "last.pt").step, load_classifier(checkpoints / "best.pt").step) == (8, 4)
    assert read_json(config.run_dir / "results.json")["step"] == 4


def answers(labels, sides, volumes=None) -> Answers:
    none = torch.empty(len(labels), 0, 2)
    return Answers(torch.tensor(labels), torch.tensor(sides), none if volumes is None else torch.tensor(volumes))


def test_losses_are_those_of_the_known_sides(config):
    config = dataclasses.replace(config, side_weight=0.3, model=dataclasses.replace(config.model, name="resnet"))
    logits = torch.tensor([[0.0, 2.0], [1.0, -1.0], [-1.0, 5.0]])
    terms = train.losses(logits, answers([1, 1, 0], [1, 0, -1]), config)
    softplus = torch.nn.functional.softplus
    torch.testing.assert_close(terms["train"], (softplus(torch.tensor([0.0, -1.0, -1.0]))).mean())
    torch.testing.assert_close(terms["side"], (softplus(torch.tensor([-2.0, -1.0]))).mean())
    torch.testing.assert_close(terms["total"], terms["train"] + 0.3 * terms["side"])
    unknown = train.losses(logits, answers([1, 1, 0], [-1, -1, -1]), config)
    assert unknown["side"] == 0
    alone = train.losses(logits[:, :1], answers([1, 1, 0], [1, 0, -1]), config)
    assert "side" not in alone
    assert alone["total"] == alone["train"]


def test_the_loss_of_hemispheres_is_the_cross_entropy_over_hc_left_and_right(config):
    """And for a patient of unknown side minus the log of both sides' probability."""
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, name="hemispheres"))
    sides = torch.tensor([[0.5, -1.0], [-2.0, 1.0], [0.3, 0.1], [1.5, -0.5]], requires_grad=True)  # left, right
    logits = torch.stack([sides.logsumexp(1), sides[:, 1] - sides[:, 0]], dim=1)
    terms = train.losses(logits, answers([0, 1, 1, 1], [-1, 0, 1, -1]), config)
    p = torch.cat([torch.zeros(4, 1), sides], dim=1).softmax(1)
    chosen = torch.stack([p[0, 0], p[1, 1], p[2, 2], p[3, 1] + p[3, 2]])
    torch.testing.assert_close(terms["total"], -chosen.log().mean())
    (gradient,) = torch.autograd.grad(terms["total"], sides)
    torch.testing.assert_close(gradient[1], torch.stack([p[1, 1] - 1, p[1, 2]]) / 4)


def test_the_loss_of_volumes_is_of_the_known_ones(config):
    config = dataclasses.replace(config, volumes_weight=2.0)
    nan = float("nan")
    known = answers([0, 1], [-1, -1], [[[1.0, 2.0], [nan, 0.5]], [[nan, nan], [nan, 0.0]]])
    found = torch.tensor([[0.0, 2.0, 2.0, 7.0, 0.5], [0.0, 9.0, 9.0, 9.0, 3.0]], requires_grad=True)
    terms = train.losses(found, known, config)
    torch.testing.assert_close(terms["volumes"], torch.tensor((1.0 + 0 + 0 + 9.0) / 2 / 4))
    torch.testing.assert_close(terms["total"], terms["train"] + 2 * 0.5 * terms["volumes"])  # half is known
    terms["total"].backward()
    assert (found.grad[:, 1:] != 0).tolist() == [[True, False, False, False], [False, False, False, True]]
    everything = train.losses(found, known._replace(volumes=known.volumes.nan_to_num()), config)
    (gradient,) = torch.autograd.grad(everything["total"], found)
    torch.testing.assert_close(found.grad[0, 1], gradient[0, 1])  # a known one counts alike whatever else is known
    nothing = train.losses(found, known._replace(volumes=torch.full((2, 2, 2), nan)), config)
    assert nothing["volumes"] == 0


@pytest.mark.slow
def test_hemispheres_learns_a_side_it_was_told_and_volumes_beside_it(config, cohort, tmp_path, capsys):
    """Patients' dark place is on the left; half of the training scans are mirrored, so that both sides are seen. Where
    labels are permuted, volumes, which say what the labels no longer do, are not learned."""
    model = dataclasses.replace(config.model, name="hemispheres", widths=(8, 16), summaries=8)
    names = [f"volume_{side}_hippocampus_mm3" for side in ("left", "right")]
    for split in ("train", "val", "test"):
        table = read_table(cohort / f"{split}.csv")
        table["diagnosis"] = table["diagnosis"].where(table["label"] == 0, "TLE-L")
        table[names] = (np.where(table["label"] == 1, 1000, 2000)[:, None] + np.arange(2)).astype(str)
        table.loc[0, names[0]] = ""
        write_table(tmp_path / f"{split}.csv", table)
    told = dataclasses.replace(
        config, model=model, steps=40, val_every_steps=10, save_every_steps=40, volumes_weight=0.5,
        structures=("Hippocampus",), train_csv=tmp_path / "train.csv", val_csv=tmp_path / "val.csv",
        test_csv=tmp_path / "test.csv",
    )  # fmt: skip
    train.main(told)
    predictions = read_predictions(told.run_dir / "predictions.csv")
    test = predictions[predictions["split"] == "test"]
    assert roc_auc_score(test["label"], test["logit"]) > 0.9
    assert (test.loc[test["label"] == 1, "side_probability"] < 0.5).mean() > 0.8
    names = set().union(*(json.loads(line) for line in (told.run_dir / "log.jsonl").read_text().splitlines()))
    assert {"loss/side", "loss/volumes", "loss/total"} <= names
    loaded = load_classifier(told.run_dir / "checkpoints" / "best.pt")
    assert (loaded.model.config.volumes, loaded.model.config.outputs) == (1, 2)
    found = read_json(told.run_dir / "results.json")
    assert found["side"]["left"] == 6
    assert "skipped" in found["side"]  # no patient of the right side to tell from
    null = dataclasses.replace(told, shuffle="all", steps=2, run_dir=tmp_path / "null")
    train.main(null)
    assert load_classifier(null.run_dir / "checkpoints" / "best.pt").model.config.volumes == 0
    assert "loss/volumes" not in (null.run_dir / "log.jsonl").read_text()


@pytest.mark.slow
def test_a_run_with_a_side_and_a_fold_says_so(config):
    tables = (config.train_csv, config.val_csv, config.test_csv)
    crossed = dataclasses.replace(
        config, steps=2, warmup_steps=1, side_weight=1.0, folds=3, fold=2, index=tables, seed=5
    )
    train.main(crossed)
    results, predictions = (
        read_json(config.run_dir / "results.json"),
        read_predictions(config.run_dir / "predictions.csv"),
    )
    assert (results["seed"], results["folds"], results["fold"]) == (5, 3, 2)
    assert set(predictions["seed"]) == {5}
    assert set(predictions["fold"]) == {2}
    assert predictions["side_probability"].between(0, 1).all()
    test = predictions[(predictions["split"] == "test") & (predictions["side"] != "")]
    assert len(predictions[predictions["split"] == "test"]) == 16
    assert results["side"]["left"] + results["side"]["right"] == len(test)
    expected = roc_auc_score(test["side"] == "R", test["side_probability"])
    assert results["side"]["test"]["auc"]["value"] == pytest.approx(expected)
    assert load_classifier(config.run_dir / "checkpoints" / "best.pt").model.config.outputs == 2
    assert 0 <= results["side"]["baselines"]["asymmetry_index"]["test"]["accuracy"]["value"] <= 1
    assert "sclerosis" not in results


def test_without_augmentation_batches_are_the_scans_themselves(config, scans):
    volumes = Volumes(scans, Device(torch.device("cpu"), torch.float32))
    seen = []

    class Recorder(torch.nn.Linear):
        def forward(self, x, keep):
            seen.append(x)
            return super().forward(x.mean((2, 3, 4)))

    for name in ("none", "standard", "strong"):
        network = Recorder(1, 1)
        plain = dataclasses.replace(config, augmentation=name, mirror=False)
        train.train_step(network, torch.optim.SGD(network.parameters()), volumes, 1, plain, width=1)
    still = volumes.batch(balanced_rows(volumes.labels, config.batch_size, 1, config.seed, "epoch:"))
    torch.testing.assert_close(seen[0], still, atol=1e-5, rtol=0)
    moved = [(x - still).abs().mean() for x in seen]
    assert moved[0] < moved[1] < moved[2]
    mirror = dataclasses.replace(config, augmentation="none")
    train.train_step(network, torch.optim.SGD(network.parameters()), volumes, 1, mirror, width=1)
    same, flipped = (((seen[3] - x).abs().amax((1, 2, 3, 4)) < 1e-5) for x in (still, still.flip(2)))
    assert same.sum() + flipped.sum() == config.batch_size
    assert same.any()
    assert flipped.any()
