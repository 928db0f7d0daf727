"""Pictures of predictions: of one run (ROC and training curves), and of arms of an experiment side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from classifier.measures.bands import GRID
from classifier.measures.resampling import cell_text
from cohort.pictures import save
from cohort.tables import CLASS_NAMES

COLUMNS = 4
"""Arms side by side; more go to further rows."""
COLOUR, REFERENCE_COLOUR = "#2f6aa8", "0.55"
VERDICT_COLOURS = {"equivalent": "#2c7a4b", "not inferior": "#2f6aa8", "undecided": "0.45", "inferior": "#b3402e"}
SIZES = {
    "axes.titlesize": 9, "axes.labelsize": 8, "figure.labelsize": 8, "figure.titlesize": 8, "legend.fontsize": 7,
    "xtick.labelsize": 7, "ytick.labelsize": 7,
}  # fmt: skip


def curves(
    path: Path, scores: dict[str, tuple[np.ndarray, np.ndarray]], log: list[dict[str, float]], *, title: str
) -> None:
    """ROC curves, by name {legend: (labels, probabilities)}, beside the numbers of log.jsonl."""
    figure = Figure(figsize=(9, 4))
    left, right = figure.subplots(1, 2)
    for name, (labels, probabilities) in scores.items():
        left.plot(*roc_curve(labels, probabilities, drop_intermediate=False)[:2], label=name)
    left.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    left.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal", title="real held-out subjects")
    left.legend(fontsize=7, loc="lower right")
    for name in ("loss/train", "loss/val", "auc/val"):
        points = [(line["step"], line[name]) for line in log if name in line]
        if points:
            right.plot(*zip(*points, strict=True), label=name, linewidth=1)
    right.set(xlabel="step", title="training", ylim=(0, None))
    right.legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    save(figure, path)


@rc_context(SIZES)
def roc_and_precision(path: Path, arms: dict[str, dict[str, Any]]) -> None:
    """ROC curve above precision-recall curve of every arm of `bands.all_bands`; the first, the reference, in grey."""
    reference = next(iter(arms.values()))
    figure, panels = _panels(len(arms), (2.5, 4.9), (0.6, 0.5), rows=2)
    for place, ((upper, lower), (name, arm)) in enumerate(zip(panels, arms.items(), strict=True)):
        for axis, kind in ((upper, "roc"), (lower, "precision")):
            if arm is not reference:
                axis.plot(GRID, reference[kind][0], color=REFERENCE_COLOUR, linewidth=1, label="reference")
            colour, (line, low, high) = REFERENCE_COLOUR if arm is reference else COLOUR, arm[kind]
            axis.fill_between(GRID, low, high, color=colour, alpha=0.2, linewidth=0)
            axis.plot(GRID, line, color=colour, linewidth=1.5)
            _unit_square(axis, lowest=0)
        upper.plot([0, 1], [0, 1], color="0.8", linewidth=0.8, zorder=0)
        lower.axhline(arm["share"], color="0.8", linewidth=0.8, zorder=0)
        upper.set(title=_title(name, arm["leak"]), xlabel="1 - specificity")
        lower.set(xlabel="recall (sensitivity)")
        if place % COLUMNS == 0:
            upper.set(ylabel="sensitivity")
            lower.set(ylabel="precision")
    figure.suptitle("means over folds and training seeds; bands: 95 % of resamples, point by point")
    save(figure, path)


def _panels(
    count: int, size: tuple[float, float], margin: tuple[float, float], rows: int = 1
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with a panel of `size` (width, height) inches for each arm, of axes in so many rows."""
    columns = min(COLUMNS, count)
    blocks = -(-count // columns)
    figsize = margin[0] + size[0] * columns, margin[1] + size[1] * blocks
    figure = Figure(figsize=figsize, layout="constrained")
    grid = figure.subplots(rows * blocks, columns, squeeze=False)
    panels = [list(column) for block in np.split(grid, blocks) for column in block.T]
    for unused in np.ravel(panels[count:]):
        unused.set_axis_off()
    return figure, panels[:count]


def _title(name: str, leak: bool) -> str:
    return f"{name} (LEAK ALLOWED)" if leak else name


def _unit_square(axis: Axes, *, lowest: float) -> None:
    axis.set(xlim=(0, 1), ylim=(lowest, 1.02), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))


@rc_context({**SIZES, "axes.titlesize": 7})
def reliability(path: Path, bins: dict[str, list[dict[str, Any]]], rows: list[dict[str, Any]]) -> None:
    """Observed share of TLE against the promised probability, in the bins of `bands.reliabilities`.

    The calibration intercept and slope of the comparison's `rows` are written into the panels.
    """
    figure, panels = _panels(len(bins), (2.6, 2.8), (0.4, 0.4))
    by_name = {row["run"]: row for row in rows}
    for (axis,), (name, found) in zip(panels, bins.items(), strict=True):
        table = pd.DataFrame(found)
        axis.plot([0, 1], [0, 1], color="0.8", linewidth=0.8, zorder=0)
        axis.vlines(table["promised"], table["low"], table["high"], color=COLOUR, linewidth=1)
        axis.plot(table["promised"], table["observed"], "o-", color=COLOUR, markersize=3.5, linewidth=0.8)
        _unit_square(axis, lowest=-0.02)
        measured = {key: by_name[name]["metrics"][f"calibration_{key}"] for key in ("slope", "intercept")}
        texts = [f"{key} {cell_text(cell, '.2f')}" for key, cell in measured.items()]
        axis.set(title="\n".join([_title(name, by_name[name]["leak"]), *texts]), xlabel="probability of TLE")
    figure.supylabel("share of TLE (lines: 95 %, Wilson)")
    save(figure, path)


@rc_context(SIZES)
def confusion(path: Path, rows: list[dict[str, Any]]) -> None:
    """Scans by class and call, for each arm: share of the class, and count averaged over training seeds."""
    figure, panels = _panels(len(rows), (2.3, 2.4), (0.4, 0.4))
    for (axis,), row in zip(panels, rows, strict=True):
        counts = np.reshape(list(row["confusion"].values()), (2, 2))  # class, call
        shares = counts / counts.sum(1, keepdims=True)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (label, call), share in np.ndenumerate(shares):
            text, colour = f"{share:.0%}\n({counts[label, call]:.3g})", "white" if share > 0.6 else "black"
            axis.text(call, label, text, ha="center", va="center", fontsize=9, color=colour)
        axis.set_xticks((0, 1), [f"called {name}" for name in CLASS_NAMES])
        axis.set_yticks((0, 1), CLASS_NAMES)
        axis.set_title(_title(row["run"], row["leak"]))
    save(figure, path)


@rc_context({**SIZES, "axes.titlesize": 8, "xtick.labelsize": 10, "ytick.labelsize": 10})
def auc_by_real(path: Path, rows: list[dict[str, Any]]) -> None:
    """Area against the number of real training scans; one line for each way of adding to them."""
    figure = Figure(figsize=(6.5, 5.0), layout="constrained")
    axis = figure.add_subplot()
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    places = sorted({real_scans(row) for row in rows} - {0})
    width = 0.012 * ((places[-1] - places[0]) or places[-1]) if places else 1.0
    for number, recipe in enumerate(recipes):
        colour = f"C{number % 10}"
        offset = (number - (len(recipes) - 1) / 2) * width
        x, line = [], []
        for row in sorted((row for row in rows if row["recipe"] == recipe), key=real_scans):
            area, seeds = row["metrics"]["auc"], list(row["auc_by_seed"].values())
            if not real_scans(row):
                axis.axhline(area["value"], color=colour, linestyle="--", linewidth=1.2, label=recipe)
                continue
            x.append(real_scans(row) + offset)
            line.append(area["value"])
            axis.plot([x[-1]] * len(seeds), seeds, ".", color=colour, alpha=0.5, markersize=5)
            axis.vlines(x[-1], area["low"], area["high"], color=colour, linewidth=1)
        if x:
            axis.plot(x, line, "o-", color=colour, label=recipe, markersize=5, linewidth=1.2)
    axis.axhline(0.5, color="0.8", linewidth=0.8, zorder=0)
    axis.set(
        xticks=places, xlabel="real training scans (points side by side: the same number)",
        ylabel="AUC on real held-out subjects",
        title="points: training seeds; bars: 95 % over subjects and seeds; dashed: no real scans",
    )  # fmt: skip
    figure.legend(ncols=1, loc="outside lower center")
    save(figure, path)


def real_scans(row: dict[str, Any]) -> float:
    """Real training scans of an arm."""
    return sum(row["counts"].get(f"real_{name}", 0) for name in CLASS_NAMES)


@rc_context({**SIZES, "ytick.labelsize": 8})
def differences(path: Path, tests: list[dict[str, Any]]) -> None:
    """Forest plot of the differences of areas; thick lines are the 90 % intervals that decide at the margin."""
    figure = Figure(figsize=(7.5, 1.3 + 0.34 * len(tests)), layout="constrained")
    axis = figure.add_subplot()
    margin, upwards = tests[0]["margin"], tests[::-1]
    axis.axvspan(-margin, margin, color="0.93", zorder=0)
    axis.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    for height, test in enumerate(upwards):
        colour = VERDICT_COLOURS[test["verdict"]]
        axis.hlines(height, test["auc_difference_low"], test["auc_difference_high"], color=colour, linewidth=1)
        axis.hlines(height, test["auc_difference_low90"], test["auc_difference_high90"], color=colour, linewidth=3)
        axis.plot(test["auc_difference"], height, "o", color=colour, markersize=5)
        text = "{auc_difference:+.3f} [{auc_difference_low:+.3f}, {auc_difference_high:+.3f}]  {verdict}".format(**test)
        axis.annotate(
            text, (1.01, height), xycoords=("axes fraction", "data"), fontsize=7.5, va="center", color=colour,
            annotation_clip=False,
        )  # fmt: skip
    axis.set_yticks(range(len(tests)), [_title(f"{test['b']} minus {test['a']}", test["leak"]) for test in upwards])
    axis.set_ylim(-0.6, len(tests) - 0.4)
    axis.set_xlabel(f"difference of AUC (95 %; thick: 90 %; grey: within the margin of {margin:g})")
    save(figure, path)
