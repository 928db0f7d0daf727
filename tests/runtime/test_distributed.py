"""Processes of one run: who may go, and when."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import environment

PROGRAM = """
import os, sys, time
from pathlib import Path
from runtime import distributed
folder = Path(sys.argv[1])
distributed.init()
other = folder / "other"
if not distributed.is_main():
    other.write_text(str(os.getpid()))
distributed.barrier()
if distributed.dismiss():
    process = Path("/proc") / other.read_text()
    deadline = time.monotonic() + 60
    while process.exists() and "Z" not in (process / "stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the other process waits"
        time.sleep(0.05)
    distributed.barrier()  # with nobody
    print("alone", distributed.world_size(), distributed.is_main(), distributed.shard(range(3)))
"""


@pytest.mark.slow
def test_the_main_process_works_on_when_the_others_have_gone(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        program,
        tmp_path,
    ]
    done = subprocess.run(
        list(map(str, command)),
        env=environment() | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "alone 1 True [0, 1, 2]" in done.stdout, done.stderr
