"""The picture of a counterfactual: scan, reconstruction, counterfactual and difference, three planes each."""

from functools import cache
from pathlib import Path

import numpy as np

from cohort.atlas import atlas
from cohort.grids import Grid
from cohort.pictures import PLANES, new_figure, planes, save

ROWS = ("scan", "reconstruction", "counterfactual", "difference")


def picture(path: Path, volumes: dict[str, np.ndarray], grid: Grid, *, title: str, side: str) -> None:
    """Writes a PNG of the volumes (D, H, W) named ROWS, planes through the hippocampus of a side, L or R.

    Left of the picture is left of the patient. The difference runs from blue (darker in the counterfactual) to red.
    """
    both = (volumes["reconstruction"] > 0) & (volumes["counterfactual"] > 0)  # the rim may be background in one
    limit = float(np.percentile(np.abs(volumes["difference"][both]), 99.8)) if both.any() else 0.0
    limit = limit or 1.0
    at = _middle_of(f"{'Right' if side == 'R' else 'Left'} Hippocampus", grid)
    drawn = [planes(volumes[name], at) for name in ROWS]
    widths = [plane.shape[1] for plane in drawn[0]]
    height = max(plane.shape[0] for plane in drawn[0])
    figure = new_figure(figsize=(8.4, 7.4 * len(ROWS) * height / sum(widths) + 0.9), layout="constrained")
    axes = figure.subplots(len(ROWS), 3, width_ratios=widths)
    for row, name, images in zip(axes, ROWS, drawn, strict=True):
        signed = name == "difference"
        look = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit} if signed else {"cmap": "gray", "vmin": 0, "vmax": 1}
        for axis, image, letters in zip(row, images, ("PA", "LR", "LR"), strict=True):
            shown = axis.imshow(image, interpolation="nearest", **look)
            axis.set_axis_off()
            for across, letter in zip((0.03, 0.97), letters, strict=True):
                place = {"ha": "left" if across < 0.5 else "right", "va": "top", "transform": axis.transAxes}
                axis.text(across, 0.97, letter, color="black" if signed else "white", fontsize=8, **place)
        row[0].text(-0.03, 0.5, name, transform=row[0].transAxes, rotation=90, ha="right", va="center", fontsize=9)
    bar = figure.colorbar(shown, ax=axes[-1].tolist(), fraction=0.03, pad=0.01, extend="both")
    bar.set_label("intensity, of 1", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    where = grid.affine[:3, :3] @ ((np.array(at) * grid.shape).astype(int)) + grid.affine[:3, 3]
    for axis, plane, axis_name, mm in zip(axes[0], PLANES, "xyz", where, strict=True):
        axis.set_title(f"{plane}, {axis_name} = {mm:.0f} mm", fontsize=8)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


@cache
def _middle_of(region: str, grid: Grid) -> tuple[float, float, float]:
    """Middle of an atlas region, as shares of the grid's axes."""
    x, y, z = (np.argwhere(atlas(grid).mask(region)).mean(axis=0) + 0.5) / grid.shape
    return float(x), float(y), float(z)
