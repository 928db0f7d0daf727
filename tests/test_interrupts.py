"""A first Ctrl-C, sent as a terminal sends it: what is said, what is kept, and that the same command then goes on."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest

from cohort.atlas import load_template
from tests.support.processes import ROOT, environment, interrupt_when, last_step, run_here

pytestmark = pytest.mark.slow
WAY_ON = "run the same command again, and it goes on from there"


def stamps(folder: Path) -> dict[Path, int]:
    """Files with the times of their last change."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*")}


def said(done: subprocess.CompletedProcess) -> str:
    """The last line on standard error, below the progress bar."""
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


def test_a_simulation_keeps_its_scans_and_goes_on(tmp_path: Path) -> None:
    scans = tmp_path / "demo/scans"
    words = ("cohort.make_demo", "--out", tmp_path / "demo", "--index", tmp_path / "index.csv", "--subjects", 6,
             "--grid", "16@160x192x160")  # fmt: skip
    done = interrupt_when(lambda: any(scans.glob("[!.]*.nii.gz")), sys.executable, "-m", *words, "--workers", 2)
    assert (done.returncode, said(done)) == (130, f"interrupted: what was finished is kept; {WAY_ON}")
    before = stamps(scans)
    assert 2 <= len(before) < 12  # a scan and what is true of it are two files
    run_here(*words, "--workers", 1)
    after = stamps(scans)
    assert len(after) == 12
    assert all(after[path] == time for path, time in before.items() if path.suffix == ".gz")
    assert len(pd.read_csv(tmp_path / "index.csv")) == 6


def test_preparation_keeps_its_scans_and_goes_on(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / "raw").mkdir(exist_ok=True)
        load_template("icbm2009a").slicer[::4, ::4, ::4].to_filename(tmp_path / f"raw/P{number}.nii.gz")
    records = tmp_path / "out/records"
    words = ("cohort.prepare", "--participants", tmp_path / "raw", "--out", tmp_path / "out", "--index",
             tmp_path / "index.csv", "--grid", "smoke", "--assume-mni", "--workers", 2)  # fmt: skip
    done = interrupt_when(lambda: any(records.glob("[!.]*.json")), sys.executable, "-m", *words)
    assert (done.returncode, said(done)) == (130, f"interrupted: what was finished is kept; {WAY_ON}")
    before = stamps(records)
    assert 1 <= len(before) < 6
    run_here(*words)
    after = stamps(records)
    assert len(after) == 6
    assert all(after[path] == time for path, time in before.items())


def test_training_says_which_step_is_kept(cohort_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = ("VAE.train", "smoke", "--steps", 80, "--train-csv", cohort_dir / "train.csv", "--val-csv",
             cohort_dir / "val.csv", "--cache-dir", cohort_dir / "cache", "--run-dir", run_dir, "--log-every-steps", 1,
             "--save-every-steps", 1000)  # fmt: skip
    done = interrupt_when(lambda: last_step(run_dir) >= 3, sys.executable, "-m", *words)
    step = last_step(run_dir)
    kept = f"step {step} is in {run_dir / 'checkpoints/last.pt'}"
    assert (done.returncode, said(done)) == (130, f"interrupted: {kept}; {WAY_ON}")
    assert f"continuing at step {step}" in run_here(*words).stdout


class _Registry(BaseHTTPRequestHandler):
    """Gives an empty package, when it is allowed to."""

    asked, may_answer = threading.Event(), threading.Event()
    wheel: bytes

    def do_GET(self) -> None:
        self.asked.set()
        self.may_answer.wait(100)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.wheel)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Path]:
    """The Makefile with one requirement, which comes from a server of this test."""
    wheel = tmp_path / "small.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        about = "small-1.dist-info"
        archive.writestr("small.py", "")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    _Registry.wheel = wheel.read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder = tmp_path / "house"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "pyproject.toml").touch()
    url = f"http://127.0.0.1:{server.server_port}/small-1-py3-none-any.whl"
    (folder / "requirements.txt").write_text(f"small @ {url}\n")
    yield folder
    _Registry.may_answer.set()
    server.shutdown()


def test_an_installation_that_was_interrupted_goes_on(house: Path) -> None:
    """First while the environment itself is made, when it has Python but no pip; then while pip fetches."""
    make = ("make", "venv", f"PYTHON={sys.executable}")
    for ready in ((house / ".venv/bin/python").exists, _Registry.asked.is_set):
        done = interrupt_when(ready, *make, cwd=house)
        assert done.returncode != 0
        assert f"installation interrupted: {WAY_ON}" in done.stderr
        assert not (house / ".venv/.requirements").exists()
    _Registry.may_answer.set()
    subprocess.run(make, cwd=house, env=environment(), check=True, capture_output=True)
    subprocess.run([house / ".venv/bin/python", "-c", "import small"], check=True)
    again = subprocess.run(make, cwd=house, env=environment(), check=True, capture_output=True, text=True)
    assert "installing" not in again.stdout
