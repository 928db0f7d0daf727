"""Divides a cohort into train.csv, val.csv and test.csv, by subject and group, balanced.

Reads an index (a table, see data_csvs/README.md), writes the three tables beside one another and prints how alike they
are. Splits that exist and differ are not overwritten unless asked.

    python -m cohort.split --index data_csvs/pickle_prep_demo.csv --out data_csvs --val-percent 15 --test-percent 25
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cohort.partition import balance, partition
from cohort.tables import read_table, table_text
from runtime.cli import describe, run_script
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write


@dataclass(frozen=True)
class Config:
    """Settings of the split."""

    index: Path
    """Table of all scans, or a BIDS participants.tsv."""
    out: Path = ROOT / "data_csvs"
    """Folder for train.csv, val.csv and test.csv."""
    val_percent: float = 15.0
    """Share of the subjects for validation, in percent."""
    test_percent: float = 25.0
    """Share of the subjects for test, in percent."""
    seed: int = 0
    """Another seed gives another, equally balanced split."""
    data_root: Path | None = None
    """Folder that the index's files are relative to and must not leave."""
    label_column: str = "diagnosis"
    """Column of the index that holds the diagnosis."""
    label_map: dict[str, str] | None = None
    """Meaning of that column's values, in pairs: HC HC left TLE-L right TLE-R."""
    overwrite: bool = False
    """Replace splits that exist and differ. Results made with the old ones do not hold for the new ones."""
    dry_run: bool = False
    """Print the configuration and stop."""


def main(config: Config) -> None:
    """Index, splits, tables, balance."""
    index = read_table(
        config.index, data_root=config.data_root, label_column=config.label_column, label_map=config.label_map
    )
    splits = partition(index, val_percent=config.val_percent, test_percent=config.test_percent, seed=config.seed)
    texts = {config.out / f"{name}.csv": table_text(frame, config.out) for name, frame in splits.items()}
    if not config.overwrite:
        refuse_other_splits(texts)
    for path, text in texts.items():
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    with pd.option_context("display.width", 200, "display.max_colwidth", 60):
        print(balance(splits).to_string())
    print(f"{', '.join(f'{path.name} {len(splits[path.stem])} scans' for path in texts)} in {config.out}")


def refuse_other_splits(texts: dict[Path, str]) -> None:
    """Raises InputError if a file exists and has another content than it would get."""
    problems = [
        f"{path} exists and would change"
        for path, text in texts.items()
        if path.exists() and path.read_bytes() != text.encode()
    ]
    if problems:
        raise InputError.of("nothing was written; give --overwrite or another --out", problems)


if __name__ == "__main__":
    run_script(main, Config, description=describe(__doc__))
