"""A run folder: everything one training run reads back or leaves behind.

    config.json        the resolved configuration; another configuration in the same folder is refused
    environment.json   commit, versions, device
    log.jsonl          one JSON object per logged step: step, time, then names with their units
    events.out.*       the same numbers for TensorBoard
    checkpoints/       last.pt, best.pt
    samples/           pictures

Running the same command again continues the run. A second process in the same folder is refused while the first lives.
"""

import json
import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from runtime import distributed
from runtime.checkpoints import git_commit
from runtime.config import plain_config, with_defaults
from runtime.device import Device
from runtime.errors import InputError, differences
from runtime.files import locked, read_json, write_json

# May differ when a run is continued: where or how fast it runs, not what it computes. `steps` may grow.
FREE_FIELDS = ("dry_run", "threads", "cache_dir", "run_dir", "compile", "recompute", "micro_batch", "fit")


def due(step: int, every: int, last: int | None = None) -> bool:
    """Whether something that happens every so many steps happens now: also at the last step; `every` 0 means never."""
    return step == last or (every > 0 and step % every == 0)


class Run:
    """An open run folder; made by `open_run`. Only the main process writes, so that callers need not ask."""

    def __init__(self, path: Path, device: Device) -> None:
        self.path = path
        self.samples = path / "samples"
        self.device = device
        self.interrupted = False
        self._bar: tqdm | None = None
        self._started = time.monotonic()
        self._timed = (0, self._started)  # step and time of the last `log_step`
        self._writer: Any = None

    def checkpoint(self, name: str) -> Path:
        """Path of the checkpoint called `name` (``last`` or ``best``)."""
        return self.path / "checkpoints" / f"{name}.pt"

    def last(self) -> Path | None:
        """checkpoints/last.pt, or None in every process when the main one sees none."""
        path = self.checkpoint("last")
        return path if distributed.from_main(path.exists()) else None

    def continue_from(self, step: int) -> None:
        """Forgets what was logged after `step`: a killed run may have logged steps that it must now take again."""
        self._timed = (step, time.monotonic())
        if not distributed.is_main():
            return
        _truncate_log(self.path / "log.jsonl", step)
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and needed only where a run is open

        self._writer = SummaryWriter(str(self.path), purge_step=step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Appends one line to log.jsonl; shows the same numbers in TensorBoard, and losses at the bar."""
        if not distributed.is_main():
            return
        values = {name: float(value) for name, value in values.items()}
        record = {"step": step, "time/run_s": round(time.monotonic() - self._started, 2), **values}
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if self._bar is not None:
            shown = [f"{name.split('/')[-1]} {value:.4g}" for name, value in values.items() if name.startswith("loss/")]
            self._bar.set_postfix_str(", ".join(shown[:3]), refresh=False)

    def log_step(self, step: int, values: dict[str, Any], optimiser: torch.optim.Optimizer) -> None:
        """`log` of a training step's numbers, with the learning rate and the seconds per step since the last call."""
        (last, then), now = self._timed, time.monotonic()
        self._timed = (step, now)
        seconds = (now - then) / max(1, step - last)
        self.log(step, {**values, "lr": optimiser.param_groups[0]["lr"], "time/step_s": seconds})

    def say(self, text: str) -> None:
        """One line for people, above the progress bar."""
        if distributed.is_main():
            tqdm.write(text)

    def progress(self, start: int, total: int, desc: str) -> Iterator[int]:
        """Yields steps start + 1 ... total behind a bar with rate and remaining time; stops after an interrupt.

        A first Ctrl-C or SIGTERM sets `interrupted`: the loop's body still finishes its step (and saves), then
        KeyboardInterrupt is raised here. A second one interrupts at once, and so does a first one outside this loop.
        """
        with tqdm(total=total, initial=start, desc=desc, unit="step", disable=not distributed.is_main()) as bar:
            self._bar = bar
            try:
                for step in range(start + 1, total + 1):
                    yield step
                    bar.update()
                    if self.interrupted:
                        raise KeyboardInterrupt(f"step {step} is in {self.checkpoint('last')}")
            finally:
                self._bar = None


@contextmanager
def open_run(run_dir: Path, config: Any, *, stage: str, device: Device) -> Iterator[Run]:
    """Opens a run folder, new or existing, and holds its lock until the block ends.

    `config` is the script's dataclass, written as config.json; `stage` the script's name, such as ``VAE.train``.
    Refuses a folder in use, or with a checkpoint of another stage or configuration; and, before there is a folder, a
    batch that does not divide over the processes.
    """
    run_dir = Path(run_dir)
    batch, processes = getattr(config, "batch_size", 0), distributed.world_size()
    if batch % processes:
        raise InputError(f"--batch-size {batch} does not divide over {processes} processes")
    run = Run(run_dir, device)
    with ExitStack() as stack:
        if distributed.is_main():
            stack.enter_context(locked(run_dir))
            _settle_config(run, config, stage)
            write_json(run_dir / "environment.json", environment(device))
        distributed.barrier()
        stack.enter_context(_catch_signals(run))
        stack.callback(lambda: run._writer and run._writer.close())  # also after an error
        yield run


def environment(device: Device) -> dict[str, Any]:
    """What a result depends on besides its configuration."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
    return {"commit": git_commit(), "processes": distributed.world_size(), **versions, **device.describe()}


def read_log(run_dir: Path) -> list[dict[str, float]]:
    """The lines of log.jsonl: step, time, then names with their units; without a last one that a kill left half."""
    try:
        lines = (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in takewhile(lambda line: line.endswith("\n"), lines)]
    except FileNotFoundError:
        raise InputError(f"{run_dir}: no log.jsonl, so not the folder of a training run") from None
    except ValueError as error:
        raise InputError(f"{run_dir / 'log.jsonl'}: not a log of a training run: {error}") from None


def _settle_config(run: Run, config: Any, stage: str) -> None:
    """Writes config.json, or checks it once something has been learned by it."""
    path, new = run.path / "config.json", {"stage": stage, **plain_config(config)}
    learned = path.exists() and any(run.path.glob("checkpoints/*.pt"))
    old = with_defaults(read_json(path), config) if learned else new
    fixed = {name: new.get(name) for name in sorted(old.keys() | new.keys()) if name not in FREE_FIELDS}
    for name in [name for name in fixed if isinstance(getattr(config, name, None), Path) and old.get(name)]:
        if os.path.abspath(old[name]) == os.path.abspath(fixed[name]):  # a path may be typed in several ways
            del fixed[name]
    if old.get("steps", 0) < new.get("steps", 0):
        run.say(f"{old['steps']} steps become {new['steps']}; from here the schedule is the longer one's")
        del fixed["steps"]
    if problems := differences("run", old, fixed):
        raise InputError.of(f"{run.path}: holds a run with another configuration; choose another --run-dir", problems)
    write_json(path, new)


def _truncate_log(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # A kill can leave half a line.
    kept = takewhile(lambda line: line.endswith("\n") and json.loads(line)["step"] <= step, lines)
    path.write_text("".join(kept), encoding="utf-8")


@contextmanager
def _catch_signals(run: Run) -> Iterator[None]:
    def request(_signal: int, _frame: FrameType | None) -> None:
        if run.interrupted or run._bar is None:
            raise KeyboardInterrupt
        run.interrupted = True
        run.say("stopping after this step; once more to stop at once")

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
