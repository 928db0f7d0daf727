"""What is planted before maps are tried: a change of one hippocampus, in strengths down to none, or a mark beside it.

Every condition is data and a way of training on them. There are two kinds of change, of the hippocampus of one side:

- `signal`: it is darker by a share of its intensity, and nothing else differs. The change is known to the voxel.
- `dose`: it is smaller by Cohen's d against controls, through the simulator. That is the disease's own change, and hard
  to learn on a coarse grid.

All cohorts have one seed, and with it the same people; a patient differs from condition to condition in nothing else.
Cohorts, splits and networks are made by the project's own scripts, and what is finished is kept.
"""

from __future__ import annotations

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

from cohort.scans import Grid
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
        return f"dose_{self.dose:g}"

    @property
    def data(self) -> str:
        """Name of its scans and tables; conditions share them when they can."""
        return "marked" if self.mark else f"signal_{self.signal:g}" if self.signal else self.cohort


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
    none = [condition for condition in plain if condition.dose == condition.signal == 0]
    return {
        kind: {condition.name: getattr(condition, kind) for condition in [*members, *none]}
        for kind in ("signal", "dose")
        if (members := [condition for condition in plain if getattr(condition, kind) > 0])
    }


def mark_of(grid: Grid) -> np.ndarray:
    """The voxels of the mark, bool (D, H, W): a cube near the corner at the right, the front and the head."""
    edge = max(1, round(MARK_MM / grid.spacing_mm))
    mask = np.zeros(grid.shape, bool)
    mask[-1 - edge : -1, -1 - edge : -1, -1 - edge : -1] = True
    return mask


def planted_scan(image: np.ndarray, condition: Condition, grid: Grid, share: np.ndarray | None) -> np.ndarray:
    """A patient's scan (D, H, W) with what the simulator does not make, of the same type.

    That is the mark, as bright as the median of the non-zero voxels (so that the percentiles that intensities are
    scaled by hardly move), or a darker region, given by the `share` (D, H, W) of each voxel in it.
    """
    if condition.mark:
        return np.where(mark_of(grid), np.median(image[image > 0]), image).astype(image.dtype)
    return np.rint(image * (1 - condition.signal * share)).astype(image.dtype)


def region_share(regions: Path, name: str) -> np.ndarray:
    """The share of each voxel of a patient's scan in the changed region, float32 (D, H, W), by `cohort.make_demo`."""
    return nib.load(regions / f"{name}.nii.gz").get_fdata(dtype=np.float32)


@dataclass(frozen=True)
class Plan:
    """Where everything lies, and how cohorts and networks are made."""

    out: Path
    grid: Grid
    subjects: int
    seed: int
    train: tuple[str, ...]
    """Words after ``classifier.train``: the preset and flags."""
    jobs: int
    """Networks trained at once."""
    threads: int | None
    """CPU threads of each; None leaves them to the script."""

    def cohort(self, condition: Condition) -> Path:
        """Folder of the condition's cohort."""
        return self.out / "cohorts" / condition.cohort

    def tables(self, condition: Condition) -> Path:
        """Folder of its split tables."""
        return self.out / "tables" / condition.data

    def regions(self, condition: Condition) -> Path:
        """Folder in which each patient's changed region lies."""
        return self.cohort(condition) / "regions"

    def run(self, condition: Condition) -> Path:
        """Its network's run folder."""
        return self.out / "networks" / condition.name


def prepare(plan: Plan, chosen: Sequence[Condition]) -> dict[str, dict[str, Any]]:
    """Cohorts, splits and networks of all conditions; returns each network's results.json by the condition's name."""
    for condition in tqdm(chosen, desc="planted cohorts", unit="cohort"):
        make_cohort(plan, condition, chosen[0])
    with ThreadPoolExecutor(plan.jobs) as pool:
        jobs = pool.map(lambda condition: train(plan, condition), chosen)
        list(tqdm(jobs, total=len(chosen), desc="networks", unit="network"))
    return {condition.name: read_json(plan.run(condition) / "results.json") for condition in chosen}


def make_cohort(plan: Plan, condition: Condition, first: Condition) -> None:
    """The condition's scans and tables; controls are copied from the first condition's cohort, and so is its split."""
    tables, folder = plan.tables(condition), plan.cohort(condition)
    if all((tables / f"{split}.csv").exists() for split in SPLITS):
        return
    index = plan.out / "tables" / f"{condition.cohort}.csv"
    words = ["--out", folder, "--index", index, "--subjects", plan.subjects, "--seed", plan.seed]
    words += ["--spacing-mm", plan.grid.spacing_mm, "--effect", "hippocampus", "--effect-size", condition.dose]
    others = ["--controls-from", plan.cohort(first)] if condition.cohort != first.cohort else []
    run_script("cohort.make_demo", *words, *others)
    if condition.mark or condition.signal:
        index = plant(plan, condition, index)
    if condition == first:
        run_script("cohort.split", "--index", index, "--out", tables)
        return
    frame = read_table(index).set_index("subject", drop=False)
    for split in SPLITS:
        members = read_table(plan.tables(first) / f"{split}.csv")["subject"]
        write_table(tables / f"{split}.csv", frame.loc[members].reset_index(drop=True))


def plant(plan: Plan, condition: Condition, index: Path) -> Path:
    """Writes changed copies of a table's scans of patients (those that are there stay); returns a table with them."""
    frame = read_table(index)
    for row in frame.index[frame["label"] == 1]:
        path = plan.out / "cohorts" / condition.data / Path(frame.loc[row, "file"]).name
        if not path.exists():
            image = nib.load(frame.loc[row, "file"])
            share = None if condition.mark else region_share(plan.regions(condition), frame.loc[row, "subject"])
            changed = planted_scan(np.asarray(image.dataobj), condition, plan.grid, share)
            with atomic_write(path) as temporary:
                nib.save(nib.Nifti1Image(changed, None, image.header), temporary)
        frame.loc[row, "file"] = str(path.resolve())
    planted = plan.out / "tables" / f"{condition.data}.csv"
    write_table(planted, frame)
    return planted


def train(plan: Plan, condition: Condition) -> None:
    """The condition's network; a finished one stays."""
    run = plan.run(condition)
    if (run / "results.json").exists():
        return
    tables = [word for split in SPLITS for word in (f"--{split}-csv", plan.tables(condition) / f"{split}.csv")]
    words = [*plan.train, *tables, "--run-dir", run, "--seed", plan.seed, "--cache-dir", plan.out / "cache"]
    words += ["--threads", plan.threads] if plan.threads else []
    run_script("classifier.train", *words, *(["--shuffle", "all"] if condition.shuffle else []))


def run_script(module: str, *words: object) -> None:
    """Runs ``python -m module words`` in the repository; InputError with its last lines when it fails."""
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "TQDM_DISABLE": "1"}, capture_output=True, text=True)
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise InputError(f"{' '.join(command[1:])} ended with status {done.returncode}:\n{last}")
