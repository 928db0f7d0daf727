"""Choices beside a picture and a table: a subject by type of error, its maps by all methods, its regions."""

from __future__ import annotations

import io
from html import escape
from typing import Any

import ipywidgets as widgets
import pandas as pd

from notebooks.saliency import Maps, case_figure, case_text, kinds, region_table
from runtime.errors import InputError

ALL, STRONGEST = "all", "each map's strongest place"


class Explorer(widgets.VBox):
    """Shown by a notebook; each choice narrows the next, and the picture follows."""

    def __init__(self, maps: Maps) -> None:
        self.maps = maps
        wide = {"layout": {"width": "30em"}, "style": {"description_width": "9em"}}
        self.origin = widgets.Dropdown(options=list(maps.about["volumes"]), description="volumes", **wide)
        self.kind = widgets.Dropdown(description="type of error", **wide)
        self.subject = widgets.Dropdown(description="subject", **wide)
        places = [STRONGEST, *sorted(maps.ranking["region"].unique())]
        self.place = widgets.Dropdown(options=places, description="planes through", **wide)
        self.method = widgets.Dropdown(options=maps.methods, description="table of", **wide)
        self.text, self.picture, self.table = widgets.HTML(), widgets.Image(format="png"), widgets.HTML()
        fixed = widgets.Layout(flex="0 0 32em")
        choices = widgets.VBox([self.origin, self.kind, self.subject, self.place, self.method], layout=fixed)
        super().__init__([widgets.HBox([choices, self.table]), self.text, self.picture])
        self._filling = False
        self._fill_kinds()
        for choice, follow in (
            (self.origin, self._fill_kinds), (self.kind, self._fill_subjects), (self.subject, self.draw),
            (self.place, self.draw), (self.method, self.tabulate),
        ):  # fmt: skip
            choice.observe(lambda _, follow=follow: self._filling or follow(), names="value")

    def _fill_kinds(self) -> None:
        counts = kinds(self.maps)[self.origin.value]
        found = [(f"{kind} ({count})", kind) for kind, count in counts.items() if count]
        self._offer(self.kind, [(f"{ALL} ({counts.sum()})", ""), *found])
        self._fill_subjects()

    def _fill_subjects(self) -> None:
        cases = self.maps.of(self.origin.value, self.kind.value)
        self._offer(self.subject, [(name_of(case), row) for row, case in cases.iterrows()])
        self.draw()

    def _offer(self, choice: widgets.Dropdown, options: list[tuple[str, Any]]) -> None:
        """Sets the options of a choice and takes the first, while nothing else follows from it."""
        self._filling = True
        choice.options = options
        choice.index = 0
        self._filling = False

    @property
    def case(self) -> pd.Series:
        """The chosen row of the table of cases."""
        return self.maps.cases.loc[self.subject.value]

    def draw(self) -> None:
        """Shows the chosen case; what cannot be read is said in its place."""
        region = "" if self.place.value == STRONGEST else self.place.value
        picture = io.BytesIO()
        try:
            case_figure(self.maps, self.case, region).savefig(picture)
        except InputError as error:
            self.text.value, self.table.value = f"<b>{escape(str(error))}</b>", ""
            return
        self.text.value = f"<b>{escape(case_text(self.maps, self.case))}</b>"
        self.picture.value = picture.getvalue()
        self.tabulate()

    def tabulate(self) -> None:
        """Shows the regions of the chosen case and method."""
        method, table = self.method.value, region_table(self.maps, self.case, self.method.value)
        unit = escape(self.maps.about["units"][method])
        about = f"{method.replace('_', ' ')}: mean |attribution| in the region ({unit})"
        shown = table.rename_axis(None).to_html(float_format="{:.3g}".format, border=0, justify="left")
        self.table.value = f"<div style='font-size: 0.85em; line-height: 1.4'>{about}{shown}</div>"


def name_of(case: pd.Series) -> str:
    """A case in a list."""
    session = f" {case['session']}" if case["session"] else ""
    return f"{case['subject']}{session}, {case['diagnosis']}, p = {case['probability']:.2f}"
