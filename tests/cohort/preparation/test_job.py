"""Preparing as processes: what one that is killed, a scan too large and a full disk cost the others."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from cohort.grids import GRIDS
from cohort.tables import read_table
from runtime.files import ROOT
from tests.support.preparing import command, config, status, words
from tests.support.processes import children, fill, memory_limit, small_disk
from tests.support.scans import template_table

GRID = GRIDS["smoke"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return template_table(tmp_path)


@pytest.mark.slow
def test_a_process_that_is_killed_takes_no_scan_with_it(table):
    """As the kernel does where memory ends."""
    done = subprocess.Popen(words(config(table, workers=2)), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    victim = None
    deadline = time.monotonic() + 120
    while victim is None and time.monotonic() < deadline:
        commands = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in children(done.pid)}
        victim = next((child for child, words in commands.items() if b"spawn_main" in words), None)
        time.sleep(0.05)
    os.kill(victim, signal.SIGKILL)
    assert done.wait(timeout=300) == 0, done.stderr.read()
    assert len(read_table(table.parent / "index.csv")) == 4


@pytest.mark.slow
def test_a_scan_that_needs_more_memory_than_there_is_fails_alone_and_by_name(table):
    whole, times = nib.load(table.parent / "raw/P1.nii.gz"), 14  # of voxels along each axis: 300 MB as float32
    large = np.kron(whole.get_fdata().astype(np.uint8), np.ones((times, times, times), np.uint8))
    smaller = np.diag([1 / times] * 3 + [1.0])
    smaller[:3, 3] = 0.5 / times - 0.5
    nib.save(nib.Nifti1Image(large, whole.affine @ smaller), table.parent / "raw/P1.nii.gz")
    chosen = config(table, workers=2)
    process = subprocess.Popen(words(chosen), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with memory_limit(process, megabytes=1050) as killed:
        out, err = process.communicate(timeout=300)
    assert (process.returncode, len(killed)) == (1, 2), err  # once beside others, once alone
    assert read_table(chosen.index)["subject"].tolist() == ["P0", "P2", "P3"]
    assert pd.read_csv(chosen.out / "failures.csv")["name"].tolist() == ["P1"]
    assert "failed: P1: its process was killed, and again when it ran alone" in out
    assert 0.1 < float(re.search(r"a process had at most (\S+) GB of memory", out)[1]) < 1.11


@pytest.mark.slow
def test_a_full_disk_is_said_and_nothing_is_half_written(table):
    with small_disk(table.parent / "small", megabytes=4) as out:
        filler = fill(out, leave_kilobytes=200)
        done = command(config(table, out=out))
        assert done.returncode == 2
        assert "No space left on device" in done.stderr
        for scan in (out / "scans").glob("*"):
            assert nib.load(scan).get_fdata().shape == GRID.shape
        assert not list(out.rglob(".tmp-*"))
        filler.unlink()
        assert status(config(table, out=out)) == 0
        assert len(read_table(table.parent / "index.csv")) == 4
