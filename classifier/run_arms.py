"""Makes the runs of a table of arms, every arm with every seed and fold, and one row per run in runs.csv.

    python -m classifier.run_arms demo classifier/arms/demo.csv --out runs/demo/arms --seeds 0 1 2
    python -m classifier.run_arms demo classifier/arms/demo.csv --out runs/demo/cross --folds 5 \
        --train.index data/demo/pickle_prep_demo.csv

One run after the other, with all cores or the GPU; `snakemake ... arms` makes the same runs beside one another, on one
machine or many, and this script then finds them done. Finished runs are skipped and stopped ones continued. A run that
fails does not stop the others: runs.csv says so, and the exit status is 1. The tests over seeds and folds:
`python -m classifier.compare --arms OUT`.
"""

import sys
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import tyro
from tqdm import tqdm

from classifier.arms import read_arms, run_folder, run_words
from classifier.config import PRESETS, TrainConfig
from classifier.dataset import COUNTS
from classifier.selection import held_apart
from cohort.tables import LABELS, write_csv
from runtime.cli import describe, parse, run_module, run_script
from runtime.config import ScriptConfig, plain_config
from runtime.errors import InputError
from runtime.files import ROOT, locked, read_json
from runtime.runs import FREE_FIELDS

SET_HERE = {"--seed", "--folds", "--fold", "--run-dir", "--dry-run", "--no-dry-run"}  # each run has its own of these


@dataclass(frozen=True)
class ArmRun:
    """One training run: an arm with a seed and a fold, the command line of classifier.train and what it means."""

    arm: str
    seed: int
    fold: int
    words: list[str]
    config: TrainConfig


@dataclass(frozen=True)
class ArmsConfig(ScriptConfig):
    """A table of arms, and what all of its runs have in common."""

    arms: tyro.conf.Positional[Path]
    """Table of arms (CSV): a column arm, and any of real, synth_percent, synth_count, duplicate_percent, augmentation,
    shuffle, model, volumes_weight, synth_hc, synth_tle; an empty cell is what --train says."""
    out: Path
    """Folder of the runs and of runs.csv."""
    train: TrainConfig
    """What all runs have in common; their seeds, folds and folders are given here."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds: every arm runs once with each."""
    folds: int = 0
    """Cross-validation with so many folds, over --train.index; 0 for the locked test table."""


ARMS_PRESETS = {
    name: ArmsConfig(ROOT / f"classifier/arms/{table}.csv", ROOT / f"runs/{name}/arms", train=PRESETS[name])
    for name, table in (("smoke", "smoke"), ("demo", "demo"), ("paper", "demo"))
}


def main(config: ArmsConfig, shared: list[str]) -> None:
    """Makes the runs that are missing, with the `shared` words of classifier.train's command line, and the table."""
    if wrong := SET_HERE & {word.split("=")[0].replace("_", "-") for word in shared}:
        raise InputError(f"--train: run_arms sets {', '.join(sorted(wrong))} itself, by --seeds, --folds and --out")
    seeds = tuple(dict.fromkeys(config.seeds)) or (0,)
    runs = arm_runs(read_arms(config.arms), shared, config.out, seeds, config.folds)
    refuse_too_few(runs)
    config.out.mkdir(parents=True, exist_ok=True)
    errors: dict[Path, str] = {}
    with locked(config.out):
        missing = [run for run in runs if not is_finished(run)]
        for run in tqdm(missing, total=len(runs), initial=len(runs) - len(missing), desc="runs", unit="run"):
            errors[run.config.run_dir] = train(run)
            write_table(runs, errors, config.out)
        write_table(runs, errors, config.out)
    failed = sum(bool(error) for error in errors.values())
    print(f"{len(runs) - failed} of {len(runs)} runs ({len(missing) - failed} new) in {config.out / 'runs.csv'}")
    if failed:
        sys.exit(1)


def refuse_too_few(runs: list[ArmRun]) -> None:
    """Raises InputError where a fold's test scans are too few for classifier.compare, before anything is trained."""
    problems = []
    for run in {run.fold: run for run in runs}.values():
        parts, names = held_apart(run.config)
        few = [
            label for label, code in LABELS.items() if parts.test.loc[parts.test.label == code, "group"].nunique() < 2
        ]
        problems += [f"{names[2]}: fewer than two subjects (or groups) of class {label}" for label in few]
    if problems:
        raise InputError.of("arms are compared on two subjects of each class or more; fewer folds have more", problems)


def shared_words(argv: list[str]) -> list[str]:
    """The preset and the flags of --train, as classifier.train takes them, from the command line of this script."""
    words, ours = argv[:1], False
    for word in argv[1:]:
        if word.startswith("--"):
            ours = word.startswith("--train.")
        if ours:
            words.append(word.replace("--train.", "--", 1))
    return words


def arm_runs(
    arms: dict[str, dict[str, str]], shared: list[str], out: Path, seeds: tuple[int, ...], folds: int
) -> list[ArmRun]:
    """Every arm with every seed and fold, in this order; 0 `folds` stand for the locked test table, which is fold 0.

    A cell that is no value of its flag ends the program as the flag would.
    """
    runs = []
    for arm, seed, fold in product(arms, seeds, range(max(1, folds))):
        folder = run_folder(out, arm, seed, fold)
        words = [*shared, *run_words(arms[arm], seed, folds, fold), "--run-dir", str(folder)]
        runs.append(ArmRun(arm, seed, fold, words, parse(PRESETS, words)))
    return runs


def is_finished(run: ArmRun) -> bool:
    """Whether the run's folder holds its results, of this very configuration (where and how fast it ran aside)."""
    folder = run.config.run_dir
    if not (folder / "results.json").exists():
        return False
    wanted, found = plain_config(run.config), read_json(folder / "config.json")
    return all(found.get(name) == value for name, value in wanted.items() if name not in FREE_FIELDS)


def train(run: ArmRun) -> str:
    """Trains one run as a process of its own; returns why it failed, or an empty text."""
    try:
        run_module("classifier.train", *run.words)
    except InputError as error:
        tqdm.write(f"{run.arm}, seed {run.seed}, fold {run.fold}: {error}")
        return str(error)
    return ""


def _table_row(run: ArmRun, error: str) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": run.arm, "seed": run.seed, "fold": run.fold, "error": error}
    if error:
        return row
    results = read_json(run.config.run_dir / "results.json")
    row |= {name: results["counts"]["train"][name] for name in COUNTS}
    row |= {"steps": results["steps"], "best_step": results["step"]}
    for name, cell in results["metrics"]["test"].items():
        row |= {name: cell["value"], f"{name}_low": cell["low"], f"{name}_high": cell["high"]}
    if "test" in results["side"]:
        row |= {f"side_{name}": results["side"]["test"][name]["value"] for name in ("accuracy", "auc")}
    if "sclerosis" in results:
        row["sclerosis_auc"] = results["sclerosis"]["auc"]["value"]
    return row | {name: results[name] for name in ("threshold", "temperature", "seconds", "leak", "checkpoint")}


def write_table(runs: list[ArmRun], errors: dict[Path, str], out: Path) -> None:
    """Writes OUT/runs.csv: one row per run that has ended, in the order of arms, seeds and folds."""
    ended = [run for run in runs if run.config.run_dir in errors or is_finished(run)]
    # Whole numbers stay whole beside the empty cells of a failed run.
    rows = pd.DataFrame([_table_row(run, errors.get(run.config.run_dir, "")) for run in ended], dtype=object)
    columns = [*rows.columns.drop("error"), "error"]
    write_csv(out / "runs.csv", rows[columns])


if __name__ == "__main__":
    run_script(partial(main, shared=shared_words(sys.argv[1:])), ARMS_PRESETS, description=describe(__doc__))
