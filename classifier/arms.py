"""A table of arms: what an experiment trains, one row per arm, and the command line of each of its runs.

A run is a `classifier.train` in a folder of its own, OUT/ARM/seed<S>_fold<F>. `workflow/Snakefile` makes the runs
beside one another, `classifier.run_arms` one after the other.
"""

import re
from pathlib import Path

from cohort.listing.delimited import read_delimited
from runtime.errors import InputError

COLUMNS = ("real", "synth_percent", "synth_count", "duplicate_percent", "augmentation", "shuffle", "model",
           "volumes_weight", "synth_hc", "synth_tle")  # fmt: skip
"""What a table of arms may say besides `arm`: fields of TrainConfig (`model` is --model.name); empty: as preset."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def read_arms(path: Path) -> dict[str, dict[str, str]]:
    """Reads a table of arms (CSV), a column `arm` and any of COLUMNS: arm -> the cells of its row that say anything.

    Folders (`synth_hc`, `synth_tle`) are relative to the table; ``{fold}`` and ``{seed}`` in them become those of the
    run, for volumes whose makers were fitted anew in each fold.
    """
    raw = read_delimited(path)
    if "arm" not in raw.columns or not {*raw.columns} <= {"arm", *COLUMNS}:
        columns, found = ", ".join(COLUMNS), ", ".join(raw.columns)
        raise InputError(f"{path}: a table of arms has a column arm and any of {columns}; found {found}")
    arms: dict[str, dict[str, str]] = {}
    for index, row in enumerate(raw.rows):
        arm = row.pop("arm")
        if arm in arms or not _NAME.fullmatch(arm):
            raw.fault(index, "arm", f"{arm!r}: a name is letters, digits and _ . + -, given once; it becomes a folder")
        folders = {name: str(path.parent / row[name]) for name in ("synth_hc", "synth_tle") if row.get(name)}
        arms[arm] = {name: text for name, text in {**row, **folders}.items() if text}
    if raw.problems:
        raise InputError.of(f"{path}: the table of arms was refused", raw.problems)
    return arms


def run_folder(out: Path, arm: str, seed: int, fold: int) -> Path:
    """Folder of one run."""
    return out / arm / f"seed{seed}_fold{fold}"


def run_words(cells: dict[str, str], seed: int, folds: int, fold: int) -> list[str]:
    """What an arm's row, a training seed and a fold are on the command line of classifier.train."""
    words = []
    for name, value in {**cells, "seed": seed, "folds": folds, "fold": fold}.items():
        flag = "--model.name" if name == "model" else f"--{name.replace('_', '-')}"
        words += [flag, str(value).replace("{fold}", str(fold)).replace("{seed}", str(seed))]
    return words
