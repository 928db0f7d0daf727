"""What is planted before maps are tried: a change of one hippocampus, in strengths down to none, or a mark beside it.

Every condition is data and a way of training on them. There are two kinds of change, of the hippocampus of one side:

- `signal`: it is darker by a share of its intensity, and nothing else differs. The change is known to the voxel.
- `dose`: it is smaller by Cohen's d against controls. That is the disease's own change, and hard to learn on a coarse
  grid.

All cohorts have one seed, and with it the same people; a patient differs from condition to condition in nothing else.
Cohorts (`cohort.make_demo`), splits and networks are made by the project's own scripts, and what is finished is kept.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from classifier.validation.config import ValidationConfig
from cohort.grids import Grid, parse_grid, preset_of
from cohort.tables import read_table, write_table
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write, read_json

MARK_MM = 12.0
"""Edge of the mark, a cube."""
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Condition:
    """One network whose maps are measured, and what there was for it to learn."""

    name: str
    dose: float = 0.0
    """Cohen's d of the planted loss of hippocampal volume."""
    signal: float = 0.0
    """Share of its intensity that the hippocampus of the changed side loses."""
    mark: bool = False
    """Patients' scans carry a bright cube in a corner."""
    shuffle: bool = False
    """Train on permuted labels: nothing is to be learned."""

    @property
    def cohort(self) -> str:
        """Name of the simulated cohort that its scans come from."""
        return f"signal_{self.signal:g}" if self.signal else f"dose_{self.dose:g}"

    @property
    def data(self) -> str:
        """Name of its scans and tables; conditions share them when they can."""
        return "marked" if self.mark else self.cohort


def conditions(signals: Sequence[float], doses: Sequence[float]) -> list[Condition]:
    """The condition that methods are judged on first: the strongest signal, or without signals the strongest dose.

    Its permuted-label run and the mark, where there is nothing else to learn, come last.
    """
    plain = [Condition(f"signal_{signal:g}", signal=signal) for signal in sorted(signals, reverse=True)]
    plain += [Condition(f"dose_{dose:g}", dose=dose) for dose in sorted(doses, reverse=True)]
    permuted = Condition("permuted", dose=plain[0].dose, signal=plain[0].signal, shuffle=True)
    return [*plain, permuted, Condition("shortcut", mark=True)]


def levels(chosen: Sequence[Condition]) -> dict[str, dict[str, float]]:
    """The series of plain conditions that differ in strength only, weakest included: {kind: {condition: strength}}."""
    plain = [condition for condition in chosen if not condition.mark and not condition.shuffle]
    found = {}
    for kind, other in (("signal", "dose"), ("dose", "signal")):
        strengths = {condition.name: getattr(condition, kind) for condition in plain if not getattr(condition, other)}
        found |= {kind: strengths} if any(strengths.values()) else {}
    return found


def mark_of(grid: Grid) -> np.ndarray:
    """The voxels of the mark, bool (D, H, W): a cube near the corner at the right, the front and the head."""
    edge = max(1, round(MARK_MM / grid.spacing_mm))
    mask = np.zeros(grid.shape, bool)
    mask[-1 - edge : -1, -1 - edge : -1, -1 - edge : -1] = True
    return mask


def region_share(out: Path, condition: Condition, name: str) -> np.ndarray:
    """The share of each voxel of a patient's scan in the changed region, float32 (D, H, W), by `cohort.make_demo`."""
    return nib.load(out / "cohorts" / condition.cohort / "regions" / f"{name}.nii.gz").get_fdata(dtype=np.float32)


def prepare(config: ValidationConfig, chosen: Sequence[Condition]) -> dict[str, dict[str, Any]]:
    """Cohorts, splits and networks of all conditions; returns each network's results.json by the condition's name."""
    for condition in tqdm(chosen, desc="planted cohorts", unit="cohort"):
        make_cohort(config, condition, chosen[0])
    with ThreadPoolExecutor(config.jobs) as pool:
        jobs = pool.map(lambda condition: train(config, condition), chosen)
        list(tqdm(jobs, total=len(chosen), desc="networks", unit="network"))
    return {name: read_json(config.out / "networks" / name / "results.json") for name in (c.name for c in chosen)}


def make_cohort(config: ValidationConfig, condition: Condition, first: Condition) -> None:
    """The condition's scans and tables; controls are copied from the first condition's cohort, and so is its split."""
    tables, cohorts = config.out / "tables", config.out / "cohorts"
    own = tables / condition.data
    if all((own / f"{split}.csv").exists() for split in SPLITS):
        return
    index = tables / f"{condition.cohort}.csv"
    words = ["--out", cohorts / condition.cohort, "--index", index, "--subjects", config.subjects]
    words += ["--seed", config.seed, "--grid", config.grid]
    words += ["--effect", "hippocampus", "--effect-size", condition.dose, "--darker", condition.signal]
    words += ["--controls-from", cohorts / first.cohort] if condition.cohort != first.cohort else []
    run_script("cohort.make_demo", *words)
    if condition.mark:
        index = mark(config, condition, index)
    if condition == first:
        run_script("cohort.split", "--index", index, "--out", own)
        return
    frame = read_table(index).set_index("subject", drop=False)
    for split in SPLITS:
        members = read_table(tables / first.data / f"{split}.csv")["subject"]
        write_table(own / f"{split}.csv", frame.loc[members].reset_index(drop=True))


def mark(config: ValidationConfig, condition: Condition, index: Path) -> Path:
    """Writes marked copies of a table's scans of patients (those that are there stay); returns a table with them.

    The mark is as bright as the median of the non-zero voxels, so that the percentiles that intensities are scaled by
    hardly move.
    """
    frame, voxels = read_table(index), mark_of(parse_grid(config.grid))
    for row in frame.index[frame["label"] == 1]:
        path = config.out / "cohorts" / condition.data / Path(frame.loc[row, "file"]).name
        if not path.exists():
            image = nib.load(frame.loc[row, "file"])
            scan = np.asarray(image.dataobj)
            marked = np.where(voxels, np.median(scan[scan > 0]), scan).astype(scan.dtype)
            with atomic_write(path) as temporary:
                nib.save(nib.Nifti1Image(marked, None, image.header), temporary)
        frame.loc[row, "file"] = str(path.resolve())
    table = config.out / "tables" / f"{condition.data}.csv"
    write_table(table, frame)
    return table


def train(config: ValidationConfig, condition: Condition) -> None:
    """The condition's network; a finished one stays."""
    run, tables = config.out / "networks" / condition.name, config.out / "tables" / condition.data
    if (run / "results.json").exists():
        return
    words = [word for split in SPLITS for word in (f"--{split}-csv", tables / f"{split}.csv")]
    words += ["--run-dir", run, "--cache-dir", config.out / "cache", "--seed", config.seed]
    words += ["--augmentation", config.augmentation]
    words += ["--volumes", "None", "--volumes-weight", 0]  # a preset's own are of its own cohort
    # It sees all of the head, also the mark, whose place is one side's.
    words += ["--model.name", "resnet", "--no-mirror"]
    words += ["--model.widths", *config.widths] if config.widths else []
    words += ["--shuffle", "all"] if condition.shuffle else []
    threads = config.threads or (1 if config.jobs > 1 else None)
    numbers = {
        "--steps": config.steps,
        "--lr": config.lr,
        "--model.stem-stride": config.stem_stride,
        "--threads": threads,
    }
    words += [word for flag, value in numbers.items() if value for word in (flag, value)]
    run_script("classifier.train", preset_of(parse_grid(config.grid)), "--grid", config.grid, *words)


def run_script(module: str, *words: object) -> None:
    """Runs ``python -m module words`` in the repository; InputError with its last lines when it fails."""
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "TQDM_DISABLE": "1"}, capture_output=True, text=True)
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise InputError(f"{' '.join(command[1:])} ended with status {done.returncode}:\n{last}")
