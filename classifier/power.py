"""Could an effect be seen in a cohort like this one? The classifier's AUC and its sides, against effect and subjects.

    python -m cohort.prepare --participants healthy.csv --out data/mine --index data/mine/index.csv --grid demo
    python -m classifier.power demo --participants healthy.csv --prepared data/mine --out runs/demo/power

Healthy people with region labels are enough (`cohort.plant`). For each effect size half of them become patients, the
same people each time, and classifiers are trained on some or all of them in cross-validation (`classifier.run_arms`).
Writes power.csv, power.json and power.png; the same command goes on where it stopped.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from classifier.measures import figures, resampling
from classifier.measures.runs import ArmRuns, checked, read_run
from cohort.tables import write_csv
from runtime.cli import describe, run_module, run_script
from runtime.config import ScriptConfig
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write, write_json

ALL = "all"
"""The arm that is trained on everybody."""
FEWEST_FOLDS = 3
MEASURED = {"auc": "AUC, patients against controls", "side_accuracy": "side right, among patients"}
"""What the curves show."""
ENDS = {"value": "", "low": "_low", "high": "_high"}
"""Columns of a measure: its name and these."""


@dataclass(frozen=True)
class PowerConfig(ScriptConfig):
    """Effects, subjects, and what the classifiers have in common."""

    preset: str
    """Preset of classifier.train; its grid must be that of --prepared."""
    out: Path
    """Folder of the planted cohorts, the runs, and the curves."""
    participants: Path = Path("participants.csv")
    """Table of healthy people with region labels, as for cohort.plant."""
    prepared: Path = ROOT / "data/mine"
    """Folder that cohort.prepare wrote of them."""
    effect_sizes: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
    """Cohen's d of the smaller hippocampus, one cohort for each. At 0 nothing can be seen: the AUC must be near 0.5."""
    subjects: tuple[int, ...] = ()
    """Numbers of training subjects, beside all that a fold leaves for training."""
    placebo: bool = False
    """Also plant the placebo of the largest effect, which moves tissue and changes no volume: what is seen there beyond
    chance is the method, not the effect."""
    folds: int = 5
    """Folds of the cross-validation: one is tested, one validates, the others train."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds; the intervals say something about another seed from two on."""
    steps: int | None = None
    """Optimiser steps of each run; by default the preset's."""
    resamples: int = 2000
    """Bootstrap resamples of subjects and seeds for the intervals."""


POWER_PRESETS = {name: PowerConfig(name, ROOT / f"runs/{name}/power") for name in ("smoke", "demo", "paper")}


def main(config: PowerConfig) -> None:
    """Plants, trains, measures, writes, draws."""
    check(config)
    config.out.mkdir(parents=True, exist_ok=True)
    arms = config.out / "arms.csv"
    lines = [f"{ALL},", *(f"n{count},{count}" for count in sorted(set(config.subjects), reverse=True))]
    with atomic_write(arms) as temporary:
        temporary.write_text("\n".join(["arm,real", *lines]) + "\n", encoding="utf-8")
    cells = [(size, False) for size in sorted(set(config.effect_sizes))]
    cells += [(max(config.effect_sizes), True)] if config.placebo else []
    rows: list[dict[str, Any]] = []
    for size, placebo in cells:
        folder = config.out / f"{'placebo' if placebo else 'd'}{size:g}"
        run_module("cohort.plant", *plant_words(config, folder, size, placebo=placebo))
        run_module("classifier.run_arms", *arms_words(config, folder, arms))
        found = [{"effect_size": size, "placebo": int(placebo), **row} for row in measure(config, folder)]
        rows += found
        write(config, rows)
        say(found)


def check(config: PowerConfig) -> None:
    """Refuses what would fail after the first cohort was planted."""
    if not config.effect_sizes:
        raise InputError("--effect-sizes: give one or more")
    if config.folds < FEWEST_FOLDS:
        raise InputError(f"--folds {config.folds}: expected {FEWEST_FOLDS} or more; one is tested, one validates")
    if not config.participants.exists():
        raise InputError(f"--participants {config.participants}: no such table or folder")
    if not (config.prepared / "records").is_dir():
        raise InputError(f"--prepared {config.prepared}: no folder records in it; cohort.prepare --out makes it")


def plant_words(config: PowerConfig, folder: Path, size: float, *, placebo: bool) -> list[object]:
    """The command line of cohort.plant."""
    words = ["--participants", config.participants, "--prepared", config.prepared, "--out", folder / "cohort"]
    words += ["--index", folder / "index.csv", "--effect-size", size, "--partial"]
    return [*words, *["--placebo"] * placebo]


def arms_words(config: PowerConfig, folder: Path, arms: Path) -> list[object]:
    """The command line of classifier.run_arms: volumes, where a preset learns them, are those of the labels."""
    words = [config.preset, arms, "--out", folder / "arms", "--folds", config.folds, "--seeds", *config.seeds]
    words += ["--train.index", folder / "index.csv", "--train.volumes", folder / "cohort/truth.csv"]
    words += ["--train.cache-dir", config.out / "cache", "--train.resamples", config.resamples]
    return words + ([] if config.steps is None else ["--train.steps", config.steps])


def measure(config: PowerConfig, folder: Path) -> list[dict[str, Any]]:
    """AUC and side accuracy of every arm of one cohort, means over folds and seeds, with 95 % intervals."""
    names = [ALL, *(f"n{count}" for count in sorted(set(config.subjects), reverse=True))]
    arms = {
        name: {
            (seed, fold): read_run(folder / "arms" / name / f"seed{seed}_fold{fold}")
            for seed in config.seeds
            for fold in range(config.folds)
        }
        for name in names
    }
    runs = checked(ArmRuns(arms, tuple(config.seeds), tuple(range(config.folds))))
    draws = resampling.draws_of(runs, config.resamples, seed=0)
    rows = []
    for name, cells in arms.items():
        results = [run.results for run in cells.values()]
        row = {"arm": name, "tested": runs.subjects}
        row["trained"] = round(sum(sum(each["counts"]["train"].values()) for each in results) / len(results), 1)
        found = {"auc": resampling.by_seed(runs, name, draws)["auc"]}
        found |= {f"side_{key}": values for key, values in resampling.part_by_seed(runs, name, "side", draws).items()}
        for key, values in found.items():
            spread = resampling.spread_over_seeds(values, draws)
            own = resampling.without_width_zero(resampling.cell(float(spread[0]), spread[1:]))
            row |= {key + ending: own[end] for end, ending in ENDS.items()}
        rows.append(row)
    return rows


def write(config: PowerConfig, rows: list[dict[str, Any]]) -> None:
    """The table of what there is so far, as CSV and JSON, and drawn."""
    write_csv(config.out / "power.csv", pd.DataFrame(rows))
    write_json(config.out / "power.json", {"participants": config.participants.name, "rows": rows})
    figures.power(config.out / "power.png", rows, MEASURED)


def say(rows: list[dict[str, Any]]) -> None:
    """A line for each arm."""
    for row in rows:
        cells = {name: {end: row[name + ending] for end, ending in ENDS.items()} for name in MEASURED if name in row}
        texts = "; ".join(f"{MEASURED[name]}: {resampling.cell_text(found)}" for name, found in cells.items())
        what = "placebo of d" if row["placebo"] else "d"
        print(f"{what} {row['effect_size']:g}, {row['trained']:g} trained, {row['tested']} tested: {texts}")


if __name__ == "__main__":
    run_script(main, POWER_PRESETS, description=describe(__doc__))
