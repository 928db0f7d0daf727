"""Reads what classifier runs left behind: single run folders, or a folder of arms x seeds x folds from run_arms."""

import os
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
Cell = tuple[int, int]  # training seed and fold


@dataclass(frozen=True)
class FinishedRun:
    """One run's predictions and results."""

    frame: pd.DataFrame  # predictions on the test split, sorted by subject and session
    held_out: frozenset[str]  # subjects of all splits in predictions.csv: those that the run did not learn from
    results: dict[str, Any]


@dataclass(frozen=True)
class ArmRuns:
    """Arms that can be compared: every arm has every seed and fold, and in a fold all have the same scans."""

    arms: dict[str, dict[Cell, FinishedRun]]  # the reference first
    seeds: tuple[int, ...]
    folds: tuple[int, ...]
    left_out: tuple[str, ...] = ()  # what was not used, in words

    def frame(self, fold: int) -> pd.DataFrame:
        """Subjects and labels of a fold, from the first arm."""
        return next(iter(self.arms.values()))[self.seeds[0], fold].frame

    def labels(self, fold: int) -> np.ndarray:
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
        return len({subject for fold in self.folds for subject in self.frame(fold)["subject"]})


def read_run(folder: Path) -> FinishedRun:
    """Reads a run folder; refuses that of a run which has not finished."""
    predictions = read_predictions(folder / "predictions.csv")
    frame = predictions[predictions["split"] == "test"].sort_values(["subject", "session"]).reset_index(drop=True)
    return FinishedRun(frame, frozenset(predictions["subject"]), read_json(folder / "results.json"))


def single_runs(paths: tuple[Path, ...]) -> ArmRuns:
    """Run folders as arms of one seed and one fold each, the first the reference; named by where their paths part."""
    folders = list(dict.fromkeys(path.resolve() for path in paths))
    if len(folders) < 2:
        raise InputError("a comparison needs two different runs or more")
    parent = os.path.commonpath(folders)
    arms = {str(folder.relative_to(parent)): {(0, 0): read_run(folder)} for folder in folders}
    return checked(ArmRuns(arms, (0,), (0,)))


def arms_of(folder: Path, reference: str) -> ArmRuns:
    """The finished runs of ``folder/<arm>/seed<S>_fold<F>``, of the seeds that every arm has in every fold.

    Arms without one complete seed, and seeds that some arm lacks, are `left_out`; two arms, the reference among them,
    need a seed in common.
    """
    found = _finished(folder)
    folds = tuple(sorted({fold for cells in found.values() for _, fold in cells}))
    complete = {
        arm: {seed for seed, _ in cells if all((seed, fold) in cells for fold in folds)} for arm, cells in found.items()
    }
    usable = {arm: seeds for arm, seeds in complete.items() if seeds}
    common = set.intersection(*usable.values()) if usable else set()
    if reference not in usable or len(usable) < 2 or not common:
        lines = [f"{arm}: seeds finished in all folds: {sorted(seeds) or 'none'}" for arm, seeds in complete.items()]
        what = f"a comparison needs the arm {reference!r}, another one, and a seed that all have finished"
        raise InputError.of(f"{folder}: {what}; classifier.run_arms makes them", lines or ["there are no runs"])
    left_out = [f"arm {arm}: no seed is finished in all {len(folds)} folds" for arm in found if arm not in usable]
    more = {arm: sorted(seeds - common) for arm, seeds in usable.items()}
    left_out += [f"arm {arm}: seed {seed}, which not all arms have" for arm in more for seed in more[arm]]
    cells = [(seed, fold) for seed in sorted(common) for fold in folds]
    order = [reference, *(arm for arm in usable if arm != reference)]
    arms = {arm: {cell: read_run(found[arm][cell]) for cell in cells} for arm in order}
    return checked(ArmRuns(arms, tuple(sorted(common)), folds, tuple(left_out)))


def _finished(folder: Path) -> dict[str, dict[Cell, Path]]:
    """Run folders with results, by arm and cell, in the order of the folder's runs.csv, else by name."""
    found: dict[str, dict[Cell, Path]] = {}
    if (folder / "runs.csv").exists():
        found = {arm: {} for arm in pd.read_csv(folder / "runs.csv", dtype=str, keep_default_na=False)["arm"]}
    for path in sorted(folder.glob("*/*/")):
        if match := RUN_NAME.fullmatch(path.name):
            cells = found.setdefault(path.parent.name, {})
            if (path / "results.json").exists():
                cells[int(match[1]), int(match[2])] = path
    return found


def checked(runs: ArmRuns) -> ArmRuns:
    """The runs themselves; InputError unless those of a fold have the same scans and labels, enough for a test."""
    problems = []
    tested: dict[str, int] = {}
    for fold in runs.folds:
        frame = runs.frame(fold)
        for arm, cells in runs.arms.items():
            for seed in runs.seeds:
                if other := _keys(cells[seed, fold].frame) ^ _keys(frame):
                    shown = ", ".join(f"{subject} (label {label})" for subject, _, label in sorted(other)[:10])
                    problems.append(f"{arm}, seed {seed}, fold {fold}: {len(other)} scans that only one has: {shown}")
        if np.bincount(frame.drop_duplicates("subject")["label"], minlength=2).min() < 2:
            problems.append(f"fold {fold}: two subjects of each class are needed")
        twice = [name for name in frame["subject"].unique() if tested.setdefault(name, fold) != fold]
        problems += [f"fold {fold}: subject {name} is also in fold {tested[name]}" for name in twice[:10]]
    if problems:
        title = f"runs are compared with {next(iter(runs.arms))} on the same held-out scans with the same labels"
        raise InputError.of(title, problems)
    return runs


def _keys(frame: pd.DataFrame) -> set[tuple[Any, ...]]:
    return set(map(tuple, frame[["subject", "session", "label"]].to_numpy()))
