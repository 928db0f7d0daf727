"""The synthetic data card: what a set of volumes was made from, all that was measured of it, and what it is not for.

Written from the evaluation's JSON alone, so that the card says nothing that was not measured; it names no subject.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cohort.atlas import LICENCE_NOTE
from runtime.files import atomic_write

INTENDED = (
    "Intended for: developing and testing methods, teaching, and more training data where a real test set decides.",
    "Not for: diagnosis, estimates of how common or how strong a disease is, or publication as scans of people.",
    "Whoever passes the volumes on must read the privacy card: silence there has a detection limit.",
)
LIMITS = (
    "Distances in feature spaces see texture and gross anatomy; a small focal change leaves little trace in them.",
    "Ranges are over draws of subjects of one cohort and one training: another cohort or training may differ by more.",
    "A p-value against real scans becomes small for any imperfect generator when there are enough volumes.",
)


def facts(result: dict) -> dict[str, object]:
    """What a reader must know of the training, as counts."""
    n = result["n"]
    return {
        "real subjects trained on": counted(n["real_train"]),
        "real subjects held out": counted(n["real_test"]),
        "synthetic volumes": counted(n["synthetic"]),
        "checkpoints": "; ".join(f"{stage} {', '.join(hashes)}" for stage, hashes in result["checkpoints"].items()),
        "code": result["commit"],
        "grid": f"{result['protocol']['grid']['name']}, {result['protocol']['grid']['spacing_mm']:g} mm",
    }


def write(path: Path, result: dict) -> None:
    """Writes the card as Markdown.

    Args:
        path: of the ``.md`` file.
        result: of `evaluation.evaluate_synth`.
    """
    parts = [f"# Synthetic data card: {path.stem}", listed(f"{name}: {value}" for name, value in facts(result).items())]
    if result["warnings"]:
        parts += ["## Warnings", listed(result["warnings"])]
    parts += ["## Realism", distances(result)]
    parts += ["## Diversity", various(result["diversity"])] if "diversity" in result else []
    parts += ["## Anatomy", anatomical(result["anatomy"])] if "anatomy" in result else []
    if "privacy" in result:
        parts += ["## Privacy", private(result["privacy"])]
    parts += ["## Use", listed(INTENDED), "## Limits", listed(LIMITS), "## Licences", LICENCE_NOTE]
    with atomic_write(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def distances(result: dict) -> str:
    """FID and KID of each feature space, beside floor and blur; what was skipped, and why."""
    spaces = {result["network"]["name"]: result, **result["views"]}
    rows, notes = [], []
    for name, one in spaces.items():
        if "skipped" in one:
            notes.append(f"{name}: {one['skipped']}")
            continue
        held_out = one["results"]["overall"]["held_out"]
        rows.append(
            [name, *(figure(held_out[sample]["fid"]) for sample in ("synthetic", "floor", "blurred")),
             figure(held_out["synthetic"]["fid_minus_floor"]), figure(held_out["synthetic"]["kid"]),
             f"{one['all_volumes']['overall']['kid_p_value']:.3g}"]
        )  # fmt: skip
    infinite = result["infinite"]["overall"]
    if "skipped" not in infinite:
        found = infinite["held_out"]
        notes.append(
            f"extrapolated to infinitely many volumes: FID {figure(found['synthetic'])}, floor {figure(found['floor'])}"
        )
    size = result["n"]["per_draw"]["overall"]
    head = ("features", f"FID, {size} against {size}", "floor", "blurred", "FID minus floor", "KID", "p")
    return "\n\n".join([table(head, rows), listed(notes)])


def various(found: dict) -> str:
    """Precision and recall, density and coverage; similarity of pairs."""
    rows = []
    for group, references in found["support"]["support"].items():
        if "skipped" in references:
            rows.append([group, references["skipped"], "", "", ""])
            continue
        one = references["held_out"]
        for sample in ("floor", "synthetic"):
            metrics = (figure(one[sample][name]) for name in ("precision", "recall", "density", "coverage"))
            rows.append([f"{group}, {sample}", *metrics])
    parts = [table(("sample", "precision", "recall", "density", "coverage"), rows)]
    alike = found["ms_ssim"]
    if "skipped" in alike:
        return "\n\n".join([*parts, f"MS-SSIM: {alike['skipped']}"])
    lines = [
        f"MS-SSIM of pairs, {group}: {one['skipped'] if 'skipped' in one else pair(one)}"
        for group, one in alike["results"].items()
    ]
    return "\n\n".join([*parts, listed(lines)])


def pair(one: dict) -> str:
    """Similarity on both sides and its difference."""
    return f"synthetic {figure(one['synthetic'])}, real {figure(one['real'])}, difference {figure(one['difference'])}"


def anatomical(found: dict) -> str:
    """How many regions differ, whether the disease is where it is in scans, and what the label changes."""
    lines = []
    for label in found["distributions"]["synthetic"]:
        made, real = (found["distributions"][key][label] for key in ("synthetic", "train"))
        lines.append(
            f"{label}: {made['significant']} of {len(made['measures'])} regional measures differ from held-out scans "
            f"(training scans: {real['significant']})"
        )
    agreements = {
        **found["agreement"],
        **{f"{k} with truth": v for k, v in found.get("agreement_with_truth", {}).items()},
    }
    for name, one in agreements.items():
        if "skipped" in one:
            lines.append(f"effects, {name}: {one['skipped']}")
            continue
        lines.append(
            f"effects of the diagnosis, {name}: correlation over {one['measures']} regions {one['correlation']:.2f} "
            f"[{one['correlation_low']:.2f}, {one['correlation_high']:.2f}], p {one['p']:.3g}"
        )
    swap = found["label_swap"]
    if "skipped" in swap:
        lines.append(f"label alone: {swap['skipped']}")
    else:
        for name in ("Left Hippocampus", "Right Hippocampus"):
            one = swap["measures"].get(name)
            if one is not None:
                lines.append(
                    f"label alone, {swap['n']} seeds as HC and as TLE, {name}: {one['difference']:+.3f} ml "
                    f"[{one['difference_low']:+.3f}, {one['difference_high']:+.3f}]"
                )
    return listed([*lines, found["method"]])


def private(found: dict) -> str:
    """What the audit found and would have missed, and the attacks."""
    if "skipped" in found:
        return f"Not audited: {found['skipped']}"
    return listed([*found["audit"]["finding"]["text"], attacked(found)])


def attacked(found: dict) -> str:
    """The membership attacks in one sentence."""
    shown = [
        f"{name} {one}"
        if isinstance(one, str)
        else f"{name} AUC {one['auc']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"
        for name, one in found["attacks"].items()
    ]
    return f"Membership attacks (no leak: 0.5): {'; '.join(shown)}"


def counted(classes: dict[str, int]) -> str:
    """``90 HC, 90 TLE``."""
    return ", ".join(f"{count} {name}" for name, count in classes.items())


def figure(summary: dict[str, float]) -> str:
    """Mean and 95 % range."""
    return "{mean:.3g} [{low:.3g}, {high:.3g}]".format(**summary)


def listed(lines: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))
