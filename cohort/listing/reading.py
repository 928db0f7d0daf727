"""How somebody else's table is to be read: the flags that all scripts with such tables share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

EXCLUDE = "exclude"
"""The meaning, in a label map, of a value whose rows are left out."""
LABEL_MEANINGS = ("HC", "TLE", "TLE-L", "TLE-R", EXCLUDE)
SEX_MEANINGS = ("F", "M", "n/a")


def meanings(words: Sequence[str]) -> dict[str, str]:
    """Values and what they mean, from words in pairs: control HC left TLE-L, or control=HC left=TLE-L, or mixed.

    A word is a pair of its own where what follows its last = is a meaning. Raises ValueError for a value without one.
    """
    found, rest = {}, list(words)
    while rest:
        word = rest.pop(0)
        value, equals, meaning = word.rpartition("=")
        if not equals or meaning not in (*LABEL_MEANINGS, *SEX_MEANINGS):
            if not rest:
                raise ValueError(f"{word!r} has no meaning; expected pairs, such as control HC or control=HC")
            value, meaning = word, rest.pop(0)
        found[value] = meaning
    return found


Meanings = Annotated[
    dict[str, str],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[VALUE MEANING|VALUE=MEANING]",
        instance_from_str=meanings,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [word for pair in value.items() for word in pair],
    ),
]
"""Type of a field that says what the values of a column mean."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a table means, and what is done about its gaps."""

    data_root: Path | None = None
    """Folder that the table's files are relative to and must not leave."""
    label_column: str = "diagnosis"
    """Column of the table that holds the diagnosis; in a BIDS dataset without it, `group`."""
    label_map: Meanings = field(default_factory=dict)
    """Meaning of its values, in pairs: control HC left TLE-L n/a exclude, or control=HC left=TLE-L n/a=exclude; exclude
    leaves rows out, n/a: empty cells."""
    all_hc: bool = False
    """Everybody is healthy (HC): for a table or folder that says nothing of diagnoses."""
    sex_map: Meanings = field(default_factory=dict)
    """Meaning of the values of the column sex, in pairs: 1 M 2 F O n/a, or 1=M 2=F O=n/a."""
    prefer: tuple[str, ...] = ()
    """BIDS: which T1w of a session, such as acq-mprage rec-norm run-2, or ce (contrast agent), or all of them; by
    default the plainest name, the first run, no contrast agent."""
    strict: bool = False
    """Refuse ages and sexes that cannot be read; otherwise they count as unknown, with a warning."""
    partial: bool = False
    """Go on where table and files differ (scans that are absent or not fetched, people in no table), without them."""


PLAIN = Reading()
"""A table in our own coding, whole."""
