"""Trains a classifier of HC and TLE on real scans, synthetic volumes or both, and judges it on real held-out subjects.

    python -m classifier.train demo --run-dir runs/demo/real
    python -m classifier.train demo --synth-percent 100 --run-dir runs/demo/real_and_synthetic
    python -m classifier.train demo --real 0 --synth-count 200 --run-dir runs/demo/synthetic

Reads tables, scans and volumes; writes a run folder with checkpoints/last.pt and best.pt (best by validation loss),
predictions.csv (one row per held-out scan), results.json (measures with intervals, baselines) and curves.png. The same
command continues a run that was stopped.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from classifier import baselines, figures, metrics
from classifier.checkpoint import (
    load_classifier,
    resume_classifier,
    save_classifier,
    set_operating_point,
)
from classifier.config import PRESETS, TrainConfig
from classifier.dataset import Volumes, augment, balanced_rows
from classifier.model import ResNet3D, smallest_side
from classifier.predictions import by_subject, table_of, write_predictions
from classifier.selection import Selection, select
from cohort.scans import GRIDS, Grid, ScanStack, load_scans
from runtime import distributed, seeding
from runtime.checkpoints import average, checkpoint_hash, git_commit
from runtime.cli import describe, run_script
from runtime.device import Device, pick_device
from runtime.errors import InputError
from runtime.files import write_json
from runtime.finite import LossGuard
from runtime.runs import Run, due, open_run

THRESHOLD_RULE = "largest balanced accuracy on validation, among equals nearest 0.5"
EVAL_BATCH = 16


@dataclass
class State:
    """What changes from step to step besides the weights, and what every checkpoint carries."""

    ema: dict[str, torch.Tensor]
    ledger: list[str]
    mean_hc: torch.Tensor
    fingerprint: str
    step: int = 0
    best: float = math.inf
    best_step: int = 0


def main(config: TrainConfig) -> None:
    """Trains, validates, saves, evaluates; resumes when the run folder holds a checkpoint."""
    device = pick_device(config.precision, config.threads)
    grid = GRIDS[config.grid]
    selection = select(config)  # before the folder: a refusal leaves nothing behind
    stacks = load_stacks(selection, config, grid)
    with open_run(config.run_dir, config, stage="classifier.train", device=device) as run:
        train, val = Volumes(stacks["train"], device), Volumes(stacks["val"], device)
        run.say(f"training on {counts_text(stacks['train'])}; grid {grid.name} {grid.shape}")

        model = build(config, grid, device, train.constants())
        optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        ema = {name: value.clone() for name, value in model.state_dict().items()}
        state = State(ema, selection.ledger, train.mean_volume(label=0), selection.fingerprint)
        resume(run, grid, model, optimiser, state)
        network = distributed.wrap(model)
        network = torch.compile(network) if config.compile and device.kind.type == "cuda" else network
        guard = LossGuard(device.kind)
        watch, since = time.perf_counter(), state.step

        for step in run.progress(state.step, config.steps, "classifier"):
            terms = train_step(network, optimiser, train, step, config)
            guard.watch(step, terms["loss/train"])
            average(state.ema, model, config.ema_decay, step)
            state.step = step
            if due(step, config.log_every_steps, config.steps):
                guard.check(run)
                seconds = (time.perf_counter() - watch) / (step - since)
                run.log(step, {**terms, "lr": optimiser.param_groups[0]["lr"], "time/step_s": seconds})
                watch, since = time.perf_counter(), step
            if due(step, config.val_every_steps, config.steps):
                guard.check(run)
                if validate(run, state, val, model):
                    save(run, "best", grid, model, optimiser, state)
            if due(step, config.save_every_steps, config.steps) or run.interrupted:
                guard.check(run)
                save(run, "last", grid, model, optimiser, state)
        if distributed.is_main() and not (run.path / "results.json").exists():
            evaluate(run, selection, stacks, device, config)
        distributed.barrier()


def load_stacks(selection: Selection, config: TrainConfig, grid: Grid) -> dict[str, ScanStack]:
    """The scans of training, validation and test; real and synthetic ones take the same way and the same scaling."""
    return {
        name: load_scans(frame, grid, cache_dir=config.cache_dir, skip_bad=_beside(config.skip_bad, name))
        for name, frame in (("train", selection.train), ("val", selection.val), ("test", selection.test))
    }


def _beside(path: Path | None, name: str) -> Path | None:
    return None if path is None else path.with_stem(f"{path.stem}_{name}")


def counts(stack: ScanStack) -> dict[str, int]:
    """Scans of a stack by class and origin."""
    made = stack.frame.get("synthetic", pd.Series(False, index=stack.frame.index)).to_numpy(dtype=bool)
    return {
        f"{origin}_{name}": int(((stack.labels == code) & (made == synthetic)).sum())
        for origin, synthetic in (("real", False), ("synthetic", True))
        for code, name in ((0, "HC"), (1, "TLE"))
    }


def counts_text(stack: ScanStack) -> str:
    """Counts for people."""
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts(stack).items())


def build(config: TrainConfig, grid: Grid, device: Device, constants: tuple[float, float]) -> ResNet3D:
    """The network with weights by the seed; `constants` are the mean and deviation it standardises by."""
    if smallest_side(config.model, grid.shape) < 2:
        raise InputError(
            f"--model.widths {config.model.widths}: {len(config.model.widths)} levels leave 1 voxel of the grid "
            f"{grid.name} {grid.shape}; use fewer widths or --model.stem-stride 1"
        )
    torch.manual_seed(seeding.address(config.seed, "weights"))
    return device.module(ResNet3D(config.model, *constants))


def train_step(
    network: nn.Module, optimiser: torch.optim.Optimizer, train: Volumes, step: int, config: TrainConfig
) -> dict[str, torch.Tensor]:
    """One update on a balanced batch; returns named numbers."""
    rows = balanced_rows(train.labels, config.batch_size, step, config.seed)
    y = train.labels[rows].to(train.device.kind, torch.float32)
    x = augment(train.batch(rows), config.augment, train.grid.spacing_mm, config.seed, step)
    keep = dropout_mask(config, step).to(train.device.kind)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(step, config)
    with train.device.autocast():
        logits = network(train.device.tensor(x), keep)
    loss = F.binary_cross_entropy_with_logits(logits.float(), y)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
    optimiser.step()
    return {"loss/train": distributed.mean(loss.detach()), "grad/norm": norm}


def dropout_mask(config: TrainConfig, step: int) -> torch.Tensor:
    """This process's share of the step's mask over pooled features (B, C): 0, or 1 / (1 - dropout)."""
    keep = 1.0 - config.model.dropout
    drawn = torch.rand(
        (config.batch_size, config.model.widths[-1]), generator=seeding.generator(config.seed, "dropout", step)
    )
    return distributed.local((drawn < keep).float() / keep)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up to `lr`, then half a cosine down to a hundredth of it at the last step."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * share)))


@torch.no_grad()
def predict(model: ResNet3D, volumes: Volumes) -> np.ndarray:
    """Logits float64 (N,) of all scans, in full precision (rounded ones would tie, and ties blur a ROC curve)."""
    rows = torch.arange(len(volumes)).split(EVAL_BATCH)
    return torch.cat([model(volumes.batch(part)).float().cpu() for part in rows]).double().numpy()


def validate(run: Run, state: State, val: Volumes, model: ResNet3D) -> bool:
    """Judges the averaged weights on validation and logs it; True when the class-balanced loss improved.

    Every process does all of it: that is quicker than sharing it out, and all agree on the answer.
    """
    averaged = val.device.module(ResNet3D(model.config)).eval()
    averaged.load_state_dict(state.ema)
    logits, labels = predict(averaged, val), val.labels.numpy()
    losses = np.logaddexp(0.0, np.where(labels == 1, -logits, logits))
    loss = float((losses[labels == 0].mean() + losses[labels == 1].mean()) / 2)
    run.log(state.step, {"loss/val": loss, "auc/val": metrics.auc(labels, logits)})
    better = loss < state.best
    if better:
        state.best, state.best_step = loss, state.step
    return better


def resume(run: Run, grid: Grid, model: ResNet3D, optimiser: torch.optim.Optimizer, state: State) -> None:
    """Takes up checkpoints/last.pt when there is one; checks that it is of this grid, architecture and data."""
    path = run.checkpoint("last")
    if path.exists():
        record = resume_classifier(path, model, grid)
        if record["fingerprint"] != state.fingerprint:
            raise InputError(f"{path}: the run was started with other subjects or volumes; use another --run-dir")
        optimiser.load_state_dict(record["optimiser"])
        for name, value in record["ema"].items():
            state.ema[name].copy_(value)
        state.step, state.best, state.best_step = record["step"], record["best"], record["best_step"]
        run.say(f"continuing at step {state.step}")
    run.continue_from(state.step)


def save(run: Run, name: str, grid: Grid, model: ResNet3D, optimiser: torch.optim.Optimizer, state: State) -> None:
    """Writes checkpoints/<name>.pt from the main process."""
    if distributed.is_main():
        save_classifier(
            run.checkpoint(name), model, grid=grid, ledger=state.ledger, mean_hc=state.mean_hc, step=state.step,
            ema=state.ema, optimiser=optimiser.state_dict(), best=state.best, best_step=state.best_step,
            fingerprint=state.fingerprint, temperature=1.0, threshold=None,
        )  # fmt: skip


def evaluate(run: Run, selection: Selection, stacks: dict[str, ScanStack], device: Device, config: TrainConfig) -> None:
    """The best checkpoint on held-out subjects: predictions.csv, results.json, curves.png and the printed table."""
    path = run.checkpoint("best")
    loaded = load_classifier(path)
    model = device.module(loaded.model)
    logits = {name: predict(model, Volumes(stacks[name], device)) for name in ("val", "test")}
    labels = stacks["val"].labels
    temperature = metrics.fit_temperature(labels, logits["val"]) if config.temperature else 1.0
    predictions = {
        name: table_of(stacks[name].frame, logits[name], metrics.sigmoid(logits[name] / temperature), name)
        for name in logits
    }
    threshold = metrics.choose_threshold(labels, predictions["val"]["probability"].to_numpy())
    set_operating_point(path, temperature=temperature, threshold=threshold)
    measured = {name: measure(frame, threshold, config, name) for name, frame in predictions.items()}
    others, scores = judge_baselines(stacks, predictions["test"], config)
    write_predictions(run.path / "predictions.csv", pd.concat(predictions.values(), ignore_index=True))
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    test = predictions["test"]
    scores = {"network": (test["label"].to_numpy(), test["probability"].to_numpy()), **scores}
    named = {f"{name}, AUC {metrics.auc(*pair):.3f}": pair for name, pair in scores.items()}
    figures.curves(run.path / "curves.png", named, log, title=f"trained on {counts_text(stacks['train'])}")
    results = {
        "commit": git_commit(), "checkpoint": checkpoint_hash(path), "step": loaded.step, "grid": config.grid,
        "seed": config.seed, "sample_seed": config.sample_seed, "resamples": config.resamples,
        "counts": {name: counts(stack) for name, stack in stacks.items()},
        "steps": config.steps, "batch_size": config.batch_size,
        "temperature": temperature, "threshold": threshold, "threshold_rule": THRESHOLD_RULE,
        "leak": bool(selection.leaks), "leaks": selection.leaks, "notes": selection.notes,
        "metrics": measured, "baselines": others,
    }  # fmt: skip
    report(run, results)
    write_json(run.path / "results.json", results)


def measure(frame: pd.DataFrame, threshold: float, config: TrainConfig, split: str) -> dict[str, Any]:
    """All measures of a table of predictions, with intervals over subjects (or groups of subjects)."""
    rng = seeding.rng(config.seed, f"bootstrap {split}")
    return metrics.evaluate(
        frame["label"].to_numpy(), frame["probability"].to_numpy(), threshold, frame["group"].to_numpy(), rng,
        config.resamples,
    )  # fmt: skip


def judge_baselines(
    stacks: dict[str, ScanStack], network: pd.DataFrame, config: TrainConfig
) -> tuple[dict[str, Any], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Fits each baseline and judges it like the network, whose test predictions are `network`.

    Returns:
        results by name ({"skipped": reason} where there is nothing to fit), and (labels, probabilities) for the curves.
    """
    frame = stacks["train"].frame
    real = frame.loc[~frame["synthetic"], "label"].to_numpy()
    results, scores = {}, {}
    found = baselines.features(stacks["train"], {name: stacks[name] for name in ("val", "test")})
    for name, inputs in found.items():
        if isinstance(inputs, str):
            results[name] = {"skipped": inputs.removeprefix("skipped: ")}
            continue
        model = baselines.fit(inputs["train"], frame["label"].to_numpy() if name == "hippocampus" else real)
        probabilities = {split: model.predict_proba(inputs[split])[:, 1] for split in ("val", "test")}
        threshold = metrics.choose_threshold(stacks["val"].labels, probabilities["val"])
        predicted = network.assign(probability=probabilities["test"])
        pair = by_subject(predicted), by_subject(network)
        test = metrics.delong_test(
            pair[0]["label"].to_numpy(), *(side["probability"].to_numpy() for side in pair)
        )  # difference: network minus baseline
        results[name] = {
            "threshold": threshold,
            "test": measure(predicted, threshold, config, "test"),
            "network_minus_baseline": asdict(test),
        }
        scores[name] = (predicted["label"].to_numpy(), probabilities["test"])
    return results, scores


def report(run: Run, results: dict[str, Any]) -> None:
    """The printed table: the network and its baselines on the real test subjects."""
    rows = {"network": results["metrics"]["test"]}
    rows |= {name: result["test"] for name, result in results["baselines"].items() if "test" in result}
    run.say(f"{'on real test subjects':24s}" + "".join(f"{name:>27s}" for name in rows))
    for name in metrics.METRICS:
        cells = (row[name] for row in rows.values())
        text = "".join(f"{'{value:.3f} [{low:.3f}, {high:.3f}]'.format(**cell):>27s}" for cell in cells)
        run.say(f"{name:24s}{text}")
    for name, result in results["baselines"].items():
        if "skipped" in result:
            run.say(f"baseline {name}: skipped, {result['skipped']}")
    for line in [f"LEAK ALLOWED: {leak}" for leak in results["leaks"]] + results["notes"]:
        run.say(line)


if __name__ == "__main__":
    run_script(main, PRESETS, description=describe(__doc__))
