"""Whether counterfactuals can be believed: the axioms of Monteiro et al. 2023 (https://arxiv.org/abs/2303.01274).

Composition: asked for its own label, a scan stays as it is. Reversibility: to another label and back, it is as before.
Effectiveness: it then has what the label asked for. Minimality, which they leave to images: nothing else has changed.
Distances are mean absolute differences inside the head, in intensities, where volumes span 0 to 1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cohort.anatomy.regional_volumes import dilated_mask, region_volumes
from cohort.atlas import HIPPOCAMPI
from cohort.grids import Grid

MOST_LOSS = 1.1
"""Reversibility is good where the way there and back costs at most so much of the VAE's own error."""
MOST_OUTSIDE = 0.2
"""Minimality is good where voxels outside the regions change by at most so much of what those inside do."""


def distance(a: np.ndarray, b: np.ndarray, head: np.ndarray) -> float:
    """Mean absolute difference of two volumes (D, H, W) in a mask."""
    return float(np.abs(a - b)[head].mean())


def errors(table: pd.DataFrame) -> dict[str, Any]:
    """Means over scans of their distances to the scan, in a manifest's columns; and their ratios to the VAE's own.

    - ``reconstruction``: encoded and decoded, without diffusion; ``vae_twice``: done twice.
    - ``composition``: to noise and back under the scan's own label.
    - ``reversibility``: to the label asked for and back, along the latent; ``reversibility_volume``: with the
      counterfactual decoded and encoded anew in between, as whoever has the volume alone must.
    - ``round_trip``: what inversion and generation change of the latent itself, root mean square.
    """
    moved = table[table["own"] != table["diagnosis"]]
    found: dict[str, Any] = {"reconstruction": float(table["reconstruction_error"].mean())}
    for name in ("composition", "reversibility", "reversibility_volume", "vae_twice"):
        part = table if name == "composition" else moved
        if len(part):
            error = float(part[f"{name}_error"].mean())
            found[name] = {"error": error, "over_vae": error / float(part["reconstruction_error"].mean())}
    for name in {"reversibility", "reversibility_volume"} & found.keys():
        found[name] |= {"goal": MOST_LOSS, "met": found[name]["over_vae"] <= MOST_LOSS}
    trips = table["round_trip"]
    return found | {
        "round_trip": {"mean": float(trips.mean()), "max": float(trips.max())},
        "noise_std": float(table["noise_std"].mean()),
    }


def effectiveness(
    table: pd.DataFrame,
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    cohort: tuple[np.ndarray, Sequence[str]],
    grid: Grid,
) -> list[dict[str, Any]]:
    """By own label and side: how far hippocampal volumes move, in standard deviations, beside the cohort's own effect.

    `before` and `after` are reconstructions and counterfactuals (D, H, W) in the order of the manifest's rows, `cohort`
    the reconstructions of all scans of the table with their diagnoses. Both are measured by
    `cohort.anatomy.regional_volumes`; the deviation is that within the two diagnoses, pooled.
    """
    volumes, diagnoses = cohort
    own_ml, diagnoses = region_volumes(volumes, grid, HIPPOCAMPI), np.asarray(diagnoses)
    moves = region_volumes(after, grid, HIPPOCAMPI) - region_volumes(before, grid, HIPPOCAMPI)
    rows = []
    for (own, to), part in table.groupby(["own", "diagnosis"], sort=True):
        groups = own_ml[diagnoses == own], own_ml[diagnoses == to]
        if own == to or min(map(len, groups)) < 2:
            continue
        degrees = [len(group) - 1 for group in groups]
        pooled = np.sqrt(
            sum(n * group.var(axis=0, ddof=1) for n, group in zip(degrees, groups, strict=True)) / sum(degrees)
        )
        effect = groups[1].mean(axis=0) - groups[0].mean(axis=0)
        move = moves[part.index].mean(axis=0)
        for place, region in enumerate(HIPPOCAMPI):
            rows.append(
                {
                    "from": own, "to": to, "scans": len(part), "region": region,
                    "moved_ml": _over(move[place], 1.0), "moved_d": _over(move[place], pooled[place]),
                    "cohort_d": _over(effect[place], pooled[place]),
                }
            )  # fmt: skip
    return rows


def _over(value: float, scale: float) -> float | None:
    """The quotient, for JSON; None where there is none."""
    return float(value / scale) if scale > 0 and np.isfinite(value) else None


def minimality(changes: Sequence[np.ndarray], heads: Sequence[np.ndarray], regions: Sequence[str], grid: Grid) -> dict:
    """Mean absolute change inside and outside the regions, grown by 3 mm, and the share of all change that lies inside.

    Of each scan, then averaged; and of the mean change, in which what differs from scan to scan cancels. `changes` are
    (D, H, W), counterfactual minus reconstruction, `heads` masks of the heads.
    """
    masks = {name: dilated_mask(name, grid) for name in regions}
    inside = np.any(list(masks.values()), axis=0)
    hippocampi = np.any([dilated_mask(name, grid) for name in HIPPOCAMPI], axis=0)
    mean, head = np.mean(changes, axis=0), np.mean(heads, axis=0) >= 0.5
    found: dict[str, Any] = {"share_of_head": float((inside & head).sum() / head.sum())}
    for name, mask in (("regions", inside), ("hippocampi", hippocampi)):
        parts = [_inside_outside(*pair, mask, inside) for pair in zip(changes, heads, strict=True)]
        each = {key: float(np.mean([part[key] for part in parts])) for key in parts[0]}
        of_mean = _inside_outside(mean, head, mask, inside)
        found[name] = {"each_scan": _with_ratio(each), "mean_change": _with_ratio(of_mean)}
    ratio = found["regions"]["each_scan"]["outside_over_inside"]
    found |= {"goal": MOST_OUTSIDE, "met": ratio is not None and ratio <= MOST_OUTSIDE}
    return found | {
        "by_region": {
            name: float(np.mean([np.abs(change)[mask & head].mean() for change in changes]))
            for name, mask in masks.items() if (mask & head).any()
        }
    }  # fmt: skip


def _inside_outside(
    change: np.ndarray, head: np.ndarray, mask: np.ndarray, all_regions: np.ndarray
) -> dict[str, float]:
    """Mean absolute change in a mask and outside all regions, and the mask's share of all of it."""
    size = np.abs(change)
    total = float(size[head].sum())
    return {
        "inside": float(size[mask & head].mean()) if (mask & head).any() else 0.0,
        "outside": float(size[head & ~all_regions].mean()) if (head & ~all_regions).any() else 0.0,
        "share_inside": float(size[mask & head].sum()) / total if total else 0.0,
    }


def _with_ratio(found: dict[str, float]) -> dict[str, float | None]:
    return {**found, "outside_over_inside": _over(found["outside"], found["inside"])}


def lines(found: dict[str, Any]) -> list[str]:
    """The measures as a table in text."""
    errors = found["errors"]
    text = [f"distance to the scan, in the head: reconstruction {errors['reconstruction']:.4f}"]
    for name in ("composition", "reversibility", "reversibility_volume", "vae_twice"):
        if name in errors:
            text.append(
                f"    {name:22s}{{error:.4f}}, {{over_vae:.3f}} of it{_goal(errors[name])}".format(**errors[name])
            )
    text.append("latent round trip, rms: mean {mean:.1e}, largest {max:.1e}".format(**errors["round_trip"]))
    for row in found.get("effectiveness", ()):
        who = "{from} to {to} ({scans} scans), {region}".format(**row)
        text.append(f"{who}: d {_number(row['moved_d'], '+.2f')}, the cohort's own {_number(row['cohort_d'], '+.2f')}")
    for name in ("regions", "hippocampi") if "minimality" in found else ():
        for kind, part in found["minimality"][name].items():
            sizes = "inside {inside:.5f}, outside {outside:.5f}, share of all change inside {share_inside:.3f}"
            ratio = _number(part["outside_over_inside"], ".3f")
            goal = _goal(found["minimality"]) if (name, kind) == ("regions", "each_scan") else ""
            text.append(f"change in {name}, {kind}: {sizes.format(**part)}; outside over inside {ratio}{goal}")
    return text


def _number(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)


def _goal(part: dict[str, Any]) -> str:
    return f" (goal: at most {part['goal']:g}, {'met' if part['met'] else 'missed'})" if "goal" in part else ""
