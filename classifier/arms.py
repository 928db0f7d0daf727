"""Arms of an experiment: rows of a table, what run each of them means, and what remains of a run in one row."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args, get_type_hints

from classifier.config import PRESETS, ModelConfig, TrainConfig
from runtime.cli import parse
from runtime.errors import InputError
from runtime.files import read_json
from runtime.runs import FREE_FIELDS, plain_config

COLUMNS = {
    "real": int, "synth_percent": float, "synth_count": int, "duplicate_percent": float, "augmentation": str,
    "shuffle": str, "model": str, "synth_hc": str, "synth_tle": str,
}  # fmt: skip
"""What a table of arms may say besides `arm`: fields of TrainConfig (`model` is --model.name); empty: as preset."""
FOLDERS = ("synth_hc", "synth_tle")
CHOICES = {
    "augmentation": get_args(get_type_hints(TrainConfig)["augmentation"]),
    "shuffle": get_args(get_type_hints(TrainConfig)["shuffle"]),
    "model": get_args(get_type_hints(ModelConfig)["name"]),
}
COUNTS = tuple(f"{origin}_{name}" for origin in ("real", "repeated", "synthetic") for name in ("HC", "TLE"))
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class ArmRun:
    """One training run: an arm with a seed and a fold."""

    arm: str
    seed: int
    fold: int
    words: list[str]
    """The command line of classifier.train."""
    config: TrainConfig
    """What it means."""


def read_arms(path: Path) -> dict[str, dict[str, str]]:
    """Reads a table of arms (CSV): a column `arm` and any of COLUMNS.

    Folders (`synth_hc`, `synth_tle`) are relative to the table; ``{fold}`` and ``{seed}`` in them become those of the
    run, for volumes whose makers were fitted anew in each fold.

    Returns:
        arm -> the cells of its row that say anything.

    Raises:
        InputError: lists every fault with line and column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a table of arms: {getattr(error, 'strerror', None) or error}") from None
    header = lines[0] if lines else []
    if "arm" not in header or not {*header} <= {"arm", *COLUMNS} or len({*header}) < len(header) or len(lines) < 2:
        found = ", ".join(header) or "nothing"
        columns = ", ".join(COLUMNS)
        raise InputError(f"{path}: a table of arms has a column arm, any of {columns}, and rows; found {found}")
    arms: dict[str, dict[str, str]] = {}
    problems = []
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) != len(header):
            problems.append(f"line {number}: {len(cells)} cells where the header names {len(header)} columns")
            continue
        row = {name: text for name, text in zip(header, cells, strict=True) if text}
        arm = row.pop("arm", "")
        problems += [f"line {number}, column {name}: {fault}" for name, fault in _faults(arm, row, arms)]
        arms[arm] = row
    if problems:
        raise InputError.of(f"{path}: the table of arms was refused", problems)
    for row in arms.values():
        row |= {name: str(path.parent / row[name]) for name in FOLDERS if name in row}
    return arms


def _faults(arm: str, row: dict[str, str], before: dict[str, dict[str, str]]) -> Iterator[tuple[str, str]]:
    if not _NAME.fullmatch(arm):
        yield "arm", f"{arm!r}: a name is letters, digits and _ . + -, it becomes a folder"
    if arm in before:
        yield "arm", f"{arm} is in the table already"
    for name, text in row.items():
        if text not in CHOICES.get(name, (text,)):
            yield name, f"{text!r}; expected {', '.join(CHOICES[name])}"
        try:
            COLUMNS[name](text)
        except ValueError:
            yield name, f"{text!r} is not {'a whole number' if COLUMNS[name] is int else 'a number'}"


def arm_runs(
    arms: dict[str, dict[str, str]], shared: list[str], out: Path, seeds: tuple[int, ...], folds: int
) -> list[ArmRun]:
    """Every arm with every seed and fold, in this order; the run's folder is ``out/<arm>/seed<S>_fold<F>``.

    `shared` are the preset and the flags that all runs have in common. 0 `folds` stand for the locked test table, which
    counts as fold 0.
    """
    runs = []
    for arm, seed, fold in product(arms, seeds, range(max(1, folds))):
        own = {"seed": seed, "folds": folds, "fold": fold, "run_dir": out / arm / f"seed{seed}_fold{fold}"}
        words = list(shared)
        for name, value in {**arms[arm], **own}.items():
            flag = "--model.name" if name == "model" else f"--{name.replace('_', '-')}"
            words += [flag, str(value).replace("{fold}", str(fold)).replace("{seed}", str(seed))]
        runs.append(ArmRun(arm, seed, fold, words, parse(PRESETS, words)))
    return runs


def is_finished(run: ArmRun) -> bool:
    """Whether the run's folder holds its results, of this very configuration (where and how fast it ran aside)."""
    folder = run.config.run_dir
    if not (folder / "results.json").exists():
        return False
    wanted, found = plain_config(run.config), read_json(folder / "config.json")
    return all(found.get(name) == value for name, value in wanted.items() if name not in FREE_FIELDS)


def table_row(run: ArmRun, error: str = "") -> dict[str, Any]:
    """One row of runs.csv: what the run was, what came of it, or why nothing did."""
    row: dict[str, Any] = {"arm": run.arm, "seed": run.seed, "fold": run.fold}
    if error or not is_finished(run):
        return {**row, "error": error or "not finished"}
    results = read_json(run.config.run_dir / "results.json")
    row |= {name: results["counts"]["train"][name] for name in COUNTS}
    row |= {f"seen_{name}": results["seen"][name] for name in COUNTS}
    row |= {"steps": results["steps"], "best_step": results["step"]}
    for name, cell in results["metrics"]["test"].items():
        row |= {name: cell["value"], f"{name}_low": cell["low"], f"{name}_high": cell["high"]}
    if "test" in results["side"]:
        row["side_auc"] = results["side"]["test"]["auc"]["value"]
    names = ("threshold", "temperature", "seconds", "leak", "checkpoint")
    return {**row, **{name: results[name] for name in names}, "error": ""}
