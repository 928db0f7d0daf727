"""split.json: beside three split tables, how they were made and whom each holds, as hashes, so that anyone can check.

`format` is a number; `settings` what the split was asked for; `index` and `groups` name the files it was made from,
with their SHA-256; each of `splits` holds its table's SHA-256, its counts of scans and subjects, and its ledger (hashes
of subjects and groups, `cohort.ledger`); `left_out` counts and ledger of scans that are in none. It names no subject.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from cohort.ledger import ledger_of
from cohort.splitting.folds import SPLITS
from runtime.errors import InputError
from runtime.files import read_json, sha256, write_json

RECORD = "split.json"
FORMAT = 1


def write_record(
    folder: Path,
    splits: Mapping[str, pd.DataFrame],
    *,
    settings: Mapping[str, Any],
    index: Path,
    groups: Path | None,
    left_out: pd.DataFrame,
) -> None:
    """Writes split.json beside the tables, which have been written already.

    Args:
        folder: of train.csv, val.csv and test.csv.
        splits: their content.
        settings: how the split was made; numbers, texts and lists.
        index: the table that was divided.
        groups: the table of copies that were kept together, if there was one.
        left_out: rows of the index that are in no split.
    """
    sources = {"index": index, "groups": groups}
    record = {
        "format": FORMAT,
        "settings": settings,
        **{kind: {"name": path.name, "sha256": sha256(path)} if path else None for kind, path in sources.items()},
        "splits": {name: {"sha256": sha256(folder / f"{name}.csv"), **_whom(rows)} for name, rows in splits.items()},
        "left_out": _whom(left_out),
    }
    write_json(folder / RECORD, record)


def read_record(folder: Path) -> dict[str, Any] | None:
    """The checked split.json of a folder; None where there is none.

    Raises:
        InputError: another format, a table that is missing or has been changed since it was written, or one subject or
            group in the ledgers of two splits; names each.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    record = read_json(path)
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise InputError(f"{path}: format {found!r}; this version reads {FORMAT}: run cohort.split again")
    if set(record.get("splits", {})) != set(SPLITS):
        raise InputError(f"{path}: expected the splits {', '.join(SPLITS)}; run cohort.split again")
    problems = []
    for name, entry in record["splits"].items():
        table = folder / f"{name}.csv"
        if not table.is_file():
            problems.append(f"{table} is missing")
        elif sha256(table) != entry["sha256"]:
            problems.append(f"{table} has been changed since")
    for pair in combinations(SPLITS, 2):
        first, second = (set(record["splits"][name]["ledger"]) for name in pair)
        if first & second:
            problems.append(f"{' and '.join(pair)} share subjects or groups")
    if problems:
        raise InputError.of(f"{path} does not describe the tables beside it; run cohort.split again", problems)
    return record


def provenance(folder: Path) -> str:
    """One sentence on where the three tables of a folder come from, after a check of split.json."""
    record = read_record(folder)
    if record is None:
        return f"{folder.name} has no {RECORD}: how its tables were made is not recorded"
    settings = ", ".join(f"{name} {value}" for name, value in record["settings"].items())
    return f"made by cohort.split from {record['index']['name']} with {settings}; unchanged since"


def _whom(frame: pd.DataFrame) -> dict[str, Any]:
    return {"scans": len(frame), "subjects": int(frame["subject"].nunique()), "ledger": ledger_of(frame)}
