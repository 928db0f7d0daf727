"""Bootstrap over subjects (outer) and training seeds (inner): draws, intervals, p-values, measures of arms.

A resample draws subjects with replacement within each fold and class, and training seeds with replacement; all arms
have the same draws, so that differences between arms are paired. The measure of an arm is the mean over its seeds and
folds. Where subject and seed effects add, the bootstrap's variance is that of the random-effects model: a subject part
over the number of subjects and a seed part over the number of seeds. What is left (subject times seed) counts three
times, which makes intervals slightly wide (Owen 2007, https://doi.org/10.1214/07-AOAS122). How far a few seeds vary is
itself uncertain, so their draws are spread further, by Student's t (`few_seeds`).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from classifier.measures.intervals import auc_interval, mean_of_shares_interval, share_interval
from classifier.measures.metrics import MEASURES, check_labels, weighted_auc, weighted_metrics
from classifier.measures.runs import ArmRuns
from classifier.measures.side import part_of, threshold_of, weighted_part
from runtime import seeding

OF_ONE_CLASS = {"sensitivity": 1, "specificity": 0}
"""Measures of one class's subjects alone, by its code."""


def bootstrap_weights(labels: np.ndarray, clusters: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each scan is drawn, (R, N), when subjects are resampled with replacement within each class.

    Scans of one of the `clusters` (N,), subjects or groups, are drawn together; a group with both classes counts once
    in each.
    """
    weights = np.zeros((resamples, len(labels)))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        _, member = np.unique(np.asarray(clusters, dtype=str)[rows], return_inverse=True)
        count = member.max() + 1
        weights[:, rows] = rng.multinomial(count, np.full(count, 1 / count), size=resamples)[:, member]
    return weights


def seed_weights(seeds: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Share of each training seed in each resample (R, S): S - 1 of them drawn with replacement.

    Drawing one less than there are makes the variance of the resampled mean an unbiased estimate of that of the mean
    (Rao & Wu 1988, JASA 83:231, with m = n - 1); drawing as many would halve it at two seeds. One seed alone always has
    weight 1: then nothing is known about training.
    """
    if seeds == 1:
        return np.ones((resamples, 1))
    return rng.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=resamples) / (seeds - 1)


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of draws (R,), by order statistics.

    Draws may be infinite; one that is not a number could be anything, and widens the interval at both ends.
    """
    unknown = np.isnan(draws)
    tail = (1 - level) / 2 * (len(draws) - 1)
    low = np.sort(np.where(unknown, -np.inf, draws))[int(np.floor(tail + 1e-9))]
    high = np.sort(np.where(unknown, np.inf, draws))[int(np.ceil(len(draws) - 1 - tail - 1e-9))]
    return float(low), float(high)


def cell(value: float, draws: np.ndarray, level: float = 0.95) -> dict[str, Any]:
    """An estimate and its percentile interval, ready for JSON: ``value``, ``low``, ``high``.

    They are None where there is no finite number; then ``not_estimable`` is the share of draws without a finite value.
    """
    numbers = dict(zip(("value", "low", "high"), (value, *interval(draws, level)), strict=True))
    found = {name: float(number) if np.isfinite(number) else None for name, number in numbers.items()}
    if None in found.values():
        found["not_estimable"] = float(np.mean(~np.isfinite(draws)))
    return found


def cell_text(found: dict[str, Any], form: str = ".3f") -> str:
    """A cell for people: ``0.812 [0.745, 0.871]``."""
    value = "not estimable" if found["value"] is None else format(found["value"], form)
    low, high = ("no bound" if found[end] is None else format(found[end], form) for end in ("low", "high"))
    return f"{value} [{low}, {high}]"


def two_sided_p(draws: np.ndarray) -> float:
    """Bootstrap p-value of a difference of 0: twice the share of draws (R,) on the rarer side, at least 2 / (R + 1)."""
    rarer = min(np.sum(draws <= 0), np.sum(draws >= 0))
    return float(min(1.0, 2 * (1 + rarer) / (len(draws) + 1)))


def evaluate(frame: pd.DataFrame, threshold: float, rng: np.random.Generator, resamples: int) -> dict[str, dict]:
    """The `cell` of each of MEASURES, its interval over groups, for a table with label, probability and group.

    Those in `closed_form` have that interval instead.
    """
    labels = frame["label"].to_numpy()
    check_labels(labels)
    weights = bootstrap_weights(labels, frame["group"].to_numpy(), resamples, rng)
    weights = np.vstack([np.ones(len(labels)), weights])
    drawn = weighted_metrics(labels, frame["probability"].to_numpy(), threshold, weights)
    blank_unknown(drawn, frame)
    cells = {name: cell(float(drawn[name][0]), drawn[name][1:]) for name in MEASURES}
    for name, (low, high) in closed_form(frame, threshold).items():
        cells[name] |= {"low": low, "high": high}
    return {name: without_width_zero(found) for name, found in cells.items()}


def without_width_zero(found: dict[str, Any]) -> dict[str, Any]:
    """A cell without bounds where both are one number: what is the same in every draw says nothing of others."""
    if found["low"] is None or found["low"] != found["high"]:
        return found
    return {**found, "low": None, "high": None, "not_estimable": 1.0}


def closed_form(frame: pd.DataFrame, threshold: float) -> dict[str, tuple[float, float]]:
    """95 % intervals of shares of subjects and of the area; none for fewer than two subjects of a class, and none where
    scans belong together.
    """
    if not frame["group"].is_unique or frame["label"].value_counts().reindex([0, 1], fill_value=0).min() < 2:
        return {}
    labels, scores = frame["label"].to_numpy(), frame["probability"].to_numpy()
    right = (scores >= threshold) == (labels == 1)
    shares, ends = {}, {}
    for name, code in OF_ONE_CLASS.items():
        own = right[labels == code]
        shares[name], ends[name] = own.mean(), share_interval(int(own.sum()), len(own))
    return {
        **ends,
        "accuracy": share_interval(int(right.sum()), len(right)),
        "balanced_accuracy": mean_of_shares_interval(list(shares.values()), list(ends.values())),
        "auc": auc_interval(labels, scores),
    }


def blank_unknown(drawn: dict[str, np.ndarray], frame: pd.DataFrame) -> None:
    """Makes the draws (1 + R,) of what a class of one group enters, in a table with label and group, not a number.

    Such a class is the same in every draw, which says nothing about others of its kind.
    """
    for alone in (code for code in (0, 1) if frame.loc[frame["label"] == code, "group"].nunique() == 1):
        for name in MEASURES:
            if OF_ONE_CLASS.get(name, alone) == alone:
                drawn[name][1:] = np.nan


@dataclass(frozen=True)
class Draws:
    """What every arm is resampled by. The first of the 1 + R rows is no draw: it gives the estimates themselves."""

    subjects: dict[int, np.ndarray]  # fold -> how often each scan of the fold was drawn, (1 + R, N_f)
    seeds: np.ndarray  # share of each training seed, (1 + R, S)


def draws_of(runs: ArmRuns, resamples: int, seed: int) -> Draws:
    """R resamples of the subjects of each fold and of the training seeds."""
    subjects = {}
    for fold in runs.folds:
        labels, groups = runs.labels(fold), runs.frame(fold)["group"].to_numpy()
        drawn = bootstrap_weights(labels, groups, resamples, seeding.rng(seed, "compare", fold))
        subjects[fold] = np.vstack([np.ones(len(labels)), drawn])
    S = len(runs.seeds)
    shares = seed_weights(S, resamples, seeding.rng(seed, "compare seeds"))
    return Draws(subjects, np.vstack([np.full(S, 1 / S), shares]))


@np.errstate(invalid="ignore")  # as in `over_seeds`
def by_seed(runs: ArmRuns, arm: str, draws: Draws) -> dict[str, np.ndarray]:
    """All measures of one arm, averaged over folds: each (1 + R, S)."""
    total = {name: np.zeros_like(draws.seeds) for name in MEASURES}
    for fold in runs.folds:
        labels, weights = runs.labels(fold), draws.subjects[fold]
        for place, run in enumerate(runs.cells(arm, fold)):
            measured = weighted_metrics(labels, run.frame["probability"].to_numpy(), run.results["threshold"], weights)
            blank_unknown(measured, run.frame)
            for name in MEASURES:
                total[name][:, place] += measured[name] / len(runs.folds)
    return total


def part_by_seed(runs: ArmRuns, arm: str, name: str, draws: Draws) -> dict[str, np.ndarray]:
    """Accuracy and AUC of one of `classifier.measures.side.PARTS`, averaged over folds, (1 + R, S) each; nothing where
    a run does not have it.
    """
    total: dict[str, np.ndarray] = {}
    for fold in runs.folds:
        for place, run in enumerate(runs.cells(arm, fold)):
            part = part_of(run.frame, name)
            if part is None:
                return {}
            weights = draws.subjects[fold][:, part.index]
            for measure, values in weighted_part(part, threshold_of(name, run.results["threshold"]), weights).items():
                total.setdefault(measure, np.zeros_like(draws.seeds))[:, place] += values / len(runs.folds)
    return total


@np.errstate(invalid="ignore")  # infinite slopes of either sign have no mean
def over_seeds(values: np.ndarray, draws: Draws) -> np.ndarray:
    """The mean over the drawn seeds of values (1 + R, S); (1 + R,). A seed that was not drawn may be infinite."""
    return (draws.seeds * np.where(draws.seeds > 0, values, 0.0)).sum(1)


@np.errstate(invalid="ignore")
def spread_over_seeds(values: np.ndarray, draws: Draws) -> np.ndarray:
    """`over_seeds`, with the draws spread about the estimate by `few_seeds`: their percentiles are an interval."""
    means = over_seeds(values, draws)
    return means[0] + few_seeds(values, means) * (means - means[0])


def few_seeds(values: np.ndarray, means: np.ndarray) -> float:
    """What Student's t has to be larger than the normal distribution by, at 95 %, for values (1 + R, S) and the means
    (1 + R,) of resamples of subjects and seeds; 1 for one seed, of which nothing is known, and without finite numbers.

    The variance of the means is the sum of that between seeds, known with S - 1 degrees of freedom, and that of the
    subjects, known well. Degrees of freedom of the sum: Satterthwaite 1946, Biometrics Bulletin 2:110.
    """
    seeds = values.shape[1]
    if seeds == 1 or not np.isfinite(values[0]).all():
        return 1.0
    between, total = values[0].var(ddof=1) / seeds, means[1:][np.isfinite(means[1:])].var()
    if not 0 < between < np.inf or not total > 0:
        return 1.0
    freedom = (seeds - 1) * max(total / between, 1.0) ** 2
    return float(stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975))


def auc_of_scores(runs: ArmRuns, scores: dict[int, np.ndarray], draws: Draws) -> np.ndarray:
    """Fold-averaged area (1 + R,) of one fixed score (N_f,) per fold, under the same draws of subjects."""
    areas = [weighted_auc(runs.labels(fold), scores[fold], draws.subjects[fold]) for fold in runs.folds]
    return np.mean(areas, axis=0)
