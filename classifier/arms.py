"""Arms of an experiment: rows of a table, what run each of them means, and what remains of a run in one row."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from classifier.config import ModelConfig, TrainConfig
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
class Arm:
    """One row of a table of arms."""

    name: str
    """Also the folder of its runs."""
    settings: dict[str, Any]
    """Values of COLUMNS, where the row has any."""


@dataclass(frozen=True)
class ArmRun:
    """One training run: an arm with a seed and a fold."""

    arm: str
    seed: int
    fold: int
    config: TrainConfig

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.arm}, seed {self.seed}, fold {self.fold}"


def read_arms(path: Path) -> list[Arm]:
    """Reads a table of arms (CSV): a column `arm` and any of COLUMNS.

    Folders (`synth_hc`, `synth_tle`) are relative to the table; ``{fold}`` and ``{seed}`` in them become those of the
    run, for volumes whose makers were fitted anew in each fold.

    Raises:
        InputError: lists every fault with line and column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a table of arms: {getattr(error, 'strerror', None) or error}") from None
    header = lines[0] if lines else []
    strangers = [name for name in header if name not in ("arm", *COLUMNS)]
    if "arm" not in header or strangers or len(set(header)) < len(header) or len(lines) < 2:
        found = ", ".join(header) or "nothing"
        raise InputError(
            f"{path}: a table of arms has a column arm, any of {', '.join(COLUMNS)}, and rows; found {found}"
        )
    arms, problems = [], []
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) != len(header):
            problems.append(f"line {number}: {len(cells)} cells where the header names {len(header)} columns")
            continue
        row = dict(zip(header, cells, strict=True))
        problems += [
            f"line {number}, column {name}: {fault}" for name, fault in _faults(row, {arm.name for arm in arms})
        ]
        arms.append(Arm(row["arm"], {} if problems else _settings(row, path.parent)))
    if problems:
        raise InputError.of(f"{path}: the table of arms was refused", problems)
    return arms


def _faults(row: dict[str, str], taken: set[str]) -> Iterable[tuple[str, str]]:
    if not _NAME.fullmatch(row["arm"]):
        yield "arm", f"{row['arm']!r}: a name is letters, digits and _ . + -, it becomes a folder"
    if row["arm"] in taken:
        yield "arm", f"{row['arm']} is in the table already"
    for name, text in row.items():
        if name == "arm" or text == "":
            continue
        if name in CHOICES and text not in CHOICES[name]:
            yield name, f"{text!r}; expected {', '.join(CHOICES[name])}"
        try:
            COLUMNS[name](text)
        except ValueError:
            yield name, f"{text!r} is not {'a whole number' if COLUMNS[name] is int else 'a number'}"


def _settings(row: dict[str, str], folder: Path) -> dict[str, Any]:
    values = {name: COLUMNS[name](text) for name, text in row.items() if name != "arm" and text != ""}
    return {name: folder / value if name in FOLDERS else value for name, value in values.items()}


def arm_runs(arms: list[Arm], base: TrainConfig, out: Path, seeds: Iterable[int], folds: int) -> list[ArmRun]:
    """Every arm with every seed and fold, in this order; the run's folder is ``out/<arm>/seed<S>_fold<F>``.

    Args:
        arms: the table.
        base: what all runs have in common.
        out: folder of the experiment.
        seeds: of training.
        folds: how many; 0 for the locked test table, which counts as fold 0.
    """
    return [
        ArmRun(arm.name, seed, fold, _config(arm, base, out, seed, fold, folds))
        for arm in arms
        for seed in seeds
        for fold in range(max(1, folds))
    ]


def _config(arm: Arm, base: TrainConfig, out: Path, seed: int, fold: int, folds: int) -> TrainConfig:
    settings = dict(arm.settings)
    for name in FOLDERS:
        if name in settings:
            settings[name] = Path(str(settings[name]).replace("{fold}", str(fold)).replace("{seed}", str(seed)))
    if "model" in settings:
        settings["model"] = replace(base.model, name=settings["model"])
    run_dir = out / arm.name / f"seed{seed}_fold{fold}"
    return replace(base, **settings, seed=seed, fold=fold, folds=folds, run_dir=run_dir)


def flags(config: Any, base: Any, prefix: str = "--") -> list[str]:
    """The command-line flags that turn one configuration dataclass into another of the same class."""
    words: list[str] = []
    for field in fields(config):
        value, before = getattr(config, field.name), getattr(base, field.name)
        name = f"{prefix}{field.name.replace('_', '-')}"
        if value == before:
            continue
        if is_dataclass(value):
            words += flags(value, before, f"{name}.")
        elif isinstance(value, bool):
            words.append(name if value else f"--no-{name.removeprefix('--')}")
        else:
            words += [name, *map(str, value if isinstance(value, tuple) else (value,))]
    return words


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


def jobs_that_fit(*, cores: int, memory: int, per_run: int) -> int:
    """How many runs to have at once: as many as the memory (bytes) holds, at most one per core, at least one."""
    return max(1, min(cores, memory // max(1, per_run)))


def reason(log: str) -> str:
    """Why a run failed, from what it printed: its own message, or the last line of a traceback."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [place for place, line in enumerate(lines) if line.startswith("error: ")]
    if errors:
        return " ".join(lines[errors[-1] :]).removeprefix("error: ")
    return lines[-1] if lines else "it printed nothing"
