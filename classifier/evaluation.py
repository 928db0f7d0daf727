"""What a finished run says about held-out subjects: predictions, measures, the side, and the baselines beside it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit

from classifier.checkpoint import load_classifier, set_operating_point
from classifier.config import TrainConfig
from classifier.dataset import Volumes, counts, counts_text, draws_per_row, without_repeats
from classifier.measures import metrics
from classifier.measures.predictions import by_subject, table_of, write_predictions
from classifier.measures.resampling import cell_text
from classifier.model import Classifier
from classifier.selection import Selection
from cohort.stacks import ScanStack
from runtime import seeding
from runtime.checkpoints import checkpoint_hash, git_commit
from runtime.device import Device
from runtime.files import write_json
from runtime.runs import Run

THRESHOLD_RULE = "largest balanced accuracy on validation, among equals nearest 0.5"
EVAL_BATCH = 16
PERMUTATIONS = 200


@torch.no_grad()
def predict(model: Classifier, volumes: Volumes) -> np.ndarray:
    """Logits float64 (N, outputs) of all scans, in full precision: rounded ones would tie, which blurs a ROC curve."""
    rows = torch.arange(len(volumes)).split(EVAL_BATCH)
    return torch.cat([model.both(volumes.batch(part)).float().cpu() for part in rows]).double().numpy()


def evaluate(run: Run, selection: Selection, stacks: dict[str, ScanStack], device: Device, config: TrainConfig) -> None:
    """The best checkpoint on held-out subjects: predictions.csv, results.json, curves.png and the printed table."""
    from classifier.measures import figures  # slow to import

    path = run.checkpoint("best")
    loaded = load_classifier(path)
    model = device.module(loaded.model)
    logits = {name: predict(model, Volumes(stacks[name], device)) for name in ("val", "test")}
    labels = stacks["val"].labels
    temperature = metrics.fit_temperature(labels, logits["val"][:, 0]) if config.temperature else 1.0
    predictions = {name: predicted(stacks[name], logits[name], temperature, name, config) for name in logits}
    threshold = metrics.choose_threshold(labels, predictions["val"]["probability"].to_numpy())
    set_operating_point(path, temperature=temperature, threshold=threshold)
    measured = {name: measure(frame, threshold, config, name) for name, frame in predictions.items()}
    others, scores = measure_baselines(stacks, predictions["test"], config)
    write_predictions(run.path / "predictions.csv", pd.concat(predictions.values(), ignore_index=True))
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    test = predictions["test"]
    scores = {"network": (test["label"].to_numpy(), test["probability"].to_numpy()), **scores}
    legend = {f"{name}, AUC {metrics.auc(*pair):.3f}": pair for name, pair in scores.items()}
    figures.curves(run.path / "curves.png", legend, log, title=f"trained on {counts_text(stacks['train'])}")
    seen = draws_per_row(stacks["train"].labels, config.batch_size, config.steps, config.seed)
    results = {
        "commit": git_commit(), "checkpoint": checkpoint_hash(path), "step": loaded.step, "grid": config.grid,
        "seed": config.seed, "sample_seed": config.sample_seed, "resamples": config.resamples,
        "folds": config.folds, "fold": config.fold, "model": config.model.name,
        "augmentation": config.augmentation, "shuffle": config.shuffle,
        "counts": {name: counts(stack) for name, stack in stacks.items()},
        "steps": config.steps, "batch_size": config.batch_size, "seen": counts(stacks["train"], seen),
        "seconds": training_seconds(log), "peak_gpu_bytes": peak_memory(device),
        "temperature": temperature, "threshold": threshold, "threshold_rule": THRESHOLD_RULE,
        "leak": bool(selection.leaks), "leaks": selection.leaks, "notes": selection.notes,
        "metrics": measured, "side": measure_side(test, config), "baselines": others,
    }  # fmt: skip
    report(run, results)
    write_json(run.path / "results.json", results)


def predicted(
    stack: ScanStack, logits: np.ndarray, temperature: float, split: str, config: TrainConfig
) -> pd.DataFrame:
    """The rows of predictions.csv for one table; the side's probability (of right) is empty where none was learned."""
    table = table_of(stack.frame, logits[:, 0], expit(logits[:, 0] / temperature), split)
    side = expit(logits[:, 1]) if logits.shape[1] > 1 else np.nan
    return table.assign(side_probability=side, seed=config.seed, fold=config.fold)


def training_seconds(log: list[dict[str, float]]) -> float:
    """Seconds that all steps took with their validations and checkpoints, over however many starts of the run."""
    lines = [(line["step"], line["time/step_s"]) for line in log if "time/step_s" in line]
    steps = np.diff([0, *(step for step, _ in lines)])
    return round(float(steps @ np.array([seconds for _, seconds in lines])), 2)


def peak_memory(device: Device) -> int | None:
    """Bytes that this process has held on its GPU at most; None on a CPU."""
    return torch.cuda.max_memory_reserved(device.kind) if device.kind.type == "cuda" else None


def measure_side(frame: pd.DataFrame, config: TrainConfig) -> dict[str, Any]:
    """Right against left among the patients whose side is known: all measures, at the probability 0.5."""
    if not config.side_weight:
        return {"skipped": "no side was learned (--side-weight)"}
    known = frame[frame["side"] != ""]
    if known["side"].nunique() < 2:
        return {"skipped": "the test table does not have patients of both sides"}
    known = known.assign(label=(known["side"] == "R").astype(int), probability=known["side_probability"])
    return {
        "left": int((known["side"] == "L").sum()),
        "right": int((known["side"] == "R").sum()),
        "test": measure(known, 0.5, config, "side"),
    }


def measure(frame: pd.DataFrame, threshold: float, config: TrainConfig, split: str) -> dict[str, Any]:
    """All measures of a table of predictions, with intervals over subjects (or groups of subjects)."""
    rng = seeding.rng(config.seed, f"bootstrap {split}")
    return metrics.evaluate(
        frame["label"].to_numpy(), frame["probability"].to_numpy(), threshold, frame["group"].to_numpy(), rng,
        config.resamples,
    )  # fmt: skip


def measure_baselines(
    stacks: dict[str, ScanStack], network: pd.DataFrame, config: TrainConfig
) -> tuple[dict[str, Any], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Fits each baseline and measures it like the network, whose test predictions are `network`.

    Returns:
        results by name ({"skipped": reason} where there is nothing to fit), and (labels, probabilities) for the curves.
    """
    from classifier import baselines  # slow to import

    train = without_repeats(stacks["train"])
    real = train.labels[~train.frame["synthetic"].to_numpy(dtype=bool)]
    results, scores = {}, {}
    found = baselines.features(train, {name: stacks[name] for name in ("val", "test")})
    for name, inputs in found.items():
        if isinstance(inputs, str):
            results[name] = {"skipped": inputs.removeprefix("skipped: ")}
            continue
        model = baselines.fit(inputs["train"], train.labels if name == "hippocampus" else real)
        probabilities = {split: model.predict_proba(inputs[split])[:, 1] for split in ("val", "test")}
        threshold = metrics.choose_threshold(stacks["val"].labels, probabilities["val"])
        frame = network.assign(probability=probabilities["test"])
        baseline, ours = by_subject(frame), by_subject(network)
        columns = (ours["label"], baseline["probability"], ours["probability"])
        test = metrics.delong_test(*(column.to_numpy() for column in columns))
        results[name] = {
            "threshold": threshold,
            "test": measure(frame, threshold, config, "test"),
            "network_minus_baseline": asdict(test),
        }
        scores[name] = (frame["label"].to_numpy(), probabilities["test"])
    if isinstance(found["regional"], dict):
        null = baselines.permutation_null(found["regional"], real, stacks["test"].labels, PERMUTATIONS, config.seed)
        results["permuted"]["null"] = null
    return results, scores


def report(run: Run, results: dict[str, Any]) -> None:
    """The network on the real test subjects, measure by measure, and the AUC of each baseline beside it."""
    run.say("on real test subjects")
    for name in metrics.MEASURES:
        run.say(f"    {name:24s}{cell_text(results['metrics']['test'][name])}")
    for name, result in results["baselines"].items():
        if "test" not in result:
            run.say(f"    baseline {name}: skipped, {result['skipped']}")
            continue
        test = result["network_minus_baseline"]
        run.say(
            f"    baseline {name}: AUC {cell_text(result['test']['auc'])}; network minus it {test['difference']:+.3f} "
            f"[{test['low']:+.3f}, {test['high']:+.3f}], DeLong p {test['p']:.3g}"
        )
    if "test" in results["side"]:
        run.say("right against left: AUC {value:.3f} [{low:.3f}, {high:.3f}]".format(**results["side"]["test"]["auc"]))
    for line in [f"LEAK ALLOWED: {leak}" for leak in results["leaks"]] + results["notes"]:
        run.say(line)
