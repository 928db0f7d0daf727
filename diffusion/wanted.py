"""What to generate: a class and a count, or a table of wanted volumes with their age and sex."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cohort.tables import CLASS_NAMES, LABELS, MISSING, parse_age, parse_sex
from diffusion.covariates import SEX_CODES
from runtime.errors import InputError


@dataclass(frozen=True)
class Wanted:
    """One volume to make."""

    label: int
    """Class code: 0 HC, 1 TLE."""
    seed: int
    """Everything random about it; unique within its class."""
    age: float | None = None
    """Years; None is not told."""
    sex: str = ""
    """F or M; empty is not told."""

    def value(self, covariate: str) -> float:
        """``age`` or ``sex`` as a number in its own unit; NaN where it is not told."""
        return {"age": math.nan if self.age is None else self.age, "sex": SEX_CODES[self.sex]}[covariate]

    def texts(self) -> dict[str, str]:
        """Age and sex as tables write them, empty where not told."""
        return {"age": "" if self.age is None else str(self.age).removesuffix(".0"), "sex": self.sex}


def count_wanted(label: int, count: int, first_seed: int) -> list[Wanted]:
    """`count` volumes of one class with consecutive seeds, age and sex not told."""
    return [Wanted(label, seed) for seed in range(first_seed, first_seed + count)]


def read_wanted(path: Path | str, first_seed: int = 0) -> list[Wanted]:
    """Reads a table of wanted volumes.

    Args:
        path: a CSV in UTF-8 with the column `label` (HC or TLE) and, optionally, `seed`, `age` (years), `sex` (F or M)
            and `count` (rows of `count` volumes use consecutive seeds). Empty and ``n/a`` are not told.
        first_seed: rows without a seed get the lowest seeds from here on that no row of their class names.

    Returns:
        One entry per volume, in the order of the rows.

    Raises:
        InputError: lists every fault with file, line and column; among them seeds that one class has twice.
    """
    path, problems = Path(path), []
    rows = [_parse(path, line, fields, problems) for line, fields in _rows(path)]
    if not rows:
        raise InputError(f"{path}: the table has no rows")
    if not problems:
        wanted = list(_with_seeds(path, rows, first_seed, problems))
    if problems:
        raise InputError.of(f"{path}: the table was refused", problems)
    return wanted


def _rows(path: Path) -> Iterator[tuple[int, dict[Any, Any]]]:
    """The line and the fields of each row, by column."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such table") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save the table as 'CSV UTF-8'") from None
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    table.fieldnames = [name.strip() for name in table.fieldnames or ()]
    unknown = [name for name in table.fieldnames if name not in _READERS]
    repeated = sorted({name for name in table.fieldnames if table.fieldnames.count(name) > 1})
    if "label" not in table.fieldnames or unknown or repeated:
        raise InputError(
            f"{path}: columns {', '.join(table.fieldnames) or 'none'}; expected label and, at most once each, "
            f"{', '.join(name for name in _READERS if name != 'label')}"
        )
    try:
        for fields in table:
            yield table.line_num, fields
    except csv.Error as error:
        raise InputError(f"{path}: line {table.line_num}: not a delimited table: {error}") from None


def _parse(path: Path, line: int, fields: dict[Any, Any], problems: list[str]) -> dict[str, Any]:
    """A row's values by column, with its line; faults are noted."""
    values: dict[str, Any] = {"line": line}
    if None in fields or None in fields.values():
        problems.append(f"{path}: line {line}: more or fewer fields than the header has")
        return values
    for name, read in _READERS.items():
        try:
            values[name] = read(fields.get(name, "").strip())
        except ValueError as error:
            problems.append(f"{path}: line {line}, column {name}: {error}")
    return values


def _with_seeds(path: Path, rows: list[dict[str, Any]], first_seed: int, problems: list[str]) -> Iterator[Wanted]:
    """One entry per volume; the seeds that rows name are set aside before others are given out."""
    named: dict[tuple[int, int], int] = {}
    for row in rows:
        for seed in range(row["seed"], row["seed"] + row["count"]) if row["seed"] is not None else ():
            earlier = named.setdefault((row["label"], seed), row["line"])
            if earlier != row["line"]:
                problems.append(
                    f"{path}: line {row['line']}, column seed: {CLASS_NAMES[row['label']]} has seed {seed} on line "
                    f"{earlier} already"
                )
    free = {label: _free_seeds(label, first_seed, named) for label in LABELS.values()}
    for row in rows:
        seeds = itertools.count(row["seed"]) if row["seed"] is not None else free[row["label"]]
        for seed in itertools.islice(seeds, row["count"]):
            yield Wanted(row["label"], seed, row["age"], row["sex"])


def _free_seeds(label: int, first_seed: int, named: Container[tuple[int, int]]) -> Iterator[int]:
    return (seed for seed in itertools.count(first_seed) if (label, seed) not in named)


def _label(text: str) -> int:
    if text not in LABELS:
        raise ValueError(f"{text!r}; expected {' or '.join(LABELS)}")
    return LABELS[text]


def _whole(text: str, least: int, absent: int | None) -> int | None:
    if text in MISSING:
        return absent
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{text!r}; expected a whole number from {least} on")
    return int(text)


def _age(text: str) -> float | None:
    age = parse_age(text)
    return None if math.isnan(age) else age


_READERS: dict[str, Callable[[str], Any]] = {
    "label": _label,
    "seed": lambda text: _whole(text, 0, None),
    "age": _age,
    "sex": parse_sex,
    "count": lambda text: _whole(text, 1, 1),
}
