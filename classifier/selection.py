"""Which scans a run learns from: nested subsets of real subjects, repeats, synthetic volumes, and the leak checks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from classifier.config import TrainConfig
from cohort.ledger import ledger_of, refuse_overlap
from cohort.splitting.folds import folds as divided
from cohort.tables import CLASS_NAMES, COLUMNS, LABELS, read_table
from cohort.volumes import list_volumes
from runtime import seeding
from runtime.errors import InputError
from runtime.files import read_json

DIAGNOSED = ["diagnosis", "label", "side"]
"""The columns that move together when labels are permuted."""
FEWEST_FOLDS = 3
"""One to test on, one to validate on, and the others to learn from."""


class Parts(NamedTuple):
    """The rows of one run, by what they are for."""

    train: pd.DataFrame
    val: pd.DataFrame
    test: pd.DataFrame


@dataclass(frozen=True)
class Selection:
    """The tables of one run. Synthetic rows have subjects such as ``synthetic:TLE_000042`` and neither age nor site."""

    train: pd.DataFrame
    """Real rows, those of them that are `repeated`, then `synthetic` ones: two columns tell them apart."""
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
    """Reads the tables and the folders of synthetic volumes, and checks that no subject is on both sides.

    Raises:
        InputError: unreadable tables, a table or fold without one of the classes, contradictory or too large numbers,
            subjects on both sides of a split or behind the synthetic volumes.
    """
    _check_numbers(config)
    parts, names = held_apart(config)
    real = choose_real(parts.train, config.real, config.sample_seed)
    made = choose_synthetic(config, synthetic_counts(real["label"].to_numpy(), config))
    again = choose_repeated(real, config.duplicate_percent, config.sample_seed)
    train = _joined(real, again, made, config)
    val = permuted(parts.val, config, "val") if config.shuffle == "all" else parts.val
    for name, frame in zip(names, (train, val, parts.test), strict=True):
        absent = [label for label, code in LABELS.items() if not (frame["label"] == code).any()]
        if absent:
            raise InputError(f"{name}: {len(frame)} scans, and none of class {' or '.join(absent)}; both are needed")
    makers, unknown = synthetic_ledger(config) if len(made) else (set(), [])
    leaks, notes = _refuse_leaks(config, parts, names, makers)
    ledger = sorted({*ledger_of(real), *ledger_of(val), *makers})
    return Selection(train, val, parts.test, ledger, unknown + leaks, notes)


def held_apart(config: TrainConfig) -> tuple[Parts, tuple[str, str, str]]:
    """The tables to choose training subjects from, to validate on and to test on, and what to call them in messages."""
    if not config.folds:
        paths = (config.train_csv, config.val_csv, config.test_csv)
        names = ("training data", f"{config.val_csv} (validation)", f"{config.test_csv} (test)")
        return Parts(*map(read_table, paths)), names
    table, count = one_table(config.index or (config.train_csv,)), config.folds
    val, test = (f"fold {fold % count} of {count}" for fold in (config.fold + 1, config.fold))
    parts = divide(table, count, config.fold, config.sample_seed)
    return parts, ("training data", f"{val} (validation)", f"{test} (test)")


def divide(frame: pd.DataFrame, folds: int, fold: int, seed: int) -> Parts:
    """Fold `fold` to test on, the next one (the first after the last) to validate on, all others to learn from.

    The division is that of ``cohort.split --folds`` with the same table, in any order, and seed, so that a VAE and a
    diffusion model may be fitted anew on its tables: by subject and group, classes, sides and sites in proportion.

    Raises:
        InputError: too few folds, no such fold, or too few subjects of a class for all of them.
    """
    if folds < FEWEST_FOLDS:
        what = "one to test on, one to validate on, the others to learn from"
        raise InputError(f"--folds {folds}: at least {FEWEST_FOLDS}, {what}")
    if not 0 <= fold < folds:
        raise InputError(f"--fold {fold}: the {folds} of --folds are numbered from 0 to {folds - 1}")
    frame = frame.sort_values(["subject", "session", "file"]).reset_index(drop=True)
    return Parts(**divided(frame, count=folds, val_percent=None, seed=seed)[fold])


def one_table(paths: Sequence[Path]) -> pd.DataFrame:
    """Several tables as one.

    Raises:
        InputError: a scan in two of them, or a subject of another class in another; names them all.
    """
    tables = [read_table(path) for path in paths]
    frame = pd.concat(tables, ignore_index=True)
    homes = np.repeat([str(path) for path in paths], [len(table) for table in tables])
    again = frame.duplicated(["subject", "session"]) | frame.duplicated("file")
    problems = [
        f"{homes[row]}: subject {frame['subject'][row]}: {frame['file'][row]} is in a table before it"
        for row in np.flatnonzero(again)
    ]
    classes = frame.groupby("subject")["label"].nunique()
    problems += [f"subject {subject} is HC in one table and TLE in another" for subject in classes.index[classes > 1]]
    if problems:
        raise InputError.of("the tables of --index cannot be joined", problems)
    return frame


def _joined(real: pd.DataFrame, again: pd.DataFrame, made: pd.DataFrame, config: TrainConfig) -> pd.DataFrame:
    """Real rows, repeated rows and synthetic rows in one table, with labels as --shuffle wants them."""
    real = pd.concat([real.assign(repeated=False), again.assign(repeated=True)], ignore_index=True)
    if config.shuffle == "all":
        real = permuted(real, config, "train")
    if config.shuffle != "none":
        made = permuted(made, config, "synthetic")
    parts = [part for part in (real.assign(synthetic=False), made.assign(synthetic=True, repeated=False)) if len(part)]
    return pd.concat(parts, ignore_index=True)


def permuted(frame: pd.DataFrame, config: TrainConfig, part: str) -> pd.DataFrame:
    """The table with its diagnoses permuted among its subjects; all scans of a subject get the same one.

    The classes keep their numbers of subjects, and nothing but chance ties a label to an image. The training seed
    counts too, so that the seeds of a null arm average over permutations.
    """
    people = frame.drop_duplicates("subject").sort_values("subject").set_index("subject")[DIAGNOSED]
    order = seeding.rng(config.seed, f"shuffle {part}", config.sample_seed).permutation(len(people))
    permuted_people = people.iloc[order].set_axis(people.index)
    return frame.assign(**{name: permuted_people[name].loc[frame["subject"]].to_numpy() for name in DIAGNOSED})


def _check_numbers(config: TrainConfig) -> None:
    made, none_real = config.synth_percent or config.synth_count, config.real == 0
    numbers = (config.synth_percent, config.synth_count, config.duplicate_percent, config.side_weight)
    faults = (
        (config.real is not None and config.real < 0, f"--real {config.real}: a number of subjects"),
        (min(numbers) < 0, "--synth-percent, --synth-count, --duplicate-percent and --side-weight cannot be negative"),
        (config.synth_percent and config.synth_count, "--synth-percent and --synth-count exclude each other"),
        (
            none_real and not config.synth_count,
            "--real 0 leaves nothing to learn from: give --synth-count (a percentage of 0 is 0)",
        ),
        (none_real and config.duplicate_percent, "--duplicate-percent repeats real scans, and --real 0 takes none"),
        (
            config.shuffle == "synthetic" and not made,
            "--shuffle synthetic: no synthetic volumes; give --synth-percent or --synth-count",
        ),
        (not config.folds and (config.fold or config.index), "--fold and --index divide nothing without --folds"),
        (config.batch_size % 2, f"--batch-size {config.batch_size}: half of a batch is HC and half TLE, so it is even"),
    )
    problems = [fault for found, fault in faults if found]
    if problems:
        raise InputError.of("the configuration contradicts itself", problems)


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


def choose_repeated(real: pd.DataFrame, percent: float, seed: int) -> pd.DataFrame:
    """Rows of `real` to use once more, `percent` of each class; beyond 100 every row again, whole rounds first.

    A smaller percentage's rows are among a larger one's.
    """
    rows: list[int] = []
    draw = [seeding.address(seed, f"repeat:{row.subject}:{row.session}") for row in real.itertuples()]
    for code in LABELS.values():
        members = sorted(np.flatnonzero(real["label"] == code).tolist(), key=draw.__getitem__)
        count = round(percent / 100 * len(members))
        rows += (members * (count // max(1, len(members)) + 1))[:count]
    return real.iloc[rows].reset_index(drop=True)


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
    for name, folder in (("HC", config.synth_hc), ("TLE", config.synth_tle)):
        count = counts[name]
        paths = list_volumes(folder) if count else []
        if count > len(paths):
            problems.append(f"{folder}: {count} synthetic {name} volumes are asked for, {len(paths)} are there")
        others = [other for other in CLASS_NAMES if other != name]
        wrong = [path.name for path in paths if path.name.split("_")[0] in others]
        if wrong:
            problems.append(f"{folder}: volumes of another class than {name}: {', '.join(wrong[:5])}")
        order = sorted(paths, key=lambda path: seeding.address(config.sample_seed, f"synthetic:{path.name}"))
        for path in sorted(order[:count]):
            subject = f"synthetic:{path.stem}"
            row = {"subject": subject, "file": str(path.resolve()), "diagnosis": name, "label": LABELS[name]}
            rows.append({**row, "side": "", "session": "", "age": np.nan, "sex": "", "site": "", "group": subject})
    if problems:
        raise InputError.of("synthetic volumes", problems)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def synthetic_ledger(config: TrainConfig) -> tuple[set[str], list[str]]:
    """The subjects behind the folders' volumes, and which folders cannot tell (allowed by --allow-leak only)."""
    seen: set[str] = set()
    unknown = []
    for folder in (config.synth_hc, config.synth_tle):
        ledger = read_json(folder / "ledger.json") if (folder / "ledger.json").exists() else None
        if isinstance(ledger, dict) and isinstance(ledger.get("ledger"), list):
            seen.update(map(str, ledger["ledger"]))
        else:
            unknown.append(f"{folder}: no ledger.json that says which subjects its volumes were made from")
    if unknown and not config.allow_leak:
        raise InputError.of("synthetic volumes of unknown origin; make them anew, or give --allow-leak", unknown)
    return seen, unknown


def _refuse_leaks(
    config: TrainConfig, parts: Parts, names: tuple[str, str, str], makers: set[str]
) -> tuple[list[str], list[str]]:
    """What --allow-leak let pass, and notes.

    The whole training table counts, not only the chosen subset: arms of one experiment share their held-out subjects.
    """
    _, val, test = names
    leaks = [
        f"subjects of {what}"
        for frame, ledger, what in (
            (parts.val, ledger_of(parts.train), f"{val}: the training table"),
            (parts.test, ledger_of(parts.train), f"{test}: the training table"),
            (parts.test, ledger_of(parts.val), f"{test}: the validation table"),
            (parts.test, makers, f"{test}: a maker of the synthetic volumes"),
        )
        if refuse_overlap(frame, ledger, what=what, allow_leak=config.allow_leak)
    ]
    # The makers chose their own best checkpoint on validation subjects. No test number profits from it, while choosing
    # the threshold may suffer; so it is said, not refused.
    note = "the makers of the synthetic volumes had seen validation subjects: validation numbers are optimistic"
    return leaks, [note] if refuse_overlap(parts.val, makers, what="", allow_leak=True) else []
