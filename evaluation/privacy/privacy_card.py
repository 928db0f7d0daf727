"""The privacy card: what was searched for in synthetic volumes, what was found, what would have been missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cohort.pictures import gallery
from evaluation.privacy.closeness import PAIRS_SHOWN, RULES
from evaluation.privacy.copying import p_values

_PER_ROW = 5


def write_card(
    audit: dict, *, attacks: Mapping[str, dict | str] | None = None, canaries: dict | None = None,
    facts: Mapping[str, object] | None = None,
) -> str:  # fmt: skip
    """The card as Markdown. It names no subject.

    Args:
        audit: of `evaluation.privacy.copying.audit_spaces`.
        attacks: name -> result of `evaluation.privacy.membership`, or the reason why there is none.
        canaries: space -> result of `evaluation.privacy.canary_plan.read_canaries`; None when none were planted.
        facts: what else a reader must know of the training, for example subjects, steps, duplicates.
    """
    parts = ["# Privacy card", *_facts(facts or {}), "## Findings", *_listed(audit["finding"]["text"])]
    parts += ["## Nearest neighbours", *_spaces(audit["spaces"])]
    parts += ["## Membership attacks", *_attacks(attacks or {})]
    parts += ["## Power: planted canaries", *_canaries(canaries)]
    parts += ["## How to read this", *_listed(_LIMITS)]
    return "\n\n".join(parts) + "\n"


_LIMITS = (
    "No figure here shows that the generator remembers nobody. Each search has a detection limit, and only copies that "
    "its space recognises count towards it.",
    "Copies of parts of a scan, and knowledge that other attacks could extract, were not searched for.",
    "p-values exchange the roles of training and held-out subjects; they assume that nothing but training tells the "
    "two apart.",
    "More held-out subjects lower the detection limit; more synthetic volumes alone hardly do.",
)


def _facts(facts: Mapping[str, object]) -> list[str]:
    return ["\n".join(f"- {name}: {value}" for name, value in facts.items())] if facts else []


def _listed(lines: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {line}" for line in lines)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def _spaces(spaces: Mapping[str, dict]) -> list[str]:
    rows = [
        [space, name, *_row(measured)]
        for space, one in spaces.items()
        for name, measured in (("synthetic", one["synthetic"]), *one["controls"].items())
    ]
    head = ("space", "volumes", "N", "training / held-out subjects", "nearer to training (95 %; expected 50 %)", "p",
            "copies (95 %)", "p", "close to held-out", "C_T", "C_T, direction only", "detection limit")  # fmt: skip
    rule = f"Copies: closer than {1 - RULES['volumes']:.0%} of scans are to their nearest other subject."
    return [_table(head, rows), rule]


def _row(measured: dict) -> list[str]:
    n, share, copies = measured["n"], measured["closer_to_training"], measured["copies"]["volumes"]
    p, score, limit = p_values(measured), measured["meehan"], measured["detection_limit"]["share"]
    return [
        str(n["volumes"]),
        f"{n['training_subjects']} / {n['held_out_subjects']}",
        f"{share['share']:.1%} ({share['low']:.1%} to {share['high']:.1%})",
        f"{p['membership']:.4f}",
        f"{copies['copies']}: {copies['share']:.1%} ({copies['low']:.1%} to {copies['high']:.1%})",
        f"{p['copies']:.4f}",
        str(copies["towards_held_out"]),
        *("none" if score[name] is None else f"{score[name]:.2f}" for name in ("c_t", "c_t_turned")),
        "none" if limit is None else f"{limit:.1%}",
    ]


def _attacks(attacks: Mapping[str, dict | str]) -> list[str]:
    if not attacks:
        return ["None was made."]
    rows = []
    for name, one in attacks.items():
        if isinstance(one, str):
            rows.append([name, one, "", "", ""])
            continue
        rows.append(
            [
                name,
                f"{one['n']['members']} / {one['n']['others']}",
                f"{one['auc']:.3f} ({one['low']:.3f} to {one['high']:.3f})",
                f"{one['tpr']['value']:.1%} ({one['tpr']['low']:.1%} to {one['tpr']['high']:.1%})",
                one["note"],
            ]
        )
    head = ("attack", "members / others", "AUC (95 %; no leak 0.5)", "found at 1 % false positives", "note")
    return [_table(head, rows)]


def _canaries(canaries: dict | None) -> list[str]:
    if canaries is None:
        return ["None were planted, so the power of these searches on this generator is not known."]
    rows = [
        [space, count, str(row["n"]), str(row["found"]), f"{row['median_rank']:g}"]
        for space, one in canaries.items()
        for count, row in one["by_occurrences"].items()
    ]
    alarms = [
        f"{space}: {one['alarms']:.1%} of subjects not repeated are found (stated: {one['stated_alarms']:.0%})"
        for space, one in canaries.items()
        if one["alarms"] is not None
    ]
    return [_table(("space", "occurrences", "canaries", "found", "median rank"), rows), *_listed(alarms)]


def draw_pairs(path: Path, synthetic: np.ndarray, train: Sequence[np.ndarray], pairs: Sequence[dict]) -> None:
    """The closest synthetic volumes above the training scans that they are closest to, and the differences.

    The picture shows training scans: it is for those who may see them.

    Args:
        path: of the PNG.
        synthetic: (Q, D, H, W) in [0, 1].
        train: training scans (D, H, W), rows as in the space's `Reals`.
        pairs: from `evaluation.privacy.closeness.closest_pairs`.
    """
    rows: list[tuple[str, list[np.ndarray]]] = []
    chosen = list(pairs[:PAIRS_SHOWN])
    for start in range(0, len(chosen), _PER_ROW):
        part = chosen[start : start + _PER_ROW]
        made = [synthetic[pair["volume"]] for pair in part]
        real = [np.asarray(train[pair["scan"]])[:: -1 if pair["mirrored"] else 1] for pair in part]
        numbers = f"{start + 1} to {start + len(part)}"
        rows += [(f"synthetic\n{numbers}", made), (f"training\n{numbers}", real)]
        rows.append((f"difference\n{numbers}", [a - b for a, b in zip(made, real, strict=True)]))
    flipped = [str(place + 1) for place, pair in enumerate(chosen) if pair["mirrored"]]
    title = f"The {len(chosen)} closest pairs, closest first. Shows training scans: not for publication"
    if flipped:
        title += f"\nmirrored: {', '.join(flipped)}"
    gallery(path, rows, title=title, error_rows=tuple(range(2, len(rows), 3)))
