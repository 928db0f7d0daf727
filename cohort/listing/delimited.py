"""Delimited files as text: columns and rows by name, with the lines they begin on and what is wrong with them."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import InputError
from runtime.files import absence, refuse_pointer

_OTHERS = {
    b"PK\x03\x04": "a workbook (Excel, LibreOffice)",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\xff\xfe": "UTF-16 text, which Excel calls Unicode",
    b"\xfe\xff": "UTF-16 text, which Excel calls Unicode",
}
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
EXAMPLES = 5
"""Cells that a note names; it counts the others."""


@dataclass
class RawTable:
    """A delimited file as text, and what was found while it was read."""

    path: Path
    columns: list[str]
    rows: list[dict[str, str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """On which each row begins."""
    problems: list[str] = field(default_factory=list)
    """Why the table has to be refused."""
    notes: list[str] = field(default_factory=list)
    """What was accepted and has to be said."""
    absent: list[str] = field(default_factory=list)
    """Why each row's scan is not there, empty where it is; of tables of scans."""

    def fault(self, index: int, column: str, message: str) -> None:
        """Notes a problem of one cell."""
        self.problems.append(f"{self.path}: line {self.lines[index]}, column {column}: {message}")

    def keep(self, wanted: Sequence[bool]) -> None:
        """Drops the rows that are not wanted."""
        for name in ("rows", "lines", "absent"):
            values = getattr(self, name)
            setattr(self, name, [value for value, keep in zip(values, wanted, strict=True) if keep])


def read_delimited(path: Path) -> RawTable:
    """Splits the file into named fields; raises at once where no rows can be told apart."""
    if reason := absence(path, "table"):
        raise InputError(f"{path}: {reason}")
    refuse_pointer(path)
    content = path.read_bytes()
    if other := next((what for start, what in _OTHERS.items() if content.startswith(start)), None):
        raise InputError(f"{path}: {other}, not a delimited table; save it as 'CSV UTF-8'")
    if content.lstrip()[:1] in (b"<", b"{"):
        kind = "a web page (does its address ask for a login?)" if content.lstrip()[:1] == b"<" else "JSON"
        raise InputError(f"{path}: {kind}, not a delimited table; fetch the table itself")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save the table as 'CSV UTF-8'") from None
    before, zero, _ = text.partition("\0")
    if zero:
        raise InputError(f"{path}: line {before.count(chr(10)) + 1}: not a delimited table: it holds a zero byte")
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    found, begin = [], 1
    try:
        for fields in lines:
            found.append((begin, [value.strip() for value in fields]))
            begin = lines.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}: line {begin}: not a delimited table: {error}") from None
    return _with_header(path, [(line, values) for line, values in found if any(values)], separator)


def _with_header(path: Path, found: list[tuple[int, list[str]]], separator: str) -> RawTable:
    """Lines (number and fields) under the first of them, which names the columns."""
    if not found:
        raise InputError(f"{path}: the table is empty")
    (first, columns), *rows = found
    others = [other for other in _SEPARATORS if len(columns) == 1 and other in columns[0]]
    if others:
        used, wanted, ending = _SEPARATORS[others[0]], _SEPARATORS[separator], path.suffix or "no ending"
        rename = {",": "; or rename it to .csv", "\t": "; or rename it to .tsv"}.get(others[0], "")
        told = f"fields are separated by {used}; a table with {ending} has {wanted}"
        raise InputError(f"{path}: line {first}: {told}: save it with those{rename}")
    if repeated := sorted({name for name in columns if columns.count(name) > 1}):
        raise InputError(
            f"{path}: line {first}: columns named more than once: {', '.join(name or '(empty)' for name in repeated)}"
        )
    if not rows:
        raise InputError(f"{path}: the table has a header but no rows")
    raw = RawTable(path, columns)
    for line, values in rows:
        if len(values) == len(columns):
            raw.rows.append(dict(zip(columns, values, strict=True)))
            raw.lines.append(line)
        else:
            more = "an unquoted comma, perhaps a decimal comma?" if separator == "," else "a tab within a field?"
            hint = f"; {more}" if len(values) > len(columns) else ""
            wrong = f"{len(values)} fields where the header names {len(columns)} columns{hint}"
            raw.problems.append(f"{path}: line {line}: {wrong}")
    raw.absent = [""] * len(raw.rows)
    return raw


def read_column(raw: RawTable, name: str, read: Callable, default: object = "") -> list:
    """One column, each field through `read`; a field that `read` refuses is noted and replaced by `default`."""
    values, refused = _attempt(raw, name, read, default)
    for index, reason in refused:
        raw.fault(index, name, reason)
    return values


def read_optional(raw: RawTable, name: str, read: Callable, default: object = "", *, strict: bool) -> list:
    """As `read_column`, for what may be unknown: unless `strict`, what `read` refuses is `default`, and a note."""
    if strict:
        return read_column(raw, name, read, default)
    values, refused = _attempt(raw, name, read, default)
    if refused:
        told = [f"line {raw.lines[index]}: {reason}" for index, reason in refused[:EXAMPLES]]
        told += [f"and {len(refused) - EXAMPLES} more"] if len(refused) > EXAMPLES else []
        raw.notes.append(
            f"{raw.path}: column {name}: {len(refused)} of {len(raw.rows)} cells cannot be read and count as unknown "
            f"(--strict refuses them): {'; '.join(told)}"
        )
    return values


def _attempt(raw: RawTable, name: str, read: Callable, default: object) -> tuple[list, list[tuple[int, str]]]:
    """The values of a column, and the rows that `read` refuses, with the reason."""
    if name not in raw.columns:
        return [default] * len(raw.rows), []
    values, refused = [], []
    for index, row in enumerate(raw.rows):
        try:
            values.append(read(row[name]))
        except ValueError as error:
            refused.append((index, str(error)))
            values.append(default)
    return values, refused
