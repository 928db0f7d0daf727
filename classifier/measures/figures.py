"""Pictures of predictions: of one run (ROC and training curves), and of arms of an experiment side by side."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from classifier.measures.bands import GRID
from classifier.measures.resampling import cell_text
from cohort.pictures import save
from cohort.tables import CLASS_NAMES

COLUMNS = 4
"""Arms side by side; more go to further rows."""
COLOUR = "#2f6aa8"
REFERENCE_COLOUR = "0.55"
VERDICT_COLOURS = {"equivalent": "#2c7a4b", "not inferior": "#2f6aa8", "undecided": "0.45", "inferior": "#b3402e"}


def curves(
    path: Path, scores: dict[str, tuple[np.ndarray, np.ndarray]], log: list[dict[str, float]], *, title: str
) -> None:
    """ROC curves beside the training log.

    Args:
        path: of the PNG.
        scores: {name for the legend: (labels, probabilities)}.
        log: lines of log.jsonl.
        title: above the picture.
    """
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


def roc_and_precision(path: Path, arms: dict[str, dict[str, Any]]) -> None:
    """ROC curve above precision-recall curve of every arm, with bootstrap bands; the reference in grey in each.

    Args:
        path: of the PNG.
        arms: of `bands.all_bands`; the first is the reference.
    """
    reference = next(iter(arms.values()))
    columns = min(COLUMNS, len(arms))
    blocks = -(-len(arms) // columns)
    figure = Figure(figsize=(0.6 + 2.5 * columns, 0.5 + 4.9 * blocks), layout="constrained")
    grid = figure.subplots(2 * blocks, columns, squeeze=False)
    for place, (name, arm) in enumerate(arms.items()):
        block, column = divmod(place, columns)
        upper, lower = grid[2 * block, column], grid[2 * block + 1, column]
        for axis, kind in ((upper, "roc"), (lower, "precision")):
            if arm is not reference:
                axis.plot(GRID, reference[kind][0], color=REFERENCE_COLOUR, linewidth=1, label="reference")
            colour, (line, low, high) = REFERENCE_COLOUR if arm is reference else COLOUR, arm[kind]
            axis.fill_between(GRID, low, high, color=colour, alpha=0.2, linewidth=0)
            axis.plot(GRID, line, color=colour, linewidth=1.5)
            _unit_square(axis, lowest=0)
        upper.plot([0, 1], [0, 1], color="0.8", linewidth=0.8, zorder=0)
        lower.axhline(arm["share"], color="0.8", linewidth=0.8, zorder=0)
        upper.set_title(_title(name, arm["leak"]), fontsize=9)
        upper.set_xlabel("1 - specificity", fontsize=8)
        lower.set_xlabel("recall (sensitivity)", fontsize=8)
        if column == 0:
            upper.set_ylabel("sensitivity", fontsize=8)
            lower.set_ylabel("precision", fontsize=8)
    _hide_unused(grid, len(arms), columns, height=2)
    figure.suptitle("means over folds and training seeds; bands: 95 % of resamples, point by point", fontsize=8)
    save(figure, path)


def _title(name: str, leak: bool) -> str:
    return f"{name} (LEAK ALLOWED)" if leak else name


def _unit_square(axis: Axes, *, lowest: float) -> None:
    axis.set(xlim=(0, 1), ylim=(lowest, 1.02), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    axis.tick_params(labelsize=7)


def _hide_unused(grid: np.ndarray, count: int, columns: int, *, height: int) -> None:
    """Switches off the axes of the last block that have no arm; a block is `height` rows of axes."""
    used = count % columns or columns
    for axis in grid[-height:, used:].flat:
        axis.set_axis_off()


def _panels(count: int, width: float, height: float) -> tuple[Figure, Iterator[Axes]]:
    """A figure with a panel of width x height inches for each arm."""
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(0.4 + width * columns, 0.4 + height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    _hide_unused(grid, count, columns, height=1)
    return figure, islice(grid.flat, count)


def reliability(path: Path, bins: dict[str, list[dict[str, Any]]], rows: list[dict[str, Any]]) -> None:
    """Observed share of TLE against the promised probability, in bins of equally many scans.

    Args:
        path: of the PNG.
        bins: arm -> bins of `calibration.reliability`.
        rows: of the comparison; their calibration intercept and slope are written into the panels.
    """
    figure, axes = _panels(len(bins), 2.6, 2.8)
    by_name = {row["run"]: row for row in rows}
    for axis, (name, found) in zip(axes, bins.items(), strict=True):
        table = pd.DataFrame(found)
        axis.plot([0, 1], [0, 1], color="0.8", linewidth=0.8, zorder=0)
        axis.vlines(table["promised"], table["low"], table["high"], color=COLOUR, linewidth=1)
        axis.plot(table["promised"], table["observed"], "o-", color=COLOUR, markersize=3.5, linewidth=0.8)
        _unit_square(axis, lowest=-0.02)
        texts = (
            f"{key} {cell_text(by_name[name]['metrics'][f'calibration_{key}'], '.2f')}"
            for key in ("slope", "intercept")
        )
        axis.set_title("\n".join([_title(name, by_name[name]["leak"]), *texts]), fontsize=7)
        axis.set_xlabel("probability of TLE", fontsize=8)
    figure.supylabel("share of TLE (lines: 95 %, Wilson)", fontsize=8)
    save(figure, path)


def confusion(path: Path, rows: list[dict[str, Any]]) -> None:
    """Scans by class and call, for each arm: share of the class, and count averaged over training seeds."""
    figure, axes = _panels(len(rows), 2.3, 2.4)
    for axis, row in zip(axes, rows, strict=True):
        counts = np.reshape(list(row["confusion"].values()), (2, 2))  # class, call
        shares = counts / counts.sum(1, keepdims=True)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (label, call), share in np.ndenumerate(shares):
            axis.text(
                call, label, f"{share:.0%}\n({counts[label, call]:.3g})", ha="center", va="center", fontsize=9,
                color="white" if share > 0.6 else "black",
            )  # fmt: skip
        axis.set_xticks((0, 1), [f"called {name}" for name in CLASS_NAMES], fontsize=7)
        axis.set_yticks((0, 1), CLASS_NAMES, fontsize=7)
        axis.set_title(_title(row["run"], row["leak"]), fontsize=9)
    save(figure, path)


def auc_by_real(path: Path, rows: list[dict[str, Any]]) -> None:
    """Area against the number of real training scans; one line for each way of adding to them.

    Args:
        path: of the PNG.
        rows: of the comparison. Training seeds are points, intervals bars; an arm without real scans is a level line.
    """
    figure = Figure(figsize=(6.5, 5.0), layout="constrained")
    axis = figure.add_subplot()
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    places = sorted({real_scans(row) for row in rows} - {0})
    width = 0.012 * ((places[-1] - places[0]) or places[-1]) if places else 1.0
    for number, recipe in enumerate(recipes):
        colour = f"C{number % 10}"
        offset = (number - (len(recipes) - 1) / 2) * width
        chosen = sorted((row for row in rows if row["recipe"] == recipe), key=real_scans)
        x, line = [], []
        for row in chosen:
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
    axis.set_xticks(places)
    axis.set_xlabel("real training scans (points side by side: the same number)", fontsize=8)
    axis.set_ylabel("AUC on real held-out subjects", fontsize=8)
    axis.set_title("points: training seeds; bars: 95 % over subjects and seeds; dashed: no real scans", fontsize=8)
    figure.legend(fontsize=7, ncols=1, loc="outside lower center")
    save(figure, path)


def real_scans(row: dict[str, Any]) -> float:
    """Real training scans of an arm."""
    return sum(row["counts"].get(f"real_{name}", 0) for name in CLASS_NAMES)


def differences(path: Path, tests: list[dict[str, Any]]) -> None:
    """Forest plot of the differences of areas, with the margin and the verdict of each.

    Args:
        path: of the PNG.
        tests: of the comparison; thin lines are 95 % intervals, thick ones the 90 % intervals that decide.
    """
    figure = Figure(figsize=(7.5, 1.3 + 0.34 * len(tests)), layout="constrained")
    axis = figure.add_subplot()
    margin = tests[0]["margin"]
    axis.axvspan(-margin, margin, color="0.93", zorder=0)
    axis.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    for height, test in enumerate(reversed(tests)):
        colour = VERDICT_COLOURS[test["verdict"]]
        axis.hlines(height, test["auc_difference_low"], test["auc_difference_high"], color=colour, linewidth=1)
        axis.hlines(height, test["auc_difference_low90"], test["auc_difference_high90"], color=colour, linewidth=3)
        axis.plot(test["auc_difference"], height, "o", color=colour, markersize=5)
        text = "{auc_difference:+.3f} [{auc_difference_low:+.3f}, {auc_difference_high:+.3f}]  {verdict}".format(**test)
        axis.annotate(
            text, (1.01, height), xycoords=("axes fraction", "data"), fontsize=7.5, va="center", color=colour,
            annotation_clip=False,
        )  # fmt: skip
    names = [_title(f"{test['b']} minus {test['a']}", test["leak"]) for test in reversed(tests)]
    axis.set_yticks(range(len(tests)), names, fontsize=8)
    axis.set_ylim(-0.6, len(tests) - 0.4)
    axis.tick_params(axis="x", labelsize=7)
    axis.set_xlabel(f"difference of AUC (95 %; thick: 90 %; grey: within the margin of {margin:g})", fontsize=8)
    save(figure, path)
