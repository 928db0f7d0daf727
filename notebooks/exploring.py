"""Controls of explore_volumes.ipynb: choose volumes, sample new ones, go from one to another; above a viewer each."""

from __future__ import annotations

import time
from collections.abc import Callable
from html import escape
from pathlib import Path

import ipywidgets as widgets
import torch

from classifier.saliency.figures import colour_limit
from cohort.scans import load_scan
from diffusion.sampler import DEFAULT
from notebooks.generating import KINDS, Models, slerp
from notebooks.viewing import Shown, Viewer, open_volume, size_text
from runtime.errors import InputError

SEEDS = 99
"""The largest seed of the sliders."""


def choosing(real: dict[str, Path], synthetic: dict[str, Path], models: Models | None) -> Panel:
    """A scan as it lies, its reconstruction and what that changes, and a synthetic volume.

    Without models there is no reconstruction, without synthetic volumes none of them.
    """
    parts = {"real": True, "reconstruction": models, "difference": models, "synthetic": synthetic}
    viewer = Viewer([name for name, there in parts.items() if there])
    controls = {"scan": widgets.Dropdown(options=list(real), description="real")}
    if synthetic:
        controls["made"] = widgets.Dropdown(options=list(synthetic), description="synthetic")

    def draw(scan: str, made: str = "") -> str:
        shown = open_volume(real[scan], scan)
        viewer.show("real", shown)
        if made:
            viewer.show("synthetic", open_volume(synthetic[made], made))
        if models is None:
            return size_text(shown)
        x = load_scan(real[scan], models.vae.grid)
        x_hat = models.reconstruct(x)
        viewer.show("reconstruction", Shown(scan, x_hat, models.vae.grid.affine))
        limit = colour_limit(x_hat - x)
        viewer.show("difference", Shown(f"to {limit:.2f}", x_hat - x, models.vae.grid.affine, limit, under=x))
        return f"{size_text(shown)}; reconstruction on the grid {models.vae.grid.name}"

    return Panel(controls, draw, viewer)


def sampling(models: Models, steps: int) -> Panel:
    """Class and side, seed, guidance, and the way to the noise of a second seed; beside each volume the one before it,
    so that what a slider changes is seen.
    """
    kinds = [kind for kind, (_, side) in KINDS.items() if models.diffusion.model.config.sides or not side]
    can_guide = models.diffusion.label_dropout > 0
    controls = {
        "kind": widgets.Dropdown(options=kinds, description="class"),
        "seed": slider(0, 0, SEEDS, "seed"),
        "guidance": slider(1.0, 1.0, 4.0, "guidance", disabled=not can_guide),
        "other": slider(1, 0, SEEDS, "to seed"),
        "share": slider(0.0, 0.0, 1.0, "how far"),
    }
    viewer = Viewer(("now", "before"))

    def draw(kind: str, seed: int, guidance: float, other: int, share: float) -> str:
        z = slerp(models.noise(seed), models.noise(other), share) if share else models.noise(seed)
        image = models.sample(z, kind, guidance, steps)
        way = f", {share:.0%} of the way to seed {other}" if share else ""
        if "now" in viewer.shown:
            viewer.show("before", viewer.shown["now"])
        viewer.show("now", Shown(f"{kind}, seed {seed}{way}, guidance {guidance:g}", image, models.vae.grid.affine))
        return f"{steps} steps of {DEFAULT}"

    return Panel(controls, draw, viewer)


def between(models: Models, files: dict[str, Path]) -> Panel:
    """Two scans, and what is decoded on the straight line between their latents."""
    names = list(files)
    controls = {
        "first": widgets.Dropdown(options=names, value=names[0], description="from"),
        "second": widgets.Dropdown(options=names, value=names[-1], description="to"),
        "share": slider(0.5, 0.0, 1.0, "how far"),
    }
    viewer = Viewer(("from", "between", "to"))

    def draw(first: str, second: str, share: float) -> str:
        ends = [load_scan(files[name], models.vae.grid) for name in (first, second)]
        mu, other = (models.encode(end) for end in ends)
        volumes = {"from": (first, ends[0]), "to": (second, ends[1])}
        volumes["between"] = (f"{share:.0%} of the way", models.decode(torch.lerp(mu, other, share)))
        for place, (name, image) in volumes.items():
            viewer.show(place, Shown(name, image, models.vae.grid.affine))
        return "decoded from between the means of the two posteriors"

    return Panel(controls, draw, viewer)


def slider(value: float, low: float, high: float, name: str, **options: object) -> widgets.Widget:
    """A slider of whole numbers, or of twentieths, that answers when it is let go: a volume takes seconds."""
    kind = widgets.IntSlider if isinstance(value, int) else widgets.FloatSlider
    step = {} if isinstance(value, int) else {"step": 0.05}
    return kind(value=value, min=low, max=high, description=name, continuous_update=False, **step, **options)


class Panel:
    """Controls in rows, a line of text and a viewer: what `draw(**values)` returns, or why it refused the values."""

    def __init__(self, controls: dict[str, widgets.Widget], draw: Callable[..., str], viewer: Viewer) -> None:
        self.controls, self.viewer, self.line = controls, viewer, widgets.HTML()
        self._draw = draw
        for control in controls.values():
            control.observe(self._update, "value")
        self._update()
        rows = widgets.GridBox([*controls.values()], layout=widgets.Layout(grid_template_columns="repeat(3, 320px)"))
        self.widget = widgets.VBox([rows, self.line, viewer.widget])

    def _update(self, _change: dict | None = None) -> None:
        self.line.value, began = "computing ...", time.perf_counter()
        try:
            said = self._draw(**{name: control.value for name, control in self.controls.items()})
        except InputError as error:
            self.line.value = f"<b>error:</b> {escape(str(error))}"
        else:
            self.line.value = f"{escape(said)} ({time.perf_counter() - began:.1f} s)"
