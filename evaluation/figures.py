"""Figures of an evaluation: distances beside floor and controls, volumes beside their nearest training scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cohort.pictures import gallery, save
from cohort.scans import ScanStack
from cohort.tables import CLASS_NAMES
from evaluation import controls, fid


def draw_chart(path: Path, result: dict) -> None:
    """FID to the held-out reals: floor, synthetic and controls, overall and per class, on a logarithmic axis."""
    groups = list(fid.GROUPS)
    names = ["floor", "training", "other_class", "synthetic", *controls.NAMES, "repeated"]
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(names):
        found = [(x, result["results"][group]["held_out"].get(name)) for x, group in enumerate(groups)]
        shown = [(x, one["fid"]) for x, one in found if one is not None]
        left = [x + (place - len(names) / 2 + 0.5) / (len(names) + 1) for x, _ in shown]
        mean = np.array([one["mean"] for _, one in shown])
        errors = np.abs(np.array([[one["low"], one["high"]] for _, one in shown]).T - mean)
        colour = "tab:red" if name == "synthetic" else f"{0.85 - 0.09 * place:.2f}"
        axes.bar(left, mean, 1 / (len(names) + 1), yerr=errors, color=colour, ecolor="tab:blue", label=name)
        for x, value, top in zip(left, mean, mean + errors[1], strict=True):
            axes.annotate(f"{value:.3g}", (x, top), ha="center", va="bottom", fontsize=6)
    axes.set_yscale("log")
    axes.margins(y=0.1)
    axes.set_ylabel(f"FID to held-out reals ({result['protocol']['fid_dimensions']} dimensions)")
    size = result["n"]["per_draw"]
    axes.set_xticks(range(len(groups)), [f"{group}\n{size[group]} against {size[group]}" for group in groups])
    figure.legend(fontsize=7, ncols=len(names), loc="outside lower center")
    axes.set_title("\n".join(["Same N for every bar; lines: 95 % of draws", *result["warnings"]]), fontsize=7)
    save(figure, path)


def draw_nearest(path: Path, train: ScanStack, volumes: np.ndarray, labels: np.ndarray, per_class: int = 3) -> None:
    """The first synthetic volumes of each class above the training scans nearest to them, voxel by voxel.

    Args:
        path: of the PNG.
        train: training scans.
        volumes: synthetic volumes (N, D, H, W), normalised as the scans are.
        labels: their classes (N,).
        per_class: volumes to show of each class.
    """
    chosen = np.concatenate([np.flatnonzero(labels == code)[:per_class] for code in range(len(CLASS_NAMES))])
    picked = volumes[chosen]
    distances = np.array([[np.mean((volume - scan) ** 2) for scan in train.volumes] for volume in picked])
    nearest = [np.asarray(train.volumes[int(index)]) for index in distances.argmin(axis=1)]
    title = f"Synthetic volumes ({per_class} HC, {per_class} TLE, the first seeds) and their nearest training scans"
    gallery(path, [("synthetic", list(picked)), ("nearest real", nearest)], title=title)
