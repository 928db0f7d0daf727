"""Attribution maps of classifier.generate_saliency_maps: means by class, and one subject by all methods."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pandas as pd

from classifier.measures.predictions import read_predictions
from classifier.saliency.figures import plane_sizes, strongest, three_planes
from classifier.saliency.regions import region_means
from cohort.atlas import Atlas, atlas
from cohort.grids import Grid
from cohort.pictures import COLOURS, new_figure
from cohort.scans import load_scan
from cohort.tables import CLASS_NAMES
from runtime.errors import InputError
from runtime.files import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEFT_HIPPOCAMPUS_MM = (-26, -20, -14)
"""In MNI space."""
OUTCOMES = {"TP": "true positive", "FN": "false negative", "FP": "false positive", "TN": "true negative"}
FILES = ("maps.json", "cases.csv", "region_ranking.csv")


@dataclass(frozen=True)
class Maps:
    """A folder of maps."""

    folder: Path
    about: dict[str, Any]
    """maps.json."""
    cases: pd.DataFrame
    """cases.csv, with `kind`, the type of error in words, and `called_right`, the probability of the right side."""
    ranking: pd.DataFrame
    """region_ranking.csv."""
    grid: Grid
    regions: Atlas

    @property
    def methods(self) -> list[str]:
        return self.about["methods"]

    def of(self, origin: str, kind: str = "") -> pd.DataFrame:
        """The cases of an origin, and of one kind."""
        cases = self.cases[self.cases["origin"] == origin]
        return cases[cases["kind"] == kind] if kind else cases

    def read(self, method: str, case: pd.Series) -> np.ndarray:
        """The map (D, H, W) of a case."""
        path = self.folder / method / case["origin"] / f"{case['stem']}.nii.gz"
        try:
            return np.asarray(nib.load(path).dataobj, dtype=np.float32)
        except (OSError, EOFError, nib.filebasedimages.ImageFileError) as error:
            again = "classifier.generate_saliency_maps makes it again"
            raise InputError(f"{path}: not a whole map ({error}); delete it, and {again}") from None


def read_maps(folder: Path, run: Path) -> Maps:
    """Reads a folder of maps and, from the classifier's run folder, which side it has called; InputError where absent.

    Sides are known of the real scans of the run's own predictions, where it is the run of these maps.
    """
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        made_by = "snakemake maps --configfile FILE, or python -m classifier.generate_saliency_maps, makes them"
        raise InputError(f"{folder}: no attribution maps (no {', '.join(missing)}); {made_by}")
    about = read_json(folder / "maps.json")
    texts = dict.fromkeys(("subject", "session", "side", "outcome", "stem"), str)
    cases = pd.read_csv(folder / "cases.csv", dtype=texts, keep_default_na=False)
    cases["called_right"] = called_right(cases, about["checkpoint"], run)
    cases["kind"] = [kind_of(case) for _, case in cases.iterrows()]
    grid = Grid.from_dict(about["grid"])
    return Maps(folder, about, cases, pd.read_csv(folder / "region_ranking.csv"), grid, atlas(grid))


def called_right(cases: pd.DataFrame, checkpoint: str, run: Path) -> np.ndarray:
    """Probability that the side is the right, (N,); not a number where the run has learned none or is another's."""
    results = run / "results.json"
    if not results.is_file() or read_json(results)["checkpoint"] != checkpoint:
        return np.full(len(cases), np.nan)
    predicted = read_predictions(run / "predictions.csv").reindex(columns=["subject", "session", "side_probability"])
    predicted["origin"] = "real"
    return cases.merge(predicted, how="left", on=["origin", "subject", "session"])["side_probability"].to_numpy(float)


def kind_of(case: pd.Series) -> str:
    """The type of error of a case, such as ``true positive, side wrong``."""
    outcome = OUTCOMES.get(case["outcome"], "without threshold")
    if not case["side"] or np.isnan(case["called_right"]):
        return outcome
    right = (case["called_right"] >= 0.5) == (case["side"] == "R")
    return f"{outcome}, side {'right' if right else 'wrong'}"


def kinds(maps: Maps) -> pd.DataFrame:
    """How many cases there are of each type of error, by origin, in the order of OUTCOMES."""
    order = list(OUTCOMES.values())
    table = maps.cases.groupby(["kind", "origin"]).size().unstack(fill_value=0).rename_axis(index=None, columns=None)
    places = {kind: order.index(name) if (name := kind.split(",")[0]) in order else len(order) for kind in table.index}
    return table.loc[sorted(table.index, key=lambda kind: (places[kind], kind))]


def case_figure(maps: Maps, case: pd.Series, region: str = "") -> Figure:
    """All methods for one case over its scan, a row each; through a region's middle, or each map's strongest place."""
    anatomy = load_scan(case["file"], maps.grid)
    widths, height = plane_sizes(anatomy)
    figure = new_figure(figsize=(8.6, 6.4 * height / sum(widths) * len(maps.methods)), layout="constrained")
    rows = figure.subplots(len(maps.methods), 3, width_ratios=widths, squeeze=False)
    for axes, method in zip(rows, maps.methods, strict=True):
        map_ = maps.read(method, case)
        voxel = middle(maps.regions, region) if region else strongest(anatomy, map_)
        signed = method not in maps.about["not_signed"]
        image = three_planes(axes, anatomy, map_, maps.grid.affine, voxel, signed=signed)
        axes[0].text(-0.03, 0.5, method.replace("_", "\n"), transform=axes[0].transAxes, ha="right", va="center")
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=15)
        bar.solids.set_alpha(1)
        bar.ax.tick_params(labelsize=7)
        bar.set_label(maps.about["units"][method].replace(" per ", "\nper "), fontsize=7)
    return figure


def middle(regions: Atlas, region: str) -> tuple[int, ...]:
    """The voxel (d, h, w) of a region that is nearest to its centre."""
    voxels = np.argwhere(regions.mask(region))
    return tuple(map(int, voxels[np.square(voxels - voxels.mean(0)).sum(1).argmin()]))


def region_table(maps: Maps, case: pd.Series, method: str, count: int = 8) -> pd.DataFrame:
    """The strongest regions of a case's map: mean |attribution|, beside the means of its class and of the other.

    ``signed`` is the mean with its sign: above 0 speaks for TLE. Ranks are among the regions that were ranked.
    """
    map_, names = maps.read(method, case), list(maps.regions.names.values())
    own = pd.DataFrame(
        {"this subject": region_means(np.abs(map_), maps.regions), "signed": region_means(map_, maps.regions)}, names
    )
    chosen = (maps.ranking["method"] == method) & (maps.ranking["origin"] == case["origin"])
    table = maps.ranking[chosen].set_index("region").join(own).sort_values("this subject", ascending=False)
    same, other = CLASS_NAMES[case["label"]], CLASS_NAMES[1 - case["label"]]
    columns = {f"mean_abs_{name}": f"mean of {name}" for name in (same, other)}
    table = table.rename(columns={**columns, "rank": "rank, all subjects"}).assign(rank=range(1, len(table) + 1))
    return table[["rank", "voxels", "this subject", "signed", *columns.values(), "rank, all subjects"]].head(count)


def case_text(maps: Maps, case: pd.Series) -> str:
    """Who it is, and what the network said of them."""
    threshold = maps.about["threshold"]
    called = "" if threshold is None else f", threshold {threshold:.2f}: {case['kind']}"
    side = "" if np.isnan(case["called_right"]) else f"; right side with p = {case['called_right']:.2f}"
    return f"{case['subject']} is {case['diagnosis']}; TLE with p = {case['probability']:.2f}{called}{side}"


def means_figure(folder: Path, method: str, origin: str) -> Figure:
    """Mean maps by class and their difference, on one scale, over the template, through the left hippocampus."""
    from nilearn import plotting  # slow to import

    paths = {name: folder / method / origin / f"mean_{name}.nii.gz" for name in ("HC", "TLE", "TLE_minus_HC")}
    means = {name: nib.load(path) for name, path in paths.items() if path.is_file()}
    limit = max(np.percentile(abs(mean.get_fdata()), 99.5) for mean in means.values())
    look = {"cmap": "RdBu_r", "black_bg": False, "draw_cross": False, "vmax": limit, "threshold": limit / 10}
    figure = new_figure(figsize=(10, 2.7 * len(means)))
    edges = {"left": 0, "right": 1, "bottom": 0, "top": 1, "hspace": 0.02}
    axes = figure.subplots(len(means), gridspec_kw=edges, squeeze=False)[:, 0]
    for axis, (name, mean) in zip(axes, means.items(), strict=True):
        shown = plotting.plot_stat_map(mean, axes=axis, figure=figure, cut_coords=LEFT_HIPPOCAMPUS_MM, **look)
        shown.title(name.replace("_", " "), color="black", bgcolor="white", size=11)
    return figure


def ranking_figure(folder: Path, method: str, origin: str, counts: str) -> Figure:
    """The first 12 regions of region_ranking.csv: mean |attribution| with 95 % interval, and the means of classes."""
    ranking = pd.read_csv(folder / "region_ranking.csv").query("method == @method and origin == @origin").head(12)[::-1]
    figure = new_figure(figsize=(9, 4), layout="constrained")
    axis = figure.subplots()
    reach = [ranking["mean_abs"] - ranking["low"], ranking["high"] - ranking["mean_abs"]]
    axis.barh(ranking["region"], ranking["mean_abs"], xerr=reach, color="0.75", ecolor="0.3")
    for name, colour in COLOURS.items():
        axis.plot(ranking[f"mean_abs_{name}"], ranking["region"], "o", color=colour, label=name, markersize=5)
    units = read_json(folder / "maps.json")["units"][method]
    axis.set(xlabel=f"mean |attribution| in the region ({units})", title=f"first 12 regions, {counts}")
    axis.ticklabel_format(axis="x", scilimits=(-2, 3))
    axis.legend()
    return figure
