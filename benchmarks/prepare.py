"""Time and accuracy of preparing one simulated whole head at 1 mm, with and without the deformable step.

Each run is one process on one core, start-up and imports included, as `cohort.prepare` would run it; then two heads by
one process and by two, for how the rate grows. Run it alone on the machine.

    taskset -c 0,1 python -m benchmarks.prepare --out benchmarks/prepare.json
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from cohort.scans import GRIDS, resample, to_ras
from cohort.simulation.heads import Head, Look, Pose, canvas, dice, landmark_error_mm, scan
from runtime.cli import describe, run_script
from runtime.files import ROOT, read_json, write_json

GRID = GRIDS["paper"]
LOOK = Look(warp=1.0, fat=1.2, skull_mm=7)
POSE = Pose(turn_degrees=(18, -8, 6), shift_mm=(10, -15, 25), scale=(1.08, 0.95, 1.02), spacing_mm=(1.0, 1.0, 1.0))


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    out: Path = ROOT / "benchmarks" / "prepare.json"
    """The JSON file of the figures."""
    pairs: bool = True
    """Also prepare two heads by one process and by two (about six minutes more on two cores)."""
    dry_run: bool = False
    """Print the configuration and stop."""


def main(config: BenchmarkConfig) -> None:
    """Makes the head, prepares it both ways, prints and writes the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        head = scan(canvas(LOOK, seed=1, spacing_mm=1.0), POSE, seed=1)
        for number in range(2):
            path = folder / "raw" / f"head{number}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nib.save(head.image, path)
        figures: dict[str, object] = {"shape": list(head.image.shape), "spacing_mm": 1.0}
        (folder / "one").mkdir()
        (folder / "raw" / "head0.nii.gz").rename(folder / "one" / "head0.nii.gz")
        for label, flags in (("without deformable step", ["--no-warp"]), ("with deformable step", [])):
            out = folder / label.split()[0]
            figures[label] = {"seconds": timed(folder / "one", out, 1, flags)} | accuracy(head, out)
        (folder / "one" / "head0.nii.gz").rename(folder / "raw" / "head0.nii.gz")
        if config.pairs:
            each = {workers: timed(folder / "raw", folder / f"by{workers}", workers, []) for workers in (1, 2)}
            figures["two heads, seconds by 1 and 2 processes"] = list(each.values())
            figures["rate of 2 processes over 1"] = each[1] / each[2]
    for name, value in figures.items():
        print(f"{name}: {value}")
    write_json(config.out, figures)


def timed(source: Path, out: Path, workers: int, flags: list[str]) -> float:
    """Seconds by the clock."""
    words = ["--participants", source, "--out", out, "--index", out / "index.csv", "--grid", "paper", *flags]
    start = time.perf_counter()
    command = [sys.executable, "-m", "cohort.prepare", *map(str, words), "--workers", str(workers)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - start


def accuracy(head: Head, out: Path) -> dict[str, float]:
    """Landmark error, overlap of the mask and correlation with the template of what was prepared."""
    record = read_json(out / "records" / "head0.json")
    matrix = np.array(record["matrix"])
    made = np.asarray(nib.load(out / "scans" / "head0.nii.gz").dataobj) > 0
    image, affine = to_ras(head.brain.astype(np.float32), head.image.affine)
    true = resample(image, affine, matrix @ GRID.affine, GRID.shape)[0] > 0.5
    return {
        "landmark_error_mm": landmark_error_mm(matrix, head.matrix),
        "dice": dice(made, true),
        "template_correlation": record["measures"]["template_correlation"],
    }


if __name__ == "__main__":
    run_script(main, BenchmarkConfig, description=describe(__doc__))
