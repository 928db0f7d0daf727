"""The ledger: which subjects an artefact has seen, as hashes that travel with it and refuse leaks.

A checkpoint, a latent folder and a set of synthetic volumes carry the ledger of everything they were made from, so that
a later evaluation can tell whether one of its subjects was among them, however many steps lie between. Hashes, because
an artefact is shared more widely than the names of its subjects. They are no anonymisation: who holds a list of names
can test each of them.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from runtime.errors import InputError
from runtime.files import read_json


def ledger_of(frame: pd.DataFrame) -> list[str]:
    """The ledger of a table: sorted, distinct 16-digit hashes of its subjects and of its groups."""
    return sorted(_entries("subject", frame["subject"]) | _entries("group", frame["group"]))


def ledger_of_subjects(subjects: Iterable[str]) -> list[str]:
    """The ledger of subjects whose groups are not known."""
    return sorted(_entries("subject", subjects))


def ledger_beside(folder: Path) -> list[str] | None:
    """The ledger of what a folder holds, from its ledger.json; None without one, InputError for another file."""
    path = folder / "ledger.json"
    if not path.is_file():
        return None
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("ledger"), list):
        raise InputError(f"{path}: not a ledger: expected an object with a list `ledger`")
    return [str(entry) for entry in record["ledger"]]


def refuse_overlap(frame: pd.DataFrame, ledger: Iterable[str], *, what: str, allow_leak: bool = False) -> bool:
    """Refuses a table of which an artefact has seen a subject or a group; the InputError names every subject and why.

    `what` is the artefact in words, for the message: ``the VAE checkpoint runs/x/best.pt``. Returns whether there is an
    overlap, which `allow_leak` lets pass: the caller then says so in its result.
    """
    seen = set(ledger)
    problems = []
    for subject, rows in frame.groupby("subject", sort=True):
        if _entries("subject", [subject]) & seen:
            problems.append(f"subject {subject}")
            continue
        shared = [group for group in sorted(set(rows["group"])) if _entries("group", [group]) & seen]
        if shared:
            problems.append(f"subject {subject} (by its group {', '.join(shared)})")
    if problems and not allow_leak:
        raise InputError.of(
            f"{what} was trained on subjects that are to be evaluated; use others, or give --allow-leak", problems
        )
    return bool(problems)


def unseen(frame: pd.DataFrame, ledger: Iterable[str]) -> list[str]:
    """The subjects of a table that an artefact's ledger does not hold, sorted."""
    seen = set(ledger)
    return [name for name in sorted(set(frame["subject"])) if not _entries("subject", [name]) & seen]


def _entries(kind: str, names: Iterable[str]) -> set[str]:
    return {hashlib.sha256(f"{kind}:{name}".encode()).hexdigest()[:16] for name in set(names)}
