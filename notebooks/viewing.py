"""Volumes of any kind in a notebook: read in their own voxels, and moved through side by side in a browser."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

import ipywidgets as widgets
import nibabel as nib
import numpy as np
import traitlets
from anywidget import AnyWidget
from ipyniivue import NiiVue

from cohort.decoding import ENDINGS, naming, read_voxels
from cohort.grids import GRIDS
from cohort.reading.intensities import plain
from cohort.scans import edges_mm, normalise, to_ras
from cohort.tables import read_table
from runtime.errors import InputError
from runtime.files import absence


@dataclass(frozen=True)
class Shown:
    """One volume to look at."""

    name: str
    image: np.ndarray
    """float32 (D, H, W) in RAS order: in [0, 1], or a signed difference or map."""
    affine: np.ndarray
    """(4, 4), voxel indices to mm."""
    signed: float = 0.0
    """Where colours end, of a difference or map: red is this much, blue as much below 0. 0: a grey picture."""
    under: np.ndarray | None = None
    """float32 (D, H, W) in [0, 1]: the anatomy that a difference or map lies over, and shows where it is near 0."""


def made_by(path: Path, command: str) -> str:
    """What a notebook says in place of a part whose file is not there."""
    return f"{path}: not there yet. This part needs it, and it is made by: {command}"


def files_of(source: Path | str) -> dict[str, Path]:
    """The volumes of a file, of a folder with all below it, or of a table of scans, by names to choose them by.

    InputError where there are none.
    """
    source = Path(source)
    if not source.is_dir() and (reason := absence(source, "file or folder")):
        raise InputError(f"{source}: {reason}")
    if source.suffix in (".csv", ".tsv"):
        rows = read_table(source).itertuples()
        return {" ".join(filter(None, (row.subject, row.session, row.diagnosis))): Path(row.file) for row in rows}
    if source.is_file():
        return {source.name: source}
    ways = (path.relative_to(source) for path in sorted(source.rglob("*")) if path.name.lower().endswith(ENDINGS))
    found = {str(way): source / way for way in ways if way.suffix != ".img" and not is_hidden(way)}
    if not found:
        raise InputError(f"{source}: no volumes in it: expected names ending in {', '.join(ENDINGS)}")
    return found


def is_hidden(way: Path) -> bool:
    """Whether a file or a folder on the way to it is hidden, as unfinished ones are."""
    return any(part.startswith(".") for part in way.parts)


def open_volume(path: Path, name: str = "") -> Shown:
    """Reads a scan or a volume pickle as it lies, turned to RAS order and scaled to [0, 1]; InputError where it cannot.

    A pickle without an affine lies on the grid of its shape, or where there is none has voxels of 1 mm.
    """
    with naming(path):
        image, affine, _ = read_voxels(path)
        image, _ = plain(image)
    grids = {grid.shape: grid.affine for grid in GRIDS.values()}
    image, affine = to_ras(image, grids.get(image.shape, np.eye(4)) if affine is None else affine)
    return Shown(name or path.name, normalise(image), affine)


def size_text(shown: Shown) -> str:
    """Voxels and their size."""
    edges = " x ".join(f"{edge:.3g}" for edge in edges_mm(shown.affine))
    return f"{' x '.join(map(str, shown.image.shape))} voxels of {edges} mm"


class Code(widgets.Widget):
    """JavaScript that other widgets run; seen nowhere itself."""

    text = traitlets.Unicode().tag(sync=True)


@cache
def niivue_code() -> Code:
    """NiiVue's own, which reaches the browser once."""
    return Code(text=str(NiiVue._esm))


class Column(NiiVue):
    """What a NiiVue shows, as a plain model; a Window makes it visible.

    NiiVue's own model is anywidget's, which waits two seconds for the widget's code, here 5 MB, and after them drops
    all that the kernel sends it, for good: where the browser was busy, such a column stayed black. A plain model waits
    for nothing.
    """

    _model_module = traitlets.Unicode("@jupyter-widgets/base").tag(sync=True)
    _model_module_version = traitlets.Unicode(widgets.Widget._model_module_version.default_value).tag(sync=True)
    _model_name = traitlets.Unicode("WidgetModel").tag(sync=True)
    _esm = "// in Code"

    @traitlets.validate("other_nv")
    def _validate_other_nv(self, proposal: dict) -> list[NiiVue]:
        """Columns: NiiVue's own check, which this replaces, takes no subclass."""
        return proposal["value"]


class Window(AnyWidget):
    """A column's place on the page. It is told all when it is made, so that there is nothing that it could miss."""

    _esm = Path(__file__).with_name("column.js")
    code = traitlets.Instance(Code).tag(sync=True, **widgets.widget_serialization)
    column = traitlets.Instance(Column).tag(sync=True, **widgets.widget_serialization)


class Viewer:
    """Volumes in columns, each in a NiiVue of its own: a click or a drag in one moves all to that place in mm.

    The wheel goes through slices, the right button of the mouse changes the contrast. Left of a picture is left of the
    patient.
    """

    def __init__(self, names: Iterable[str], height: int = 280) -> None:
        self.names = tuple(names)
        self.shown: dict[str, Shown] = {}
        line = widgets.Layout(height="28px", overflow="hidden")
        self._titles = {name: widgets.HTML(f"<b>{name}</b>", layout=line) for name in self.names}
        # Its text for an empty canvas, drawn when a font has come, would wipe out a volume that came before.
        self._views = {name: Column(height=height, loading_text="") for name in self.names}
        for view in self._views.values():
            view.broadcast_to([other for other in self._views.values() if other is not view])
        width = widgets.Layout(width=f"{100 / len(self.names):.0f}%")
        windows = {name: Window(code=niivue_code(), column=view) for name, view in self._views.items()}
        columns = [widgets.VBox([self._titles[name], windows[name]], layout=width) for name in self.names]
        self.widget = widgets.HBox(columns)

    def show(self, name: str, shown: Shown) -> None:
        """Puts a volume into a column, in the place of the one that was there; nothing is sent where it is the same."""
        before = self.shown.get(name)
        self.shown[name] = shown
        self._titles[name].value = f"<b>{name}</b>: {escape(shown.name)}"
        if before is not None and np.array_equal(before.image, shown.image):
            return
        grey = {"colormap": "gray", "cal_min": 0.0, "cal_max": 1.0}
        red = {"colormap": "red", "colormap_negative": "blue", "cal_min": shown.signed / 10, "cal_max": shown.signed}
        layers = [{"name": f"{name}.nii", "data": as_nifti(shown), **(red if shown.signed else grey)}]
        if shown.under is not None:
            below = as_nifti(Shown("", shown.under, shown.affine))
            layers.insert(0, {"name": f"{name}, under.nii", "data": below, **grey})
        self._views[name].load_volumes(layers)


def as_nifti(shown: Shown) -> bytes:
    """A volume as a NIfTI file, in 256 steps where it is no map: large heads are soon sent."""
    if shown.signed:
        return nib.Nifti1Image(shown.image, shown.affine).to_bytes()
    nifti = nib.Nifti1Image(np.rint(255 * np.clip(shown.image, 0, 1)).astype(np.uint8), shown.affine)
    nifti.header.set_slope_inter(1 / 255, 0.0)
    return nifti.to_bytes()
