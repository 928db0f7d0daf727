"""Runs a table of arms: every arm with every seed and fold, several at once, and one row per run in runs.csv.

    python -m classifier.run_arms demo classifier/arms/demo.csv --out runs/demo/arms --seeds 0 1 2
    python -m classifier.run_arms demo classifier/arms/demo.csv --out runs/demo/cross --folds 5 \
        --train.index data_csvs/pickle_prep_demo.csv

Each run is a `classifier.train` in its own folder, OUT/ARM/seed<S>_fold<F>. Finished runs are skipped and stopped ones
continued. A run that fails does not stop the others: runs.csv says why it did, and the exit status is 1. The tests
over seeds and folds: `python -m classifier.compare --arms OUT`.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import tyro
from tqdm import tqdm

from classifier.arms import ArmRun, arm_runs, is_finished, read_arms, table_row
from classifier.config import PRESETS, TrainConfig
from classifier.selection import FEWEST_FOLDS
from runtime.cli import describe, run_script
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write, locked

SET_HERE = ("seed", "folds", "fold", "run_dir", "dry_run")
"""Fields of TrainConfig that every run has its own of."""


@dataclass(frozen=True)
class ArmsConfig:
    """A table of arms, and what all of its runs have in common."""

    arms: tyro.conf.Positional[Path]
    """Table of arms (CSV): a column arm, and any of real, synth_percent, synth_count, duplicate_percent, augmentation,
    shuffle, model, synth_hc, synth_tle; an empty cell is what --train says."""
    out: Path
    """Folder of the runs and of runs.csv."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds: every arm runs once with each."""
    folds: int = 0
    """Cross-validation with so many folds, over --train.index; 0 for the locked test table."""
    jobs: int | None = None
    """Runs at once; they share the cores and take turns among the GPUs. By default one per GPU, else one per core."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """What all runs have in common; their seeds, folds and folders are given above."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


ARMS_PRESETS = {
    name: ArmsConfig(
        arms=ROOT / f"classifier/arms/{'smoke' if name == 'smoke' else 'demo'}.csv",
        out=ROOT / f"runs/{name}/arms",
        train=preset,
    )
    for name, preset in PRESETS.items()
}


def main(config: ArmsConfig, shared: list[str]) -> None:
    """Reads the arms, makes what is missing, and leaves the table; ends with status 1 when a run failed.

    `shared` are the words of classifier.train's command line that all runs have in common.
    """
    check(config)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the runs are stopped, and save
    runs = arm_runs(read_arms(config.arms), shared, config.out, config.seeds, config.folds)
    config.out.mkdir(parents=True, exist_ok=True)
    errors: dict[Path, str] = {}
    with locked(config.out):
        missing = [run for run in runs if not is_finished(run)]
        with (
            tqdm(total=len(runs), initial=len(runs) - len(missing), desc="runs", unit="run") as bar,
            closing(make(missing, config)) as ended,
        ):
            for run, error in ended:
                errors[run.config.run_dir] = error
                write_table(runs, errors, config.out)
                bar.update()
                if error:
                    tqdm.write(f"{run.arm}, seed {run.seed}, fold {run.fold}: failed: {error}")
        write_table(runs, errors, config.out)
    failed = sum(bool(error) for error in errors.values())
    print(f"{len(runs) - failed} of {len(runs)} runs ({len(missing) - failed} new) in {config.out / 'runs.csv'}")
    if failed:
        sys.exit(1)


def shared_words(argv: list[str]) -> list[str]:
    """The preset and the flags of --train, as classifier.train takes them, from the command line of this script."""
    words, ours = argv[:1], False
    for word in argv[1:]:
        if word.startswith("--"):
            ours = word.startswith("--train.")
        if ours:
            words.append(word.replace("--train.", "--", 1))
    return words


def check(config: ArmsConfig) -> None:
    """Refuses settings that contradict one another."""
    problems = [
        f"--train.{name.replace('_', '-')}: run_arms sets it itself, by --seeds, --folds, --out and --dry-run"
        for name in SET_HERE
        if getattr(config.train, name) not in {getattr(preset, name) for preset in PRESETS.values()}
    ]
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        problems.append(f"--seeds {' '.join(map(str, config.seeds))}: one or more, each once")
    if config.folds and config.folds < FEWEST_FOLDS:
        problems.append(f"--folds {config.folds}: at least {FEWEST_FOLDS}, or 0 for the locked test table")
    if config.jobs is not None and config.jobs < 1:
        problems.append(f"--jobs {config.jobs}: at least 1")
    if problems:
        raise InputError.of("settings refused", problems)


def make(missing: list[ArmRun], config: ArmsConfig) -> Iterator[tuple[ArmRun, str]]:
    """Makes runs, several at once; yields each with why it failed, or an empty text. Closed, it stops them."""
    cores, gpus = len(os.sched_getaffinity(0)), visible_gpus()
    jobs = max(1, min(config.jobs or len(gpus) or cores, len(missing)))
    threads = [] if config.train.threads else ["--threads", str(max(1, cores // jobs))]
    places: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for place in range(jobs):
        places.put({"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {})
    alive: set[subprocess.Popen] = set()

    def work(run: ArmRun) -> str:
        environment = places.get()
        try:
            return train(run, threads, environment, alive)
        finally:
            places.put(environment)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            started = {pool.submit(work, run): run for run in missing}
            for done in as_completed(started):
                yield started[done], done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(alive):
                process.terminate()


def train(run: ArmRun, threads: list[str], environment: dict[str, str], alive: set[subprocess.Popen]) -> str:
    """Trains one run as a process of its own; its output goes beside its folder. Returns why it failed, or nothing."""
    log = run.config.run_dir.with_name(f"{run.config.run_dir.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "classifier.train", *run.words, *threads],
            env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches it from here only, once: it then saves before it stops
        )  # fmt: skip
        alive.add(process)
        status = process.wait()
        alive.discard(process)
    if status == 0 and is_finished(run):
        return ""
    return f"status {status}: {reason(log.read_text(encoding='utf-8', errors='replace'))}"


def reason(log: str) -> str:
    """Why a run failed, from what it printed: its own message, or the last line of a traceback."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["it printed nothing"]
    errors = [place for place, line in enumerate(lines) if line.startswith("error: ")]
    return " ".join(lines[errors[-1] :]).removeprefix("error: ") if errors else lines[-1]


def visible_gpus() -> list[str]:
    """Names of the GPUs that runs may use, as CUDA_VISIBLE_DEVICES has them; empty without any."""
    count = torch.cuda.device_count()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return listed.split(",")[:count]


def write_table(runs: list[ArmRun], errors: dict[Path, str], out: Path) -> None:
    """Writes OUT/runs.csv: one row per run that has ended, in the order of arms, seeds and folds."""
    ended = [run for run in runs if run.config.run_dir in errors or is_finished(run)]
    # Whole numbers stay whole beside the empty cells of a failed run.
    rows = pd.DataFrame([table_row(run, errors.get(run.config.run_dir, "")) for run in ended], dtype=object)
    columns = [*rows.columns.drop("error"), "error"]
    with atomic_write(out / "runs.csv") as temporary:
        rows.to_csv(temporary, columns=columns, index=False, lineterminator="\n")


if __name__ == "__main__":
    run_script(partial(main, shared=shared_words(sys.argv[1:])), ARMS_PRESETS, description=describe(__doc__))
