"""Findings of a check: what is wrong with which scan, and how badly; their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from runtime.files import atomic_write

SEVERITIES = ("error", "warning")
"""An error makes a result wrong or a run impossible; a warning is for a person to judge."""


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


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Writes findings.csv."""
    names = ["file", "subject", "row", "severity", "kind", "message"]
    frame = pd.DataFrame([vars(finding) for finding in findings], columns=names)
    frame["row"] = frame["row"].astype("Int64")
    with atomic_write(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")
