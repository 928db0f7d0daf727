"""Pictures of attributions over anatomy. Left of the picture is left of the patient."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from cohort.pictures import PLANES, planes, save
from cohort.scans import head_mask

_LETTER_BOX = {"facecolor": "black", "edgecolor": "none", "pad": 1.5, "alpha": 0.6}


def over_anatomy(
    path: Path, anatomy: np.ndarray, attribution: np.ndarray, affine: np.ndarray, *, title: str, unit: str,
    ends: tuple[str, str] | None,
) -> None:  # fmt: skip
    """A map over a scan in [0, 1], three planes through its strongest place inside the head (air shows nothing).

    `ends` are what blue (negative) and red (positive) mean; None for a map that has no sign: yellow is then much.
    """
    limit = colour_limit(attribution)
    # A fixed layout: looking for one takes longer than all else, and there are many of these pictures.
    widths, height = plane_sizes(anatomy)
    figure = Figure(figsize=(9.6, 8.0 * height / sum(widths) + 0.75))
    top = 1 - 0.65 / figure.get_figheight()
    place = {"left": 0.01, "right": 0.86, "bottom": 0.02, "top": top, "wspace": 0.03}
    axes = figure.subplots(1, 3, width_ratios=widths, gridspec_kw=place)
    image = three_planes(axes, anatomy, attribution, affine, strongest(anatomy, attribution), signed=ends is not None)
    bar = figure.colorbar(image, cax=figure.add_axes((0.88, 0.08, 0.015, top - 0.16)))
    bar.solids.set_alpha(1)
    marks = [-limit, 0, limit] if ends else [0, limit]
    bar.set_ticks(marks, labels=[f"{mark:.1e}" if mark else "0" for mark in marks], fontsize=8)
    bar.set_label(f"← {ends[0]}    {ends[1]} →\n{unit}" if ends else f"{unit}\n(no sign)", fontsize=8)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def plane_sizes(volume: np.ndarray) -> tuple[list[int], int]:
    """Widths of the three planes of (D, H, W), and the largest height."""
    shapes = [plane.shape for plane in planes(volume)]
    return [width for _, width in shapes], max(height for height, _ in shapes)


def strongest(anatomy: np.ndarray, attribution: np.ndarray) -> tuple[int, ...]:
    """The voxel (d, h, w) inside the head with the largest absolute attribution."""
    return tuple(map(int, np.unravel_index(np.argmax(np.abs(attribution) * head_mask(anatomy)), attribution.shape)))


def three_planes(
    axes: Sequence[Axes], anatomy: np.ndarray, attribution: np.ndarray, affine: np.ndarray, voxel: Sequence[int], *,
    signed: bool,
) -> AxesImage:  # fmt: skip
    """Draws a map over a scan in [0, 1], planes through a voxel (d, h, w) on three axes; returns the last map's image.

    Colours run from blue (negative) to red, without a sign from nothing to yellow.
    """
    at = tuple((index + 0.5) / size for index, size in zip(voxel, attribution.shape, strict=True))
    limit = colour_limit(attribution)
    look = {"cmap": "RdBu_r", "vmin": -limit} if signed else {"cmap": "autumn", "vmin": 0.0}
    slices = [planes(volume, at) for volume in (anatomy, attribution)]
    x, y, z = affine[:3, :3] @ voxel + affine[:3, 3]
    side = "" if abs(x) < 0.5 else " (left side)" if x < 0 else " (right side)"  # a sagittal plane does not show it
    where = (f"x = {x:.0f} mm{side}", f"y = {y:.0f} mm", f"z = {z:.0f} mm")
    for axis, below, above, name, at_mm, letters in zip(axes, *slices, PLANES, where, ("PA", "LR", "LR"), strict=True):
        image = overlay(axis, below, above, limit, **look)
        axis.set_anchor("N")
        axis.set_title(f"{name}, {at_mm}", fontsize=9)
        for across, align, letter in ((0.02, "left", letters[0]), (0.98, "right", letters[1])):
            axis.text(across, 0.98, letter, transform=axis.transAxes, ha=align, va="top", color="white", fontsize=11,
                      fontweight="bold", bbox=_LETTER_BOX)  # fmt: skip
    return image


def colour_limit(map_: np.ndarray) -> float:
    """Where colours end: the 99.5 percentile of the absolute value, or the largest, or 1 for an empty map."""
    return float(np.percentile(np.abs(map_), 99.5)) or float(np.abs(map_).max()) or 1.0


def overlay(axis: Axes, below: np.ndarray, above: np.ndarray, limit: float, cmap: str, vmin: float) -> AxesImage:
    """One plane of a map over that of a scan, fading out towards 0; returns the map's image."""
    axis.imshow(below, cmap="gray", vmin=0, vmax=1)
    axis.set_axis_off()
    return axis.imshow(above, cmap=cmap, vmin=vmin, vmax=limit, alpha=0.85 * np.clip(np.abs(above) / limit, 0, 1))
