"""Which scans a run learns from: nested subsets of real subjects, synthetic volumes by class, and the leak checks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from classifier.config import TrainConfig
from cohort.ledger import ledger_of, refuse_overlap
from cohort.tables import CLASS_NAMES, COLUMNS, LABELS, read_table
from cohort.volumes import list_volumes
from runtime import seeding
from runtime.errors import InputError
from runtime.files import read_json


@dataclass(frozen=True)
class Selection:
    """The tables of one run. Synthetic rows have subjects such as ``synthetic:TLE_000042`` and neither age nor site."""

    train: pd.DataFrame
    """Real rows first, then synthetic ones; the column `synthetic` tells them apart."""
    val: pd.DataFrame
    test: pd.DataFrame
    ledger: list[str]
    """Hashes of every subject behind the run: its own training and validation, and the synthetic volumes' makers'."""
    leaks: list[str] = field(default_factory=list)
    """What --allow-leak let pass, in words; empty in an honest run."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the results should know besides."""

    @property
    def fingerprint(self) -> str:
        """Changes with any subject, label or volume of the run, so that a run is not continued on other data."""
        rows = [
            [split, *frame[["subject", "session", "label"]].astype(str).to_numpy().tolist()]
            for split, frame in (("train", self.train), ("val", self.val), ("test", self.test))
        ]
        return hashlib.sha256(json.dumps([rows, self.ledger]).encode()).hexdigest()[:16]


def select(config: TrainConfig) -> Selection:
    """Reads the three tables and the folders of synthetic volumes, and checks that nobody is on both sides.

    Raises:
        InputError: unreadable tables, a table without one of the classes, contradictory or too large numbers, subjects
            on both sides of a split or behind the synthetic volumes.
    """
    _check_numbers(config)
    pool, val, test = (read_table(path) for path in (config.train_csv, config.val_csv, config.test_csv))
    real = choose_real(pool, config.real, config.sample_seed)
    synthetic = choose_synthetic(config, synthetic_counts(real["label"].to_numpy(), config))
    parts = [part.assign(synthetic=made) for part, made in ((real, False), (synthetic, True)) if len(part)]
    train = pd.concat(parts, ignore_index=True)
    for name, frame in (("training data", train), (config.val_csv, val), (config.test_csv, test)):
        _check_classes(str(name), frame)
    makers, leaks = synthetic_ledger(config, list(folders(config).values()) if len(synthetic) else [])
    notes = _refuse_leaks(config, pool, val, test, makers, leaks)
    ledger = sorted({*ledger_of(real), *ledger_of(val), *makers})
    return Selection(train, val, test, ledger, leaks, notes)


def _check_numbers(config: TrainConfig) -> None:
    problems = []
    if config.real is not None and config.real < 0:
        problems.append(f"--real {config.real}: a number of subjects")
    if config.synth_percent < 0 or config.synth_count < 0:
        problems.append("--synth-percent and --synth-count cannot be negative")
    if config.synth_percent and config.synth_count:
        problems.append("--synth-percent and --synth-count exclude each other")
    if config.real == 0 and not config.synth_count:
        problems.append("--real 0 leaves nothing to learn from: give --synth-count (a percentage of 0 is 0)")
    if config.batch_size % 2:
        problems.append(f"--batch-size {config.batch_size}: half of a batch is HC and half TLE, so it is even")
    if problems:
        raise InputError.of("the configuration contradicts itself", problems)


def _check_classes(name: str, frame: pd.DataFrame) -> None:
    absent = [label for label, code in LABELS.items() if not (frame["label"] == code).any()]
    if absent:
        raise InputError(f"{name}: {len(frame)} scans, and none of class {' or '.join(absent)}; both are needed")


def choose_real(frame: pd.DataFrame, count: int | None, seed: int) -> pd.DataFrame:
    """The rows of `count` subjects, in the order of the table; None means all.

    Subjects are put in one order, by a hash of seed and name within each diagnosis, the diagnoses interleaved in
    proportion; the first `count` are taken. So the subset of a smaller count lies within that of a larger one, the
    proportions hold at every count, and the order of the table does not matter.

    Raises:
        InputError: there are fewer subjects; names both numbers.
    """
    if count is None:
        return frame.reset_index(drop=True)
    subjects = frame.drop_duplicates("subject")[["subject", "diagnosis"]]
    if count > len(subjects):
        raise InputError(f"--real {count}: the training table has {len(subjects)} subjects")
    subjects = subjects.assign(draw=[seeding.address(seed, f"real:{name}") for name in subjects["subject"]])
    place = subjects.groupby("diagnosis")["draw"].rank(method="first")
    size = subjects.groupby("diagnosis")["draw"].transform("size")
    order = subjects.assign(share=(place - 0.5) / size).sort_values(["share", "draw"])
    chosen = set(order["subject"].head(count))
    return frame[frame["subject"].isin(chosen)].reset_index(drop=True)


def folders(config: TrainConfig) -> dict[str, Path]:
    """Where the synthetic volumes of each class lie."""
    return {"HC": config.synth_hc, "TLE": config.synth_tle}


def synthetic_counts(labels: np.ndarray, config: TrainConfig) -> dict[str, int]:
    """How many synthetic volumes of each class the configuration asks for, given the real training labels (N,)."""
    if config.synth_count:
        return {"HC": config.synth_count - config.synth_count // 2, "TLE": config.synth_count // 2}
    return {name: round(config.synth_percent / 100 * int((labels == code).sum())) for name, code in LABELS.items()}


def choose_synthetic(config: TrainConfig, counts: dict[str, int]) -> pd.DataFrame:
    """Rows for so many synthetic volumes of each class; a smaller number is among a larger one, for one sample seed.

    Raises:
        InputError: fewer volumes than asked for, or volumes that name another class; lists every folder.
    """
    rows, problems = [], []
    for name, count in counts.items():
        folder = folders(config)[name]
        paths = list_volumes(folder) if count else []
        if count > len(paths):
            problems.append(f"{folder}: {count} synthetic {name} volumes are asked for, {len(paths)} are there")
        others = [other for other in CLASS_NAMES if other != name]
        strangers = [path.name for path in paths if path.name.split("_")[0] in others]
        if strangers:
            problems.append(f"{folder}: volumes of another class than {name}: {', '.join(strangers[:5])}")
        order = sorted(paths, key=lambda path: seeding.address(config.sample_seed, f"synthetic:{path.name}"))
        rows += [_synthetic_row(path, name) for path in sorted(order[:count])]
    if problems:
        raise InputError.of("synthetic volumes", problems)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _synthetic_row(path: Path, name: str) -> dict[str, object]:
    subject = f"synthetic:{path.stem}"
    return {
        "subject": subject, "file": str(path.resolve()), "diagnosis": name, "label": LABELS[name], "side": "",
        "session": "", "age": np.nan, "sex": "", "site": "", "group": subject,
    }  # fmt: skip


def synthetic_ledger(config: TrainConfig, paths: list[Path]) -> tuple[set[str], list[str]]:
    """The subjects behind the folders' volumes, and which folders cannot tell (allowed by --allow-leak only)."""
    seen: set[str] = set()
    unknown = []
    for folder in paths:
        ledger = read_json(folder / "ledger.json") if (folder / "ledger.json").exists() else None
        if isinstance(ledger, dict) and isinstance(ledger.get("ledger"), list):
            seen.update(map(str, ledger["ledger"]))
        else:
            unknown.append(f"{folder}: no ledger.json that says which subjects its volumes were made from")
    if unknown and not config.allow_leak:
        raise InputError.of("synthetic volumes of unknown origin; make them anew, or give --allow-leak", unknown)
    return seen, unknown


def _refuse_leaks(
    config: TrainConfig, pool: pd.DataFrame, val: pd.DataFrame, test: pd.DataFrame, makers: set[str], leaks: list[str]
) -> list[str]:
    """Adds what --allow-leak let pass to `leaks`; returns notes.

    The whole training table counts, not only the chosen subset: arms of one experiment share their held-out subjects.
    """
    for frame, ledger, what in (
        (val, ledger_of(pool), f"{config.val_csv} (validation): the training table"),
        (test, ledger_of(pool), f"{config.test_csv} (test): the training table"),
        (test, ledger_of(val), f"{config.test_csv} (test): the validation table"),
        (test, makers, f"{config.test_csv} (test): a maker of the synthetic volumes"),
    ):
        if refuse_overlap(frame, ledger, what=what, allow_leak=config.allow_leak):
            leaks.append(f"subjects of {what}")
    # The makers chose their own best checkpoint on validation subjects. No test number profits from it, while choosing
    # the threshold may suffer; so it is said, not refused.
    if refuse_overlap(val, makers, what="", allow_leak=True):
        return ["the makers of the synthetic volumes had seen validation subjects: validation numbers are optimistic"]
    return []
