"""Pictures of a validation of maps: which method passes which check, where maps of patients and controls differ."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from classifier.saliency.figures import colour_limit, overlay
from classifier.validation.checks import CHECKS, Evidence, answers
from cohort.pictures import PLANES, planes, save

_COLOURS = {True: "#2f6aa8", False: "#d97a1d", None: "#e6e6e6"}
"""Passed, failed, not asked."""
_UNITS = (
    "pointing, precision, side: shares; enrichment, difference, silence, permuted: 1 is chance; "
    "response, forgetting: correlations; deletion, insertion: logits; shortcut: rank"
)


def scores(path: Path, methods: dict[str, Evidence], *, title: str, judged: bool) -> None:
    """Methods by checks: each cell shows the number behind the answer, its colour the answer (where `judged`)."""
    figure = Figure(figsize=(1.15 * len(CHECKS) + 2.4, 0.42 * len(methods) + 1.5), layout="constrained")
    axis = figure.subplots()
    for row, evidence in enumerate(methods.values()):
        found = answers(evidence) if judged else dict.fromkeys(CHECKS)
        for column, (name, answer) in enumerate(found.items()):
            number = CHECKS[name].number(evidence)
            place = (column - 0.48, row - 0.46)
            axis.add_patch(Rectangle(place, 0.96, 0.92, facecolor=_COLOURS[answer], edgecolor="none"))
            if number is not None:
                text = f"{number['value']:.0f}" if float(number["value"]).is_integer() else f"{number['value']:.2f}"
                look = {"ha": "center", "va": "center", "color": "black" if answer is None else "white"}
                axis.text(column, row, text, fontsize=9, **look)
    axis.set(xlim=(-0.5, len(CHECKS) - 0.5), ylim=(len(methods) - 0.5, -0.5))
    labels = [name if check.counted else f"({name})" for name, check in CHECKS.items()]
    axis.set_xticks(range(len(CHECKS)), labels, fontsize=9)
    axis.xaxis.tick_top()
    axis.set_yticks(range(len(methods)), list(methods), fontsize=9)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    key = "blue: passed, orange: failed, grey: not judged; in brackets: passed by failing to reject, not counted"
    key = key if judged else "not judged: the network has learned nothing"
    axis.set_xlabel(f"{key}\n{_UNITS}", fontsize=8)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def differences(path: Path, anatomy: np.ndarray, maps: dict[str, np.ndarray], region: np.ndarray) -> None:
    """One row per method: the mean map of patients minus that of controls, and the outline of the changed region.

    Everything is (D, H, W) in the frame where the changed side is the left; planes go through the region's middle.
    """
    at = tuple((np.argwhere(region).mean(axis=0) + 0.5) / region.shape)
    below, outline = planes(anatomy, at), planes(region.astype(float), at)
    figure = Figure(figsize=(7.4, 1.95 * len(maps) + 0.5), layout="constrained")
    axes = figure.subplots(len(maps), 3, width_ratios=[plane.shape[1] for plane in below], squeeze=False)
    for row, (name, map_) in zip(axes, maps.items(), strict=True):
        limit = colour_limit(map_)
        for axis, under, over, edge in zip(row, below, planes(map_, at), outline, strict=True):
            overlay(axis, under, over, limit, cmap="RdBu_r", vmin=-limit)
            axis.contour(edge, levels=[0.5], colors="#f2e205", linewidths=1.0)
        row[0].text(-0.04, 0.5, name, transform=row[0].transAxes, rotation=90, ha="right", va="center", fontsize=8)
    for axis, plane in zip(axes[0], PLANES, strict=True):
        axis.set_title(plane, fontsize=9)
    for axis in axes[:, 1:].flat:
        axis.text(0.02, 0.98, "changed side", transform=axis.transAxes, va="top", color="white", fontsize=6)
    figure.suptitle("Mean map of patients minus that of controls; outlined: the changed region", fontsize=10)
    save(figure, path)
