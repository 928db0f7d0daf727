"""From evidence to answers about each method: the checks, fixed before anything is measured."""

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
"""Numbers about one method, in nested dicts; a measured one is {"value", ...} with "low" and "high", "p", or all."""


@dataclass(frozen=True)
class Check:
    """One question to a method."""

    number: Callable[[Evidence], Evidence | None]
    """What is looked at, with its "value"; None where the question cannot be asked."""
    passed: Callable[[Evidence], bool]
    """Whether the answer is yes, for that number."""
    question: str
    counted: bool = True
    """False where it is passed by failing to reject: too few patients, or a blunt method, pass it as well as a true one
    does. Its answer is shown and not counted."""


def _of_networks(found: Evidence, condition: str) -> Evidence | None:
    """Enrichment of maps of another condition's network; None for a method that is of no network."""
    return found[condition]["enrichment"] if condition in found else None


CHECKS: dict[str, Check] = {
    "pointing": Check(lambda found: found["raw"]["pointing"], lambda number: number["p"] < ALPHA,
        "is the strongest voxel in or within 3 mm of the changed region, more often than in random places?"),
    "enrichment": Check(lambda found: found["raw"]["enrichment"], lambda number: number["p"] < ALPHA,
        "is relevance concentrated in the changed region, more than in random places?"),
    "precision": Check(lambda found: found["raw"]["average_precision"], lambda number: number["p"] < ALPHA,
        "are the strongest voxels those of the changed region, more than of random places (average precision)?"),
    "difference": Check(lambda found: found["group"]["enrichment"], lambda number: number["p"] < ALPHA,
        "does the mean map of patients minus that of controls lie in the changed region (enrichment)?"),
    "silence": Check(lambda found: _of_networks(found, "nothing"), lambda number: number["p"] >= ALPHA,
        "is there no such concentration when nothing was planted?", counted=False),
    "response": Check(
        lambda found: found["response"].get("signal") or found["response"]["dose"] if "response" in found else None,
        lambda number: number["low"] > 0,
        "does enrichment grow with the strength of the planted change (Spearman, interval above 0)?"),
    "side": Check(lambda found: found["side"]["difference"], lambda number: number["low"] > 0.5,
        "is the stronger hippocampus of the difference map the changed one (exact interval above one half)?"),
    "forgetting": Check(
        lambda found: {"value": found["cascade_end"]} if "cascade_end" in found else None,
        lambda number: abs(number["value"]) < FORGOTTEN,
        f"does the map change when all weights are random (|rank correlation| below {FORGOTTEN})?"),
    "permuted": Check(lambda found: _of_networks(found, "permuted"), lambda number: number["p"] >= ALPHA,
        "is there no concentration when the network was trained on permuted labels?", counted=False),
    "deletion": Check(lambda found: found["deletion_gain"], lambda number: number["low"] > 0,
        "does the logit fall faster when regions are replaced in the map's order than in random order?"),
    "insertion": Check(lambda found: found["insertion_gain"], lambda number: number["low"] > 0,
        "does the logit rise faster when regions are put back in the map's order?"),
    "shortcut": Check(
        lambda found: {"value": found["shortcut"]["rank"]} if found.get("shortcut", {}).get("learned") else None,
        lambda number: number["value"] <= FIRST_RANKS,
        f"is a planted mark among the {FIRST_RANKS} first regions of a network that has learned it?"),
}  # fmt: skip


def answers(evidence: Evidence) -> dict[str, bool | None]:
    """Whether a method passes each check; None where the question cannot be asked."""
    numbers = {name: check.number(evidence) for name, check in CHECKS.items()}
    return {name: None if number is None else bool(CHECKS[name].passed(number)) for name, number in numbers.items()}


def table(methods: dict[str, Evidence], *, judged: bool) -> pd.DataFrame:
    """One row per method: every number with its interval and p-value, and, where judged, every answer, and how many of
    the checks that count were passed.
    """
    rows = []
    for name, evidence in methods.items():
        found = answers(evidence) if judged else {}
        asked = [answer for check, answer in found.items() if answer is not None and CHECKS[check].counted]
        counts = {"passed": sum(asked), "asked": len(asked)} if judged else {}
        passes = {f"passes_{check}": answer for check, answer in found.items()}
        rows.append({"method": name, **counts, **passes, **_flat(evidence)})
    return pd.DataFrame(rows)


def _flat(evidence: Evidence, prefix: str = "") -> dict[str, Any]:
    """Nested numbers as columns: {"raw": {"pointing": {"value": 1, "p": ...}}} to raw_pointing, raw_pointing_p."""
    columns = {}
    for name, value in evidence.items():
        if isinstance(value, dict):
            columns |= _flat(value, f"{prefix}{name}_")
        else:
            columns[prefix.removesuffix("_") if name == "value" else prefix + name] = value
    return columns
