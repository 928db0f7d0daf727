"""Processes that share a script's work end with it, at once and without a word."""

from __future__ import annotations

import sys
import time
from pathlib import Path

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


def test_processes_that_are_still_starting_end_without_a_word(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    marker = tmp_path / "begun"
    done = interrupt_when(marker.exists, sys.executable, program, marker, ROOT)
    assert (done.returncode, done.stderr) == (0, "")
