"""Compares classifier runs on the same held-out subjects: a table with intervals, and paired tests.

    python -m classifier.compare runs/demo/real runs/demo/real_and_synthetic --out runs/demo/comparison.json

Reads predictions.csv and results.json of each run; prints a table, and with --out writes it as JSON and CSV. The first
run is the reference. Areas are compared by DeLong's test, right and wrong answers by McNemar's exact test; Holm
corrects over the comparisons. Both tests speak about other subjects of this kind, not about another training seed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import tyro

from classifier import metrics
from classifier.predictions import by_subject, read_predictions
from runtime import seeding
from runtime.cli import describe, run_script
from runtime.errors import InputError
from runtime.files import atomic_write, read_json, write_json


@dataclass(frozen=True)
class CompareConfig:
    """What to compare."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders of classifier.train; the first is the reference."""
    split: Literal["test", "val"] = "test"
    """Held-out subjects to compare on."""
    pairs: Literal["reference", "all"] = "reference"
    """Compare every other run with the first, or all pairs."""
    resamples: int = 2000
    """Bootstrap resamples of subjects for the intervals."""
    seed: int = 0
    """Seed of the bootstrap."""
    out: Path | None = None
    """Write the comparison to this JSON file, and the tables beside it as CSV."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


def main(config: CompareConfig) -> None:
    """Reads, tests, prints, writes."""
    runs = read_runs(config)
    table = [measure(name, run, config) for name, run in runs.items()]
    tests = paired_tests(runs, config.pairs)
    for line in lines_of(table, tests, config.split):
        print(line)
    if config.out is not None:
        write_json(config.out, {"split": config.split, "resamples": config.resamples, "runs": table, "tests": tests})
        write_csv(config.out.with_suffix(".csv"), [flat(row) for row in table])
        write_csv(config.out.with_name(f"{config.out.stem}_tests.csv"), tests)


def read_runs(config: CompareConfig) -> dict[str, dict[str, Any]]:
    """Predictions and results of every run, by a name that tells them apart.

    Raises:
        InputError: fewer than two runs, unfinished ones, or runs whose held-out scans or labels differ; lists which.
    """
    folders = list(dict.fromkeys(path.resolve() for path in config.runs))
    if len(folders) < 2:
        raise InputError("a comparison needs two different runs or more")
    runs = {}
    for folder in folders:
        frame = read_predictions(folder / "predictions.csv").query("split == @config.split")
        frame = frame.sort_values(["subject", "session"]).reset_index(drop=True)
        runs[_name(folder, folders)] = {"frame": frame, "results": read_json(folder / "results.json")}
    identity = ["subject", "session", "label"]
    keys = {name: set(map(tuple, run["frame"][identity].to_numpy())) for name, run in runs.items()}
    first = next(iter(keys))
    problems = []
    for name, key in keys.items():
        extra, missing = sorted(key - keys[first]), sorted(keys[first] - key)
        if extra or missing:
            shown = ", ".join(f"{subject} (label {label})" for subject, _, label in (extra + missing)[:10])
            problems.append(f"{name}: {len(extra)} scans that {first} has not, {len(missing)} that it lacks: {shown}")
    if problems:
        raise InputError.of("runs are compared on the same held-out scans with the same labels", problems)
    return runs


def _name(folder: Path, folders: list[Path]) -> str:
    """The folder's name, with as many parents as tell it from the others."""
    for depth in range(1, len(folder.parts)):
        name = "/".join(folder.parts[-depth:])
        if sum("/".join(other.parts[-depth:]) == name for other in folders) == 1:
            return name
    return str(folder)


def measure(name: str, run: dict[str, Any], config: CompareConfig) -> dict[str, Any]:
    """One row of the table. All runs share the bootstrap's draws, so that their intervals can be compared."""
    frame, results = run["frame"], run["results"]
    rng = seeding.rng(config.seed, "compare")
    measured = metrics.evaluate(
        frame["label"].to_numpy(), frame["probability"].to_numpy(), results["threshold"], frame["group"].to_numpy(),
        rng, config.resamples,
    )  # fmt: skip
    return {"run": name, "leak": results["leak"], "counts": results["counts"]["train"], "metrics": measured}


def paired_tests(runs: dict[str, dict[str, Any]], pairs: str) -> list[dict[str, Any]]:
    """DeLong and McNemar for each pair of runs, with Holm's correction over the pairs for each of the two."""
    names = list(runs)
    chosen = list(combinations(names, 2)) if pairs == "all" else [(names[0], name) for name in names[1:]]
    tests = []
    for a, b in chosen:
        sides = [by_subject(runs[name]["frame"]) for name in (a, b)]
        labels = sides[0]["label"].to_numpy()
        scores = [side["probability"].to_numpy() for side in sides]
        correct = [
            (score >= runs[name]["results"]["threshold"]) == (labels == 1)
            for name, score in zip((a, b), scores, strict=True)
        ]
        only_a, only_b, p = metrics.mcnemar(*correct)
        delong = {f"delong_{name}": value for name, value in asdict(metrics.delong_test(labels, *scores)).items()}
        tests.append({"a": a, "b": b, **delong, "only_a_right": only_a, "only_b_right": only_b, "mcnemar_p": p})
    for kind in ("delong", "mcnemar"):
        for test, p in zip(tests, metrics.holm(np.array([test[f"{kind}_p"] for test in tests])), strict=True):
            test[f"{kind}_p_holm"] = float(p)
    return tests


def lines_of(table: list[dict[str, Any]], tests: list[dict[str, Any]], split: str) -> list[str]:
    """The comparison for people."""
    count = len(table)
    lines = [f"{count} runs on the {split} subjects; 95 % intervals over subjects"]
    for row in table:
        trained = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in row["counts"].items() if number)
        lines.append(f"{row['run']}  (trained on {trained}){'  LEAK ALLOWED' if row['leak'] else ''}")
        for name in metrics.METRICS:
            lines.append(f"    {name:20s}" + "{value:.3f} [{low:.3f}, {high:.3f}]".format(**row["metrics"][name]))
    for test in tests:
        lines.append(
            f"{test['b']} minus {test['a']}: AUC {test['delong_difference']:+.3f} [{test['delong_low']:+.3f}, "
            f"{test['delong_high']:+.3f}], DeLong p {test['delong_p']:.3g} (Holm {test['delong_p_holm']:.3g}); right "
            f"only in one {test['only_b_right']} : {test['only_a_right']}, McNemar p {test['mcnemar_p']:.3g} "
            f"(Holm {test['mcnemar_p_holm']:.3g})"
        )
    return lines


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table with one value per column."""
    values = {f"{name}_{part}": value for name, cell in row["metrics"].items() for part, value in cell.items()}
    return {"run": row["run"], "leak": row["leak"], **row["counts"], **values}


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows as CSV, atomically."""
    with atomic_write(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


if __name__ == "__main__":
    run_script(main, CompareConfig, description=describe(__doc__))
