"""Exports the demo cohort as raw heads in a BIDS dataset: moved, biased, with thick slices, in any orientation.

Each scan of the cohort is put into a simulated skull, scalp and neck and scanned in a position and with a coil of its
own: for the check that what `cohort.prepare` makes of raw heads is as good for a classifier as the cohort itself.

    python -m tests.support.raw_bids --cohort data/demo --out data/raw --subjects 40
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from tqdm import tqdm

from runtime.cli import describe, run_script
from runtime.files import ROOT, atomic_write, write_json
from runtime.seeding import rng
from tests.support.heads import Look, Pose, canvas, scan

ORIENTATIONS = ("RAS", "LAS", "LPS", "PIR", "ASR")


@dataclass(frozen=True)
class RawConfig:
    """What to export."""

    cohort: Path = ROOT / "data" / "demo"
    """Folder that `cohort.make_demo` made."""
    out: Path = ROOT / "data" / "raw"
    """Folder of the BIDS dataset."""
    subjects: int = 40
    """How many, from the first."""
    spacing_mm: float = 3.0
    """Typical voxel edge of the raw scans; one axis gets up to a third more."""
    dry_run: bool = False
    """Print the configuration and stop."""


def main(config: RawConfig) -> None:
    """Makes the missing heads, then participants.tsv."""
    frame = pd.read_csv(config.cohort / "truth.csv", keep_default_na=False).head(config.subjects)
    rows = []
    for number, row in enumerate(tqdm(frame.itertuples(index=False), total=len(frame), desc="raw heads", unit="scan")):
        name = f"sub-{row.subject.replace('-', 'x')}"
        path = config.out / name / "anat" / f"{name}_T1w.nii.gz"
        if not path.exists():
            write_head(config, number, config.cohort / "scans" / f"{row.subject}.nii.gz", path)
        rows.append((name, row.diagnosis, row.age, row.sex, row.site))
    with atomic_write(config.out / "participants.tsv") as temporary:
        table = pd.DataFrame(rows, columns=["participant_id", "diagnosis", "age", "sex", "site"])
        table.to_csv(temporary, sep="\t", index=False, na_rep="n/a")
    description = {"Name": "Simulated raw heads, no person", "BIDSVersion": "1.9.0"}
    write_json(config.out / "dataset_description.json", description)
    print(f"{len(rows)} raw heads in {config.out}")


def write_head(config: RawConfig, number: int, content: Path, path: Path) -> None:
    """Makes one raw scan around one scan of the cohort."""
    draw = rng(0, "benchmark.raw", number)
    look = Look(
        fluid_mm=draw.uniform(1.5, 4), skull_mm=draw.uniform(4, 8), scalp_mm=draw.uniform(4, 9),
        neck_mm=draw.uniform(20, 75), marrow=draw.uniform(0.2, 0.6), fat=draw.uniform(0.7, 1.3),
    )  # fmt: skip
    edges = config.spacing_mm * np.array([1.0, 1.0, draw.uniform(1, 4 / 3)])
    pose = Pose(
        turn_degrees=tuple(draw.uniform(-15, 15, 3)), shift_mm=tuple(draw.uniform(-25, 25, 3)),
        scale=tuple(draw.uniform(0.9, 1.1) * draw.uniform(0.97, 1.03, 3)), spacing_mm=tuple(draw.permutation(edges)),
        orientation=str(draw.choice(ORIENTATIONS)), cut_foot_mm=draw.uniform(0, 60), bias=draw.uniform(0.05, 0.2),
        noise=draw.uniform(0.01, 0.04), gain=draw.uniform(300, 1500),
    )  # fmt: skip
    brain = nib.as_closest_canonical(nib.load(content))
    head = scan(canvas(look, number, 2.0, brain), pose, number)
    with atomic_write(path) as temporary:
        nib.save(head.image, temporary)


if __name__ == "__main__":
    run_script(main, RawConfig, description=describe(__doc__))
