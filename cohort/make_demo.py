"""Makes the demo cohort: a simulation of T1 scans of healthy controls and of temporal lobe epilepsy.

Population templates are deformed, region by region, so that each subject has volumes drawn from published group
statistics (`cohort.simulation`); no person is shown. Written are the scans, their index, and the true
volumes that a method may be judged against. Running the command again makes only what is missing.

    python -m cohort.make_demo --out data/demo --subjects 300 --seed 0 --spacing-mm 4

`--effect hippocampus` plants one change and no other, for judging whether maps find it; then the place of the changed
region in each patient's scan is written too (folder regions).
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from cohort.anatomy.truth import volume_column
from cohort.atlas import LICENCE_NOTE, REGIONS
from cohort.scans import Grid
from cohort.simulation.effects import ENIGMA, LARGEST_PLANTED_D, Effect, EffectName, Subject, subjects
from cohort.simulation.simulator import SIMULATION, SimulatedScan, Simulator, demo_grid
from cohort.tables import write_table
from cohort.volumes import write_nifti
from runtime.cli import describe, run_script
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write, read_json, write_json

SPACING_LIMITS_MM = (1.0, 16.0)
MNI152 = 4
"""NIfTI code of the coordinate system of sform and qform."""


@dataclass(frozen=True)
class DemoConfig:
    """What to make."""

    out: Path = ROOT / "data" / "demo"
    """Folder of the scans, one JSON file beside each, and truth.csv."""
    subjects: int = 300
    """How many. Half are controls (HC), half have epilepsy (TLE), of these a third without visible lesion."""
    effect: EffectName = "enigma"
    """What the disease does: enigma, published changes of 16 volumes and a third of the cases without visible lesion;
    hippocampus, nothing but a smaller hippocampus on the side of the epilepsy, in every case."""
    effect_size: float = 1.9
    """Cohen's d of that loss against controls, 0 (patients are controls) to 6 (half of it); only for --effect
    hippocampus."""
    controls_from: Path | None = None
    """Folder of another cohort, alike but for --effect-size and --subjects, whose controls are copied instead of being
    simulated again: their scans are the same."""
    seed: int = 0
    """Seed of the cohort. Subject k is the same whatever the number of subjects and of workers."""
    spacing_mm: float = 4.0
    """Voxel size in mm, 1 to 16; the field of view stays 160 x 192 x 160 mm."""
    index: Path = ROOT / "data_csvs" / "pickle_prep_demo.csv"
    """The table of scans to write."""
    workers: int = 0
    """Processes; 0 takes one per available processor core. The scans do not depend on it."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


def main(config: DemoConfig) -> None:
    """Makes the missing scans, then the index and the truth."""
    check(config)
    claim(config)
    grid = demo_grid(config.spacing_mm)
    cohort = subjects(config.seed, config.subjects, effect_of(config))
    if config.controls_from is not None:
        copy_controls(config, cohort)
    missing = [subject for subject in cohort if not scan_path(config.out, subject).exists()]
    with simulated(config, grid, missing) as finished:
        for _ in tqdm(finished, total=len(cohort), initial=len(cohort) - len(missing), desc="demo cohort", unit="scan"):
            pass
    truth = pd.DataFrame([truth_row(subject, config.out) | effect_columns(config) for subject in cohort])
    with atomic_write(config.out / "truth.csv") as temporary:
        truth.to_csv(temporary, index=False, lineterminator="\n")
    write_json(config.out / "truth.json", truth_columns())
    write_table(config.index, index_of(cohort, config.out))
    print(f"{len(cohort)} simulated scans ({len(missing)} new) in {config.out}, index {config.index}")


def check(config: DemoConfig) -> None:
    """Refuses settings that make no cohort."""
    low, high = SPACING_LIMITS_MM
    problems = []
    if config.subjects < 1:
        problems.append(f"--subjects {config.subjects}: expected at least 1")
    if not low <= config.spacing_mm <= high:
        problems.append(f"--spacing-mm {config.spacing_mm}: expected {low:g} to {high:g}")
    if config.workers < 0:
        problems.append(f"--workers {config.workers}: expected 0 (all cores) or more")
    if config.seed < 0:
        problems.append(f"--seed {config.seed}: expected 0 or more")
    if config.effect == "enigma" and config.effect_size != DemoConfig.effect_size:
        problems.append(
            f"--effect-size {config.effect_size:g}: published effects have no size; add --effect hippocampus"
        )
    if not 0 <= config.effect_size <= LARGEST_PLANTED_D:
        problems.append(f"--effect-size {config.effect_size:g}: expected 0 to {LARGEST_PLANTED_D:g}")
    if problems:
        raise InputError.of("settings refused", problems)


def effect_of(config: DemoConfig) -> Effect:
    """The disease of a configuration."""
    return ENIGMA if config.effect == "enigma" else Effect("hippocampus", config.effect_size)


def effect_columns(config: DemoConfig) -> dict[str, Any]:
    """What settings.json, and every row of truth.csv, say about a planted effect; nothing about the published one."""
    return {} if config.effect == "enigma" else {"effect": config.effect, "effect_size": config.effect_size}


def claim(config: DemoConfig) -> None:
    """Marks the folder with the settings that its scans have, or refuses a folder with others."""
    settings = {"simulation": SIMULATION, "seed": config.seed, "spacing_mm": config.spacing_mm} | effect_columns(config)
    path = config.out / "settings.json"
    if not path.exists():
        write_json(path, settings)
    elif (found := read_json(path)) != settings:
        raise InputError(f"{config.out} holds a cohort made with {found}, not {settings}; choose another --out")


def copy_controls(config: DemoConfig, cohort: list[Subject]) -> None:
    """Copies the scans of controls that are missing here and present in the other cohort.

    Raises:
        InputError: the other folder holds no cohort, or one of another seed, voxel size or version of the simulation.
    """
    settings = read_json(config.controls_from / "settings.json")
    wanted = {"simulation": SIMULATION, "seed": config.seed, "spacing_mm": config.spacing_mm}
    wanted["effect"] = effect_columns(config).get("effect")
    if {name: settings.get(name) for name in wanted} != wanted:
        raise InputError(f"--controls-from {config.controls_from}: made with {settings}, not {wanted}")
    for subject in cohort:
        source = scan_path(config.controls_from, subject)
        if subject.group == "HC" and source.exists() and not scan_path(config.out, subject).exists():
            for path_of in (facts_path, scan_path):  # the scan last, as when it is made
                with atomic_write(path_of(config.out, subject)) as temporary:
                    shutil.copyfile(path_of(config.controls_from, subject), temporary)


@contextmanager
def simulated(config: DemoConfig, grid: Grid, missing: list[Subject]) -> Iterator[Iterator[None]]:
    """Makes scans in one process or several; yields an iterator that advances with each scan finished."""
    workers = min(config.workers or len(os.sched_getaffinity(0)), len(missing))
    if workers <= 1:
        with threadpool_limits(1):
            yield _one_by_one(config, grid, missing)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker, initargs=(config, grid)) as pool:
        jobs = [pool.submit(_work, subject) for subject in missing]
        try:
            yield (job.result() for job in as_completed(jobs))
        finally:
            pool.shutdown(cancel_futures=True)


def _one_by_one(config: DemoConfig, grid: Grid, missing: list[Subject]) -> Iterator[None]:
    simulator = Simulator(grid) if missing else None
    for subject in missing:
        yield write_scan(
            config.out, subject, simulator.scan(config.seed, subject, changed_region(config, subject)), grid
        )


_worker: dict[str, Any] = {}


def _start_worker(config: DemoConfig, grid: Grid) -> None:
    threadpool_limits(1)
    _worker.update(config=config, grid=grid, simulator=Simulator(grid))


def _work(subject: Subject) -> None:
    config = _worker["config"]
    scan = _worker["simulator"].scan(config.seed, subject, changed_region(config, subject))
    write_scan(config.out, subject, scan, _worker["grid"])


def changed_region(config: DemoConfig, subject: Subject) -> str:
    """The one region that a planted effect changes in a subject; empty for controls and for the published effects."""
    if config.effect == "enigma" or not subject.side:
        return ""
    return f"{'Left' if subject.side == 'L' else 'Right'} Hippocampus"


def scan_path(out: Path, subject: Subject) -> Path:
    """Where a subject's scan lies."""
    return out / "scans" / f"{subject.name}.nii.gz"


def write_scan(out: Path, subject: Subject, scan: SimulatedScan, grid: Grid) -> None:
    """Writes what is true of a scan, then the scan: where there is a scan, its truth is there too."""
    path = scan_path(out, subject)
    facts = {
        "simulation": True,
        "volumes_mm3": dict(zip(REGIONS, scan.volumes_mm3.round(2).tolist(), strict=True)),
        "min_jacobian": round(scan.min_jacobian, 4),
        "displacement_mm": round(scan.displacement_mm, 3),
        "templates": list(scan.templates),
        "first_template_share": round(scan.share, 3),
    }
    write_json(facts_path(out, subject), facts)
    if scan.region is not None:
        write_nifti(region_path(out, subject), scan.region, grid.affine)
    image = nib.Nifti1Image(scan.image, grid.affine)
    image.set_sform(grid.affine, MNI152)
    image.set_qform(grid.affine, MNI152)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"simulated scan, no person"
    with atomic_write(path) as temporary:
        nib.save(image, temporary)


def facts_path(out: Path, subject: Subject) -> Path:
    """Where the measured truth of one scan lies."""
    return out / "scans" / f"{subject.name}.json"


def region_path(out: Path, subject: Subject) -> Path:
    """Where the changed region of a planted effect lies on disk: the share of each voxel of the scan inside it."""
    return out / "regions" / f"{subject.name}.nii.gz"


def truth_row(subject: Subject, out: Path) -> dict[str, Any]:
    """One row of truth.csv; the columns are described by `truth_columns`."""
    facts = read_json(facts_path(out, subject))
    row = {
        "subject": subject.name,
        "diagnosis": subject.diagnosis,
        "group": subject.group,
        "side": subject.side,
        "mri_negative": int(subject.group == "MRI-negative"),
        "age": subject.age,
        "sex": subject.sex,
        "site": subject.site,
        "etiv_cm3": subject.etiv_cm3,
        "min_jacobian": facts["min_jacobian"],
        "displacement_mm": facts["displacement_mm"],
        "templates": "+".join(facts["templates"]),
        "first_template_share": facts["first_template_share"],
    }
    row |= {volume_column(name): volume for name, volume in facts["volumes_mm3"].items()}
    row |= {f"change_{_column(name)}": round(float(c), 5) for name, c in zip(REGIONS, subject.change, strict=True)}
    return row


def truth_columns() -> dict[str, Any]:
    """Description of truth.csv, in the manner of a BIDS data dictionary."""
    return {
        "Description": "A simulation: no row is a person. Volumes follow published group statistics.",
        "Licence": LICENCE_NOTE,
        "group": "HC; HS: epilepsy with hippocampal sclerosis; MRI-negative: epilepsy without visible lesion",
        "side": "side of the epilepsy, L or R; empty for HC",
        "mri_negative": "1 for epilepsy without visible lesion",
        "etiv_cm3": "intracranial volume of the head before affine registration; the scan itself has the template's",
        "min_jacobian": "smallest Jacobian determinant of the deformation; positive: nothing folds",
        "displacement_mm": "root mean square displacement in the brain, after affine registration",
        "templates": "the two templates that the scan is a patchwork of",
        "first_template_share": "share of the first of them",
        "volume_<region>_mm3": "true volume in the scan: integral of the Jacobian determinant over the region's labels",
        "change_<region>": "relative change of volume that the disease was prescribed to make; -0.2: a fifth less",
        "effect": "only with a planted effect: which",
        "effect_size": "only with a planted effect: its Cohen's d against controls, as a loss",
    }


def index_of(cohort: list[Subject], out: Path) -> pd.DataFrame:
    """The cohort as a table of scans."""
    rows = [
        {
            "subject": subject.name,
            "file": str(scan_path(out, subject).resolve()),
            "diagnosis": subject.diagnosis,
            "age": subject.age,
            "sex": subject.sex,
            "site": subject.site,
        }
        for subject in cohort
    ]
    return pd.DataFrame(rows)


def _column(region: str) -> str:
    return region.lower().replace(" ", "_")


if __name__ == "__main__":
    run_script(main, DemoConfig, description=describe(__doc__))
