"""Are attribution maps true? Plants a change whose place is known, trains on it, and asks every method where it is.

    python -m classifier.validate_saliency demo --out runs/demo/validate_saliency

Makes simulated cohorts in which patients differ from controls by nothing but one hippocampus, darker or smaller, in
several strengths down to none; trains a network on each, one on permuted labels, and one on a cohort whose patients
carry a mark in a corner of the picture and are otherwise controls. Then each attribution method is measured: see
SALIENCY_README.md for what and why. Running it again continues. Writes validation.json and validation.csv (one row per
method), scores.png, differences.png, and below the folder the cohorts, networks and maps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from classifier.measures.resampling import cell_text
from classifier.validation import checks, figures
from classifier.validation.planted import Plan, conditions, prepare
from classifier.validation.study import Effort, Findings, gather, open_study
from cohort.atlas import LICENCE_NOTE
from cohort.scans import GRIDS
from cohort.simulation.effects import LARGEST_PLANTED_D
from runtime.checkpoints import git_commit
from runtime.cli import describe, run_script
from runtime.config import plain_config
from runtime.device import pick_device
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write, locked, read_json, write_json


@dataclass(frozen=True)
class ValidationConfig:
    """What is planted, how networks are trained, and how much is measured."""

    grid: Literal["smoke", "demo", "paper"] = "paper"
    """Voxel grid of cohorts and networks, and the preset of classifier.train."""
    out: Path = ROOT / "runs/paper/validate_saliency"
    """Folder for everything."""
    subjects: int = 1200
    """Subjects of each cohort: half controls, a quarter with the change on the left, a quarter on the right."""
    signals: tuple[float, ...] = ()
    """Shares of its intensity that the hippocampus of the changed side loses, each between 0 and 1. Methods are judged
    on the strongest, or without any on the strongest dose: a grid may be too coarse to learn doses on."""
    doses: tuple[float, ...] = (1.9, 1.0, 0.5, 0.0)
    """Cohen's d of the planted loss of hippocampal volume against controls, each from 0 to 6 (half of it); 0, the
    cohort without any change, among them."""
    steps: int | None = None
    """Optimiser steps of each network; by default those of the preset."""
    lr: float | None = None
    """Peak learning rate; by default the preset's."""
    widths: tuple[int, ...] | None = None
    """Channels of each level of the networks; by default the preset's."""
    augmentation: Literal["none", "standard", "strong"] = "standard"
    """Augmentation of the networks' training volumes."""
    effort: Effort = field(default_factory=Effort)
    """How much is measured."""
    jobs: int = 1
    """Networks trained at once."""
    threads: int | None = None
    """CPU threads for maps and for each network; by default all cores for maps, and one for each of several jobs."""
    measure_unlearned: bool = False
    """Measure maps also when the network that methods are judged on has learned nothing; nothing is judged then."""
    seed: int = 1000
    """Seed of the cohorts, the networks, the noise of methods and the null places."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


EFFORT_ON_A_CPU = Effort(
    patients=16, controls=16, nulls=200, cascade_patients=4, faithful_patients=8,
    faithful_draws=20, ig_steps=16, noise_samples=12, resamples=1000,
)  # fmt: skip

PRESETS = {
    # Seconds: the continuous-integration chain. The networks learn nothing, so nothing is judged.
    "smoke": ValidationConfig(
        grid="smoke", out=ROOT / "runs/smoke/validate_saliency", subjects=48, signals=(0.6,), doses=(0.0,),
        effort=Effort(
            patients=4, controls=4, nulls=20, cascade_patients=2, faithful_patients=2,
            faithful_draws=3, ig_steps=4, noise_samples=4, resamples=200,
        ),
        measure_unlearned=True,
    ),
    # Minutes on two CPU cores: a change known to the voxel, which small networks learn completely.
    "demo": ValidationConfig(
        grid="demo", out=ROOT / "runs/demo/validate_saliency", subjects=500, signals=(0.6, 0.3), doses=(0.0,),
        steps=250, widths=(8, 16, 32, 64), augmentation="none", effort=EFFORT_ON_A_CPU, jobs=2,
    ),
    # The disease's own change, a loss of volume. At 4 mm only the largest are learned from 600 subjects.
    "doses": ValidationConfig(
        grid="demo", out=ROOT / "runs/demo/validate_saliency_doses", subjects=1000,
        doses=(6.0, 3.0, 1.9, 1.0, 0.5, 0.0),
        steps=400, widths=(8, 16, 32, 64), augmentation="none", effort=EFFORT_ON_A_CPU, jobs=2,
    ),
    # The full grid and network, on a GPU.
    "paper": ValidationConfig(),
}  # fmt: skip


PRINTED = ("method", "passed", "asked", "raw_pointing", "raw_enrichment", "raw_enrichment_p", "raw_average_precision",
           "group_enrichment", "side_difference", "cascade_end", "deletion_gain", "shortcut_rank")  # fmt: skip
"""Columns of validation.csv."""


def main(config: ValidationConfig) -> None:
    """Plants, trains, measures."""
    check(config)
    config.out.mkdir(parents=True, exist_ok=True)
    with locked(config.out):
        claim(config)
        plan, planted = plan_of(config), conditions(config.signals, config.doses)
        results = prepare(plan, planted)
        aucs = {name: result["metrics"]["test"]["auc"] for name, result in results.items()}
        learned = frozenset(name for name, auc in aucs.items() if auc["low"] > 0.5)
        judged = planted[0].name in learned
        head = head_of(config, planted[0].name, aucs, judged=judged)
        head["checkpoints"] = {name: result["checkpoint"] for name, result in results.items()}
        if not judged:
            name, auc = planted[0].name, cell_text(aucs[planted[0].name])
            print(f"The network of {name} has a test AUC of {auc}. The interval contains 0.5: it need not have learned")
            print("anything, and maps of it are not judged as true or false.")
            if not config.measure_unlearned:
                write_json(config.out / "validation.json", head)
                return
        study = open_study(plan, config.effort, pick_device("float32", config.threads), planted, learned)
        write(config, head, gather(study))


def check(config: ValidationConfig) -> None:
    """Refuses settings that answer nothing."""
    doses, signals, effort = config.doses, config.signals, config.effort
    rules = {
        f"--doses {doses}: different ones, and 0 among them": 0 in doses and len(set(doses)) == len(doses),
        f"--doses {doses}: each from 0 to {LARGEST_PLANTED_D:g}": all(0 <= d <= LARGEST_PLANTED_D for d in doses),
        f"--signals {signals}: different ones between 0 and 1":
            all(0 < signal < 1 for signal in signals) and len(set(signals)) == len(signals),
        "--signals and --doses: something has to be planted": len(doses) + len(signals) > 1,
        "--effort.patients at least 2 (one of each side), --effort.controls at least 1":
            effort.patients > 1 and effort.controls > 0,
        f"--effort.nulls {effort.nulls}: with fewer than 19 no p-value reaches 5 %": effort.nulls >= 19,
        f"--jobs {config.jobs}: at least 1": config.jobs > 0,
    }  # fmt: skip
    problems = [rule for rule, kept in rules.items() if not kept]
    if problems:
        raise InputError.of("settings refused", problems)


def claim(config: ValidationConfig) -> None:
    """Marks the folder with what its cohorts and networks are made of, or refuses a folder with others."""
    names = ("grid", "subjects", "signals", "doses", "steps", "lr", "widths", "augmentation", "seed")
    settings = {name: value for name, value in plain_config(config).items() if name in names}
    path = config.out / "settings.json"
    if not path.exists():
        write_json(path, settings)
    elif (found := read_json(path)) != settings:
        raise InputError(f"{config.out} holds a validation of {found}, not {settings}; choose another --out")


def plan_of(config: ValidationConfig) -> Plan:
    """Where the conditions' cohorts and networks lie, and how they are made."""
    train = [config.grid, "--augmentation", config.augmentation]
    train += ["--steps", str(config.steps)] if config.steps else []
    train += ["--lr", str(config.lr)] if config.lr else []
    train += ["--model.widths", *map(str, config.widths)] if config.widths else []
    threads = config.threads or (1 if config.jobs > 1 else None)
    return Plan(config.out, GRIDS[config.grid], config.subjects, config.seed, tuple(train), config.jobs, threads)


def head_of(
    config: ValidationConfig, strongest: str, aucs: dict[str, dict[str, float]], *, judged: bool
) -> dict[str, Any]:
    """What validation.json says besides checkpoints and evidence."""
    return {
        "judged": judged, "commit": git_commit(), "seed": config.seed, "grid": config.grid,
        "subjects": config.subjects, "judged_on": strongest, "auc": aucs,
        "region": "hippocampus of the changed side, where it lies in each patient's scan by the simulator's own map",
        "nulls": f"{config.effort.nulls} places of that region elsewhere in the brain, the same for all patients",
        "patients": config.effort.patients, "controls": config.effort.controls,
        "checks": {name: check.question for name, check in checks.CHECKS.items()},
        "rule": checks.RULE, "licence": LICENCE_NOTE,
    }  # fmt: skip


def write(config: ValidationConfig, head: dict[str, Any], found: Findings) -> None:
    """validation.json, validation.csv, the pictures, and the most important columns in print."""
    methods, judged = found.evidence, head["judged"]
    table = checks.table(methods, judged=judged)
    title = f"Attribution methods on a planted change, {config.grid} grid, {config.subjects} subjects per cohort"
    figures.scores(config.out / "scores.png", methods, title=title, judged=judged)
    figures.differences(
        config.out / "differences.png", found.anatomy, found.differences, found.truth.reference,
        title="Mean map of patients minus that of controls; outlined: the changed region",
    )  # fmt: skip
    if judged:
        methods = {name: {**evidence, "passes": checks.answers(evidence)} for name, evidence in methods.items()}
    write_json(config.out / "validation.json", {**head, "methods": methods, "skipped": found.skipped})
    with atomic_write(config.out / "validation.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    with pd.option_context("display.width", 220, "display.max_columns", None):
        print(table[[name for name in PRINTED if name in table]].round(3).to_string(index=False))


if __name__ == "__main__":
    run_script(main, PRESETS, description=describe(__doc__))
