"""Measures of arms over training seeds and folds, with a bootstrap of subjects (outer) and seeds (inner).

A resample draws subjects with replacement within each fold and class, and training seeds with replacement; all arms
have the same draws, so that differences between arms are paired. The measure of an arm is the mean over its seeds and
folds. Where subject and seed effects add, the bootstrap's variance is that of the random-effects model: a subject part
over the number of subjects and a seed part over the number of seeds. What is left (subject times seed) counts three
times, which makes intervals slightly wide (Owen 2007, https://doi.org/10.1214/07-AOAS122).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from classifier.measures.metrics import MEASURES, weighted_auc, weighted_metrics
from classifier.measures.resampling import bootstrap_weights, seed_weights
from classifier.measures.runs import ArmRuns
from runtime import seeding


@dataclass(frozen=True)
class Draws:
    """What every arm is resampled by. The first of the 1 + R rows is no draw: it gives the estimates themselves."""

    subjects: dict[int, np.ndarray]
    """fold -> how often each scan of the fold was drawn, (1 + R, N_f)."""
    seeds: np.ndarray
    """Share of each training seed, (1 + R, S)."""


def draws_of(runs: ArmRuns, resamples: int, seed: int) -> Draws:
    """R resamples of the subjects of each fold and of the training seeds."""
    subjects = {}
    for fold in runs.folds:
        frame = runs.frame(fold)
        rng = seeding.rng(seed, "compare", fold)
        drawn = bootstrap_weights(frame["label"].to_numpy(), frame["group"].to_numpy(), resamples, rng)
        subjects[fold] = np.vstack([np.ones(len(frame)), drawn])
    shares = seed_weights(len(runs.seeds), resamples, seeding.rng(seed, "compare seeds"))
    return Draws(subjects, np.vstack([np.full(len(runs.seeds), 1 / len(runs.seeds)), shares]))


def by_seed(runs: ArmRuns, arm: str, draws: Draws) -> dict[str, np.ndarray]:
    """All measures of one arm, averaged over folds: each (1 + R, S)."""
    total = {name: np.zeros_like(draws.seeds) for name in MEASURES}
    with np.errstate(invalid="ignore"):  # as in `over_seeds`
        for fold in runs.folds:
            for place, run in enumerate(runs.cells(arm, fold)):
                measured = weighted_metrics(
                    runs.labels(fold), run.frame["probability"].to_numpy(), run.results["threshold"],
                    draws.subjects[fold],
                )  # fmt: skip
                for name in MEASURES:
                    total[name][:, place] += measured[name] / len(runs.folds)
    return total


def over_seeds(values: np.ndarray, draws: Draws) -> np.ndarray:
    """The mean over the drawn seeds of values (1 + R, S); (1 + R,). A seed that was not drawn may be infinite."""
    counted = np.where(draws.seeds > 0, values, 0.0)
    with np.errstate(invalid="ignore"):  # infinite slopes of either sign have no mean
        return (draws.seeds * counted).sum(1)


def auc_of_scores(runs: ArmRuns, scores: dict[int, np.ndarray], draws: Draws) -> np.ndarray:
    """Fold-averaged area (1 + R,) of one fixed score (N_f,) per fold, under the same draws of subjects."""
    areas = [weighted_auc(runs.labels(fold), scores[fold], draws.subjects[fold]) for fold in runs.folds]
    return np.mean(areas, axis=0)
