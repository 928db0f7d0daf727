"""What a person looks at after preparation: one picture per scan, and a page of all of them, worst first."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from cohort.atlas import load_template, resample
from cohort.pictures import new_figure, planes, save
from cohort.preparation.quality import FEWEST, ROBUST_Z, RULES, reference
from cohort.scans import Grid
from runtime.files import atomic_write

EDGES = "#35b6ff"
MASK = "#ff9a1f"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222; }
article { border-top: 1px solid #ccc; padding: 1em 0; display: grid; grid-template-columns: 3fr 2fr; gap: 1em; }
article.odd h2 { color: #a33; } h2 { font-size: 1.05em; margin: 0 0 .4em; } img { width: 100%; background: #000; }
table { border-collapse: collapse; font-size: .9em; } td { padding: .1em .8em .1em 0; vertical-align: top; }
td:last-child { text-align: right; } .why { color: #a33; margin: .2em 0 .6em; } code { font-size: .9em; }
"""


@dataclass(frozen=True)
class Entry:
    """One scan on the page."""

    name: str
    picture: Path
    measures: dict[str, float | None]
    reasons: Sequence[str]
    """Why it is flagged (`cohort.preparation.quality.flag`); empty where it is not."""
    score: float


def draw(path: Path, whole: np.ndarray, brain: np.ndarray, grid: Grid) -> None:
    """Writes the picture of a prepared scan: three planes, the template's edges over them, and the mask's outline.

    Args:
        path: PNG.
        whole: (D, H, W), the skull still there if it was: what a mask cut off can be seen.
        brain: bool, its brain mask.
        grid: of both.
    """
    high = float(np.percentile(whole[brain], 99.5)) if brain.any() else 1.0
    template, white = _edges(grid)
    figure = new_figure(figsize=(10, 3.9), facecolor="black", layout="constrained")
    figure.get_layout_engine().set(w_pad=0, h_pad=0, wspace=0.01)
    slices = zip(planes(whole), planes(template), planes(white), planes(brain.astype(np.float32)), strict=True)
    for axis, (scan, outer, inner, mask) in zip(figure.subplots(1, 3), slices, strict=True):
        axis.imshow(scan, cmap="gray", vmin=0, vmax=high or 1, interpolation="bilinear")
        for volume, colour, width in ((outer, EDGES, 1.1), (inner, EDGES, 0.6), (mask, MASK, 0.9)):
            if volume.min() < 0.5 < volume.max():
                axis.contour(volume, [0.5], colors=colour, linewidths=width)
        axis.set_axis_off()
    save(figure, path)


@cache
def _edges(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The template's brain and white matter on a grid; their edges are where they are a half."""
    source = load_template("icbm2009a")
    inside = (np.asarray(source.dataobj) > 0).astype(np.float32)
    return resample(inside, source.affine, grid), reference(grid)[1]["wm"]


def write_page(path: Path, title: str, entries: Sequence[Entry], failures: pd.DataFrame) -> None:
    """Writes qc.html: failures, then scans, flagged ones first and the farthest from the cohort before the others.

    Args:
        path: the page; pictures are linked relative to it.
        title: of the page.
        entries: the scans that were prepared.
        failures: the others, with the columns `name`, `file`, `reason`.
    """
    ordered = sorted(entries, key=lambda entry: (not entry.reasons, -entry.score, entry.name))
    odd = sum(bool(entry.reasons) for entry in entries)
    summary = f"{len(entries)} scans prepared, {odd} to look at first, {len(failures)} failed."
    rules = (
        f"A scan is flagged when a measure lies more than {ROBUST_Z:g} robust standard deviations (1.4826 times the "
        f"median absolute deviation) from the cohort's median on its bad side, for cohorts of {FEWEST} or more, or "
        "beyond a fixed limit. Nothing is left out on account of a flag: it is the column qc of the index."
    )
    key = f'<b style="color:{EDGES}">edges of the template</b>, <b style="color:{MASK}">brain mask of the scan</b>'
    failed = "".join(
        "<li><b>{}</b> <code>{}</code><br>{}</li>".format(*map(html.escape, row))
        for row in failures[["name", "file", "reason"]].itertuples(index=False)
    )
    body = f"<h1>{html.escape(title)}</h1><p>{summary}</p><p>{rules}</p><p>{key}; left is left.</p>"
    body += f"<h2>Failed</h2><ul>{failed}</ul>" if failed else ""
    body += "".join(_article(entry, path.parent) for entry in ordered)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    with atomic_write(path) as temporary:
        temporary.write_text(
            f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n', encoding="utf-8"
        )


def _article(entry: Entry, folder: Path) -> str:
    name, link = html.escape(entry.name), html.escape(os.path.relpath(entry.picture, folder))
    shown = [(rule.title, entry.measures.get(rule.name)) for rule in RULES]
    rows = "".join(
        f"<tr><td>{html.escape(title)}</td><td>{value:.4g}</td></tr>" for title, value in shown if value is not None
    )
    why = "".join(f'<p class="why">{html.escape(reason)}</p>' for reason in entry.reasons)
    kind = "odd" if entry.reasons else "fine"
    picture = f'<img loading="lazy" alt="{name} with the edges of the template" src="{link}">'
    return f'<article class="{kind}"><div>{picture}</div><div><h2>{name}</h2>{why}<table>{rows}</table></div></article>'
