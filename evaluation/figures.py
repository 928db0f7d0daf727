"""Figures of an evaluation: distances beside floor and controls, nearest training scans, closest pairs, effects."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cohort.pictures import COLOURS, gallery, new_figure, save
from cohort.stacks import ScanStack
from cohort.tables import CLASS_NAMES
from evaluation import fid
from evaluation.references import controls, sharpness

PAIRS_PER_ROW = 5
LEGEND_COLUMNS, TITLE_WIDTH = 7, 150
"""Names in a row, and letters in a line, that fit the width of a chart."""
_COLOURS = ("black", "tab:red", "tab:blue", "tab:green")


def draw_chart(path: Path, result: dict) -> None:
    """FID to the held-out reals: floor, synthetic and controls, overall and per class, on a logarithmic axis."""
    groups = list(fid.GROUPS)
    known = result["results"]["overall"]["held_out"]
    rungs = [name for name in (fid.RECONSTRUCTED, "synthetic", *reversed(fid.BASELINES)) if name in known]
    names = ["floor", "training", "other_class", *rungs, *controls.NAMES, "repeated"]
    figure = new_figure(figsize=(9.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(names):
        samples = [(x, result["results"][group]["held_out"].get(name)) for x, group in enumerate(groups)]
        shown = [(x, sample["fid"]) for x, sample in samples if sample is not None]
        left = [x + (place - len(names) / 2 + 0.5) / (len(names) + 1) for x, _ in shown]
        mean, low, high = (np.array([fids[key] for _, fids in shown]) for key in ("mean", "low", "high"))
        colour = "tab:red" if name == "synthetic" else f"{0.85 - 0.7 * place / len(names):.2f}"
        reach, width = (mean - low, high - mean), 1 / (len(names) + 1)
        bars = axes.bar(left, mean, width, yerr=reach, color=colour, ecolor="tab:blue", label=name)
        axes.bar_label(bars, fmt="{:.3g}", fontsize=6)
    axes.set_yscale("log")
    axes.margins(y=0.1)
    axes.set_ylabel(f"FID to held-out reals ({result['protocol']['fid_dimensions']} dimensions)")
    size = result["n"]["per_draw"]
    axes.set_xticks(range(len(groups)), [f"{group}\n{size[group]} against {size[group]}" for group in groups])
    figure.legend(fontsize=7, ncols=min(len(names), LEGEND_COLUMNS), loc="outside lower center")
    said = ["Same N for every bar; lines: 95 % of draws", *result["warnings"]]
    axes.set_title("\n".join(line for text in said for line in textwrap.wrap(text, TITLE_WIDTH)), fontsize=7)
    save(figure, path)


def draw_sharpness(path: Path, result: dict, spacing_mm: float) -> None:
    """Radial power spectra of synthetic volumes and of what stands beside them, in decibels of held-out scans."""
    figure = new_figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    looks = {"blurred": "0.8", "gaussian": "0.6", fid.RECONSTRUCTED: "0.3", "synthetic": COLOURS["TLE"]}
    for name, colour in looks.items():
        if name in result["sharpness"]:
            decibels = result["sharpness"][name]["power_db"]
            axes.plot(sharpness.frequencies(spacing_mm), decibels, "o-", color=colour, label=name)
    axes.axhline(0, color="0.8", linewidth=1)
    axes.set(xlabel="spatial frequency (cycles per mm)", ylabel="power, dB of held-out scans", title="sharpness")
    axes.legend()
    save(figure, path)


def draw_nearest(path: Path, train: ScanStack, volumes: np.ndarray, labels: np.ndarray, per_class: int = 3) -> None:
    """The first synthetic volumes of each class above the training scans nearest to them, voxel by voxel."""
    picked = volumes[np.concatenate([np.flatnonzero(labels == code)[:per_class] for code in range(len(CLASS_NAMES))])]
    distances = np.array([[np.mean((volume - scan) ** 2) for scan in train.volumes] for volume in picked])
    nearest = [np.asarray(train.volumes[int(index)]) for index in distances.argmin(axis=1)]
    title = f"Synthetic volumes ({per_class} HC, {per_class} TLE, the first seeds) and their nearest training scans"
    gallery(path, [("synthetic", list(picked)), ("nearest real", nearest)], title=title)


def draw_pairs(path: Path, synthetic: Sequence[np.ndarray], train: Sequence[np.ndarray], pairs: Sequence[dict]) -> None:
    """The closest synthetic volumes above the training scans that they are closest to, and the differences.

    Volumes and scans are (D, H, W), in the order of the rows in `pairs` (`nearest.closest_pairs`).
    """
    rows: list[tuple[str, list[np.ndarray]]] = []
    for start in range(0, len(pairs), PAIRS_PER_ROW):
        part = pairs[start : start + PAIRS_PER_ROW]
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


def draw_effects(
    path: Path,
    effects: Mapping[str, dict],
    *,
    names: Sequence[str] | None = None,
    known: Mapping[str, float | None] | None = None,
    shown: int = 24,
) -> None:
    """Cohen's d of TLE against HC with 95 % intervals, one row per measure, the first set's largest effects at the top.

    Args:
        effects: name of a set -> result of `effects.class_effects`; the real one first, 4 at most.
        names: the measures to choose from; by default all of the first set.
        known: d of volumes that a table gives, for those measures that have one; a cross.
        shown: how many measures have room; those of largest d in the first set. What is not finite is left out.
    """
    first, given = next(iter(effects.values()))["measures"], known or {}
    known = [name for name in (first if names is None else names) if first[name]["d"] is not None]
    chosen = sorted(known, key=lambda name: abs(first[name]["d"]))[-shown:]
    figure = new_figure(figsize=(7.0, 1.4 + 0.24 * len(chosen)), layout="constrained")
    axes = figure.add_subplot()
    for place, (label, result) in enumerate(effects.items()):
        height = np.arange(len(chosen)) + 0.2 * ((len(effects) - 1) / 2 - place)
        rows = [[result["measures"][name][key] for key in ("d", "d_low", "d_high")] for name in chosen]
        d, low, high = np.array(rows, dtype=np.float64).reshape(-1, 3).T  # None: nan, and not drawn
        sizes = ", ".join(f"{count} {name}" for name, count in result["n"].items())
        axes.hlines(height, low, high, color=_COLOURS[place], linewidth=1)
        axes.plot(d, height, "o", color=_COLOURS[place], markersize=3.5, label=f"{label} ({sizes})")
    crosses = [(given[name], height) for height, name in enumerate(chosen) if given.get(name) is not None]
    if crosses:
        axes.plot(*zip(*crosses, strict=True), "x", color="tab:gray", label="volumes of the table")
    axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(chosen)), chosen, fontsize=7)
    axes.set_xlabel("Cohen's d, TLE against HC (lines: 95 % of resamples of subjects)", fontsize=8)
    figure.legend(fontsize=7, ncols=len(effects) + bool(crosses), loc="outside lower center")
    save(figure, path)
