"""split.json: beside three split tables, how they were made and whom each holds, as hashes, so that anyone can check.

`format` is a number; `settings` what the split was asked for; `index` and `groups` name the files it was made from,
with their SHA-256; each of `splits` holds its table's SHA-256, its counts of scans and subjects, and its ledger (hashes
of subjects and groups, `cohort.ledger`); `left_out` counts and ledger of scans that are in none. It names no subject.
"""

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
    """Writes split.json beside the tables (`splits` is their content), which have been written already."""
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
    """The split.json of a folder, None where there is none; InputError unless it describes the tables beside it.

    That is: its format is ours, no table is missing or has been changed since, no two ledgers share an entry.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    record = read_json(path)
    if record.get("format") != FORMAT or set(record.get("splits", {})) != set(SPLITS):
        found = f"format {record.get('format')!r} with {', '.join(record.get('splits', {})) or 'no splits'}"
        raise InputError(f"{path}: {found}, expected {FORMAT} with {', '.join(SPLITS)}; run cohort.split again")
    tables = {folder / f"{name}.csv": entry["sha256"] for name, entry in record["splits"].items()}
    problems = [f"{table} is missing" for table in tables if not table.is_file()]
    problems += [
        f"{table} has been changed since" for table in tables if table.is_file() and sha256(table) != tables[table]
    ]
    whom = {name: set(record["splits"][name]["ledger"]) for name in SPLITS}
    problems += [f"{a} and {b} share subjects or groups" for a, b in combinations(SPLITS, 2) if whom[a] & whom[b]]
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
