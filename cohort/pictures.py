"""Volumes as pictures: three planes through a point, upright, left of the picture = left of the patient."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLANES = ("sagittal", "coronal", "axial")
COLOURS = {"HC": "#2f6aa8", "TLE": "#d97a1d"}
"""One colour per class in every figure."""


def planes(volume: np.ndarray, at: tuple[float, float, float] = (0.33, 0.5, 0.45)) -> list[np.ndarray]:
    """Sagittal, coronal and axial slice of (D, H, W), each as an image whose first row is up.

    `at` is the position of each slice as a share of its axis; by default the sagittal plane runs through the left
    hippocampus and the axial one through the ventricles.
    """
    x, y, z = (min(int(share * size), size - 1) for share, size in zip(at, volume.shape, strict=True))
    return [np.flipud(plane.T) for plane in (volume[x], volume[:, y], volume[:, :, z])]


def strip(volume: np.ndarray) -> np.ndarray:
    """The three planes side by side in one image, padded at the bottom to one height."""
    images = planes(volume)
    height = max(image.shape[0] for image in images)
    return np.concatenate([np.pad(image, ((0, height - image.shape[0]), (0, 1))) for image in images], axis=1)


def gallery(path: Path, rows: list[tuple[str, list[np.ndarray]]], **options: Any) -> None:
    """Writes a `sheet` as a PNG."""
    save(sheet(rows, **options), path)


def sheet(rows: list[tuple[str, list[np.ndarray]]], *, title: str = "", error_rows: tuple[int, ...] = ()) -> Figure:
    """One labelled row of volumes (D, H, W) in [0, 1] after another, three planes each.

    A label that begins with a class gets its colour. `error_rows` hold signed differences, drawn in blue and red from
    -0.3 to 0.3.
    """
    count = max(len(volumes) for _, volumes in rows)
    height, width = strip(rows[0][1][0]).shape
    inches = max(2.0 * count, min(3.4 * count, 10.0))  # readable planes, and no wider than a page where that can be
    figure = new_figure(figsize=(inches + 1.0, len(rows) * inches / count * height / width + 0.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    axes = figure.subplots(len(rows), count, squeeze=False)
    for index, (label, volumes) in enumerate(rows):
        limits = {"cmap": "RdBu_r", "vmin": -0.3, "vmax": 0.3} if index in error_rows else {"cmap": "gray", "vmax": 1}
        for axis, volume in zip(axes[index][: len(volumes)], volumes, strict=True):
            axis.imshow(strip(volume), interpolation="nearest", **{"vmin": 0, **limits})
        first, colour = axes[index, 0], COLOURS.get(label.split("-")[0].split(" ")[0], "black")
        first.text(-0.02, 0.5, label, color=colour, transform=first.transAxes, ha="right", va="center")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return figure


def new_figure(**options: Any) -> Figure:
    """An empty figure that belongs to no window; takes what `matplotlib.figure.Figure` takes."""
    from matplotlib.figure import Figure  # slow to import, and needed only where something is drawn

    return Figure(**options)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, atomically and without a display."""
    import matplotlib

    with matplotlib.rc_context({"savefig.dpi": 110}), atomic_write(path) as temporary:
        figure.savefig(temporary)
