"""Runs the project's scripts as a user does: as processes, killed when a test wants it."""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from unittest.mock import patch

import pytest

from runtime.errors import InputWarning

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


def run_here(module: str, *words: object, ok: bool = True) -> subprocess.CompletedProcess:
    """`script` in this process: the same command line, output and exit status, without starting Python and torch."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with ExitStack() as stack:
        for manager in (redirect_stdout(out), redirect_stderr(err), patch("sys.argv", [module, *map(str, words)])):
            stack.enter_context(manager)
        warned = stack.enter_context(warnings.catch_warnings(record=True, action="always"))
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            status = ended.code or 0
        told = [str(one.message) for one in warned if issubclass(one.category, InputWarning)]  # and not runpy's
        print(*(f"warning: {text}" for text in dict.fromkeys(told)), sep="\n", file=err)
    assert not ok or status == 0, err.getvalue()
    return subprocess.CompletedProcess([module, *words], status, out.getvalue(), err.getvalue())


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


def interrupt_when(ready: Callable[[], bool], *command: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Starts a command and sends SIGINT to all its processes, as a terminal does, as soon as `ready()` is true.

    Returns it with its output as text; none of its processes is left soon after, or this fails.
    """
    process = subprocess.Popen(
        [*map(str, command)], cwd=cwd, env=environment(), start_new_session=True, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while not ready():
            assert process.poll() is None, f"ended too early:\n{process.communicate()[1]}"
            assert time.monotonic() < deadline, "it did not get as far as it should"
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        deadline = time.monotonic() + 10
        while _lives(process.pid):
            assert time.monotonic() < deadline, "it left processes behind"
            time.sleep(0.05)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def last_step(run_dir: Path) -> int:
    """The last step in a run's log, 0 without one."""
    log = run_dir / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


@contextmanager
def memory_limit(process: subprocess.Popen, *, megabytes: float) -> Iterator[list[int]]:
    """Kills every child of a process that holds more memory, as the kernel does; yields the list of those killed."""
    killed, over = [], threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            for child in children(process.pid):
                with suppress(OSError, TypeError):  # it has ended, or is just starting
                    held = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{child}/status").read_text())
                    if int(held[1]) / 1024 > megabytes and child not in killed:
                        os.kill(child, signal.SIGKILL)
                        killed.append(child)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield killed
    finally:
        over.set()
        watcher.join()


def children(pid: int) -> list[int]:
    """The processes that a process has started and that live."""
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


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
