"""Tables of scans: who, which file, which diagnosis. The reader finds every fault of a table before it refuses it.

Columns and codings: data_csvs/README.md.
"""

import csv
import io
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from runtime.errors import InputError
from runtime.files import atomic_write, refuse_pointer

CLASS_NAMES = ("HC", "TLE")
LABELS = {"HC": 0, "TLE": 1}
DIAGNOSES = {"HC": 0, "TLE": 1, "TLE-L": 1, "TLE-R": 1}
"""Diagnosis to class code. The side of a TLE is kept in its own column, not in the code."""

SIDES = {"TLE-L": "L", "TLE-R": "R"}
_SIDE_WORDS = {"l": "L", "left": "L", "r": "R", "right": "R"}
STORED = ("subject", "file", "diagnosis", "session", "age", "sex", "site", "group")
COLUMNS = ("subject", "file", "diagnosis", "label", "side", "session", "age", "sex", "site", "group")
"""STORED is in the file, in this order; COLUMNS is what a frame has: `label` and `side` follow from the diagnosis."""

MISSING = {"", "n/a", "N/A", "NA", "nan", "NaN"}
SEXES = {"f": "F", "female": "F", "w": "F", "m": "M", "male": "M"}
OLDEST_YEARS = 120.0
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?|[+-]?\.\d+")


@dataclass
class RawTable:
    """A delimited file as text: column names, rows by name, the line each row begins on, and what was wrong so far."""

    path: Path
    columns: list[str]
    rows: list[dict[str, str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def fault(self, index: int, column: str, message: str) -> None:
        self.problems.append(f"{self.path}: line {self.lines[index]}, column {column}: {message}")


def read_table(
    path: Path | str,
    *,
    data_root: Path | str | None = None,
    label_column: str = "diagnosis",
    label_map: Mapping[str, str] | None = None,
    keep_absent: bool = False,
) -> pd.DataFrame:
    """Reads a table of scans (CSV), or a BIDS ``participants.tsv``.

    Args:
        path: the table; UTF-8, with or without a byte order mark, any line ends; tab-separated if it ends in ``.tsv``.
        data_root: folder that `file` is relative to and must not leave, symbolic links followed. Without it, `file` is
            relative to the table's folder and may be anywhere.
        label_column: column that holds the diagnosis.
        label_map: what its values mean, for example ``{"left": "TLE-L"}``; others are refused. Without it they must be
            diagnoses themselves.
        keep_absent: keep rows whose file is not there, and participants of a BIDS dataset without a T1-weighted image
            (with the name it would have), for a caller that reports each when it comes to it.

    Returns:
        One row per scan, in the order of the file, with the columns COLUMNS: `file` absolute, `label` 0 or 1, `side`
        "L", "R" or "" (from the diagnosis; for a plain TLE from a column `side` where there is one, of L, left, R or
        right), `age` in years or NaN, `sex` "F", "M" or "", `group` (equal to the subject where not given). Absent
        texts are "". Further columns of the file follow, as text. Of a participants.tsv, one row per T1-weighted
        image; its column `group` is a diagnosis if there is no other, never our `group`.

    Raises:
        InputError: lists every fault of the table with file, line and column.
    """
    raw = read_delimited(Path(path))
    root = Path(os.path.realpath(data_root if data_root is not None else raw.path.parent))
    is_bids = "participant_id" in raw.columns and "subject" not in raw.columns
    if is_bids:
        _find_images(raw, root, keep_absent)
        label_column = "group" if label_column == "diagnosis" and "diagnosis" not in raw.columns else label_column
    for name in ("subject", "file", label_column):
        if name not in raw.columns:
            raw.problems.append(f"{raw.path}: column {name} is missing; the table has {', '.join(raw.columns)}")
    for value, diagnosis in (label_map or {}).items():
        if diagnosis not in DIAGNOSES:
            raw.problems.append(f"--label-map: {value!r} is mapped to {diagnosis!r}; expected {', '.join(DIAGNOSES)}")
    own_group = not is_bids and label_column != "group"
    frame = pd.DataFrame(
        {
            "subject": read_column(raw, "subject", _subject),
            "file": _files(raw, root, confined=data_root is not None, keep_absent=keep_absent),
            "diagnosis": _with_sides(raw, read_column(raw, label_column, lambda text: _diagnosis(text, label_map))),
            "session": read_column(raw, "session", _optional),
            "age": read_column(raw, "age", parse_age, default=math.nan),
            "sex": read_column(raw, "sex", parse_sex),
            "site": read_column(raw, "site", _optional),
            "group": read_column(raw, "group", _optional) if own_group else [""] * len(raw.rows),
        }
    )
    _check_repeats(raw, frame)
    if raw.problems:
        raise InputError.of(f"{path}: the table was refused", raw.problems)
    frame["label"] = frame["diagnosis"].map(DIAGNOSES).astype("int64")
    frame["side"] = frame["diagnosis"].map(lambda diagnosis: SIDES.get(diagnosis, ""))
    frame["group"] = frame["group"].where(frame["group"] != "", frame["subject"])
    extra = pd.DataFrame(raw.rows, dtype=object).drop(columns=[*COLUMNS, "participant_id"], errors="ignore")
    return pd.concat([frame[list(COLUMNS)], extra], axis=1)


def table_text(frame: pd.DataFrame, folder: Path | str) -> str:
    """The content of a table's file, were it written into `folder`.

    `label` and `side` are left out, since they follow from the diagnosis; optional columns may be absent. `file` is
    written relative to the folder, unless the two share nothing but the root of the file system.
    """
    frame = frame.reset_index(drop=True)
    blank = pd.Series([""] * len(frame), index=frame.index)
    stored = {name: frame.get(name, blank) for name in STORED}
    stored["file"] = frame["file"].map(lambda file: _relative(file, folder))
    stored["age"] = frame.get("age", blank).map(lambda age: "" if pd.isna(age) or age == "" else repr(float(age)))
    extra = {name: frame[name] for name in frame.columns if name not in COLUMNS}
    return pd.DataFrame({**stored, **extra}).to_csv(index=False, lineterminator="\n")


def write_table(path: Path | str, frame: pd.DataFrame) -> None:
    """Writes `frame` as a table that `read_table` returns unchanged; atomic."""
    text = table_text(frame, Path(path).parent)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_csv(path: Path | str, frame: pd.DataFrame) -> None:
    """Writes any frame as it is, without its index; atomic."""
    with atomic_write(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")


def read_delimited(path: Path) -> RawTable:
    """Splits the file into named fields; raises at once where no rows can be told apart."""
    if not path.is_file():
        raise InputError(f"{path}: no such table")
    refuse_pointer(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save the table as 'CSV UTF-8'") from None
    before, zero, _ = text.partition("\0")
    if zero:
        raise InputError(f"{path}: line {before.count(chr(10)) + 1}: not a delimited table: it holds a zero byte")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    found, begin = [], 1
    try:
        for fields in lines:
            found.append((begin, [value.strip() for value in fields]))
            begin = lines.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}: line {begin}: not a delimited table: {error}") from None
    return _with_header(path, [(line, values) for line, values in found if any(values)])


def _with_header(path: Path, found: list[tuple[int, list[str]]]) -> RawTable:
    """Lines (number and fields) under the first of them, which names the columns."""
    if not found:
        raise InputError(f"{path}: the table is empty")
    (first, columns), *rows = found
    if len(columns) == 1 and ";" in columns[0]:
        raise InputError(f"{path}: line {first}: fields are separated by semicolons; save the table with commas")
    if len(columns) == 1 and "," in columns[0] and path.suffix == ".tsv":
        raise InputError(f"{path}: line {first}: fields are separated by commas; name it .csv, or save it with tabs")
    if repeated := sorted({name for name in columns if columns.count(name) > 1}):
        raise InputError(f"{path}: line {first}: columns named more than once: {', '.join(repeated)}")
    if not rows:
        raise InputError(f"{path}: the table has a header but no rows")
    raw = RawTable(path, columns)
    for line, values in rows:
        if len(values) == len(columns):
            raw.rows.append(dict(zip(columns, values, strict=True)))
            raw.lines.append(line)
        else:
            hint = "; an unquoted comma, perhaps a decimal comma?" if len(values) > len(columns) else ""
            wrong = f"{len(values)} fields where the header names {len(columns)} columns{hint}"
            raw.problems.append(f"{path}: line {line}: {wrong}")
    return raw


def read_column(raw: RawTable, name: str, read: Callable, default: object = "") -> list:
    """One column, each field through `read`; a field that `read` refuses is noted and replaced by `default`."""
    if name not in raw.columns:
        return [default] * len(raw.rows)
    values = []
    for index, row in enumerate(raw.rows):
        try:
            values.append(read(row[name]))
        except ValueError as error:
            raw.fault(index, name, str(error))
            values.append(default)
    return values


def _optional(text: str) -> str:
    return "" if text in MISSING else text


def _subject(text: str) -> str:
    if text in ("", "n/a"):
        raise ValueError("empty; every row needs a subject")
    return text


def _diagnosis(text: str, label_map: Mapping[str, str] | None) -> str:
    if label_map is None:
        if text not in DIAGNOSES:
            raise ValueError(f"unknown diagnosis {text!r}; expected {', '.join(DIAGNOSES)}, or give --label-map")
        return text
    if text not in label_map:
        raise ValueError(f"{text!r} is not in --label-map, which has {', '.join(label_map)}")
    return label_map[text]


def _with_sides(raw: RawTable, diagnoses: list[str]) -> list[str]:
    """The diagnoses, with the side of a plain TLE where a column `side` has it; other words there are no side."""
    sides = read_column(raw, "side", lambda text: _SIDE_WORDS.get(text.lower(), ""))
    for index, (diagnosis, side) in enumerate(zip(diagnoses, sides, strict=True)):
        if side and SIDES.get(diagnosis, side) != side:
            raw.fault(index, "side", f"{side}, but the diagnosis is {diagnosis}")
    return [f"TLE-{side}" if side and name == "TLE" else name for name, side in zip(diagnoses, sides, strict=True)]


def parse_age(text: str) -> float:
    """Years, NaN where the cell says nothing; ValueError with the reason for anything else."""
    if text in MISSING:
        return math.nan
    if "," in text:
        raise ValueError(f"{text!r} has a decimal comma; write {text.replace(',', '.')}")
    # BIDS asks for ages to be capped at 89; "89+" is how some tables write it.
    plain = text.removesuffix("+")
    if not _NUMBER.fullmatch(plain):
        raise ValueError(f"{text!r} is not a number of years")
    if not 0 <= float(plain) <= OLDEST_YEARS:
        raise ValueError(f"{text} years; expected 0 to {OLDEST_YEARS:g}")
    return float(plain)


def parse_sex(text: str) -> str:
    """``F``, ``M``, or empty where the cell says nothing; ValueError with the reason for anything else."""
    if text in MISSING:
        return ""
    if text.lower() not in SEXES:
        raise ValueError(f"{text!r}; expected F, M, female or male (numbers mean different things in different tables)")
    return SEXES[text.lower()]


def _files(raw: RawTable, root: Path, *, confined: bool, keep_absent: bool) -> list[str]:
    if "file" not in raw.columns:
        return [""] * len(raw.rows)
    base = root if confined else Path(os.path.abspath(raw.path.parent))
    files = []
    for index, row in enumerate(raw.rows):
        text = row["file"]
        path = _plain_path(base / text)
        if text in ("", "n/a"):
            raw.fault(index, "file", "empty; every row needs a file")
        elif not os.path.isfile(path) and not keep_absent:
            raw.fault(index, "file", f"no such file: {path}" + ("" if text == str(path) else f" (written as {text})"))
        elif confined and not Path(os.path.realpath(path)).is_relative_to(root):
            raw.fault(index, "file", f"{text} leaves --data-root {root}: it is {os.path.realpath(path)}")
        files.append(str(path))
    return files


def _plain_path(path: Path) -> Path:
    """`path` without ``..``, unless a symbolic link makes that another file. Links stay: users know files by them."""
    plain = Path(os.path.normpath(path))
    return plain if os.path.realpath(plain) == os.path.realpath(path) else path


def _relative(file: str, folder: Path | str) -> str:
    absolute, folder = os.path.abspath(file), os.path.abspath(folder)
    if os.path.commonpath([absolute, folder]) == os.path.sep:
        return absolute
    relative = os.path.relpath(absolute, folder)
    # `..` after a symbolic link leads elsewhere than the text suggests.
    same = os.path.realpath(os.path.join(folder, relative)) == os.path.realpath(absolute)
    return relative if same else absolute


def _check_repeats(raw: RawTable, frame: pd.DataFrame) -> None:
    """A scan counted twice, or a subject with two sexes or two classes, would bias every number downstream."""
    firsts: dict[tuple[str, ...], int] = {}
    constants: dict[tuple[str, str], tuple[str, int]] = {}
    for index, row in enumerate(frame.itertuples(index=False)):
        if row.file and (first := firsts.setdefault(("file", os.path.realpath(row.file)), index)) != index:
            raw.fault(index, "file", f"the same file as on line {raw.lines[first]}: {row.file}")
        if not row.subject:
            continue
        if (first := firsts.setdefault(("row", row.subject, row.session), index)) != index:
            session = f", session {row.session}" if row.session else ""
            raw.fault(index, "subject", f"{row.subject}{session} is on line {raw.lines[first]} already")
        class_name = CLASS_NAMES[DIAGNOSES[row.diagnosis]] if row.diagnosis in DIAGNOSES else ""
        for column, value in (("sex", row.sex), ("diagnosis", class_name)):
            if value:
                other, line = constants.setdefault((column, row.subject), (value, raw.lines[index]))
                if other != value:
                    raw.fault(index, column, f"{row.subject} is {value} here and {other} on line {line}")


def _find_images(raw: RawTable, root: Path, keep_absent: bool) -> None:
    """Turns the participants of a BIDS folder into subjects, and where no column says the files, into their images."""
    raw.rows = [{**row, "subject": row["participant_id"]} for row in raw.rows]
    raw.columns.append("subject")
    if "file" in raw.columns:
        return
    listed = list(zip(raw.rows, raw.lines, strict=True))
    raw.rows, raw.lines = [], []
    for row, line in listed:
        # A name is one folder's name: separators in it could lead anywhere.
        plain = re.sub(r"[/\\]", "_", row["subject"])
        folder = root / (plain if plain.startswith("sub-") else f"sub-{plain}")
        images = t1_images(folder)
        if not images and keep_absent:
            images = [(folder / "anat" / f"{folder.name}_T1w.nii.gz", "")]
        if not images:
            raw.problems.append(
                f"{raw.path}: line {line}, column participant_id: no anat/*_T1w.nii.gz in {folder} or its sessions"
            )
        raw.rows += [{**row, "file": str(image), "session": session} for image, session in images]
        raw.lines += [line] * len(images)
    raw.columns += ["file", "session"]


def t1_images(folder: Path) -> list[tuple[Path, str]]:
    """The T1-weighted images of a BIDS participant's folder and of its sessions, sorted, and the session of each.

    A session is what the file's name says between participant and ``_T1w``, such as ``ses-01_run-2``, often nothing:
    unique within the participant also where a session was scanned twice.
    """
    images = sorted([*folder.glob("anat/*_T1w.nii*"), *folder.glob("ses-*/anat/*_T1w.nii*")])
    return [
        (image, image.name.split("_T1w.nii")[0].removeprefix(folder.name).removeprefix("_"))
        for image in images
        if image.name.endswith((".nii", ".nii.gz"))
    ]
