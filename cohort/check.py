"""Looks for everything that can be wrong with a cohort before anything is trained on it, and reports it at once.

Reads tables, or several splits of one cohort, and every scan in them to its end. Writes findings.csv (one line each,
errors first), findings.json (the same with counts, sites, ages, sexes and thresholds) and groups.csv (scans that are
copies of one another, for cohort.split --groups). Exit code 1 when there are errors.

    python -m cohort.check --csv data_csvs/pickle_prep_demo.csv --out runs/check
    python -m cohort.check --csv data_csvs/train.csv data_csvs/val.csv data_csvs/test.csv --out runs/check_splits

Several tables are taken for splits: what they share is an error. Within one table, copies under different groups are an
error when their voxels are equal and a warning when they only look like copies.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cohort.checking.checked import CACHE_DIR, Examined, Match, Matches, examine_all, likeness, paired_rows, search
from cohort.checking.confounds import confound_findings, confounds
from cohort.checking.duplicates import join
from cohort.checking.findings import SEVERITIES, Finding, in_order, write_findings
from cohort.splitting.folds import refuse_shared
from cohort.tables import CLASS_NAMES, read_table
from runtime.cli import describe, run_script
from runtime.errors import InputError
from runtime.files import atomic_write, sha256, write_json

SHOWN = 25
"""Findings that are printed; all are in the files."""


@dataclass(frozen=True)
class Config:
    """What to check."""

    csv: tuple[Path, ...]
    """One table, or several that are splits of one cohort; a BIDS participants.tsv will do."""
    out: Path
    """Folder for findings.csv, findings.json and groups.csv."""
    data_root: Path | None = None
    """Folder that the tables' files are relative to and must not leave."""
    label_column: str = "diagnosis"
    """Column that holds the diagnosis."""
    label_map: dict[str, str] | None = None
    """Meaning of that column's values, in pairs: HC HC left TLE-L right TLE-R."""
    cache_dir: Path = CACHE_DIR
    """Where what was found of each scan is kept; may be shared by processes and deleted at any time."""
    dry_run: bool = False
    """Print the configuration and stop."""


@dataclass(frozen=True)
class Listed:
    """The scans of all tables, one row each, with what could be read of the tables."""

    frame: pd.DataFrame
    """Columns `table`, `row` (from 1), `subject`, `file`, `group`, `label` (-1 where the table was refused)."""
    accepted: dict[str, pd.DataFrame]
    """The tables without faults, by name."""
    findings: list[Finding]


def main(config: Config) -> None:
    """Tables, scans, copies, confounds; then the report."""
    config.out.mkdir(parents=True, exist_ok=True)
    listed = list_scans(config)
    frame = listed.frame
    examined = examine_all(frame["file"].tolist(), config.cache_dir)
    readable = [row for row, result in enumerate(examined) if isinstance(result, Examined)]
    frame_of_readable = frame.iloc[readable].reset_index(drop=True)
    scans = [examined[row] for row in readable]
    matches = search(
        [scan.examination.image for scan in scans],
        frame_of_readable["group"].tolist(),
        lambda row: scans[row].thumbnail(),
        config.cache_dir,
    )
    pairs = paired_rows([scan.examination.image for scan in scans], frame_of_readable["group"].tolist(), matches.pairs)
    measured = confounds(pd.concat(listed.accepted.values(), ignore_index=True)) if listed.accepted else None
    findings = [
        *listed.findings,
        *scan_findings(frame, examined),
        *copy_findings(frame_of_readable, scans, pairs),
        *(confound_findings(measured, " ".join(map(str, config.csv))) if measured else []),
    ]
    write_findings(config.out / "findings.csv", findings)
    write_groups(config.out / "groups.csv", frame, np.array(readable, dtype=int), pairs)
    write_json(config.out / "findings.json", summary(config, listed, scans, matches, measured, findings))
    print(report(findings, measured, scans, config.out))
    if any(finding.severity == "error" for finding in findings):
        sys.exit(1)


def list_scans(config: Config) -> Listed:
    """Reads all tables. Of a table that is refused every fault is a finding, and its scans are listed all the same."""
    accepted, parts, findings = {}, [], []
    for path in config.csv:
        name = table_name(path, config.csv)
        try:
            table = read_table(
                path, data_root=config.data_root, label_column=config.label_column, label_map=config.label_map
            )
        except InputError as error:
            findings += [Finding("error", "table", problem, file=str(path)) for problem in problems_of(error)]
            table = files_of_refused(path, config.data_root)
        else:
            accepted[name] = table
        columns = table[["subject", "file", "group", "label"]]
        parts.append(columns.assign(table=name, row=range(1, len(table) + 1)))
    if len(accepted) > 1:
        try:
            refuse_shared(accepted)
        except InputError as error:
            findings += [Finding("error", "split", problem) for problem in problems_of(error)]
    return Listed(pd.concat(parts, ignore_index=True), accepted, findings)


def table_name(path: Path, tables: Sequence[Path]) -> str:
    """What a table is called in findings: its stem, or its path where several share the stem."""
    return path.stem if sum(other.stem == path.stem for other in tables) == 1 else str(path)


def problems_of(error: InputError) -> list[str]:
    """The single problems of a refusal (`InputError.of`), or its one message."""
    return str(error).split("\n  - ")[1:] or [str(error)]


def files_of_refused(path: Path, data_root: Path | None) -> pd.DataFrame:
    """What can be told of the scans of a table with faults, so that one report holds these and the scans' own.

    Rows are taken as far as they have a file that the table may name; `label` is -1, `group` the subject.
    """
    text = path.read_bytes().decode("utf-8-sig", errors="replace") if path.is_file() else ""
    lines = csv.DictReader(
        io.StringIO(text.replace("\0", ""), newline=""), delimiter="\t" if path.suffix == ".tsv" else ","
    )
    base = Path(os.path.abspath(data_root if data_root is not None else path.parent))
    rows = []
    for fields in lines:
        subject, file = ((fields.get(name) or "").strip() for name in ("subject", "file"))
        place = Path(os.path.normpath(base / file))
        inside = data_root is None or Path(os.path.realpath(place)).is_relative_to(os.path.realpath(base))
        if file and inside:
            rows.append({"subject": subject, "file": str(place), "group": subject, "label": -1})
    return pd.DataFrame(rows, columns=["subject", "file", "group", "label"])


def scan_findings(frame: pd.DataFrame, examined: Sequence[Examined | InputError]) -> list[Finding]:
    """Scans that cannot be read, and what is unusual about the others."""
    found = []
    for row, result in zip(frame.itertuples(), examined, strict=True):
        where = {"file": row.file, "subject": row.subject, "row": row.row}
        if isinstance(result, InputError):
            found.append(Finding("error", "unreadable", str(result).removeprefix(f"{row.file}: "), **where))
        else:
            found += [Finding("warning", kind, text, **where) for kind, text in result.examination.warnings]
    return found


def copy_findings(
    frame: pd.DataFrame, scans: Sequence[Examined], pairs: Sequence[tuple[int, int, Match | None]]
) -> list[Finding]:
    """Copies under different groups (`pairs`), and images that one group has twice.

    Args:
        frame: the rows that can be read.
        scans: what was found of each.
        pairs: rows of different groups that are one image (`cohort.checking.checked.paired_rows`).
    """
    found = []
    for first, second, match in pairs:
        one, other = frame.iloc[first], frame.iloc[second]
        across = one["table"] != other["table"]
        kind = "near-duplicate" if match else "duplicate"
        how = likeness(match) if match else same_image(scans[first], scans[second])
        where = f"{one['table']} and {other['table']}" if across else one["table"]
        advice = "a leak" if across else "one person? Give both one group (groups.csv), or remove one"
        message = f"{other['subject']} and {one['subject']} ({one['file']}) in {where}: {how}; {advice}"
        severity = "error" if across or match is None else "warning"
        found.append(_at(other, severity, kind, message))
        if {one["label"], other["label"]} == {0, 1}:
            names = [CLASS_NAMES[row["label"]] for row in (other, one)]
            text = f"{other['subject']} is {names[0]}, its copy {one['subject']} ({one['file']}) is {names[1]}"
            found.append(_at(other, "error", "label", text))
    first_of: dict[tuple[str, str], int] = {}
    for row, scan in enumerate(scans):
        key = (scan.examination.image, frame["group"].iloc[row])
        if (first := first_of.setdefault(key, row)) != row:
            text = f"counted twice: {same_image(scans[first], scan)} as {frame['file'].iloc[first]}"
            found.append(_at(frame.iloc[row], "warning", "duplicate", text))
    return found


def _at(row: pd.Series, severity: str, kind: str, message: str) -> Finding:
    return Finding(severity, kind, message, file=row["file"], subject=row["subject"], row=int(row["row"]))


def same_image(one: Examined, other: Examined) -> str:
    """How two scans with equal voxels relate, in words."""
    equal = one.examination.voxels == other.examination.voxels
    return "the same voxels" if equal else "the same voxels, left and right exchanged"


def write_groups(
    path: Path, frame: pd.DataFrame, readable: np.ndarray, pairs: Sequence[tuple[int, int, Match | None]]
) -> None:
    """Writes groups.csv: per scan the name of the set of copies it is in, empty for none.

    The name is the smallest group among the set's, so that it can stand in the table's own column `group`.
    """
    roots = join(len(readable), [pair[:2] for pair in pairs])
    groups = frame["group"].iloc[readable].reset_index(drop=True)
    names = groups.groupby(roots).transform("min").where(pd.Series(roots).map(Counter(roots.tolist())) > 1, "")
    suggested = pd.Series("", index=frame.index)
    suggested.iloc[readable] = names.to_numpy()
    with atomic_write(path) as temporary:
        frame[["file", "subject", "table"]].assign(group=suggested).to_csv(temporary, index=False, lineterminator="\n")


def summary(
    config: Config,
    listed: Listed,
    scans: Sequence[Examined],
    matches: Matches,
    measured: dict[str, Any] | None,
    findings: Sequence[Finding],
) -> dict[str, Any]:
    """The content of findings.json."""
    return {
        "tables": [
            {
                "file": str(path),
                "sha256": sha256(path) if path.is_file() else None,
                "accepted": table_name(path, config.csv) in listed.accepted,
            }
            for path in config.csv
        ],
        "scans": len(listed.frame),
        "readable": len(scans),
        "counts": {severity: sum(one.severity == severity for one in findings) for severity in SEVERITIES},
        "geometries": geometries(scans),
        "near_duplicates": {"above_at_8_mm": matches.coarse_threshold, "above_at_4_mm": matches.fine_threshold},
        "confounds": measured,
        "findings": [asdict(one) for one in in_order(findings)],
    }


def geometries(scans: Sequence[Examined]) -> dict[str, int]:
    """Scans by shape, spacing and orientation, the most frequent first."""
    counts = Counter(
        f"{'x'.join(map(str, one.shape))} of {' x '.join(f'{edge:g}' for edge in one.spacing_mm)} mm, {one.orientation}"
        for one in (scan.examination for scan in scans)
    )
    return dict(counts.most_common())


def report(findings: Sequence[Finding], measured: dict[str, Any] | None, scans: Sequence[Examined], out: Path) -> str:
    """The printed summary."""
    ordered = in_order(findings)
    lines = [f"{count} scans: {text}" for text, count in list(geometries(scans).items())[:5]]
    if measured:
        lines += ["", pd.DataFrame(measured["sites"]).T.rename_axis("site").to_string()]
        if auc := measured["site_auc"]:
            interval = f"{auc['low']:.2f} to {auc['high']:.2f}"
            lines.append(f"site alone, AUC {auc['auc']:.2f} ({interval}); 0.5 or less says nothing about the class")
    for one in ordered[:SHOWN]:
        where = f"{one.file}: " if one.file and not one.message.startswith(one.file) else ""
        lines.append(f"{one.severity}, {one.kind}: {where}{one.message}")
    if len(ordered) > SHOWN:
        lines.append(f"... and {len(ordered) - SHOWN} more")
    counts = [f"{sum(one.severity == severity for one in findings)} {severity}s" for severity in SEVERITIES]
    return "\n".join([*lines, f"{' and '.join(counts)}; {out / 'findings.csv'}"])


if __name__ == "__main__":
    run_script(main, Config, description=describe(__doc__))
