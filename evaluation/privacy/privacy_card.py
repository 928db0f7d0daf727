"""The privacy card: what was searched for in synthetic volumes, what was found, what would have been missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cohort.pictures import gallery
from evaluation.cards import listed, table
from evaluation.privacy.copying import RULES, p_values
from runtime.files import atomic_write

LIMITS = (
    "No figure here shows that the generator remembers nobody. Each search has a detection limit, and only copies that "
    "its space recognises count towards it.",
    "Copies of parts of a scan, and knowledge that other attacks could extract, were not searched for.",
    "p-values exchange the roles of training and held-out subjects; they assume that nothing but training tells the "
    "two apart.",
    "More held-out subjects lower the detection limit; more synthetic volumes alone hardly do.",
)
_PER_ROW = 5


def write(path: Path, found: dict, facts: Mapping[str, object]) -> None:
    """Writes the card as Markdown. It names no subject.

    Args:
        path: of the ``.md`` file.
        found: of `evaluation.privacy.audit.measure`.
        facts: what else a reader must know of the training, for example how many subjects.
    """
    parts = ["# Privacy card", listed(f"{name}: {value}" for name, value in facts.items())]
    parts += ["## Findings", listed(found["audit"]["finding"]["text"])]
    parts += ["## Nearest neighbours", _spaces(found["audit"]["spaces"])]
    parts += [f"Copies: closer than {1 - RULES['volumes']:.0%} of scans are to their nearest other subject."]
    parts += ["## Membership attacks", _attacks(found["attacks"])]
    parts += ["## Power: planted canaries"]
    parts += ["None were planted, so the power of these searches on this generator is not known."]
    parts += ["## How to read this", listed(LIMITS)]
    with atomic_write(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _spaces(spaces: Mapping[str, dict]) -> str:
    rows = [
        [space, name, *_row(measured)]
        for space, found in spaces.items()
        for name, measured in (("synthetic", found["synthetic"]), *found["controls"].items())
    ]
    head = ("space", "volumes", "N", "training / held-out subjects", "nearer to training (95 %; expected 50 %)", "p",
            "copies (95 %)", "p", "close to held-out", "detection limit")  # fmt: skip
    return table(head, rows)


def _row(measured: dict) -> list[str]:
    n, share, copies = measured["n"], measured["closer_to_training"], measured["copies"]["volumes"]
    p, limit = p_values(measured), measured["detection_limit"]["share"]
    return [
        str(n["volumes"]),
        f"{n['training_subjects']} / {n['held_out_subjects']}",
        f"{share['share']:.1%} ({share['low']:.1%} to {share['high']:.1%})",
        f"{p['membership']:.4f}",
        f"{copies['copies']}: {copies['share']:.1%} ({copies['low']:.1%} to {copies['high']:.1%})",
        f"{p['copies']:.4f}",
        str(copies["towards_held_out"]),
        "none" if limit is None else f"{limit:.1%}",
    ]


def _attacks(attacks: Mapping[str, dict | str]) -> str:
    rows = [
        [name, attack, "", "", ""]
        if isinstance(attack, str)
        else [
            name,
            f"{attack['n']['members']} / {attack['n']['others']}",
            f"{attack['auc']:.3f} ({attack['low']:.3f} to {attack['high']:.3f})",
            f"{attack['tpr']['value']:.1%} ({attack['tpr']['low']:.1%} to {attack['tpr']['high']:.1%})",
            attack["note"],
        ]
        for name, attack in attacks.items()
    ]
    head = ("attack", "members / others", "AUC (95 %; no leak 0.5)", "found at 1 % false positives", "note")
    return table(head, rows)


def draw_pairs(path: Path, synthetic: Sequence[np.ndarray], train: Sequence[np.ndarray], pairs: Sequence[dict]) -> None:
    """The closest synthetic volumes above the training scans that they are closest to, and the differences.

    The picture shows training scans: it is for those who may see them.

    Args:
        path: of the PNG.
        synthetic: Q of (D, H, W) in [0, 1].
        train: training scans (D, H, W), rows as in the space's `Reals`.
        pairs: of `evaluation.privacy.nearest.closest_pairs`.
    """
    rows: list[tuple[str, list[np.ndarray]]] = []
    for start in range(0, len(pairs), _PER_ROW):
        part = pairs[start : start + _PER_ROW]
        made = [synthetic[pair["volume"]] for pair in part]
        real = [np.asarray(train[pair["scan"]])[:: -1 if pair["mirrored"] else 1] for pair in part]
        numbers = f"{start + 1} to {start + len(part)}"
        rows += [(f"synthetic\n{numbers}", made), (f"training\n{numbers}", real)]
        rows.append((f"difference\n{numbers}", [a - b for a, b in zip(made, real, strict=True)]))
    flipped = [str(place + 1) for place, pair in enumerate(pairs) if pair["mirrored"]]
    title = f"The {len(pairs)} closest pairs, closest first. Shows training scans: not for publication"
    if flipped:
        title += f"\nmirrored: {', '.join(flipped)}"
    gallery(path, rows, title=title, error_rows=tuple(range(2, len(rows), 3)))
