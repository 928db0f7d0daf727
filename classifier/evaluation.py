"""What a finished run says about held-out subjects: predictions, measures, the side, and the baselines beside it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit

from classifier.checkpoint import load_classifier, set_operating_point
from classifier.config import TrainConfig
from classifier.dataset import Volumes, counts, counts_text, sides
from classifier.known_volumes import mri_negative
from classifier.measures import metrics, resampling
from classifier.measures.paired_tests import delong_test
from classifier.measures.predictions import by_subject, write_predictions
from classifier.measures.resampling import cell_text
from classifier.measures.side import SIDE_PARTS, part_of, threshold_of
from classifier.selection import Selection
from cohort.anatomy.volume_tables import VolumeTable
from cohort.labelling.reading import Reader
from cohort.stacks import ScanStack
from runtime import seeding
from runtime.checkpoints import checkpoint_hash, git_commit
from runtime.device import Device
from runtime.files import write_json
from runtime.runs import Run, read_log

FIELDS = ("grid", "seed", "sample_seed", "resamples", "folds", "fold", "augmentation", "shuffle", "steps", "batch_size")
EVAL_BATCH = 16
PERMUTATIONS = 200


@torch.no_grad()
def predict(network: Callable[[torch.Tensor], torch.Tensor], volumes: Volumes) -> np.ndarray:
    """Logits float64 (N, outputs) of all scans, in full precision: rounded ones would tie, which blurs a ROC curve.

    Batches have one size, for which a `network` may be compiled; the last is filled up with the last scan.
    """
    count, batches = len(volumes), -(-len(volumes) // EVAL_BATCH)
    size = -(-count // batches)
    rows = torch.arange(size * batches).clamp(max=count - 1).split(size)
    return torch.cat([network(volumes.batch(part)).float().cpu() for part in rows])[:count].double().numpy()


def evaluate(
    run: Run,
    selection: Selection,
    stacks: dict[str, ScanStack],
    known: VolumeTable | None,
    reader: Reader | None,
    device: Device,
    config: TrainConfig,
) -> None:
    """The best checkpoint on held-out subjects: predictions.csv, results.json, curves.png and the printed table."""
    from classifier.measures import figures  # slow to import

    path = run.checkpoint("best")
    loaded = load_classifier(path)
    model = device.module(loaded.model)
    logits = {name: predict(model.both, Volumes(stacks[name], device)) for name in ("val", "test")}
    labels = stacks["val"].labels
    temperature = metrics.fit_temperature(labels, logits["val"][:, 0]) if config.temperature else 1.0
    predictions = {name: predicted(stacks[name], logits[name], temperature, name, config) for name in logits}
    for frame in predictions.values():
        frame["mri_negative"] = mri_negative(frame, known)
    threshold = metrics.choose_threshold(labels, predictions["val"]["probability"].to_numpy())
    set_operating_point(path, temperature=temperature, threshold=threshold)
    measured = {name: measure(frame, threshold, config, name) for name, frame in predictions.items()}
    others, scores, side_scores = measure_baselines(stacks, known, reader, predictions["test"], config)
    write_predictions(run.path / "predictions.csv", pd.concat(predictions.values(), ignore_index=True))
    log = read_log(run.path)
    test, y = predictions["test"], stacks["test"].labels
    scores = {"network": test["probability"].to_numpy(), **scores}
    drawn = {name: (y[~np.isnan(row)], row[~np.isnan(row)]) for name, row in scores.items()}
    legend = {f"{name}, AUC {metrics.auc(*curve):.3f}": curve for name, curve in drawn.items()}
    figures.curves(run.path / "curves.png", legend, log, title=f"trained on {counts_text(stacks['train'])}")
    results = {
        "commit": git_commit(), "checkpoint": checkpoint_hash(path), "step": loaded.step,
        **{name: getattr(config, name) for name in FIELDS}, "model": config.model.name,
        "counts": {name: counts(stack) for name, stack in stacks.items()}, "seconds": training_seconds(log),
        "peak_gpu_bytes": torch.cuda.max_memory_reserved(device.kind) if device.kind.type == "cuda" else None,
        "temperature": temperature, "threshold": threshold,
        "leak": bool(selection.leaks), "leaks": selection.leaks, "notes": selection.notes,
        "metrics": measured, **measure_parts(test, threshold, side_scores, config), "baselines": others,
    }  # fmt: skip
    report(run, results)
    write_json(run.path / "results.json", results)


def predicted(
    scans: ScanStack, logits: np.ndarray, temperature: float, split: str, config: TrainConfig
) -> pd.DataFrame:
    """A table with its predictions; the side's probability (of right) is empty where none was learned."""
    side = expit(logits[:, 1]) if logits.shape[1] > 1 else np.nan
    found = {"logit": logits[:, 0], "probability": expit(logits[:, 0] / temperature), "side_probability": side}
    return scans.frame.assign(**found, split=split, seed=config.seed, fold=config.fold)


def training_seconds(log: list[dict[str, float]]) -> float:
    """Seconds that all steps took with their validations and checkpoints, over however many starts of the run."""
    lines = np.array([(line["step"], line["time/step_s"]) for line in log if "time/step_s" in line])
    return round(float(np.diff(lines[:, 0], prepend=0) @ lines[:, 1]), 2)


def measure(frame: pd.DataFrame, threshold: float, config: TrainConfig, split: str) -> dict[str, Any]:
    """All measures of a table of predictions, with intervals over subjects (or groups of subjects)."""
    return resampling.evaluate(frame, threshold, seeding.rng(config.seed, f"bootstrap {split}"), config.resamples)


def measure_parts(
    frame: pd.DataFrame, threshold: float, side_scores: dict[str, np.ndarray], config: TrainConfig
) -> dict[str, Any]:
    """All measures of right against left and of HC against sclerosis on the test table: the network's, and for sides
    those of the baselines whose probabilities (N,) of right are given.
    """

    def measured(frame: pd.DataFrame, names: dict[str, str]) -> dict[str, Any]:
        parts = {key: (name, part_of(frame, name)) for key, name in names.items()}
        return {
            key: measure(part, threshold_of(name, threshold), config, name)
            for key, (name, part) in parts.items() if part is not None
        }  # fmt: skip

    found = measured(frame, SIDE_PARTS)
    counts = {name: int((frame["side"] == letter).sum()) for name, letter in (("left", "L"), ("right", "R"))}
    missing = {} if "test" in found else {"skipped": "no side was learned (--side-weight), or too few have one"}
    scored = {name: frame.assign(side_probability=score) for name, score in side_scores.items()}
    baseline = {name: measured(other, SIDE_PARTS) for name, other in scored.items()}
    side = {**counts, **missing, **found, "baselines": baseline}
    return {"side": side, **measured(frame, {"sclerosis": "sclerosis"})}


def measure_baselines(
    stacks: dict[str, ScanStack],
    known: VolumeTable | None,
    reader: Reader | None,
    network: pd.DataFrame,
    config: TrainConfig,
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Fits each baseline and measures it like the network, whose test predictions are `network`, on the same scans.

    Returns results by name ({"skipped": reason} where there is nothing to fit), test probabilities for the curves (NaN
    for scans of which a baseline knows nothing), and those of right against left.
    """
    from classifier import baselines  # slow to import

    train = stacks["train"]  # each scan once: what is fitted in closed form gains nothing from a repeated row
    train = train.take(np.flatnonzero(~train.frame["repeated"].to_numpy(dtype=bool)))
    real = ~train.frame["synthetic"].to_numpy(dtype=bool)
    labels = {"train": train.labels[real], **{split: stacks[split].labels for split in ("val", "test")}}
    results, scores = {}, {}
    inputs_of = baselines.features(train, {name: stacks[name] for name in ("val", "test")}, known, reader)
    for name, inputs in inputs_of.items():
        if isinstance(inputs, str):
            results[name] = {"skipped": inputs}
            continue
        own = labels | {"train": train.labels} if name == "hippocampus" else labels
        there = {split: np.isfinite(values).all(axis=1) for split, values in inputs.items()}
        if min(np.bincount(own[split][there[split]], minlength=2).min() for split in there) < 1:
            results[name] = {"skipped": "these volumes are known of too few scans, of both classes in each table"}
            continue
        model = baselines.fit(inputs["train"][there["train"]], own["train"][there["train"]])
        val, test = (model.predict_proba(inputs[split][there[split]])[:, 1] for split in ("val", "test"))
        scores[name] = np.full(len(network), np.nan)
        scores[name][there["test"]] = test
        threshold = metrics.choose_threshold(labels["val"][there["val"]], val)
        frame = network.assign(probability=scores[name])[there["test"]]
        theirs, ours = by_subject(frame), by_subject(network[there["test"]])
        columns = (ours["label"], theirs["probability"], ours["probability"])
        if ours["label"].value_counts().min() < 2:
            difference = {"skipped": "DeLong's variance needs two test subjects of each class"}
        else:
            difference = delong_test(*([column.to_numpy()] for column in columns))
        measured = {"test": measure(frame, threshold, config, "test"), "network_minus_baseline": difference}
        results[name] = {"threshold": threshold, "test_scans": len(frame), **measured}
        if name == "permuted":
            regional = inputs_of["regional"]
            known_rows = {split: np.isfinite(values).all(axis=1) for split, values in regional.items()}
            features = {split: values[known_rows[split]] for split, values in regional.items()}
            own = [labels[split][known_rows[split]] for split in ("train", "test")]
            results[name]["null"] = baselines.permutation_null(features, *own, PERMUTATIONS, config.seed)
    return results, scores, baselines.side_scores(inputs_of, sides(train.frame[real]))


def report(run: Run, results: dict[str, Any]) -> None:
    """The network on the real test subjects, measure by measure, and the AUC of each baseline beside it."""
    run.say("on real test subjects")
    for name in metrics.MEASURES:
        run.say(f"    {name:24s}{cell_text(results['metrics']['test'][name])}")
    for name, result in results["baselines"].items():
        if "skipped" in result:
            run.say(f"    baseline {name}: skipped, {result['skipped']}")
            continue
        difference = result["network_minus_baseline"]
        text = "network minus it {difference:+.3f} [{low:+.3f}, {high:+.3f}], DeLong p {p:.3g}"
        text = difference["skipped"] if "skipped" in difference else text.format(**difference)
        run.say(f"    baseline {name}: AUC {cell_text(result['test']['auc'])}; {text}")
    if "sclerosis" in results:
        run.say(f"HC against sclerosis: AUC {cell_text(results['sclerosis']['auc'])}")
    for who, found in {"network": results["side"], **results["side"]["baselines"]}.items():
        for name, patients in (("test", "all patients"), ("sclerosis", "sclerosis")):
            if name in found:
                accuracy, auc = (cell_text(found[name][measure]) for measure in ("accuracy", "auc"))
                run.say(f"right against left, {patients}, {who}: accuracy {accuracy}, AUC {auc}")
    for line in [f"LEAK ALLOWED: {leak}" for leak in results["leaks"]] + results["notes"]:
        run.say(line)
