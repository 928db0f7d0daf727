"""Folders of finished runs, made up: scores with known effects, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from classifier.measures.predictions import write_predictions
from runtime.files import write_json


def write_run(
    folder: Path, scores: np.ndarray, labels: np.ndarray, subjects: list[str], *, val: list[str] | None = None,
    seed: int = 0, fold: int = 0, config: dict[str, Any] | None = None, leak: bool = False,
    columns: dict[str, Any] | None = None, side: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """One run folder: test predictions sigmoid(scores), and validation subjects with alternating labels; more `columns`
    of them, and what results say of the `side`.
    """
    test = {"subject": subjects, "label": labels, "logit": scores, "split": "test"}
    held = {"subject": val or [], "label": np.arange(len(val or [])) % 2, "logit": 0.0, "split": "val"}
    frame = pd.concat([pd.DataFrame(test), pd.DataFrame(held)], ignore_index=True)
    frame = frame.assign(session="", side="", group=frame["subject"], seed=seed, fold=fold)
    frame = frame.assign(**(columns or {}))
    frame["probability"] = expit(frame["logit"].to_numpy(dtype=float))
    write_predictions(folder / "predictions.csv", frame)
    counts = {"real_HC": 10, "real_TLE": 10, "synthetic_HC": 0, "synthetic_TLE": 0}
    if config and config.get("real") == 0:
        counts = {"real_HC": 0, "real_TLE": 0, "synthetic_HC": 20, "synthetic_TLE": 20}
    baseline = {"site": {"test": {"auc": {"value": 0.5, "low": 0.4, "high": 0.6}}}, "age_sex": {"skipped": "no age"}}
    results = {"threshold": 0.5, "leak": leak, "counts": {"train": counts}, "baselines": baseline}
    results |= {"side": side} if side else {}
    write_json(folder / "results.json", results)
    return folder


def write_arms(root: Path, arms: dict[str, tuple[float, dict[str, Any]]], *, seeds: int = 2, folds: int = 2) -> Path:
    """arm -> (effect in standard deviations, configuration); 30 subjects per fold."""
    rng = np.random.default_rng(0)
    labels, base = np.arange(30) % 2, rng.normal(size=(folds, 30))
    names = [[f"sim0-{30 * fold + k:04d}" for k in range(30)] for fold in range(folds)]
    for arm, (effect, config) in arms.items():
        for seed in range(seeds):
            for fold in range(folds):
                scores = base[fold] + 0.5 * rng.normal(size=30) + effect * (labels - 0.5)
                write_run(
                    root / arm / f"seed{seed}_fold{fold}", scores, labels, names[fold], seed=seed, fold=fold,
                    val=names[(fold + 1) % folds] if folds > 1 else None, config=config,
                )  # fmt: skip
    return root
