"""Are attribution maps true? Plants a change whose place is known, trains on it, and asks every method where it is.

    python -m classifier.validate_saliency demo --out runs/demo/validate_saliency

Makes simulated cohorts in which patients differ from controls by nothing but one hippocampus, darker or smaller, in
several strengths down to none; trains a network on each, one on permuted labels, and one on a cohort whose patients
carry a mark in a corner of the picture and are otherwise controls. Then each attribution method is measured: see
SALIENCY_README.md for what and why. Running it again continues. Writes validation.json and validation.csv (one row per
method), scores.png, differences.png, and below the folder the cohorts, networks and maps.
"""

from typing import Any

from classifier.measures.resampling import cell_text
from classifier.validation import checks, figures
from classifier.validation.config import PRESETS, ValidationConfig, check
from classifier.validation.planted import conditions, prepare
from classifier.validation.study import Findings, gather, open_study
from cohort.atlas import LICENCE_NOTE
from cohort.tables import write_csv
from runtime.checkpoints import git_commit
from runtime.cli import describe, run_script
from runtime.config import plain_config
from runtime.device import pick_device
from runtime.errors import InputError
from runtime.files import locked, read_json, write_json

PRINTED = ("method", "passed", "asked", "raw_pointing", "raw_enrichment", "raw_enrichment_p", "raw_average_precision",
           "group_enrichment", "side_difference", "cascade_end", "deletion_gain", "shortcut_rank")  # fmt: skip
"""Columns of validation.csv."""
REGION = "hippocampus of the changed side, where it lies in each patient's scan by the simulator's own map"


def main(config: ValidationConfig) -> None:
    """Plants, trains, measures."""
    check(config)
    config.out.mkdir(parents=True, exist_ok=True)
    with locked(config.out):
        claim(config)
        planted = conditions(config.signals, config.doses)
        results = prepare(config, planted)
        aucs = {name: result["metrics"]["test"]["auc"] for name, result in results.items()}
        learned = frozenset(name for name, auc in aucs.items() if (auc["low"] or 0) > 0.5)
        strongest, judged = planted[0].name, planted[0].name in learned
        head = {
            "judged": judged, "commit": git_commit(), "seed": config.seed, "grid": config.grid,
            "subjects": config.subjects, "judged_on": strongest, "auc": aucs, "region": REGION,
            "nulls": f"{config.effort.nulls} places of that region elsewhere in the brain, the same for all patients",
            "patients": config.effort.patients, "controls": config.effort.controls,
            "checks": {name: check.question for name, check in checks.CHECKS.items()},
            "not_counted": [name for name, check in checks.CHECKS.items() if not check.counted],
            "rule": "A check looks at one number with its interval or p-value (5 %).", "licence": LICENCE_NOTE,
            "checkpoints": {name: result["checkpoint"] for name, result in results.items()},
        }  # fmt: skip
        if not judged:
            auc = cell_text(aucs[strongest])
            print(f"The network of {strongest} has a test AUC of {auc}. The interval contains 0.5: it need not have")
            print("learned anything, and maps of it are not judged as true or false.")
            if not config.measure_unlearned:
                write_json(config.out / "validation.json", head)
                return
        study = open_study(config, pick_device("float32", config.threads), planted, learned)
        write(config, head, gather(study))


def claim(config: ValidationConfig) -> None:
    """Marks the folder with what its cohorts and networks are made of, or refuses a folder with others."""
    names = ("grid", "subjects", "signals", "doses", "steps", "lr", "widths", "augmentation", "seed")
    settings = {name: value for name, value in plain_config(config).items() if name in names}
    path = config.out / "settings.json"
    if not path.exists():
        write_json(path, settings)
    elif (found := read_json(path)) != settings:
        raise InputError(f"{config.out} holds a validation of {found}, not {settings}; choose another --out")


def write(config: ValidationConfig, head: dict[str, Any], found: Findings) -> None:
    """validation.json, validation.csv, the pictures, and the most important columns in print."""
    methods, judged = found.evidence, head["judged"]
    table = checks.table(methods, judged=judged)
    title = f"Attribution methods on a planted change, {config.grid} grid, {config.subjects} subjects per cohort"
    figures.scores(config.out / "scores.png", methods, title=title, judged=judged)
    figures.differences(config.out / "differences.png", found.anatomy, found.differences, found.truth.reference)
    if judged:
        methods = {name: {**evidence, "passes": checks.answers(evidence)} for name, evidence in methods.items()}
    write_json(config.out / "validation.json", {**head, "methods": methods, "skipped": found.skipped})
    write_csv(config.out / "validation.csv", table)
    print(table[[name for name in PRINTED if name in table]].round(3).to_string(index=False))


if __name__ == "__main__":
    run_script(main, PRESETS, description=describe(__doc__))
