"""Reconstruction error by anatomical region: which structures the VAE loses.

The labels lie in template space. A scan is in the same space only up to its registration and its individual anatomy, so
a region's error includes what lies next to the structure in this person; small structures and thin ones most.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cohort.atlas import LICENCE_NOTE, Atlas
from cohort.pictures import new_figure, save

MIN_VOXELS = 10
"""Regions with fewer voxels on the grid are left out: so few lie all at a border, and say more about registration. At
4 mm the amygdalae (19 voxels) stay."""
NOTE = (
    "Labels are of the template; scans agree with it up to registration and individual anatomy, so a region's error "
    "includes some of its neighbours. mae: mean absolute error of intensities in [0, 1]; bias: mean of reconstruction "
    "minus scan; nmse: squared error over squared signal."
)


def region_errors(x_hat: np.ndarray, x: np.ndarray, regions: Atlas) -> pd.DataFrame:
    """Error of a reconstruction of a scan, both (D, H, W), in each region that has MIN_VOXELS on the same grid.

    Columns region, voxels, mae, bias (reconstruction minus scan), nmse (NaN without any signal).
    """
    codes = np.array(list(regions.names))
    labels, size = regions.labels.ravel(), codes.max() + 1
    signal = x.ravel().astype(np.float64)
    error = np.clip(x_hat, 0.0, 1.0).ravel() - signal

    def total(values: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(labels, values, minlength=size)[codes]

    voxels, power = total(), total(signal**2)
    frame = pd.DataFrame({"region": list(regions.names.values()), "voxels": voxels})
    frame["mae"], frame["bias"] = (total(value) / np.maximum(voxels, 1) for value in (np.abs(error), error))
    frame["nmse"] = np.divide(total(error**2), power, out=np.full(len(codes), np.nan), where=power > 0)
    return frame[voxels >= MIN_VOXELS].reset_index(drop=True)


def summarise(errors: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (..._sd) of mae, bias and nmse over subjects, whose scans count as their mean; the
    largest mae first. `errors` are `region_errors` of all scans below each other, with a column subject.
    """
    measures = ["mae", "bias", "nmse"]
    by_subject = errors.groupby(["region", "voxels", "subject"], sort=False)[measures].mean()
    groups = by_subject.groupby(["region", "voxels"], sort=False)
    mean, sd = groups.mean(), groups.std(ddof=0).add_suffix("_sd")
    table = pd.concat([mean, sd, groups.size().rename("subjects")], axis=1).reset_index()
    columns = [column for name in measures for column in (name, f"{name}_sd")]
    table = table[["region", "voxels", *columns, "subjects"]]
    return table.sort_values("mae", ascending=False, kind="stable", ignore_index=True)


def report(table: pd.DataFrame, regions: Atlas, count: int = 10) -> dict[str, Any]:
    """What summary.json says: the `count` worst regions of `summarise`, what is left out, and the notes."""
    worst = table.head(count).astype(object)
    counts = np.bincount(regions.labels.ravel(), minlength=max(regions.names) + 1)
    return {
        "worst": worst.where(worst.notna(), None).to_dict("records"),
        "regions": len(table),
        "min_voxels": MIN_VOXELS,
        "left_out": {name: int(counts[code]) for code, name in regions.names.items() if counts[code] < MIN_VOXELS},
        "note": NOTE,
        "licence": LICENCE_NOTE,
    }


def draw(path: Path, table: pd.DataFrame, count: int = 24) -> None:
    """Bars of the `count` worst regions of `summarise`, with one standard deviation over subjects."""
    shown, subjects = table.head(count), int(table["subjects"].max())
    figure = new_figure(figsize=(7.5, 1.4 + 0.24 * len(shown)), layout="constrained")
    axis = figure.subplots()
    axis.barh(range(len(shown)), shown["mae"], xerr=shown["mae_sd"], color="#b2182b", ecolor="#333333")
    axis.set_yticks(range(len(shown)), [f"{row.region} ({row.voxels})" for row in shown.itertuples()], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel("mean absolute error, intensities in [0, 1]; line: one standard deviation", fontsize=9)
    which = f"{len(shown)} worst of {len(table)} regions"
    figure.suptitle(f"Reconstruction error, {which} (voxels), mean of {subjects} subjects", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        "Labels in template space: scans agree up to individual anatomy. Neuromorphometrics labels, CC BY-NC.",
        fontsize=7, color="#555555",
    )  # fmt: skip
    save(figure, path)
