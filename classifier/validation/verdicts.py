"""From evidence to a verdict on each method: the checks, fixed before anything is measured, and the ranking by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

ALPHA = 0.05
FORGOTTEN = 0.3
"""Rank correlation with the original below which a map counts as changed (Adebayo et al. 2018 give no number)."""
FIRST_RANKS = 3
"""The mark is exposed when it is among so many first regions."""

Evidence = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One question to a method."""

    question: str
    value: Callable[[Evidence], float | None]
    """The number that is shown."""
    passed: Callable[[Evidence], bool]
    """Whether the answer is yes; asked only when the number exists."""


def _at(*path: str) -> Callable[[Evidence], float | None]:
    """Reads a number from nested evidence; None where something on the way is missing."""

    def read(evidence: Evidence) -> float | None:
        for name in path:
            evidence = evidence.get(name) if evidence is not None else None
        return evidence

    return read


def _significant(*path: str) -> Callable[[Evidence], bool]:
    return lambda evidence: _at(*path, "p")(evidence) < ALPHA


def _above(limit: float, *path: str) -> Callable[[Evidence], bool]:
    return lambda evidence: (_at(*path, "low")(evidence) or -1e9) > limit


def _judged_response(evidence: Evidence) -> Evidence:
    """The response to the kind of change that methods are judged on: the signal's, where there is one."""
    kinds = evidence.get("response", {})
    return kinds.get("signal", kinds.get("dose", {}))


CHECKS: dict[str, Check] = {
    "pointing": Check(
        "is the strongest voxel in or within 3 mm of the changed region, more often than in random places?",
        _at("raw", "pointing", "value"), _significant("raw", "pointing"),
    ),
    "enrichment": Check(
        "is relevance concentrated in the changed region, more than in random places?",
        _at("raw", "enrichment", "value"), _significant("raw", "enrichment"),
    ),
    "precision": Check(
        "are the strongest voxels those of the changed region, more than of random places (average precision)?",
        _at("raw", "average_precision", "value"), _significant("raw", "average_precision"),
    ),
    "difference": Check(
        "does the mean map of patients minus that of controls lie in the changed region (enrichment)?",
        _at("group", "enrichment", "value"), _significant("group", "enrichment"),
    ),
    "silence": Check(
        "is there no such concentration when nothing was planted?",
        _at("nothing", "enrichment", "value"), lambda evidence: not _significant("nothing", "enrichment")(evidence),
    ),
    "response": Check(
        "does enrichment grow with the strength of the planted change (Spearman, interval above 0)?",
        lambda evidence: _judged_response(evidence).get("value"),
        lambda evidence: (_judged_response(evidence).get("low") or -1.0) > 0,
    ),
    "side": Check(
        "is the stronger hippocampus of the difference map the changed one (exact interval above one half)?",
        _at("side", "difference", "value"), _above(0.5, "side", "difference"),
    ),
    "forgetting": Check(
        f"does the map change when all weights are random (|rank correlation| below {FORGOTTEN})?",
        _at("cascade_end"), lambda evidence: abs(evidence["cascade_end"]) < FORGOTTEN,
    ),
    "permuted": Check(
        "is there no concentration when the network was trained on permuted labels?",
        _at("permuted", "enrichment", "value"), lambda evidence: not _significant("permuted", "enrichment")(evidence),
    ),
    "deletion": Check(
        "does the logit fall faster when regions are replaced in the map's order than in random order?",
        _at("deletion_gain", "value"), _above(0.0, "deletion_gain"),
    ),
    "insertion": Check(
        "does the logit rise faster when regions are put back in the map's order?",
        _at("insertion_gain", "value"), _above(0.0, "insertion_gain"),
    ),
    "shortcut": Check(
        f"is a planted mark among the {FIRST_RANKS} first regions of a network that has learned it?",
        lambda evidence: evidence["shortcut"]["rank"] if evidence.get("shortcut", {}).get("learned") else None,
        lambda evidence: evidence["shortcut"]["rank"] <= FIRST_RANKS,
    ),
}  # fmt: skip

RULE = (
    "Methods are ranked by the share of the checks that they pass, of those that could be judged; among equals by the "
    "average precision of their maps. A check looks at one number with its interval or p-value (5 %)."
)


def verdicts(evidence: Evidence) -> dict[str, bool | None]:
    """The answer to each check; None where it could not be asked."""
    return {
        name: bool(check.passed(evidence)) if check.value(evidence) is not None else None
        for name, check in CHECKS.items()
    }


def ranking(methods: dict[str, Evidence]) -> list[str]:
    """Names of the methods, best first, by RULE."""

    def key(name: str) -> tuple[float, float]:
        answers = [answer for answer in verdicts(methods[name]).values() if answer is not None]
        share = sum(answers) / len(answers) if answers else 0.0
        return -share, -(_at("raw", "average_precision", "value")(methods[name]) or 0.0)

    return sorted(methods, key=key)


def table(methods: dict[str, Evidence], *, judged: bool) -> pd.DataFrame:
    """One row per method: every number with its interval and p-value, and, where judged, every verdict; best first."""
    rows = []
    for rank, name in enumerate(ranking(methods), start=1):
        answers = verdicts(methods[name])
        asked = [answer for answer in answers.values() if answer is not None]
        head = {"method": name}
        if judged:
            head |= {"rank": rank, "passed": sum(asked), "asked": len(asked)}
            head |= {f"passes_{check}": answer for check, answer in answers.items()}
        rows.append(head | _flat(methods[name]))
    return pd.DataFrame(rows)


def _flat(evidence: Evidence, prefix: str = "") -> dict[str, Any]:
    """Nested numbers as columns: {"raw": {"pointing": {"value": 1, "p": ...}}} to raw_pointing, raw_pointing_p."""
    columns = {}
    for name, value in evidence.items():
        if isinstance(value, dict):
            columns |= _flat(value, f"{prefix}{name}_")
        elif not isinstance(value, list):
            columns[prefix.removesuffix("_") if name == "value" else prefix + name] = value
    return columns
