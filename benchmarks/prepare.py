"""Time and accuracy of preparing one simulated whole head at 1 mm.

Each run is one process on one core, start-up and imports included, as `cohort.prepare` would run it; then two heads by
one process and by two, for how the rate grows. Run it alone on the machine.

    taskset -c 0,1 python -m benchmarks.prepare --out benchmarks/prepare.json
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.timing import expect, time_command
from cohort.grids import GRIDS
from cohort.scans import resample, to_ras
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.files import ROOT, read_json, write_json
from tests.support.heads import Head, Look, Pose, canvas, dice, landmark_error_mm, scan

LOOK = Look(warp=1.0, fat=1.2, skull_mm=7)
POSE = Pose(turn_degrees=(18, -8, 6), shift_mm=(10, -15, 25), scale=(0.94, 0.86, 0.91), spacing_mm=(1.0, 1.0, 1.0))


@dataclass(frozen=True)
class BenchmarkConfig(ScriptConfig):
    out: Path = ROOT / "benchmarks" / "prepare.json"
    """The JSON file of the figures."""


def main(config: BenchmarkConfig) -> None:
    expect(minutes=4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        head = scan(canvas(LOOK, seed=1, spacing_mm=1.0), POSE, seed=1)
        for path in (folder / "one/head0.nii.gz", folder / "two/head0.nii.gz", folder / "two/head1.nii.gz"):
            path.parent.mkdir(exist_ok=True)
            nib.save(head.image, path)
        figures: dict[str, object] = {"shape": list(head.image.shape), "spacing_mm": 1.0}
        figures |= timed(folder / "one", folder / "out", 1) | accuracy(head, folder / "out")
        for workers in (1, 2):
            figures[f"two heads by {workers} processes"] = timed(folder / "two", folder / f"by{workers}", workers)
    for name, value in figures.items():
        print(f"{name}: {value}")
    write_json(config.out, figures)


def timed(source: Path, out: Path, workers: int) -> dict[str, float]:
    """Seconds and memory of preparing a folder of heads, each process on one core."""
    return time_command(
        "cohort.prepare", "--participants", source, "--out", out, "--index", out / "index.csv", "--grid", "paper",
        "--workers", workers, threads=1,
    )  # fmt: skip


def accuracy(head: Head, out: Path) -> dict[str, float]:
    """Landmark error, overlap of the mask and correlation with the template of what was prepared."""
    record = read_json(out / "records" / "head0.json")
    matrix = np.array(record["matrix"])
    made = np.asarray(nib.load(out / "scans" / "head0.nii.gz").dataobj) > 0
    image, affine = to_ras(head.brain.astype(np.float32), head.image.affine)
    true = resample(image, affine, matrix @ GRIDS["paper"].affine, GRIDS["paper"].shape)[0] > 0.5
    return {
        "landmark_error_mm": landmark_error_mm(matrix, head.matrix),
        "dice": dice(made, true),
        "template_correlation": record["measures"]["template_correlation"],
    }


if __name__ == "__main__":
    run_script(main, BenchmarkConfig, description=describe(__doc__))
