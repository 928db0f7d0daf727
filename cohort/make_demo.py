"""Makes the demo cohort: a simulation of T1 scans of healthy controls and of temporal lobe epilepsy.

Population templates are deformed, region by region, so that each subject has volumes drawn from published group
statistics (`cohort.simulation`); no person is shown. Written are the scans, their index, and the true
volumes that a method may be judged against. Running the command again makes only what is missing.

    python -m cohort.make_demo --out data/demo --index data/demo/pickle_prep_demo.csv --subjects 1320

Patients have hippocampal sclerosis; with `--effect mixed` a third of them has no visible lesion. `--effect hippocampus`
plants one change and no other, for judging whether it is found: a loss of volume (`--effect-size`), of intensity
(`--darker`), or none. Then the place of the changed region in each patient's scan is written too (folder regions).
"""

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from cohort.anatomy.volume_readers import volume_column
from cohort.atlas import LICENCE_NOTE, REGIONS
from cohort.grids import GRIDS, Grid, GridName, named, parse_grid
from cohort.simulation.acquisition import darkened
from cohort.simulation.effects import LARGEST_PLANTED_D, Effect, Subject, sclerotic_region, subjects
from cohort.simulation.simulator import SIMULATION, Simulator
from cohort.tables import write_table
from cohort.volumes import write_nifti
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.errors import InputError, differences
from runtime.files import ROOT, atomic_write, read_json, write_json
from runtime.workers import start_workers

SPACINGS_MM = (1.0, 16.0)
"""Voxel sizes that can be simulated: templates have 1 mm, and above 16 mm nothing is left of a brain."""
simulator_of = cache(Simulator)
"""One for all scans of a process on a grid."""

TRUTH_COLUMNS = {
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
    "effect": "what the disease does: sclerosis, mixed or hippocampus",
    "effect_size": "only with a planted effect: its Cohen's d against controls, as a loss",
    "darker": "only where planted: the share of its intensity that the changed region has lost",
}
"""Description of truth.csv, in the manner of a BIDS data dictionary."""


@dataclass(frozen=True)
class DemoConfig(ScriptConfig):
    out: Path = ROOT / "data" / "demo"
    """Folder of the scans, one JSON file beside each, and truth.csv."""
    subjects: int = 1320
    """How many. Half are controls (HC), half have temporal lobe epilepsy (TLE), left or right."""
    effect: Effect = "sclerosis"
    """What the disease does: sclerosis, the published changes of 16 volumes with hippocampal sclerosis; mixed, the same
    with a third of the patients without visible lesion, whose changes are small; hippocampus, nothing but a smaller
    hippocampus on the side of the epilepsy, in every case."""
    effect_size: float = 1.9
    """Cohen's d of that loss against controls, 0 (patients are controls) to 6 (half of it); only for --effect
    hippocampus."""
    darker: float = 0.0
    """Share of its intensity that this hippocampus has lost besides, 0 to 1; only for --effect hippocampus. With
    --effect-size 0 nothing else is planted."""
    controls_from: Path | None = None
    """Folder of another cohort, alike but for --effect-size, --darker and --subjects, whose controls are copied instead
    of being simulated again: their scans are the same."""
    seed: int = 0
    """Seed of the cohort. Subject k is the same whatever the number of subjects and of workers."""
    grid: GridName = "demo"
    """Voxels of the scans, 1 to 16 mm: demo 4 mm, smoke 8 mm, paper 1.5 mm, 1mm, 2mm, a spacing in mm such as 3 or
    3@160x192x160 with the sides of its field of view, or a JSON file (cohort/grids.py)."""
    index: Path = ROOT / "data" / "demo" / "pickle_prep_demo.csv"
    """The table of scans to write."""
    workers: int = 0
    """Processes; 0 takes one per available processor core. The scans do not depend on it."""


def main(config: DemoConfig) -> None:
    """Makes the missing scans, then the index and the truth."""
    check(config)
    settings = claim(config)
    cohort = subjects(config.seed, config.subjects, config.effect, planted(config).get("effect_size"))
    if config.controls_from is not None:
        copy_controls(config, settings, cohort)
    missing = [subject for subject in cohort if not path_of(config.out, subject).exists()]
    done = len(cohort) - len(missing)
    for _ in tqdm(simulated(config, missing), total=len(cohort), initial=done, desc="demo cohort", unit="scan"):
        pass
    facts = {"effect": config.effect, **planted(config)}
    truth = pd.DataFrame([truth_row(subject, config.out) | facts for subject in cohort])
    with atomic_write(config.out / "truth.csv") as temporary:
        truth.to_csv(temporary, index=False, lineterminator="\n")
    write_json(config.out / "truth.json", TRUTH_COLUMNS)
    index = truth[["subject", "diagnosis", "age", "sex", "site"]]
    write_table(config.index, index.assign(file=[str(path_of(config.out, subject).resolve()) for subject in cohort]))
    print(f"{len(cohort)} simulated scans ({len(missing)} new) in {config.out}, index {config.index}")


def check(config: DemoConfig) -> None:
    """Refuses settings that make no cohort."""
    limits = {
        "subjects": (1, math.inf), "workers": (0, math.inf), "seed": (0, math.inf),
        "effect_size": (0, LARGEST_PLANTED_D), "darker": (0, 1),
    }  # fmt: skip
    problems = [
        f"--{name.replace('_', '-')} {getattr(config, name):g}: expected {low:g} to {high:g}"
        for name, (low, high) in limits.items()
        if not low <= getattr(config, name) <= high
    ]
    (low, high), spacing = SPACINGS_MM, parse_grid(config.grid).spacing_mm
    if not low <= spacing <= high:
        problems.append(f"--grid {config.grid}: voxels of {spacing:g} mm, expected {low:g} to {high:g}")
    for name in ("effect_size", "darker"):
        if config.effect != "hippocampus" and getattr(config, name) != getattr(DemoConfig, name):
            problems.append(f"--{name.replace('_', '-')} {getattr(config, name):g}: only for --effect hippocampus")
    if problems:
        raise InputError.of("settings refused", problems)


def planted(config: DemoConfig) -> dict[str, Any]:
    """What settings.json, and every row of truth.csv, say about a planted effect; nothing about the published ones."""
    if config.effect != "hippocampus":
        return {}
    return {"effect_size": config.effect_size} | ({"darker": config.darker} if config.darker else {})


def claim(config: DemoConfig) -> dict[str, Any]:
    """Marks the folder with the settings that all its scans have, or refuses a folder with others; returns them."""
    path = config.out / "settings.json"
    made = {"simulation": SIMULATION, "seed": config.seed, "grid": parse_grid(config.grid).to_dict()}
    settings = {**made, "effect": config.effect, **planted(config)}
    if not path.exists():
        write_json(path, settings)
        return settings
    found = settings_in(config.out)
    if problems := differences("folder", found, dict.fromkeys(found) | settings):
        raise InputError.of(f"{config.out}: holds a cohort of other settings; choose another --out", problems)
    return settings


def settings_in(folder: Path) -> dict[str, Any]:
    """What a cohort's folder says that it was made with; older ones had the demo's field of view at some spacing, its
    voxels rounded, where --grid adds what is missing to a whole one.
    """
    settings = read_json(folder / "settings.json")
    if "spacing_mm" in settings:
        edge, demo = float(settings.pop("spacing_mm")), GRIDS["demo"]
        d, h, w = (round(side / edge) for side in demo.extent_mm)
        settings["grid"] = named(Grid("", (d, h, w), edge, demo.centre_mm)).to_dict()
    return settings


def copy_controls(config: DemoConfig, ours: dict[str, Any], cohort: list[Subject]) -> None:
    """Copies the scans of controls that are missing here and present in the other cohort.

    Raises InputError if the other folder holds no cohort, or one of another seed, voxel size or version.
    """
    theirs = settings_in(config.controls_from)
    differs = {"effect_size": None, "darker": None}
    if theirs | differs != ours | differs:
        raise InputError(f"--controls-from {config.controls_from}: made with {theirs}, not {ours}")
    for subject in cohort:
        wanted = subject.group == "HC" and not path_of(config.out, subject).exists()
        if wanted and path_of(config.controls_from, subject).exists():
            for ending in (".json", ".nii.gz"):  # the scan last, as when it is made
                with atomic_write(path_of(config.out, subject, ending)) as temporary:
                    shutil.copyfile(path_of(config.controls_from, subject, ending), temporary)


def simulated(config: DemoConfig, missing: list[Subject]) -> Iterator[None]:
    """Makes scans in one process or several; advances with each scan."""
    workers = min(config.workers or len(os.sched_getaffinity(0)), len(missing))
    make = partial(make_scan, config)
    if workers <= 1:
        with threadpool_limits(1):
            yield from map(make, missing)
        return
    with start_workers(workers, threadpool_limits, 1) as pool:
        for made in [pool.submit(make, subject) for subject in missing]:
            yield made.result()


def make_scan(config: DemoConfig, subject: Subject) -> None:
    """Writes what is true of a scan, then the scan: where there is a scan, its truth is there too."""
    simulator = simulator_of(parse_grid(config.grid))
    affine = simulator.grid.affine
    changed = sclerotic_region(subject.group, subject.side) if config.effect == "hippocampus" else ""
    image, facts, region = simulator.scan(config.seed, subject, changed)
    write_json(path_of(config.out, subject, ".json"), facts)
    if region is not None:
        image = darkened(image, region, config.darker)
        write_nifti(config.out / "regions" / f"{subject.name}.nii.gz", region, affine)
    write_nifti(path_of(config.out, subject), image, affine, dtype=np.int16, description="simulated scan, no person")


def path_of(out: Path, subject: Subject, ending: str = ".nii.gz") -> Path:
    """Where a subject's scan lies, or with ".json" what is true of it."""
    return out / "scans" / f"{subject.name}{ending}"


def truth_row(subject: Subject, out: Path) -> dict[str, Any]:
    """One row of truth.csv; the columns are described by TRUTH_COLUMNS."""
    facts = read_json(path_of(out, subject, ".json"))
    row = {
        "subject": subject.name, "diagnosis": subject.diagnosis, "group": subject.group, "side": subject.side,
        "mri_negative": int(subject.group == "MRI-negative"),
        **{name: getattr(subject, name) for name in ("age", "sex", "site", "etiv_cm3")},
        **{name: facts[name] for name in ("min_jacobian", "displacement_mm")},
        "templates": "+".join(facts["templates"]), "first_template_share": facts["first_template_share"],
    }  # fmt: skip
    row |= {volume_column(region): volume for region, volume in facts["volumes_mm3"].items()}
    changes = zip(REGIONS, subject.change, strict=True)
    return row | {f"change_{name.lower().replace(' ', '_')}": round(float(change), 5) for name, change in changes}


if __name__ == "__main__":
    run_script(main, DemoConfig, description=describe(__doc__))
