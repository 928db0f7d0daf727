"""Processes that share a script's work end with it, at once and without a word."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import InputWarning
from runtime.workers import begun, peak_bytes, run_each, start_workers
from tests.support.processes import ROOT, interrupt_when

PROGRAM = """
import signal, sys, time
sys.path.insert(0, sys.argv[2])  # the tests are no installed package
from contextlib import suppress
from pathlib import Path
from runtime.workers import start_workers
from tests.runtime.test_workers import begin
def busy(*_):
    time.sleep(1)  # in a library, for example
    raise KeyboardInterrupt
if __name__ == "__main__":
    signal.signal(signal.SIGINT, busy)
    with suppress(KeyboardInterrupt), start_workers(2, begin, Path(sys.argv[1])) as pool:
        time.sleep(100)
"""


def begin(marker: Path) -> None:
    """A first task that takes long: where a process is interrupted when the script has only just started."""
    marker.touch()
    time.sleep(100)


def survive(job: tuple[Path, str]) -> str:
    """A job called ``guilty`` dies wherever it runs; others die where more than two run at once."""
    folder, name = job
    own = folder / name
    own.touch()
    time.sleep(0.3)
    crowded = len(list(folder.iterdir())) > 2
    own.unlink()
    if name == "guilty" or crowded:
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def start() -> AbstractContextManager:
    return start_workers(1, int)


def test_a_job_that_kills_its_process_costs_no_other(tmp_path: Path) -> None:
    jobs, told = [(tmp_path, name) for name in ("a", "guilty", "b", "c")], []
    with warnings.catch_warnings(action="error"):
        found = run_each(survive, jobs, 2, start, told.append)
    assert isinstance(found[1].exception(), BrokenProcessPool)
    assert [found[number].result() for number in (0, 2, 3)] == ["a", "b", "c"]
    assert {*told} == {*found}


@pytest.mark.slow
def test_where_memory_is_short_twice_fewer_processes_go_on(tmp_path: Path) -> None:
    jobs = [(tmp_path, str(number)) for number in range(14)]
    with pytest.warns(InputWarning, match="by 2 processes at once"):
        found = run_each(survive, jobs, 4, start, lambda future: None)
    assert [future.result() for future in found] == [name for _, name in jobs]


def test_what_is_raised_when_a_job_ends_stops_the_others(tmp_path: Path) -> None:
    def refuse(future: Future) -> None:
        raise OSError(errno.ENOSPC, "full")

    done = []
    with pytest.raises(OSError, match="full"):
        run_each(done.append, range(100), 1, lambda: ThreadPoolExecutor(1), refuse)
    assert done == [0]


def die_apart(parent: int) -> int:
    """Killed, as where memory ends, in any process but one."""
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


@pytest.mark.parametrize("apart", [False, True])
def test_work_that_was_begun_apart_gives_its_result_and_its_errors(apart: bool) -> None:
    with begun(os.getpid, apart=apart) as result:
        assert (result() != os.getpid()) is apart
    with begun(int, "no number", apart=apart) as result, pytest.raises(ValueError, match="no number"):
        result()


def test_work_whose_process_was_killed_is_done_again() -> None:
    with begun(die_apart, os.getpid(), apart=True) as result, pytest.warns(InputWarning, match="was killed"):
        assert result() == os.getpid()


def test_peak_memory_is_that_of_this_process() -> None:
    before = peak_bytes()
    np.ones(2**26)  # 512 MiB
    assert peak_bytes() >= before
    assert 2**29 < peak_bytes() < 2**29 + before + 2**28


def test_processes_that_are_still_starting_end_without_a_word(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    marker = tmp_path / "begun"
    done = interrupt_when(marker.exists, sys.executable, program, marker, ROOT)
    assert (done.returncode, done.stderr) == (0, "")
