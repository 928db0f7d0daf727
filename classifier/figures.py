"""Pictures of a run: ROC and training curves, attributions over anatomy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from classifier.metrics import roc_curve
from cohort.pictures import PLANES, planes, save


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
        left.plot(*roc_curve(labels, probabilities), label=name)
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


def over_anatomy(path: Path, anatomy: np.ndarray, attribution: np.ndarray, *, title: str) -> None:
    """A signed map over a scan, three planes through the map's strongest place; red speaks for TLE, blue for HC.

    Args:
        path: of the PNG.
        anatomy: (D, H, W) in [0, 1].
        attribution: (D, H, W); colours end at the 99.5 percentile of its absolute value.
        title: above the picture.
    """
    peak = np.unravel_index(np.argmax(np.abs(attribution)), attribution.shape)
    at = tuple((index + 0.5) / size for index, size in zip(peak, attribution.shape, strict=True))
    limit = max(float(np.percentile(np.abs(attribution), 99.5)), 1e-12)
    figure = Figure(figsize=(8, 3))
    for axis, name, below, above in zip(
        figure.subplots(1, 3), PLANES, planes(anatomy, at), planes(attribution, at), strict=True
    ):
        axis.imshow(below, cmap="gray", vmin=0, vmax=1)
        strength = np.clip(np.abs(above) / limit, 0, 1)
        image = axis.imshow(above, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.85 * strength)
        axis.set_title(name, fontsize=8)
        axis.set_axis_off()
    figure.colorbar(image, ax=figure.axes, fraction=0.02, format="%.1e")
    figure.suptitle(title, fontsize=9)
    save(figure, path)
