"""Tables of scans: who, which file, which diagnosis. The reader finds every fault of a table before it refuses it.

Columns and codings: data_csvs/README.md.
"""

import math
import os
import shlex
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cohort.listing.bids import Unlisted, find_images
from cohort.listing.cells import MISSING, optional, parse_age, parse_sex
from cohort.listing.choice import Choice
from cohort.listing.delimited import RawTable, read_column, read_delimited, read_optional
from cohort.listing.reading import EXCLUDE, LABEL_MEANINGS, PLAIN, SEX_MEANINGS, Reading
from runtime.errors import InputError, InputWarning
from runtime.files import absence, atomic_write

CLASS_NAMES = ("HC", "TLE")
LABELS = {"HC": 0, "TLE": 1}
DIAGNOSES = {"HC": 0, "TLE": 1, "TLE-L": 1, "TLE-R": 1}
"""Diagnosis to class code. The side of a TLE is kept in its own column, not in the code."""

SIDES = {"TLE-L": "L", "TLE-R": "R"}
_SIDE_WORDS = {"l": "L", "left": "L", "r": "R", "right": "R"}
STORED = ("subject", "file", "diagnosis", "session", "age", "sex", "site", "group")
COLUMNS = ("subject", "file", "diagnosis", "label", "side", "session", "age", "sex", "site", "group")
"""STORED is in the file, in this order; COLUMNS is what a frame has: `label` and `side` follow from the diagnosis."""

_OTHER_NAMES = {
    name: (name,) for name in ("participant_id", "subject", "file", "diagnosis", "session_id", "age", "site")
}
_OTHER_NAMES["sex"] = ("sex", "gender")
"""What columns are called elsewhere, in whatever capitals."""
SHOWN = 20
"""Absent scans that a warning lists; it counts the others."""


class Listed(NamedTuple):
    """What a table or a folder names, and what is there of it."""

    frame: pd.DataFrame
    """One row per scan with the columns COLUMNS (`read_table`), also those whose scan is not there."""
    absent: np.ndarray
    """str (rows,): why the scan of a row is not there, empty where it is."""
    where: list[str]
    """The place of each row's file, for messages."""
    unlisted: list[Unlisted]
    """Scans of people that no row names."""
    notes: list[str]
    """What was accepted and has to be said."""

    def differences(self) -> list[str]:
        """A line for each row without a scan, and for each scan without a row."""
        rows = [f"{place}: {reason}" for place, reason in zip(self.where, self.absent, strict=True) if reason]
        return rows + [f"{' '.join(filter(None, scan[:2]))}: {scan.file} is {scan.reason}" for scan in self.unlisted]

    def there(self) -> pd.DataFrame:
        """The rows whose scan is there, after a word on the others; InputError where there is none."""
        rows = self.frame[self.absent == ""]
        if rows.empty:
            raise InputError.of("none of the scans is there", self.differences())
        self.warn()
        return rows

    def warn(self) -> None:
        """Says the notes, and how table and scans differ."""
        for note in self.notes:
            warnings.warn(note, InputWarning, stacklevel=2)
        if lines := self.differences():
            lines = lines[:SHOWN] + ([f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])
            text = "".join(f"\n  - {line}" for line in lines)
            warnings.warn(f"table and scans differ ({len(self.differences())}):{text}", InputWarning, stacklevel=2)


def read_table(path: Path | str, reading: Reading = PLAIN) -> pd.DataFrame:
    """Reads a table of scans (CSV), or a BIDS ``participants.tsv``.

    Args:
        path: the table; UTF-8, with or without a byte order mark, any line ends; tab-separated if it ends in ``.tsv``.
            `file` is absolute, or relative to the table's folder; with `data_root` relative to that, and inside it,
            symbolic links followed.
        reading: what its values mean, and what is done where it has gaps.

    Returns:
        One row per scan, in the order of the file, with the columns COLUMNS: `file` absolute, `label` 0 or 1, `side`
        "L", "R" or "" (from the diagnosis; for a plain TLE from a column `side` where there is one, of L, left, R or
        right), `age` in years or NaN, `sex` "F", "M" or "", `group` (equal to the subject where not given). Absent
        texts are "". Further columns of the file follow, as text. Of a participants.tsv, one row per session, or per
        image if `reading` prefers all; its column `group` is a diagnosis if there is no other, never our `group`.
        Without rows that `reading` excludes, and where it is `partial` without those whose scan is not there.

    Raises:
        InputError: lists every fault of the table with file, line and column; and, unless `partial`, every row without
            a scan and everybody with a scan and no row. What is accepted is said by an InputWarning.
    """
    listed = list_table(path, reading)
    if not reading.partial and (problems := listed.differences()):
        raise InputError.of(_refusal(path, problems), problems)
    return listed.there().reset_index(drop=True)


def list_table(path: Path | str, reading: Reading = PLAIN) -> Listed:
    """As `read_table`, for a caller that reports absent scans and notes itself; refuses the table's faults only."""
    raw = read_delimited(Path(path))
    root = Path(os.path.realpath(reading.data_root if reading.data_root is not None else raw.path.parent))
    _adopt_names(raw, reading.label_column)
    given = list(raw.columns)
    is_bids = "participant_id" in given and "subject" not in given
    choice, unlisted = Choice(reading.prefer), []
    place = "participant_id" if is_bids and "file" not in given else "file"
    if is_bids:
        unlisted = find_images(raw, root, choice)
        raw.notes += [f"{raw.path}: {note}" for note in [choice.note()] if note]
    if reading.prefer and place == "file":
        raise InputError(f"--prefer chooses among the images of a BIDS dataset; {path} names its files itself")
    choice.refuse_unmatched()
    is_group = is_bids and reading.label_column == "diagnosis" and "diagnosis" not in raw.columns
    label_column = "group" if is_group else reading.label_column
    for name in ("subject", "file"):
        if name not in raw.columns:
            raw.problems.append(_missing(raw, name, given) + "; rename the one that has it")
    diagnoses = _diagnoses(raw, label_column, reading, given)
    kept = [diagnosis != EXCLUDE for diagnosis in diagnoses]
    raw.keep(kept)
    if not raw.rows and not raw.problems:
        raise InputError.of(f"{path}: no row is left", raw.notes)
    strict = {"strict": reading.strict}
    own_group = not is_bids and label_column != "group"
    frame = pd.DataFrame(
        {
            "subject": read_column(raw, "subject", _subject),
            "file": _files(raw, root, confined=reading.data_root is not None),
            "diagnosis": _with_sides(raw, [name for name in diagnoses if name != EXCLUDE]),
            "session": read_column(raw, "session", optional),
            "age": read_optional(raw, "age", parse_age, math.nan, **strict),
            "sex": read_optional(raw, "sex", lambda text: parse_sex(text, reading.sex_map), **strict),
            "site": read_column(raw, "site", optional),
            "group": read_column(raw, "group", optional) if own_group else [""] * len(raw.rows),
        }
    )
    _check_repeats(raw, frame)
    where = [f"{raw.path}: line {line}, column {place}" for line in raw.lines]
    listed = Listed(frame, np.array(raw.absent, dtype=object), where, unlisted, raw.notes)
    if raw.problems:
        differences = [] if reading.partial else listed.differences()
        raise InputError.of(_refusal(path, differences), raw.problems + differences)
    frame["label"] = frame["diagnosis"].map(DIAGNOSES).astype("int64")
    frame["side"] = frame["diagnosis"].map(lambda diagnosis: SIDES.get(diagnosis, ""))
    frame["group"] = frame["group"].where(frame["group"] != "", frame["subject"])
    extra = pd.DataFrame(raw.rows, dtype=object).drop(columns=[*COLUMNS, "participant_id"], errors="ignore")
    return listed._replace(frame=pd.concat([frame[list(COLUMNS)], extra], axis=1))


def sides_of(frame: pd.DataFrame) -> list[str]:
    """Which of TLE-L and TLE-R a table's diagnoses name."""
    return sorted({*SIDES} & {*frame["diagnosis"]})


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


def _adopt_names(raw: RawTable, label_column: str) -> None:
    """Reads `Age`, `Gender` and the like as our columns, where that is the only one and none is called as ours."""
    others = dict(_OTHER_NAMES)
    if "participant_id" in map(str.lower, raw.columns):
        others["group"] = ("group",)  # of BIDS, a diagnosis; in other tables it is anything
    for ours, names in others.items():
        found = [name for name in raw.columns if name.lower() in names and name != label_column]
        if ours not in raw.columns and len(found) == 1:
            raw.columns = [ours if name == found[0] else name for name in raw.columns]
            raw.rows = [dict(zip(raw.columns, row.values(), strict=True)) for row in raw.rows]
            raw.notes.append(f"{raw.path}: column {found[0]} is read as {ours}")


def _refusal(path: Path | str, differences: Sequence[str]) -> str:
    advice = (
        "table and scans differ (--partial of cohort.prepare, check and split leaves out what is on one side only); "
    )
    return f"{path}: {advice if differences else ''}the table was refused"


def _missing(raw: RawTable, name: str, given: list[str]) -> str:
    return f"{raw.path}: column {name} is missing; the table has {', '.join(given)}"


def _subject(text: str) -> str:
    if text in ("", "n/a"):
        raise ValueError("empty; every row needs a subject")
    return text


def _diagnoses(raw: RawTable, column: str, reading: Reading, given: list[str]) -> list[str]:
    """The diagnosis of each row, or EXCLUDE; what has no meaning is a problem, once for each value."""
    mapping = reading.label_map
    _check_map(raw, "--label-map", mapping, LABEL_MEANINGS)
    if reading.all_hc and mapping:
        raw.problems.append("--all-hc and --label-map: give one of the two")
    _check_map(raw, "--sex-map", reading.sex_map, SEX_MEANINGS)
    if column not in raw.columns and not reading.all_hc:
        hint = "name the one that has it by --label-column, or give --all-hc if everybody is healthy"
        named = "diagnosis (or group)" if column == "group" else column
        raw.problems.append(f"{_missing(raw, named, given)}; {hint}")
    if column not in raw.columns:
        return ["HC" if reading.all_hc else ""] * len(raw.rows)
    texts = [row[column] for row in raw.rows]
    found = [_meaning(text, mapping) for text in texts]
    if reading.all_hc:
        found = ["HC" if text in (*MISSING, "HC") else "" for text in texts]
    _refuse_unknown(raw, column, [text for text, name in zip(texts, found, strict=True) if not name], reading)
    out = Counter(text or "empty" for text, name in zip(texts, found, strict=True) if name == EXCLUDE)
    if out:
        told = ", ".join(f"{text} {count}" for text, count in out.most_common())
        raw.notes.append(f"{raw.path}: column {column}: {out.total()} rows left out by --label-map: {told}")
    return found


def _refuse_unknown(raw: RawTable, column: str, texts: Sequence[str], reading: Reading) -> None:
    """One problem for each value without a meaning, the last of them with the flag to give."""
    lines = [row[column] for row in raw.rows]
    for text, count in Counter(texts).items():
        many = f" in {count} rows" if count > 1 else ""
        healthy = f"{text!r}{many}, but --all-hc says that everybody is healthy"
        unknown = f"unknown diagnosis {text!r}{many}; expected {', '.join(DIAGNOSES)}"
        raw.fault(lines.index(text), column, healthy if reading.all_hc else unknown)
    if texts:
        pairs = [*reading.label_map.items(), *((text or "n/a", "...") for text in Counter(texts))]
        flag = " ".join(f"{shlex.quote(value)} {meaning}" for value, meaning in pairs)
        raw.problems[-1] += (
            f"; say in one flag what each means, {', '.join(DIAGNOSES)}, or {EXCLUDE} to leave its rows out: "
            f"--label-map {flag}"
        )


def _check_map(raw: RawTable, option: str, mapping: Mapping[str, str], allowed: Sequence[str]) -> None:
    wrong = [(value, meaning) for value, meaning in mapping.items() if meaning not in allowed]
    raw.problems += [f"{option}: {value!r} is mapped to {to!r}; expected {', '.join(allowed)}" for value, to in wrong]


def _meaning(text: str, mapping: Mapping[str, str]) -> str:
    """What a cell means; empty where that is not known."""
    own = mapping.get("n/a", "") if text in MISSING else text if text in DIAGNOSES else ""
    return mapping.get(text, own)


def _with_sides(raw: RawTable, diagnoses: list[str]) -> list[str]:
    """The diagnoses, with the side of a plain TLE where a column `side` has it; other words there are no side."""
    sides = read_column(raw, "side", lambda text: _SIDE_WORDS.get(text.lower(), ""))
    for index, (diagnosis, side) in enumerate(zip(diagnoses, sides, strict=True)):
        if side and SIDES.get(diagnosis, side) != side:
            raw.fault(index, "side", f"{side}, but the diagnosis is {diagnosis}")
    return [f"TLE-{side}" if side and name == "TLE" else name for name, side in zip(diagnoses, sides, strict=True)]


def _files(raw: RawTable, root: Path, *, confined: bool) -> list[str]:
    """Absolute paths; notes those that leave the root, and in `raw.absent` those that are not there."""
    if "file" not in raw.columns:
        return [""] * len(raw.rows)
    base = root if confined else Path(os.path.abspath(raw.path.parent))
    files = []
    for index, row in enumerate(raw.rows):
        text = row["file"]
        path = _plain_path(base / text)
        if text in ("", "n/a"):
            raw.fault(index, "file", "empty; every row needs a file")
        elif confined and not Path(os.path.realpath(path)).is_relative_to(root):
            raw.fault(index, "file", f"{text} leaves --data-root {root}: it is {os.path.realpath(path)}")
        elif not raw.absent[index] and (reason := absence(path)):
            raw.absent[index] = f"{reason}: {path}" + ("" if text == str(path) else f" (written as {text})")
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
            told = f"{row.subject}{session} is on line {raw.lines[first]} already"
            raw.fault(index, "subject", f"{told}; rows of one subject need different values in a column session")
        class_name = CLASS_NAMES[DIAGNOSES[row.diagnosis]] if row.diagnosis in DIAGNOSES else ""
        for column, value in (("sex", row.sex), ("diagnosis", class_name)):
            if value:
                other, line = constants.setdefault((column, row.subject), (value, raw.lines[index]))
                if other != value:
                    raw.fault(index, column, f"{row.subject} is {value} here and {other} on line {line}")
