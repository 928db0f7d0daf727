"""Curves of arms, averaged over folds and training seeds, with bands from the nested bootstrap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from classifier.arm_runs import ArmRuns
from classifier.measures.calibration import reliability
from classifier.measures.nested_bootstrap import Draws

GRID = np.linspace(0, 1, 101)
"""Where curves are read: false positive rates, or recalls."""
RESAMPLES = 400
"""Resamples that a band is drawn from; more change nothing that can be seen."""
PER_BIN = 20
"""Scans per bin of a reliability diagram, about; 3 to 10 bins."""


@dataclass(frozen=True)
class Band:
    """A curve on GRID with its pointwise 95 % interval; float64 (101,) each."""

    line: np.ndarray
    low: np.ndarray
    high: np.ndarray


def roc_rows(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sensitivity at each false positive rate of GRID, for weightings (R, N) of the subjects; (R, 101).

    Linear between the points of the curve, as the area is; at a vertical step its upper end.
    """
    hits, alarms = _cumulative(labels, scores, weights)
    start = np.zeros((len(weights), 1))
    hits, alarms = np.hstack([start, hits / hits[:, -1:]]), np.hstack([start, alarms / alarms[:, -1:]])
    return np.stack([np.interp(GRID, fpr, tpr) for fpr, tpr in zip(alarms, hits, strict=True)])


def precision_rows(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Precision at each recall of GRID, for weightings (R, N) of the subjects; (R, 101).

    It is that of the highest threshold which reaches the recall, not interpolated: a line between two points would be
    too good (Davis & Goadrich 2006).
    """
    hits, alarms = _cumulative(labels, scores, weights)
    called = hits + alarms
    precision = np.divide(hits, called, out=np.ones(hits.shape), where=called > 0)
    recall = hits / hits[:, -1:]
    places = [np.searchsorted(row, np.maximum(GRID, 1e-9) - 1e-12) for row in recall]
    return np.stack([row[place] for row, place in zip(precision, places, strict=True)])


def _cumulative(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of TLE and of HC at or above each of the K distinct scores, from the highest; (R, K) each."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    positive = labels[order] == 1
    drawn = weights[:, order]
    return tuple(np.cumsum(drawn * part, axis=1)[:, ends] for part in (positive, ~positive))


def all_bands(runs: ArmRuns, draws: Draws) -> dict[str, dict[str, Any]]:
    """arm -> {"roc": Band, "precision": Band, "share": of TLE among the scans, "leak": bool}."""
    labels = np.concatenate([runs.labels(fold) for fold in runs.folds])
    found = {}
    for arm in runs.arms:
        curves = {"roc": 0.0, "precision": 0.0}
        shares = draws.seeds[: RESAMPLES + 1]
        for fold in runs.folds:
            weights = draws.subjects[fold][: RESAMPLES + 1]
            for place, run in enumerate(runs.cells(arm, fold)):
                scores, part = run.frame["probability"].to_numpy(), shares[:, place, None] / len(runs.folds)
                curves["roc"] = curves["roc"] + part * roc_rows(runs.labels(fold), scores, weights)
                curves["precision"] = curves["precision"] + part * precision_rows(runs.labels(fold), scores, weights)
        drawn = {name: _band(rows) for name, rows in curves.items()}
        leak = any(run.results["leak"] for run in runs.arms[arm].values())
        found[arm] = {**drawn, "share": float(labels.mean()), "leak": leak}
    return found


def _band(rows: np.ndarray) -> Band:
    low, high = np.quantile(rows[1:], [0.025, 0.975], axis=0)
    return Band(rows[0], low, high)


def reliabilities(runs: ArmRuns) -> dict[str, list[dict[str, Any]]]:
    """arm -> bins of `calibration.reliability`: all folds together, probabilities averaged over training seeds."""
    labels = np.concatenate([runs.labels(fold) for fold in runs.folds])
    bins = int(np.clip(len(labels) // PER_BIN, 3, 10))
    found = {}
    for arm in runs.arms:
        parts = [np.mean([run.frame["probability"] for run in runs.cells(arm, fold)], axis=0) for fold in runs.folds]
        found[arm] = reliability(labels, np.concatenate(parts), bins)
    return found
