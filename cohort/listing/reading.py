"""How somebody else's table is to be read: the flags that all scripts with such tables share."""

from dataclasses import dataclass
from pathlib import Path

EXCLUDE = "exclude"
"""The meaning, in a label map, of a value whose rows are left out."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a table means, and what is done about its gaps."""

    data_root: Path | None = None
    """Folder that the table's files are relative to and must not leave."""
    label_column: str = "diagnosis"
    """Column of the table that holds the diagnosis; in a BIDS dataset without it, `group`."""
    label_map: dict[str, str] | None = None
    """Meaning of its values, in pairs: control HC left TLE-L n/a exclude; exclude leaves rows out, n/a: empty cells."""
    all_hc: bool = False
    """Everybody is healthy (HC): for a table or folder that says nothing of diagnoses."""
    sex_map: dict[str, str] | None = None
    """Meaning of the values of the column sex, in pairs: 1 M 2 F O n/a."""
    prefer: tuple[str, ...] = ()
    """BIDS: which T1w of a session, such as acq-mprage rec-norm run-2, or ce (contrast agent), or all of them; by
    default the plainest name, the first run, no contrast agent."""
    strict: bool = False
    """Refuse ages and sexes that cannot be read; otherwise they count as unknown, with a warning."""
    partial: bool = False
    """Go on where table and files differ (scans that are absent or not fetched, people in no table), without them."""


PLAIN = Reading()
"""A table in our own coding, whole."""
