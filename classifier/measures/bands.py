"""Curves of arms, averaged over folds and training seeds, with bands from the nested bootstrap."""

from __future__ import annotations

from typing import Any

import numpy as np

from classifier.measures.metrics import cumulative
from classifier.measures.nested_bootstrap import Draws
from classifier.measures.runs import ArmRuns

GRID = np.linspace(0, 1, 101)
"""Where curves are read: false positive rates, or recalls."""
RESAMPLES = 400
"""Resamples that a band is drawn from; more change nothing that can be seen."""
PER_BIN = 20
"""Scans per bin of a reliability diagram, about; 3 to 10 bins."""


def roc_rows(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sensitivity at each false positive rate of GRID, for weightings (R, N) of the subjects; (R, 101).

    Linear between the points of the curve, as the area is; at a vertical step its upper end.
    """
    hits, alarms = cumulative(scores, weights * (labels == 1), weights * (labels == 0))
    start = np.zeros((len(weights), 1))
    hits, alarms = np.hstack([start, hits / hits[:, -1:]]), np.hstack([start, alarms / alarms[:, -1:]])
    return np.stack([np.interp(GRID, fpr, tpr) for fpr, tpr in zip(alarms, hits, strict=True)])


def precision_rows(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Precision at each recall of GRID, for weightings (R, N) of the subjects; (R, 101).

    It is that of the highest threshold which reaches the recall, not interpolated: a line between two points would be
    too good (Davis & Goadrich 2006).
    """
    hits, alarms = cumulative(scores, weights * (labels == 1), weights * (labels == 0))
    called = hits + alarms
    precision = np.divide(hits, called, out=np.ones(hits.shape), where=called > 0)
    recall = hits / hits[:, -1:]
    places = [np.searchsorted(row, np.maximum(GRID, 1e-9) - 1e-12) for row in recall]
    return np.stack([row[place] for row, place in zip(precision, places, strict=True)])


def all_bands(runs: ArmRuns, draws: Draws) -> dict[str, dict[str, Any]]:
    """arm -> ``roc`` and ``precision``, ``share`` of TLE among the scans, ``leak``.

    Curves are (3, 101): the line, and the lower and upper end of its pointwise 95 % interval, on GRID.
    """
    labels = np.concatenate([runs.labels(fold) for fold in runs.folds])
    shares = draws.seeds[: RESAMPLES + 1]
    found = {}
    for arm in runs.arms:
        curves: dict[str, Any] = {"roc": 0.0, "precision": 0.0}
        for fold in runs.folds:
            weights = draws.subjects[fold][: RESAMPLES + 1]
            for place, scores in enumerate(runs.probabilities(arm, fold)):
                part = shares[:, place, None] / len(runs.folds)
                for name, rows in (("roc", roc_rows), ("precision", precision_rows)):
                    curves[name] = curves[name] + part * rows(runs.labels(fold), scores, weights)
        bands = {
            name: np.vstack([rows[:1], np.quantile(rows[1:], [0.025, 0.975], axis=0)]) for name, rows in curves.items()
        }
        found[arm] = {**bands, "share": float(labels.mean()), "leak": runs.leak(arm)}
    return found


def reliabilities(runs: ArmRuns) -> dict[str, list[dict[str, Any]]]:
    """arm -> bins of `reliability`: all folds together, probabilities averaged over training seeds."""
    labels = np.concatenate([runs.labels(fold) for fold in runs.folds])
    bins = int(np.clip(len(labels) // PER_BIN, 3, 10))
    return {
        arm: reliability(labels, np.concatenate([runs.probabilities(arm, fold).mean(0) for fold in runs.folds]), bins)
        for arm in runs.arms
    }


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int) -> list[dict[str, Any]]:
    """So many bins of equally many subjects, by rising probability; equal ones may lie in two bins.

    Each has the mean probability ``promised``, the share of TLE ``observed``, its 95 % Wilson interval ``low``,
    ``high``, and ``count``.
    """
    from statsmodels.stats.proportion import proportion_confint  # slow to import

    rows = []
    for part in np.array_split(np.argsort(probabilities, kind="stable"), min(bins, len(labels))):
        low, high = proportion_confint(int(labels[part].sum()), len(part), method="wilson")
        promised, observed = float(probabilities[part].mean()), float(labels[part].mean())
        rows.append({"promised": promised, "observed": observed, "low": low, "high": high, "count": len(part)})
    return rows
