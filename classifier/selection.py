"""Which scans a run learns from: nested subsets of real subjects, repeats, synthetic volumes, and the leak checks."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from classifier.config import TrainConfig
from cohort.ledger import ledger_beside, ledger_of, refuse_overlap
from cohort.splitting.folds import folds as divided
from cohort.tables import CLASS_NAMES, COLUMNS, LABELS, read_table
from cohort.volumes import list_volumes, side_of
from runtime import seeding
from runtime.errors import InputError

DIAGNOSED = ["diagnosis", "label", "side"]  # move together when labels are permuted


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
        columns = ["subject", "session", "label"]
        rows = [[name, *getattr(self, name)[columns].astype(str).to_numpy().tolist()] for name in Parts._fields]
        return hashlib.sha256(json.dumps([rows, self.ledger]).encode()).hexdigest()[:16]


def select(config: TrainConfig) -> Selection:
    """Reads the tables and the folders of synthetic volumes, and checks that no subject is on both sides."""
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
    groups = parts.test.groupby("label")["group"].nunique()
    alone = [label for label, code in LABELS.items() if groups[code] == 1]
    notes += [f"{names[2]}: one subject (or group) of class {label}; what it enters has no interval" for label in alone]
    ledger = sorted({*ledger_of(real), *ledger_of(val), *makers})
    return Selection(train, val, parts.test, ledger, unknown + leaks, notes)


def held_apart(config: TrainConfig) -> tuple[Parts, tuple[str, str, str]]:
    """The tables to choose training subjects from, to validate on and to test on, and what to call them in messages."""
    if config.folds:
        val, test = (f"fold {fold % config.folds} of {config.folds}" for fold in (config.fold + 1, config.fold))
        table = one_table(config.index or (config.train_csv,))
        parts = divide(table, config.folds, config.fold, config.sample_seed)
    else:
        val, test = config.val_csv, config.test_csv
        parts = Parts(*map(read_table, (config.train_csv, val, test)))
    return parts, ("training data", f"{val} (validation)", f"{test} (test)")


def divide(frame: pd.DataFrame, folds: int, fold: int, seed: int) -> Parts:
    """Fold `fold` to test on, the next one (the first after the last) to validate on, all others to learn from.

    The division is that of ``cohort.split --folds`` with the same table, in any order, and seed, so that a VAE and a
    diffusion model may be fitted anew on its tables.
    """
    if not 0 <= fold < folds:
        raise InputError(f"--fold {fold}: the {folds} of --folds are numbered from 0 to {folds - 1}")
    frame = frame.sort_values(["subject", "session", "file"]).reset_index(drop=True)
    return Parts(**divided(frame, count=folds, val_percent=None, seed=seed)[fold])


def one_table(paths: Sequence[Path]) -> pd.DataFrame:
    """Several tables as one, unless scans are in two or subjects of another class in another."""
    frame = pd.concat([read_table(path).assign(table=str(path)) for path in paths], ignore_index=True)
    again = frame[frame.duplicated(["subject", "session"]) | frame.duplicated("file")]
    classes = frame.groupby("subject")["label"].nunique()  # within one table `read_table` has seen to it
    problems = [f"{row.table}: subject {row.subject}: {row.file} is in a table before it" for row in again.itertuples()]
    problems += [f"subject {subject} is HC in one table and TLE in another" for subject in classes.index[classes > 1]]
    if problems:
        raise InputError.of("the tables of --index cannot be joined", problems)
    return frame.drop(columns="table")


def _joined(real: pd.DataFrame, again: pd.DataFrame, made: pd.DataFrame, config: TrainConfig) -> pd.DataFrame:
    """Real rows, repeated rows and synthetic rows in one table, with labels as --shuffle wants them."""
    real = pd.concat([real.assign(repeated=False), again.assign(repeated=True)], ignore_index=True)
    if config.shuffle == "all":
        real = permuted(real, config, "train")
    if config.shuffle != "none":
        made = permuted(made, config, "synthetic")
    parts = (real.assign(synthetic=False), made.assign(synthetic=True, repeated=False))
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def permuted(frame: pd.DataFrame, config: TrainConfig, part: str) -> pd.DataFrame:
    """The table with its diagnoses permuted among its subjects; all scans of a subject get the same one.

    The classes keep their numbers of subjects, and nothing but chance ties a label to an image. The training seed
    counts too, so that the seeds of a null arm average over permutations.
    """
    people = frame.drop_duplicates("subject").sort_values("subject").set_index("subject")[DIAGNOSED]
    order = seeding.rng(config.seed, f"shuffle {part}", config.sample_seed).permutation(len(people))
    drawn = people.iloc[order].set_axis(people.index).loc[frame["subject"]]
    return frame.assign(**{name: drawn[name].to_numpy() for name in DIAGNOSED})


def _check_numbers(config: TrainConfig) -> None:
    percent, count, again = config.synth_percent, config.synth_count, config.duplicate_percent
    negative = min(percent, count, again, config.side_weight, config.volumes_weight, config.real or 0) < 0
    nothing_made = config.shuffle == "synthetic" and not (percent or count)
    none_left = config.real == 0 and (again or not count)
    faults = (
        (negative, "--real, --synth-percent, --synth-count, --duplicate-percent and weights cannot be negative"),
        (config.volumes_weight and not config.structures, "--volumes-weight: --structures names nothing to learn"),
        (percent and count, "--synth-percent and --synth-count exclude each other"),
        (none_left, "--real 0 leaves --synth-count to learn from; percentages, also of duplicates, are of real scans"),
        (nothing_made, "--shuffle synthetic: no synthetic volumes are added"),
        (not config.folds and (config.fold or config.index), "--fold and --index divide nothing without --folds"),
        (config.batch_size % 2, f"--batch-size {config.batch_size}: half of a batch is HC and half TLE, so it is even"),
    )
    if problems := [text for found, text in faults if found]:
        raise InputError.of("the configuration contradicts itself", problems)


def choose_real(frame: pd.DataFrame, count: int | None, seed: int) -> pd.DataFrame:
    """The rows of `count` subjects, in the order of the table; None means all.

    Subjects are put in one order, by a hash of seed and name within each diagnosis, the diagnoses interleaved in
    proportion; the first `count` are taken. So the subset of a smaller count lies within that of a larger one, the
    proportions hold at every count, and the order of the table does not matter.
    """
    if count is None:
        return frame.reset_index(drop=True)
    subjects = frame.drop_duplicates("subject")[["subject", "diagnosis"]]
    if count > len(subjects):
        raise InputError(f"--real {count}: the training table has {len(subjects)} subjects")
    subjects = subjects.assign(draw=[seeding.address(seed, f"real:{name}") for name in subjects["subject"]])
    draws = subjects.groupby("diagnosis")["draw"]
    share = (draws.rank(method="first") - 0.5) / draws.transform("size")
    chosen = subjects.assign(share=share).sort_values(["share", "draw"])["subject"].head(count)
    return frame[frame["subject"].isin(chosen)].reset_index(drop=True)


def choose_repeated(real: pd.DataFrame, percent: float, seed: int) -> pd.DataFrame:
    """Rows of `real` to use again, `percent` of each class (beyond 100 whole rounds first); fewer are among more."""
    rows: list[int] = []
    draw = [seeding.address(seed, f"repeat:{row.subject}:{row.session}") for row in real.itertuples()]
    for code in LABELS.values():
        members = sorted(np.flatnonzero(real["label"] == code).tolist(), key=draw.__getitem__)
        rows += islice(cycle(members), round(percent / 100 * len(members)))
    return real.iloc[rows].reset_index(drop=True)


def synthetic_counts(labels: np.ndarray, config: TrainConfig) -> dict[str, int]:
    """How many synthetic volumes of each class the configuration asks for, given the real training labels (N,)."""
    if config.synth_count:
        return {"HC": config.synth_count - config.synth_count // 2, "TLE": config.synth_count // 2}
    return {name: round(config.synth_percent / 100 * int((labels == code).sum())) for name, code in LABELS.items()}


def choose_synthetic(config: TrainConfig, counts: dict[str, int]) -> pd.DataFrame:
    """Rows for so many synthetic volumes of each class; a smaller number is among a larger one, for one sample seed."""
    rows, problems = [], []
    for name, folder in (("HC", config.synth_hc), ("TLE", config.synth_tle)):
        paths = list_volumes(folder) if counts[name] else []
        if counts[name] > len(paths):
            problems.append(f"{folder}: {counts[name]} synthetic {name} volumes are asked for, {len(paths)} are there")
        if wrong := [path.name for path in paths if path.name.split("_")[0] in {*CLASS_NAMES} - {name}]:
            problems.append(f"{folder}: volumes of another class than {name}: {', '.join(wrong[:5])}")
        order = sorted(paths, key=lambda path: seeding.address(config.sample_seed, f"synthetic:{path.name}"))
        for path in sorted(order[: counts[name]]):
            subject, side = f"synthetic:{path.stem}", side_of(path)
            row = {"subject": subject, "file": str(path.resolve()), "label": LABELS[name], "side": side}
            row |= {"diagnosis": f"{name}-{side}" if side else name, **dict.fromkeys(("session", "sex", "site"), "")}
            rows.append({**row, "age": np.nan, "group": subject})
    if problems:
        raise InputError.of("synthetic volumes", problems)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def synthetic_ledger(config: TrainConfig) -> tuple[set[str], list[str]]:
    """The subjects behind the folders' volumes, and which folders cannot tell (allowed by --allow-leak only)."""
    seen: set[str] = set()
    unknown = []
    for folder in (config.synth_hc, config.synth_tle):
        if (found := ledger_beside(folder)) is None:
            unknown.append(f"{folder / 'ledger.json'}: not there, to say which subjects the volumes were made from")
        else:
            seen.update(found)
    if unknown and not config.allow_leak:
        raise InputError.of("synthetic volumes of unknown origin; make them anew, or give --allow-leak", unknown)
    return seen, unknown


def _refuse_leaks(
    config: TrainConfig, parts: Parts, names: tuple[str, str, str], makers: set[str]
) -> tuple[list[str], list[str]]:
    """What --allow-leak let pass, and notes. The whole training table counts, not only the chosen subset: arms of one
    experiment share their held-out subjects.
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
    # The makers chose their own best checkpoint on validation subjects. No test number profits from that: it is said.
    note = "the makers of the synthetic volumes had seen validation subjects: validation numbers are optimistic"
    return leaks, [note] if refuse_overlap(parts.val, makers, what="", allow_leak=True) else []
