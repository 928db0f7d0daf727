"""What a person looks at after preparation: one picture per scan, and a page of all of them, worst first."""

import html
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np
import pandas as pd

from cohort.atlas import load_template, resample
from cohort.grids import Grid
from cohort.pictures import new_figure, planes, save
from cohort.preparation.quality import FEWEST, ROBUST_Z, RULES, SITE_FEWEST, Verdict, reference
from runtime.files import atomic_write

EDGES = "#35b6ff"
MASK = "#ff9a1f"
PLAIN_SHOWN = 1000
"""Most scans without a remark on the page: with those of a hundred thousand it would have 100 MB."""
_PAGE = Template(f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>$title</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; }}
.flagged {{ color: #a33; }} .look {{ color: #a60; }}
article {{ border-top: 1px solid #ccc; padding: 1em 0; display: grid; grid-template-columns: 3fr 2fr; gap: 1em; }}
img {{ width: 100%; background: #000; }} td {{ padding-right: .8em; }}
</style></head><body><h1>$title</h1><p>$summary Flagged is what lies beyond a limit. Worth a
look is what lies more than {ROBUST_Z:g} robust standard deviations from the median on its bad side, of the own site
(where it has {SITE_FEWEST} scans) or else of the cohort (of {FEWEST} or more), or had odd intensities; a few of any
large cohort do. Nothing is left out.</p>
<p><b style="color:{EDGES}">edges of the template</b>, <b style="color:{MASK}">brain mask of the scan</b>; left is
left.</p><ul>$failed</ul>$articles</body></html>
""")
_ARTICLE = Template(
    '<article><img loading="lazy" alt="$name with the edges of the template" src="$link">'
    "<div><h2>$name</h2>$why<table>$rows</table></div></article>\n"
)


class Entry(NamedTuple):
    """One scan on the page."""

    name: str
    picture: Path
    measures: dict[str, float | None]
    verdict: Verdict


def draw(path: Path, whole: np.ndarray, brain: np.ndarray, grid: Grid) -> None:
    """Writes a PNG of a prepared scan: three planes, the template's edges over them, and the outline of the brain mask.

    `whole` (D, H, W) still has the skull if it had one: what a mask cut off can be seen.
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
    """Writes qc.html: `failures` (columns `name`, `file`, `reason`), then scans: flagged ones, odd ones, far ones.

    Pictures are linked relative to `path`. Of scans without a remark the first PLAIN_SHOWN are there.
    """
    ordered = sorted(entries, key=_rank)
    remarked = sum(bool(entry.verdict.reasons) for entry in entries)
    shown = ordered[: remarked + PLAIN_SHOWN]
    more = (
        f" The last {len(ordered) - len(shown)}, without a remark, are not shown." if len(shown) < len(ordered) else ""
    )
    flagged = sum(bool(entry.verdict.flagged) for entry in entries)
    look = remarked - flagged
    failed = "".join(
        "<li><b>{}</b> <code>{}</code><br>{}</li>".format(*map(html.escape, row))
        for row in failures[["name", "file", "reason"]].itertuples(index=False)
    )
    page = _PAGE.substitute(
        title=html.escape(title),
        summary=f"{len(entries)} scans prepared, {flagged} flagged, {look} worth a look, {len(failures)} failed.{more}",
        failed=failed,
        articles="".join(_article(entry, path.parent) for entry in shown),
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _rank(entry: Entry) -> tuple:
    verdict = entry.verdict
    return not verdict.flagged, not verdict.look, -verdict.score, entry.name


def _article(entry: Entry, folder: Path) -> str:
    shown = [(rule.title, entry.measures.get(rule.name)) for rule in RULES]
    return _ARTICLE.substitute(
        name=html.escape(entry.name),
        link=html.escape(os.path.relpath(entry.picture, folder)),
        why="".join(
            f'<p class="{kind}">{html.escape(reason)}</p>'
            for kind in ("flagged", "look")
            for reason in getattr(entry.verdict, kind)
        ),
        rows="".join(f"<tr><td>{title}</td><td>{value:.4g}</td></tr>" for title, value in shown if value is not None),
    )
