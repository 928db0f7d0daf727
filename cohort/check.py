"""Looks for everything that can be wrong with a cohort before anything is trained on it, and reports it at once.

Reads tables, or several splits of one cohort, and every scan in them to its end. Writes findings.csv (one line each,
errors first), findings.json (the same with counts, sites, ages, sexes and thresholds) and groups.csv (scans that are
copies of one another, for cohort.split --groups). Exit code 1 when there are errors.

    python -m cohort.check --csv data/demo/pickle_prep_demo.csv --out runs/check
    python -m cohort.check --csv data_csvs/train.csv data_csvs/val.csv data_csvs/test.csv --out runs/check_splits

Several tables are taken for splits: what they share is an error. Within one table, copies under different groups are an
error when their voxels are equal and a warning when they only look like copies.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cohort.checking.checked import CACHE_DIR, Examined, examine_all, name_sets, search
from cohort.checking.confounds import confound_warnings, confounds
from cohort.checking.duplicates import Pair
from cohort.listing.reading import Reading
from cohort.preparation.quality import flags, looks
from cohort.splitting.folds import refuse_shared
from cohort.tables import CLASS_NAMES, list_table, write_csv
from runtime.cli import describe, run_script
from runtime.errors import InputError
from runtime.files import sha256, write_json

SHOWN = 25
"""Findings that are printed; all are in the files."""
SEVERITIES = ("error", "warning")
"""An error makes a result wrong or a run impossible; a warning is for a person to judge."""


@dataclass(frozen=True)
class Config(Reading):
    """What to check."""

    csv: tuple[Path, ...]
    """One table, or several that are splits of one cohort; a BIDS participants.tsv will do."""
    out: Path
    """Folder for findings.csv, findings.json and groups.csv."""
    keep_flagged: bool = False
    """Name scans that cohort.prepare flagged (column qc) as warnings, and not as errors: the cohort is to keep them."""
    cache_dir: Path = CACHE_DIR
    """Where what was found of each scan is kept; may be shared by processes and deleted at any time."""
    dry_run: bool = False
    """Print the configuration and stop."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    severity: str
    """One of SEVERITIES."""
    kind: str
    """What was looked at, for example ``unreadable``, ``geometry``, ``duplicate``, ``site``."""
    message: str
    """What was found, with values, and what to do."""
    file: str = ""
    """The scan's file; the table's where it is about the table."""
    subject: str = ""
    row: int | None = None
    """The scan's place in its table, 1 for the first; None for what concerns several."""


def main(config: Config) -> None:
    """Tables, scans, copies, confounds; then the report."""
    config.out.mkdir(parents=True, exist_ok=True)
    frame, findings = list_scans(config)
    examined = examine_all(frame["file"].tolist(), config.cache_dir)
    readable = np.array([isinstance(result, Examined) for result in examined], dtype=bool)
    scans = [result for result in examined if isinstance(result, Examined)]
    images, groups = [scan.examination.image for scan in scans], frame["group"][readable].tolist()
    copies = search(images, groups, lambda row: scans[row].thumbnail(), config.cache_dir)
    measured = confounds(frame) if len(frame) else None
    findings += flag_findings(frame, "warning" if config.keep_flagged else "error")
    findings += scan_findings(frame, examined)
    findings += copy_findings(frame[readable].reset_index(drop=True), scans, copies.pairs)
    if measured:
        tables = " ".join(map(str, config.csv))
        findings += [Finding("warning", kind, text, file=tables) for kind, text in confound_warnings(measured)]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    columns = ["file", "subject", "row", "severity", "kind", "message"]
    listed = pd.DataFrame([asdict(finding) for finding in findings], columns=columns).astype({"row": "Int64"})
    write_csv(config.out / "findings.csv", listed)
    names = pd.Series("", index=frame.index, dtype=object)
    names[readable] = name_sets(groups, copies.pairs)  # a set's smallest group can stand in the table's own column
    write_csv(config.out / "groups.csv", frame[["file", "subject", "table"]].assign(group=names))
    shapes = geometries(scans)
    result = {
        "tables": [{"file": str(path), "sha256": sha256(path) if path.is_file() else None} for path in config.csv],
        "scans": len(frame),
        "readable": len(scans),
        "counts": counts_of(findings),
        "geometries": shapes,
        "near_duplicates": {"above_at_8_mm": copies.coarse_threshold, "above_at_4_mm": copies.fine_threshold},
        "confounds": measured,
        "findings": [asdict(finding) for finding in findings],
    }
    write_json(config.out / "findings.json", result)
    print(report(findings, measured, shapes, config.out))
    if counts_of(findings)["error"]:
        sys.exit(1)


def list_scans(config: Config) -> tuple[pd.DataFrame, list[Finding]]:
    """The scans of all tables, with the columns `table` and `row` (from 1); and the faults of tables as findings.

    Of a table that is refused no scan is listed, and none that is absent: that is a finding of its own.
    """
    accepted, findings = {}, []
    for path in config.csv:
        try:
            listed = list_table(path, config)
        except InputError as error:
            findings += [Finding("error", "table", problem, file=str(path)) for problem in problems_of(error)]
            continue
        findings += [Finding("warning", "table", note, file=str(path)) for note in listed.notes]
        # A table is called by its stem, or by its path where several share the stem.
        name = path.stem if sum(other.stem == path.stem for other in config.csv) == 1 else str(path)
        table = listed.frame.assign(table=name, row=range(1, len(listed.frame) + 1))
        accepted[name] = table[listed.absent == ""]
        severity = "warning" if config.partial else "error"
        lost = zip(table.iterrows(), listed.absent, strict=True)
        findings += [_at(row, severity, "absent", reason) for (_, row), reason in lost if reason]
        findings += [
            Finding(severity, "absent", scan.reason, file=scan.file, subject=scan.subject) for scan in listed.unlisted
        ]
    try:
        if len(accepted) > 1:
            refuse_shared(accepted)
    except InputError as error:
        findings += [Finding("error", "split", problem) for problem in problems_of(error)]
    nothing = pd.DataFrame(columns=["subject", "file", "group", "table"], dtype=object)
    return pd.concat(accepted.values() or [nothing], ignore_index=True), findings


def problems_of(error: InputError) -> list[str]:
    """The single problems of a refusal (`InputError.of`), or its one message."""
    return str(error).split("\n  - ")[1:] or [str(error)]


def scan_findings(frame: pd.DataFrame, examined: Sequence[Examined | InputError]) -> list[Finding]:
    """Scans that cannot be read, and what is unusual about the others."""
    found = []
    for (_, row), result in zip(frame.iterrows(), examined, strict=True):
        if isinstance(result, InputError):
            found.append(_at(row, "error", "unreadable", str(result).removeprefix(f"{row['file']}: ")))
        else:
            found += [_at(row, "warning", kind, text) for kind, text in result.examination.warnings]
    return found


def flag_findings(frame: pd.DataFrame, severity: str) -> list[Finding]:
    """Scans that were flagged when they were prepared, with the severity asked for; those worth a look as warnings."""
    told = ((flags(frame), severity, "flagged by cohort.prepare"), (looks(frame), "warning", "worth a look"))
    return [
        _at(frame.loc[row], severity, "quality", f"{word}: {said[row]}")
        for said, severity, word in told
        for row in said.index[said != ""]
    ]


def copy_findings(frame: pd.DataFrame, scans: Sequence[Examined], pairs: Sequence[Pair]) -> list[Finding]:
    """Copies under different groups (`pairs`, of the rows that can be read), and images that one group has twice."""
    found = []
    for pair in pairs:
        first, second = frame.iloc[pair.first], frame.iloc[pair.second]
        across, equal = first["table"] != second["table"], pair.correlation is None
        how = same_image(scans[pair.first], scans[pair.second]) if equal else pair.likeness
        where = f"{first['table']} and {second['table']}" if across else first["table"]
        advice = "a leak" if across else "one person? Give both one group (groups.csv), or remove one"
        message = f"{second['subject']} and {first['subject']} ({first['file']}) in {where}: {how}; {advice}"
        severity = "error" if across or equal else "warning"
        found.append(_at(second, severity, "duplicate" if equal else "near-duplicate", message))
        if first["label"] != second["label"]:
            names = [CLASS_NAMES[row["label"]] for row in (second, first)]
            text = f"{second['subject']} is {names[0]}, its copy {first['subject']} ({first['file']}) is {names[1]}"
            found.append(_at(second, "error", "label", text))
    first_of: dict[tuple[str, str], int] = {}
    for row, scan in enumerate(scans):
        key = (scan.examination.image, frame["group"].iloc[row])
        if (first := first_of.setdefault(key, row)) != row:
            text = f"counted twice: {same_image(scans[first], scan)} as {frame['file'].iloc[first]}"
            found.append(_at(frame.iloc[row], "warning", "duplicate", text))
    return found


def _at(row: pd.Series, severity: str, kind: str, message: str) -> Finding:
    return Finding(severity, kind, message, file=row["file"], subject=row["subject"], row=int(row["row"]))


def same_image(scan: Examined, copy: Examined) -> str:
    """How two scans with equal voxels relate, in words."""
    equal = scan.examination.voxels == copy.examination.voxels
    return "the same voxels" if equal else "the same voxels, left and right exchanged"


def counts_of(findings: Sequence[Finding]) -> dict[str, int]:
    """Findings of each severity."""
    return {severity: sum(finding.severity == severity for finding in findings) for severity in SEVERITIES}


def geometries(scans: Sequence[Examined]) -> dict[str, int]:
    """Scans by shape, spacing and orientation, the most frequent first."""
    texts = [
        f"{'x'.join(map(str, scan.shape))} of {' x '.join(f'{edge:g}' for edge in scan.spacing_mm)} mm, "
        f"{scan.orientation}"
        for scan, _ in scans
    ]
    return dict(Counter(texts).most_common())


def report(findings: Sequence[Finding], measured: dict[str, Any] | None, shapes: dict[str, int], out: Path) -> str:
    """The printed summary."""
    lines = [f"{count} scans: {text}" for text, count in list(shapes.items())[:5]]
    if measured:
        lines += ["", pd.DataFrame(measured["sites"]).T.rename_axis("site").to_string()]
        if auc := measured["site_auc"]:
            interval = f"AUC {auc['auc']:.2f} (p {auc['p']:.2g})"
            lines.append(f"site alone, {interval}; 0.5 or less says nothing about the class")
    for finding in findings[:SHOWN]:
        where = f"{finding.file}: " if finding.file and not finding.message.startswith(finding.file) else ""
        lines.append(f"{finding.severity}, {finding.kind}: {where}{finding.message}")
    if len(findings) > SHOWN:
        lines.append(f"... and {len(findings) - SHOWN} more")
    counts = " and ".join(f"{count} {severity}s" for severity, count in counts_of(findings).items())
    return "\n".join([*lines, f"{counts}; {out / 'findings.csv'}"])


if __name__ == "__main__":
    run_script(main, Config, description=describe(__doc__))
