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
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
import tyro
from tqdm import tqdm

from classifier.arms import ArmRun, arm_runs, flags, is_finished, jobs_that_fit, read_arms, reason, table_row
from classifier.config import PRESETS, TrainConfig
from classifier.folds import FEWEST_FOLDS
from runtime.cli import describe, run_script
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write, locked, read_json

SET_HERE = ("seed", "folds", "fold", "run_dir", "dry_run")
CPU_BYTES_PER_RUN = 2 * 2**30
GPU_SHARE = 0.9
"""Share of the free memory of a GPU that runs may take together."""
GPU_CONTEXT_BYTES = 2**30
"""What a process takes on a GPU besides tensors: CUDA's context and its kernels."""


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
    """Runs at once. By default, on a GPU as many as fit beside one another by the memory that the first one took; on
    a CPU one per core and 2 GiB."""
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


def main(config: ArmsConfig) -> None:
    """Reads the arms, makes what is missing, and leaves the table; ends with status 1 when a run failed."""
    check(config)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the runs are stopped, and save
    runs = arm_runs(read_arms(config.arms), config.train, config.out, config.seeds, config.folds)
    config.out.mkdir(parents=True, exist_ok=True)
    errors: dict[Path, str] = {}
    with locked(config.out):
        missing = [run for run in runs if not is_finished(run)]
        with tqdm(total=len(runs), initial=len(runs) - len(missing), desc="runs", unit="run") as bar:
            for run, error in make(missing, config):
                errors[run.config.run_dir] = error
                write_table(runs, errors, config.out)
                bar.update()
                if error:
                    tqdm.write(f"{run.name}: failed: {error}")
        write_table(runs, errors, config.out)
    failed = sum(bool(error) for error in errors.values())
    print(f"{len(runs) - failed} of {len(runs)} runs ({len(missing) - failed} new) in {config.out / 'runs.csv'}")
    if failed:
        sys.exit(1)


def check(config: ArmsConfig) -> None:
    """Refuses settings that contradict one another."""
    own = {name: {getattr(preset, name) for preset in PRESETS.values()} for name in SET_HERE}
    problems = [
        f"--train.{name.replace('_', '-')}: run_arms sets it itself, by --seeds, --folds, --out and --dry-run"
        for name, presets in own.items()
        if getattr(config.train, name) not in presets
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
    """Makes runs, several at once; yields each as it ends, with why it failed or an empty text."""
    runs, jobs = list(missing), config.jobs
    if jobs is None and torch.cuda.is_available():
        first, runs = runs[:1], runs[1:]  # alone: it says how much memory a run takes
        yield from _make(first, 1, config)
        jobs = sum(map(jobs_on_gpu, first)) * len(gpus())
    elif jobs is None:
        jobs = jobs_that_fit(cores=cores(), memory=memory(), per_run=CPU_BYTES_PER_RUN)
    yield from _make(runs, min(jobs, len(runs)), config)


def _make(runs: list[ArmRun], jobs: int, config: ArmsConfig) -> Iterator[tuple[ArmRun, str]]:
    if not runs:
        return
    with workers(jobs, config.train.threads) as start:
        started = {start(run): run for run in runs}
        for done in as_completed(started):
            yield started[done], done.result()


@contextmanager
def workers(jobs: int, threads: int | None) -> Iterator[Callable[[ArmRun], Future]]:
    """A function that queues a run, whose result is why it failed or an empty text; at the end all runs are stopped.

    Args:
        jobs: runs at once. They share the cores, and take turns among the GPUs.
        threads: CPU threads of a run; by default its share of the cores.
    """
    places: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(jobs):
        places.put(place)
    alive: set[subprocess.Popen] = set()

    def work(run: ArmRun) -> str:
        place = places.get()
        try:
            return train(run, threads or max(1, cores() // jobs), place, alive)
        finally:
            places.put(place)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield lambda run: pool.submit(work, run)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(alive):
                process.send_signal(signal.SIGTERM)


def train(run: ArmRun, threads: int, place: int, alive: set[subprocess.Popen]) -> str:
    """Trains one run as a process of its own; its output goes beside its folder. Returns why it failed, or nothing."""
    log = run.config.run_dir.with_name(f"{run.config.run_dir.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    words = ["paper", *flags(run.config, PRESETS["paper"]), "--threads", str(threads)]
    devices = gpus()
    chosen = {"CUDA_VISIBLE_DEVICES": devices[place % len(devices)]} if devices else {}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "classifier.train", *words], env={**os.environ, **chosen},
            stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches it from here only, once: it then saves before it stops
        )  # fmt: skip
        alive.add(process)
        status = process.wait()
        alive.discard(process)
    if status == 0 and is_finished(run):
        return ""
    return f"status {status}: {reason(log.read_text(encoding='utf-8', errors='replace'))}"


def jobs_on_gpu(first: ArmRun) -> int:
    """How many runs like `first` one GPU holds at once; 1 when it failed and told nothing."""
    if not is_finished(first):
        return 1
    peak = read_json(first.config.run_dir / "results.json")["peak_gpu_bytes"]
    free, _ = torch.cuda.mem_get_info()
    share = max(1, cores() // len(gpus()))
    return jobs_that_fit(cores=share, memory=int(GPU_SHARE * free), per_run=peak + GPU_CONTEXT_BYTES)


def gpus() -> list[str]:
    """Names of the GPUs that runs may use, as CUDA_VISIBLE_DEVICES has them; empty without any."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return listed.split(",")[:count] if listed else [str(number) for number in range(count)]


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def write_table(runs: list[ArmRun], errors: dict[Path, str], out: Path) -> None:
    """Writes OUT/runs.csv: one row per run that has ended, in the order of arms, seeds and folds."""
    ended = [run for run in runs if run.config.run_dir in errors or is_finished(run)]
    # Whole numbers stay whole beside the empty cells of a failed run.
    rows = pd.DataFrame([table_row(run, errors.get(run.config.run_dir, "")) for run in ended], dtype=object)
    columns = [*rows.columns.drop("error"), "error"]
    with atomic_write(out / "runs.csv") as temporary:
        rows.to_csv(temporary, columns=columns, index=False, lineterminator="\n")


if __name__ == "__main__":
    run_script(main, ARMS_PRESETS, description=describe(__doc__))
