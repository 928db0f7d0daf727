"""Runs the project's scripts as a user does: as processes, killed when a test wants it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """One thread per process: results must not depend on how many cores a machine has."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def script(module: str, *words: object, processes: int = 1, ok: bool = True) -> subprocess.CompletedProcess:
    """Runs ``python -m module words`` (under torchrun for several processes) and returns it with its output as text."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command += [module, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert not ok or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


def kill_at_step(module: str, *words: object, run_dir: Path, step: int) -> None:
    """Starts a training script and sends SIGKILL as soon as its log reaches a step."""
    kill_when(lambda: last_step(run_dir) >= step, module, *words)


def kill_when(ready: Callable[[], bool], module: str, *words: object) -> None:
    """Starts a script and sends SIGKILL as soon as `ready()` is true; it must not have ended by then."""
    command = [sys.executable, "-m", module, *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
    while not ready():
        assert process.poll() is None, f"ended too early:\n{process.stderr.read().decode()}"
        assert time.monotonic() < deadline, "it did not get as far as it should"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def last_step(run_dir: Path) -> int:
    """The last step in a run's log, 0 without one."""
    log = run_dir / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


@contextmanager
def small_disk(folder: Path, *, megabytes: float) -> Iterator[Path]:
    """A file system of its own that is soon full; the test is skipped where it may not be mounted."""
    folder.mkdir()
    size = f"size={round(megabytes * 2**20)}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, *, leave_kilobytes: int) -> Path:
    """Writes a file that takes all of the disk but a little; deleting it makes room again."""
    filler = folder / "filler"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    filler.write_bytes(bytes(max(0, free - 1024 * leave_kilobytes)))
    return filler
