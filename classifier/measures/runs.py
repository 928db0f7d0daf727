"""Reads what classifier runs left behind: single run folders, or a folder of arms x seeds x folds from run_arms."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from classifier.measures.predictions import read_predictions
from runtime.errors import InputError
from runtime.files import read_json

RUN_NAME = re.compile(r"seed(\d+)_fold(\d+)")
Cell = tuple[int, int]
"""Training seed and fold."""


@dataclass(frozen=True)
class FinishedRun:
    """One run's predictions and results."""

    frame: pd.DataFrame
    """Predictions on the split that is compared, sorted by subject and session."""
    held_out: frozenset[str]
    """Subjects of all splits in predictions.csv: those that the run did not learn from."""
    results: dict[str, Any]
    config: dict[str, Any]
    """config.json; empty when the folder has none."""


@dataclass(frozen=True)
class ArmRuns:
    """Arms that can be compared: every arm has every seed and fold, and in a fold all have the same scans."""

    arms: dict[str, dict[Cell, FinishedRun]]
    """The reference first."""
    seeds: tuple[int, ...]
    folds: tuple[int, ...]
    left_out: tuple[str, ...] = ()
    """What was not used, in words."""

    def frame(self, fold: int) -> pd.DataFrame:
        """Subjects and labels of a fold, from the first arm."""
        return next(iter(self.arms.values()))[self.seeds[0], fold].frame

    def labels(self, fold: int) -> np.ndarray:
        """(N_f,) labels of a fold's scans."""
        return self.frame(fold)["label"].to_numpy()

    def cells(self, arm: str, fold: int) -> list[FinishedRun]:
        """The runs of one arm and fold, in the order of `seeds`."""
        return [self.arms[arm][seed, fold] for seed in self.seeds]

    def probabilities(self, arm: str, fold: int) -> np.ndarray:
        """(S, N_f) probabilities of one arm and fold."""
        return np.stack([run.frame["probability"].to_numpy() for run in self.cells(arm, fold)])

    def leak(self, arm: str) -> bool:
        """Whether a run of the arm had --allow-leak let something pass."""
        return any(run.results["leak"] for run in self.arms[arm].values())

    @property
    def subjects(self) -> int:
        """How many subjects the comparison is about."""
        return len({subject for fold in self.folds for subject in self.frame(fold)["subject"]})


def read_run(folder: Path, split: str) -> FinishedRun:
    """Reads a run folder; InputError that names the file when the run has not finished."""
    predictions = read_predictions(folder / "predictions.csv")
    frame = predictions[predictions["split"] == split].sort_values(["subject", "session"]).reset_index(drop=True)
    results, config = read_json(folder / "results.json"), folder / "config.json"
    return FinishedRun(frame, frozenset(predictions["subject"]), results, read_json(config) if config.exists() else {})


def single_runs(paths: tuple[Path, ...], split: str) -> ArmRuns:
    """Run folders as arms of one seed and one fold each, the first the reference.

    An arm's name is the end of its path: as many folders as tell it from the others.

    Raises:
        InputError: fewer than two runs, unfinished ones, or runs whose held-out scans or labels differ; lists which.
    """
    folders = list(dict.fromkeys(path.resolve() for path in paths))
    if len(folders) < 2:
        raise InputError("a comparison needs two different runs or more")
    arms = {}
    for folder in folders:
        ends = [folder.parts[-depth:] for depth in range(1, len(folder.parts) + 1)]
        own = next(end for end in ends if sum(other.parts[-len(end) :] == end for other in folders) == 1)
        arms["/".join(own)] = {(0, 0): read_run(folder, split)}
    return checked(ArmRuns(arms, (0,), (0,)))


def arms_of(folder: Path, reference: str, split: str) -> ArmRuns:
    """The finished runs of ``folder/<arm>/seed<S>_fold<F>``, of the seeds that every arm has in every fold.

    Arms without one complete seed, and seeds that some arm lacks, are left out, which `left_out` says.

    Raises:
        InputError: no such folder, no finished reference, one arm only, no common seed, runs of one fold on different
            scans, a subject in two folds.
    """
    found = _finished(folder)
    folds = tuple(sorted({fold for cells in found.values() for _, fold in cells}))
    complete = {
        arm: {seed for seed, _ in cells if all((seed, fold) in cells for fold in folds)} for arm, cells in found.items()
    }
    usable = {arm: seeds for arm, seeds in complete.items() if seeds}
    if reference not in usable:
        there = ", ".join(usable) or "none"
        message = f"no arm {reference!r} with a seed finished in all folds; with one there are: {there}"
        raise InputError(f"{folder}: {message}")
    if len(usable) < 2:
        message = f"only the arm {reference!r} has a finished seed; a comparison needs two arms or more"
        raise InputError(f"{folder}: {message}")
    seeds = set.intersection(*usable.values())
    if not seeds:
        lines = [f"{arm}: seeds {sorted(have)}" for arm, have in usable.items()]
        raise InputError.of(f"{folder}: no seed is finished in all folds of all arms", lines)
    left_out = [f"arm {arm}: no seed is finished in all {len(folds)} folds" for arm in found if arm not in usable]
    left_out += [
        f"arm {arm}: seed {seed}, which not all arms have" for arm in usable for seed in sorted(usable[arm] - seeds)
    ]
    order = [reference, *(arm for arm in usable if arm != reference)]
    cells = [(seed, fold) for seed in sorted(seeds) for fold in folds]
    arms = {arm: {cell: read_run(found[arm][cell], split) for cell in cells} for arm in order}
    return checked(ArmRuns(arms, tuple(sorted(seeds)), folds, tuple(left_out)))


def _finished(folder: Path) -> dict[str, dict[Cell, Path]]:
    """Run folders with results, by arm and cell, in the order of the folder's runs.csv, else by name."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; classifier.run_arms writes one")
    found: dict[str, dict[Cell, Path]] = {}
    for path in sorted(folder.glob("*/*/")):
        if match := RUN_NAME.fullmatch(path.name):
            cells = found.setdefault(path.parent.name, {})
            if (path / "results.json").exists():
                cells[int(match[1]), int(match[2])] = path
    if not found:
        raise InputError(f"{folder}: no folders <arm>/seed<S>_fold<F>; classifier.run_arms writes them")
    listed: list[str] = []
    if (folder / "runs.csv").exists():
        listed = pd.read_csv(folder / "runs.csv", dtype=str, keep_default_na=False)["arm"].drop_duplicates().tolist()
    order = [arm for arm in listed if arm in found]
    return {arm: found[arm] for arm in [*order, *(arm for arm in found if arm not in order)]}


def checked(runs: ArmRuns) -> ArmRuns:
    """The runs themselves; InputError unless those of a fold have the same scans and labels, enough for a test."""
    problems = []
    first = next(iter(runs.arms))
    tested: dict[str, int] = {}
    for fold in runs.folds:
        expected = _keys(runs.frame(fold))
        for arm in runs.arms:
            for seed, run in zip(runs.seeds, runs.cells(arm, fold), strict=True):
                what = arm if len(runs.arms[arm]) == 1 else f"{arm}, seed {seed}, fold {fold}"
                problems += _difference(what, first, _keys(run.frame), expected)
        classes = runs.frame(fold).groupby("label")["subject"].nunique()
        counts = {name: classes.get(label, 0) for label, name in ((0, "HC"), (1, "TLE"))}
        few = [f"{count} {name}" for name, count in counts.items() if count < 2]
        if few:
            problems.append(f"fold {fold}: {' and '.join(few)} subjects; two of each class are needed")
        twice = [name for name in runs.frame(fold)["subject"].unique() if tested.setdefault(name, fold) != fold]
        problems += [f"fold {fold}: subject {name} is also in fold {tested[name]}" for name in twice[:10]]
    if problems:
        raise InputError.of("runs are compared on the same held-out scans with the same labels", problems)
    return runs


def _keys(frame: pd.DataFrame) -> set[tuple[Any, ...]]:
    return set(map(tuple, frame[["subject", "session", "label"]].to_numpy()))


def _difference(what: str, first: str, keys: set[tuple[Any, ...]], expected: set[tuple[Any, ...]]) -> list[str]:
    extra, missing = sorted(keys - expected), sorted(expected - keys)
    if not extra and not missing:
        return []
    shown = ", ".join(f"{subject} (label {label})" for subject, _, label in (extra + missing)[:10])
    return [f"{what}: {len(extra)} scans that {first} has not, {len(missing)} that it lacks: {shown}"]
