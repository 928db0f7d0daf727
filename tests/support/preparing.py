"""Runs of cohort.prepare in tests, in this process or as a user types them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cohort.prepare import Config, main
from runtime.files import ROOT


def config(table: Path, **changes) -> Config:
    folder = table.parent
    given = {"out": folder / "out", "index": folder / "index.csv", "grid": "smoke", "assume_mni": True, "workers": 1}
    return Config(participants=table, **(given | changes))


def status(chosen: Config) -> int:
    try:
        main(chosen)
    except SystemExit as stop:
        return stop.code
    return 0


def words(chosen: Config) -> list[str]:
    """The command line of a configuration."""
    given = ["--participants", chosen.participants, "--out", chosen.out, "--index", chosen.index, "--grid", chosen.grid]
    given += ["--workers", chosen.workers, *(["--assume-mni"] if chosen.assume_mni else [])]
    return [sys.executable, "-m", "cohort.prepare", *map(str, given)]


def command(chosen: Config) -> subprocess.CompletedProcess:
    """The script in a process of its own."""
    return subprocess.run(words(chosen), cwd=ROOT, capture_output=True, text=True)
