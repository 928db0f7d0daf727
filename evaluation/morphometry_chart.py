"""The effect of the diagnosis by region: real scans beside synthetic ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cohort.pictures import save

_COLOURS = ("black", "tab:red", "tab:blue", "tab:green")


def forest_plot(
    path: Path,
    effects: Mapping[str, dict],
    *,
    names: Sequence[str] | None = None,
    truth: Mapping[str, float] | None = None,
    shown: int = 24,
    title: str = "",
) -> None:
    """Cohen's d of TLE against HC with 95 % intervals, one row per measure, the first set's largest effects at the top.

    Args:
        path: of the PNG.
        effects: name of a set -> result of `morphometry.class_effects`; the real one first, 4 at most.
        names: the measures to choose from; by default all of the first set.
        truth: d of the true volumes, for those measures that have one; a cross.
        shown: how many measures have room; those of largest d in the first set. What is not finite is left out.
        title: above the picture.
    """
    first = next(iter(effects.values()))["measures"]
    known = [name for name in (first if names is None else names) if first[name]["d"] is not None]
    chosen = sorted(known, key=lambda name: abs(first[name]["d"]))[-shown:]
    figure = Figure(figsize=(7.0, 1.4 + 0.24 * len(chosen)), layout="constrained")
    axes = figure.add_subplot()
    for place, (label, result) in enumerate(effects.items()):
        sizes = ", ".join(f"{count} {name}" for name, count in result["n"].items())
        height = np.arange(len(chosen)) + 0.2 * ((len(effects) - 1) / 2 - place)
        rows = [result["measures"].get(name, {}) for name in chosen]
        _points(axes, height, rows, _COLOURS[place], f"{label} ({sizes})")
    true = [(height, truth[name]) for height, name in enumerate(chosen) if truth and name in truth]
    if true:
        axes.plot([d for _, d in true], [height for height, _ in true], "x", color="tab:gray", label="true volumes")
    axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(chosen)), chosen, fontsize=7)
    axes.set_xlabel("Cohen's d, TLE against HC (lines: 95 % of resamples of subjects)", fontsize=8)
    axes.set_title(title, fontsize=8)
    figure.legend(fontsize=7, ncols=len(effects) + bool(true), loc="outside lower center")
    save(figure, path)


def _points(axes: Axes, height: np.ndarray, rows: list[dict], colour: str, label: str) -> None:
    """One set's effects and intervals; a row without an effect stays empty."""
    values = np.array([[row.get(key) for key in ("d", "d_low", "d_high")] for row in rows], dtype=np.float64)
    values = values.reshape(-1, 3)
    axes.hlines(height, values[:, 1], values[:, 2], color=colour, linewidth=1)
    axes.plot(values[:, 0], height, "o", color=colour, markersize=3.5, label=label)
