"""Two cards: of the synthetic data (their origin, all that was measured, what they are not for), and of their privacy.

Written from the evaluation's JSON alone, so that they say nothing that was not measured; they name no subject.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cohort.atlas import LICENCE_NOTE
from evaluation.diversity import METRICS
from evaluation.privacy.copying import QUANTILE, p_values
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
PRIVACY_LIMITS = (
    "No figure here shows that the generator remembers nobody. Each search has a detection limit, and only copies that "
    "its space recognises count towards it.",
    "Copies of parts of a scan, and knowledge that other attacks could extract, were not searched for.",
    "p-values exchange the roles of training and held-out subjects; they assume that nothing but training tells the "
    "two apart.",
    "More held-out subjects lower the detection limit; more synthetic volumes alone hardly do.",
)


def facts(result: dict) -> dict[str, object]:
    """What a reader must know of the training, as counts."""
    n, grid = result["n"], result["protocol"]["grid"]
    counted = {key: ", ".join(f"{number} {label}" for label, number in classes.items()) for key, classes in n.items()}
    return {
        "real subjects trained on": counted["real_train"],
        "real subjects held out": counted["real_test"],
        "synthetic volumes": counted["synthetic"],
        "checkpoints": "; ".join(f"{stage} {', '.join(hashes)}" for stage, hashes in result["checkpoints"].items()),
        "code": result["commit"],
        "grid": f"{grid['name']}, {grid['spacing_mm']:g} mm",
    }


def write(path: Path, result: dict) -> None:
    """Writes the card of a result of `evaluation.evaluate_synth` as Markdown."""
    sections = {"Warnings": listed(result["warnings"]), "Realism": realism(result), "Ladder": ladder(result)}
    parts = {"diversity": ("Diversity", diversity), "anatomy": ("Anatomy", anatomy), "privacy": ("Privacy", privacy)}
    sections |= {title: section(result[key]) for key, (title, section) in parts.items() if key in result}
    sections |= {"Use": listed(INTENDED), "Limits": listed(LIMITS), "Licences": LICENCE_NOTE}
    _write(path, f"Synthetic data card: {path.stem}", result, sections)


def write_privacy(path: Path, result: dict) -> None:
    """Writes what was searched for in synthetic volumes, what was found, what would have been missed."""
    audit = result["privacy"]["audit"]
    rule = f"Copies: closer than {1 - QUANTILE:.0%} of scans are to their nearest other subject."
    sections = {
        "Findings": listed(audit["finding"]["text"]),
        "Nearest neighbours": f"{_spaces(audit['spaces'])}\n\n{rule}",
        "Membership attacks": _attacks(result["privacy"]["attacks"]),
        "Power: planted canaries": "None were planted, so the power of these searches on this generator is not known.",
        "How to read this": listed(PRIVACY_LIMITS),
    }
    _write(path, "Privacy card", result, sections)


def _write(path: Path, title: str, result: dict, sections: Mapping[str, str]) -> None:
    parts = [f"# {title}", listed(f"{name}: {value}" for name, value in facts(result).items())]
    parts += [part for heading, text in sections.items() if text for part in (f"## {heading}", text)]
    with atomic_write(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def realism(result: dict) -> str:
    """FID and KID of each feature space, beside floor and blur; what was skipped, and why."""
    rows, notes = [], []
    for name, space in {result["network"]["name"]: result, **result["views"]}.items():
        if "skipped" in space:
            notes.append(f"{name}: {space['skipped']}")
            continue
        samples = space["results"]["overall"]["held_out"]
        cells = [samples[sample]["fid"] for sample in ("synthetic", "floor", "blurred")]
        cells += [samples["synthetic"]["fid_minus_floor"], samples["synthetic"]["kid"]]
        rows.append([name, *map(figure, cells), f"{space['all_volumes']['overall']['kid_p_value']:.3g}"])
    infinite = result["infinite"]["overall"]
    if "skipped" not in infinite:
        made, floor = (figure(infinite["held_out"][sample]) for sample in ("synthetic", "floor"))
        notes.append(f"extrapolated to infinitely many volumes: FID {made}, floor {floor}")
    size = result["n"]["per_draw"]["overall"]
    notes.append(
        f"FID is the Frechet distance on {result['protocol']['fid_dimensions']} principal axes of these features, "
        f"N = {size} on each side; brackets are the range of 95 % of the draws of subjects, no confidence intervals"
    )
    head = ("features", f"FID, {size} against {size}", "floor", "blurred", "FID minus floor", "KID", "p")
    return "\n\n".join([table(head, rows), listed(notes)])


RUNGS = {
    "floor": "other held-out scans (floor)",
    "reconstructed": "held-out scans, encoded and decoded (ceiling)",
    "synthetic": "synthetic",
    "gaussian": "Gaussian of all latent axes",
    "gaussian_64": "Gaussian of 64 latent axes",
    "blurred": "held-out scans, blurred",
}


def ladder(result: dict) -> str:
    """What a generator has to beat and what it cannot, with the same VAE; and what sees no anatomy at all."""
    samples, rows = result["results"]["overall"]["held_out"], []
    for name, meaning in RUNGS.items():
        if name in samples:
            found = result["surroundings"].get(name)
            aucs = ["", ""] if found is None else [f"{found[key]['auc']:.2f}" for key in ("zeros", "dark")]
            distances = [figure(samples[name][metric]) for metric in ("fid", "kid")]
            rows.append([meaning, *distances, fine_detail(result, name), *aucs])
    head = ("volumes", "FID", "KID", "fine detail", "share of zeros: AUC", "5th percentile of the others: AUC")
    return "\n\n".join([table(head, rows), listed(ladder_notes(result))])


def fine_detail(result: dict, name: str) -> str:
    """Power of a rung's volumes in details of less than four voxels, in dB of that of held-out scans, and its AUC."""
    found = result["sharpness"].get({"floor": "test"}.get(name, name))
    if found is None:
        return ""
    fine = found["fine_db"]
    return f"{fine['mean']:+.1f} ± {fine['sd']:.1f} dB" + (f", AUC {fine['auc']:.2f}" if "auc" in fine else "")


def ladder_notes(result: dict) -> list[str]:
    """Whether the generator beats the Gaussian, and how to read the table of `ladder`."""
    samples = result["results"]["overall"]["held_out"]
    notes = []
    if "gaussian" in samples:
        made, gaussian = (samples[name]["fid"]["mean"] for name in ("synthetic", "gaussian"))
        verdict = "beats" if made < gaussian else "DOES NOT BEAT"
        notes.append(f"the generator {verdict} a Gaussian in its own latents by FID: {made:.3g} against {gaussian:.3g}")
    notes.append("AUC: how well the number tells these volumes from held-out scans, 0.5 where it does not")
    notes.append("fine detail: power in details of less than four voxels, 0 dB as in held-out scans, below it is blur")
    return notes


def diversity(found: dict) -> str:
    """Precision and recall, density and coverage; similarity of pairs."""
    rows = []
    for group, references in found["support"]["support"].items():
        if "skipped" in references:
            rows.append([group, references["skipped"], "", "", ""])
            continue
        for sample in ("floor", "synthetic"):
            metrics = references["held_out"][sample]
            rows.append([f"{group}, {sample}", *(figure(metrics[name]) for name in METRICS)])
    alike = found["ms_ssim"]
    if "skipped" in alike:
        return "\n\n".join([table(("sample", *METRICS), rows), f"MS-SSIM: {alike['skipped']}"])
    lines = []
    for group, pairs in alike["results"].items():
        shown = ", ".join(
            f"{name} {figure(pairs[name])}" for name in ("synthetic", "real", "difference") if name in pairs
        )
        lines.append(f"MS-SSIM of pairs, {group}: {pairs.get('skipped', shown)}")
    return "\n\n".join([table(("sample", *METRICS), rows), listed(lines)])


def anatomy(found: dict) -> str:
    """How many regions differ, whether the disease is where it is in scans, and what the label changes."""
    lines = []
    for label in found["distributions"]["synthetic"]:
        made, real = (found["distributions"][key][label] for key in ("synthetic", "train"))
        lines.append(
            f"{label}: {made['significant']} of {len(made['measures'])} regional measures differ from held-out scans "
            f"(training scans: {real['significant']})"
        )
    given = {f"{name} with known": value for name, value in found.get("agreement_with_known", {}).items()}
    for name, effects in {**given, **found["agreement"]}.items():
        lines.append(
            f"effects, {name}: {effects['skipped']}"
            if "skipped" in effects
            else f"effects of the diagnosis, {name}: correlation over {effects['measures']} regions "
            f"{effects['correlation']:.2f} [{effects['correlation_low']:.2f}, {effects['correlation_high']:.2f}], "
            f"p {effects['p']:.3g}"
        )
    lines.append(
        "synthetic volumes agree with training scans more than other scans do: the generator knows these scans' class "
        "means, their chance differences with them. Agreement with known volumes, or with held-out scans, says how "
        "well the disease is met"
    )
    swap = found["label_swap"]
    if "skipped" in swap:
        lines.append(f"label alone: {swap['skipped']}")
    else:
        for name in (side for side in ("Left Hippocampus", "Right Hippocampus") if side in swap["measures"]):
            change = swap["measures"][name]
            lines.append(
                f"label alone, {swap['n']} seeds as HC and as TLE, {name}: {change['difference']:+.3f} ml "
                f"[{change['difference_low']:+.3f}, {change['difference_high']:+.3f}]"
            )
    if "known" in found:
        lines.append("known volumes: {tool}, of {scans} of {of} scans".format(**found["known"]))
    return listed([*lines, *laterality(found.get("laterality", {})), found["method"]])


def laterality(found: dict) -> list[str]:
    """Hippocampal effects on the side of the epilepsy and on the other, and what label and side change."""
    if "effects" not in found:
        return []
    lines = []
    for name in ("ipsilateral Hippocampus", "contralateral Hippocampus"):
        effects = {key: own["measures"][name] for key, own in found["effects"].items() if name in own["measures"]}
        shown = [
            f"{key} {effect['d']:+.2f} [{effect['d_low']:+.2f}, {effect['d_high']:+.2f}]"
            for key, effect in effects.items()
            if effect["d"] is not None
        ]
        lines += [f"d of TLE against HC, {name}: {', '.join(shown)}"] if shown else []
    for name, effects in found["agreement"].items():
        if "correlation" in effects:
            lines.append(f"effects by side, {name}: correlation {effects['correlation']:.2f}, p {effects['p']:.3g}")
    for name, swap in found["label_swap"].items():
        changes = {key: own for key, own in swap.get("measures", {}).items() if key.endswith("Hippocampus")}
        shown = [
            f"{key} {change['difference']:+.3f} ml [{change['difference_low']:+.3f}, {change['difference_high']:+.3f}]"
            for key, change in changes.items()
        ]
        lines += [f"{name}, {swap['n']} seeds, same noise: {', '.join(shown)}"] if shown else []
    return [*lines, found["method"]]


def privacy(found: dict) -> str:
    """What the audit found and would have missed, and the attacks."""
    if "skipped" in found:
        return f"Not audited: {found['skipped']}"
    shown = [
        f"{name} {attack}"
        if isinstance(attack, str)
        else f"{name} AUC {attack['auc']:.2f} [{attack['low']:.2f}, {attack['high']:.2f}]"
        for name, attack in found["attacks"].items()
    ]
    return listed([*found["audit"]["finding"]["text"], f"Membership attacks (no leak: 0.5): {'; '.join(shown)}"])


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
    n, share, copies = measured["n"], measured["closer_to_training"], measured["copies"]
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


def figure(summary: dict[str, float]) -> str:
    """Mean and 95 % range."""
    return "{mean:.3g} [{low:.3g}, {high:.3g}]".format(**summary)


def listed(lines: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))
