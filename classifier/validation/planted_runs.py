"""Makes the cohorts and networks of planted conditions, each by the project's own scripts; what is finished is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from classifier.validation.planted import Condition, editor, write_edited
from cohort.scans import GRIDS, Grid
from cohort.tables import read_table, write_table
from runtime.errors import InputError
from runtime.files import ROOT, read_json

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Plan:
    """Where everything lies, and how cohorts and networks are made."""

    out: Path
    grid_name: str
    subjects: int
    seed: int
    train: tuple[str, ...]
    """Words after ``classifier.train``: the preset and flags."""
    jobs: int
    """Networks trained at once."""
    threads: int | None
    """CPU threads of each; None leaves them to the script."""

    @property
    def grid(self) -> Grid:
        """Of cohorts and networks."""
        return GRIDS[self.grid_name]

    def cohort(self, condition: Condition) -> Path:
        """Folder of the condition's cohort."""
        return self.out / "cohorts" / condition.cohort

    def tables(self, condition: Condition) -> Path:
        """Folder of its split tables."""
        return self.out / "tables" / condition.data

    def regions(self, condition: Condition) -> Path:
        """Folder in which each patient's changed region lies."""
        return self.cohort(condition) / "regions"

    def run(self, condition: Condition) -> Path:
        """Its network's run folder."""
        return self.out / "networks" / condition.name


def prepare(plan: Plan, conditions: Sequence[Condition]) -> dict[str, dict[str, Any]]:
    """Cohorts, splits and networks of all conditions; returns each network's results.json by the condition's name.

    Raises:
        InputError: a script failed; its last lines are shown.
    """
    first = conditions[0]
    for condition in tqdm(conditions, desc="planted cohorts", unit="cohort"):
        make_cohort(plan, condition, first)
    with ThreadPoolExecutor(plan.jobs) as pool:
        jobs = pool.map(lambda condition: train(plan, condition), conditions)
        list(tqdm(jobs, total=len(conditions), desc="networks", unit="network"))
    return {condition.name: read_json(plan.run(condition) / "results.json") for condition in conditions}


def make_cohort(plan: Plan, condition: Condition, first: Condition) -> None:
    """The condition's scans and tables.

    Controls are copied from the first condition's cohort, and so is its split: everybody is on the same side of it in
    all conditions.
    """
    tables, folder = plan.tables(condition), plan.cohort(condition)
    if all((tables / f"{split}.csv").exists() for split in SPLITS):
        return
    index = plan.out / "tables" / f"{condition.cohort}.csv"
    words = ["--out", folder, "--index", index, "--subjects", plan.subjects, "--seed", plan.seed]
    words += ["--spacing-mm", plan.grid.spacing_mm, "--effect", "hippocampus", "--effect-size", condition.dose]
    others = ["--controls-from", plan.cohort(first)] if condition.cohort != first.cohort else []
    run_script("cohort.make_demo", *words, *others)
    edit = editor(condition, plan.grid, plan.regions(condition))
    if edit is not None:
        edited = plan.out / "tables" / f"{condition.data}.csv"
        write_edited(index, edit, plan.out / "cohorts" / condition.data, edited)
        index = edited
    if condition == first:
        run_script("cohort.split", "--index", index, "--out", tables)
        return
    frame = read_table(index).set_index("subject", drop=False)
    for split in SPLITS:
        members = read_table(plan.tables(first) / f"{split}.csv")["subject"]
        write_table(tables / f"{split}.csv", frame.loc[members].reset_index(drop=True))


def train(plan: Plan, condition: Condition) -> None:
    """The condition's network; a finished one stays."""
    run = plan.run(condition)
    if (run / "results.json").exists():
        return
    tables = [word for split in SPLITS for word in (f"--{split}-csv", plan.tables(condition) / f"{split}.csv")]
    words = [*plan.train, *tables, "--run-dir", run, "--seed", plan.seed, "--cache-dir", plan.out / "cache"]
    words += ["--threads", plan.threads] if plan.threads else []
    run_script("classifier.train", *words, *(["--shuffle", "all"] if condition.shuffle else []))


def run_script(module: str, *words: object) -> None:
    """Runs ``python -m module words`` in the repository; its output is shown only when it fails.

    Raises:
        InputError: it ended with another status than 0.
    """
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "TQDM_DISABLE": "1"}, capture_output=True, text=True)
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise InputError(f"{' '.join(command[1:])} ended with status {done.returncode}:\n{last}")
