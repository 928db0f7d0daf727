"""Arms of an experiment against a reference: measures with intervals, paired tests, and the check for shortcuts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from classifier import baselines
from classifier.measures import nested_bootstrap, paired_tests
from classifier.measures.fold_averages import delong_by_fold, fold_averaged_auc, pooled_auc
from classifier.measures.nested_bootstrap import Draws
from classifier.measures.predictions import by_subject
from classifier.measures.resampling import cell, interval, two_sided_p
from classifier.measures.runs import ArmRuns
from cohort.tables import CLASS_NAMES, read_table
from runtime.errors import InputError

TESTS = ("bootstrap", "delong", "mcnemar")
"""Tests of a pair of arms; Holm corrects each over the pairs."""


@dataclass(frozen=True)
class Comparison:
    """What there is to say about the arms. Rows are ready for JSON."""

    rows: list[dict[str, Any]]
    """One for each arm."""
    tests: list[dict[str, Any]]
    """One for each pair."""
    auc: dict[str, np.ndarray]
    """Area of each arm, (1 + R,): the estimate, then the resamples."""


def compare_arms(runs: ArmRuns, draws: Draws, *, pairs: str, margin: float) -> Comparison:
    """Measures every arm and tests every planned pair: each arm with the first (``reference``), or ``all`` of them.

    `margin` is the largest difference of areas that does not matter.
    """
    from statsmodels.stats.multitest import multipletests  # slow to import

    rows, auc = [], {}
    for arm in tqdm(runs.arms, desc="arms", unit="arm", disable=None):
        measured = nested_bootstrap.by_seed(runs, arm, draws)
        auc[arm] = nested_bootstrap.over_seeds(measured["auc"], draws)
        rows.append(_row(runs, arm, measured, draws))
    names = list(runs.arms)
    chosen = list(combinations(names, 2)) if pairs == "all" else [(names[0], name) for name in names[1:]]
    tests = [_test(runs, a, b, auc[b] - auc[a], margin) for a, b in chosen]
    for kind in TESTS:
        _, corrected, *_ = multipletests([test[f"{kind}_p"] for test in tests], method="holm")
        for test, p in zip(tests, corrected, strict=True):
            test[f"{kind}_p_holm"] = float(p)
    return Comparison(rows, tests, auc)


def _row(runs: ArmRuns, arm: str, measured: dict[str, np.ndarray], draws: Draws) -> dict[str, Any]:
    cells = list(runs.arms[arm].values())
    means = {name: nested_bootstrap.over_seeds(values, draws) for name, values in measured.items()}
    labels = [runs.labels(fold) for fold in runs.folds]
    scores = [runs.probabilities(arm, fold) for fold in runs.folds]
    groups = [runs.frame(fold)["group"].to_numpy() for fold in runs.folds]
    pooled = {
        name: float(np.mean([pooled_auc(labels, list(rows), ranked=ranked) for rows in zip(*scores, strict=True)]))
        for name, ranked in (("pooled_auc", False), ("pooled_auc_after_ranking", True))
    }
    counts = pd.DataFrame([run.results["counts"]["train"] for run in cells]).fillna(0).mean()
    return {
        "run": arm, "leak": runs.leak(arm), "recipe": recipe(cells[0].config),
        "seeds": len(runs.seeds), "folds": len(runs.folds), "subjects": runs.subjects,
        # Whole numbers stay whole.
        "counts": {name: int(value) if value.is_integer() else round(value, 1) for name, value in counts.items()},
        "metrics": {name: cell(float(values[0]), values[1:]) for name, values in means.items()},
        "auc_by_seed": dict(zip(map(str, runs.seeds), measured["auc"][0].tolist(), strict=True)),
        "fold_averaged_auc": fold_averaged_auc(labels, scores, groups),
        **pooled,
        "confusion": _confusion(runs, arm),
        "baselines": _baselines(runs, arm),
    }  # fmt: skip


def _confusion(runs: ArmRuns, arm: str) -> dict[str, float]:
    """Scans by class and call, over all folds, averaged over seeds; each run at its own threshold."""
    total = np.zeros((2, 2))
    for fold in runs.folds:
        for run, scores in zip(runs.cells(arm, fold), runs.probabilities(arm, fold), strict=True):
            called = scores >= run.results["threshold"]
            np.add.at(total, (runs.labels(fold), called.astype(int)), 1 / len(runs.seeds))
    return {
        f"{label}_called_{call}": round(float(total[row, column]), 6)
        for row, label in enumerate(CLASS_NAMES)
        for column, call in enumerate(CLASS_NAMES)
    }


def _baselines(runs: ArmRuns, arm: str) -> dict[str, dict[str, float]]:
    """Areas of the baselines that every fold has, averaged over folds (they have no training seed to speak of).

    Their interval is the run's own for one fold, else the normal one whose variance is that of a mean of independent
    folds, each with the variance that the width of its own interval stands for.
    """
    folds = [runs.arms[arm][runs.seeds[0], fold].results.get("baselines", {}) for fold in runs.folds]
    found = {}
    for name in folds[0]:
        cells = [fold[name]["test"]["auc"] for fold in folds if "test" in fold.get(name, {})]
        if len(cells) < len(folds):
            continue
        if len(cells) == 1:
            found[name] = {end: cells[0][end] for end in ("value", "low", "high")}
            continue
        value = float(np.mean([cell["value"] for cell in cells]))
        half = float(np.sqrt(np.sum([((cell["high"] - cell["low"]) / 2) ** 2 for cell in cells])) / len(cells))
        found[name] = {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}
    return found


def recipe(config: dict[str, Any]) -> str:
    """What an arm adds to its real subjects, in words, from the run's config.json; ``real only`` when nothing."""
    words = {"synth_percent": "% synthetic", "synth_count": "synthetic", "duplicate_percent": "% duplicated"}
    parts = [f"{config[name]:g} {text}" for name, text in words.items() if config.get(name)]
    augmentation, shuffle = config.get("augmentation", "standard"), config.get("shuffle", "none")
    if augmentation != "standard":
        parts.append(f"{augmentation} augmentation" if augmentation != "none" else "no augmentation")
    if shuffle != "none":
        parts.append(f"labels of {shuffle} shuffled")
    model = config.get("model", {}).get("name", "resnet")
    if model != "resnet":
        parts.append(model)
    if config.get("real") != 0:
        parts.insert(0, "real" if parts else "real only")
    return " + ".join(parts)


def _test(runs: ArmRuns, a: str, b: str, difference: np.ndarray, margin: float) -> dict[str, Any]:
    """One pair: difference of areas (1 + R,) b minus a, DeLong on seed-averaged probabilities, McNemar."""
    draws = difference[1:]
    (low, high), narrow = interval(draws), interval(draws, level=0.9)
    frames = {arm: [_seed_averaged(runs, arm, fold) for fold in runs.folds] for arm in (a, b)}
    labels = [frame["label"].to_numpy() for frame in frames[a]]
    scores = [[frame["probability"].to_numpy() for frame in frames[arm]] for arm in (a, b)]
    right = [pd.concat(frames[arm]).eval("call == (label == 1)").to_numpy() for arm in (a, b)]
    only_a, only_b, p = paired_tests.mcnemar(*right)
    share, share_low, share_high = paired_tests.share_difference(only_a, only_b, len(right[0]))
    return {
        "a": a, "b": b, "leak": runs.leak(a) or runs.leak(b),
        "auc_difference": float(difference[0]), "auc_difference_low": low, "auc_difference_high": high,
        "auc_difference_low90": narrow[0], "auc_difference_high90": narrow[1], "bootstrap_p": two_sided_p(draws),
        "margin": margin, "verdict": paired_tests.verdict(*narrow, margin),
        **{f"delong_{name}": value for name, value in asdict(delong_by_fold(labels, *scores)).items()},
        "only_a_right": only_a, "only_b_right": only_b, "accuracy_difference": share,
        "accuracy_difference_low": share_low, "accuracy_difference_high": share_high, "mcnemar_p": p,
    }  # fmt: skip


def _seed_averaged(runs: ArmRuns, arm: str, fold: int) -> pd.DataFrame:
    """One row per subject: label, probability averaged over seeds and scans, and the call at the averaged threshold."""
    threshold = np.mean([run.results["threshold"] for run in runs.cells(arm, fold)])
    frame = by_subject(runs.frame(fold).assign(probability=runs.probabilities(arm, fold).mean(0)))
    return frame.assign(call=frame["probability"] >= threshold)


def against_truth(
    runs: ArmRuns, draws: Draws, auc: dict[str, np.ndarray], truth_csv: Path, tables: tuple[Path, ...]
) -> dict[str, Any]:
    """Areas of the arms beside that of a logistic regression on the true volumes of all changed regions.

    In a simulated cohort the classes differ by these volumes and nothing else, so the regression is close to what a
    scan can tell; its ridge penalty is chosen within the training subjects. An arm above it by more than chance raises
    the question of a shortcut. It is no proof: the regression is fitted to few subjects, which costs it some area (less
    so the more there are), and a network may use volumes in a way that no linear model can.

    `tables` are the training tables of the runs; subjects that a fold holds out are left out of that fold's fit.

    Returns:
        ``auc`` (a cell), ``training_subjects`` per fold, and for each of ``arms`` its area minus the truth's:
        ``difference``, ``low``, ``high``, ``p``, and ``above`` (the interval lies above 0).
    """
    table = pd.concat([read_table(path) for path in tables], ignore_index=True)
    inputs = baselines.truth_features(table, truth_csv)
    scores, sizes = {}, []
    for fold in runs.folds:
        held_out = frozenset().union(*(run.held_out for arm in runs.arms for run in runs.cells(arm, fold)))
        learned = ~table["subject"].isin(held_out).to_numpy()
        if (table.loc[learned, "label"].value_counts().reindex([0, 1], fill_value=0) < 2).any():
            raise InputError(f"fold {fold}: the tables hold too few training subjects, two of each class are needed")
        model = baselines.fit_closely(inputs[learned], table.loc[learned, "label"].to_numpy())
        scores[fold] = model.decision_function(baselines.truth_features(runs.frame(fold), truth_csv))
        sizes.append(int(table.loc[learned, "subject"].nunique()))
    true = nested_bootstrap.auc_of_scores(runs, scores, draws)
    arms = []
    for arm, area in auc.items():
        difference = area - true
        low, high = interval(difference[1:])
        row = {"run": arm, "difference": float(difference[0]), "low": low, "high": high}
        arms.append({**row, "p": two_sided_p(difference[1:]), "above": low > 0})
    return {"auc": cell(float(true[0]), true[1:]), "training_subjects": sizes, "arms": arms}
