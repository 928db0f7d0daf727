"""One scan of one's own: prepared, checked, and held against the scans of a finished run.

A research tool, no diagnosis: every number stands beside those of held-out or of healthy subjects, and says no more
than where this scan lies among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.stats import percentileofscore

from cohort.anatomy.regional_volumes import ASYMMETRY, VERSION, region_table
from cohort.atlas import atlas
from cohort.grids import Grid, parse_grid
from cohort.ledger import ledger_of_subjects
from cohort.pictures import new_figure
from cohort.preparation.job import Job, prepare_all
from cohort.preparation.quality import RULES, Verdict, judge
from cohort.scans import load_scan
from cohort.stacks import ScanStack, load_scans
from cohort.tables import read_table
from runtime.errors import InputError
from runtime.files import read_json
from VAE.metrics import reconstruction_metrics, region_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANGE = (2.5, 97.5)
"""Percentiles of healthy subjects between which a volume is unremarkable: 95 % of them are."""
RARE = 2.5
"""Percentile of the reconstruction's PSNR among held-out scans below which a scan is unlike them."""
SHOWN_STRUCTURES = ("Hippocampus", "Amygdala", "Inf Lat Vent", "Thalamus")
"""In the picture of volumes."""


# ---- preparation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Own:
    """A scan that `prepared` has brought onto a grid."""

    name: str
    grid: Grid
    volume: np.ndarray
    """float32 (D, H, W) in [0, 1], as networks take it."""
    measures: dict[str, float | None]
    """Of its quality: `cohort.preparation.quality`."""
    notes: tuple[str, ...]
    """What was odd about its intensities."""
    picture: Path
    """PNG: the prepared scan with the outline of its brain."""


def grid_of(runs: Path) -> Grid:
    """The grid that a folder of runs was trained on, by the configuration of its VAE or its classifier."""
    for stage in ("vae", "classifier"):
        if (config := runs / stage / "config.json").is_file():
            return parse_grid(read_json(config)["grid"])
    raise InputError(f"{runs}: no run of a VAE or a classifier in it; `make demo` makes the demo's in runs/demo")


def chosen(scan: str, tables: Path) -> Path:
    """The scan that is named, or else the first held-out one of a run's tables."""
    return Path(scan).expanduser().resolve() if scan else Path(read_table(tables / "test.csv")["file"].iloc[0])


def prepared(scan: Path, out: Path, grid: Grid, *, assume_mni: bool) -> Own:
    """What `cohort.prepare` makes of one scan, unless it is in `out` already; InputError where it cannot be prepared.

    Args:
        scan: a file (`cohort.decoding.ENDINGS`).
        out: folder for the prepared scan, its picture and its record.
        grid: where it is wanted.
        assume_mni: it was prepared before and lies in template space; otherwise it is a raw head.
    """
    name = scan.name.split(".")[0]
    job = Job(name, str(scan), "", out, grid, assume_mni)
    if failures := prepare_all([job], workers=1).failures:
        raise InputError(f"{scan} could not be prepared: {failures[name].removeprefix(f'{scan}: ')}")
    record = read_json(job.record)
    return Own(name, grid, load_scan(job.scan, grid), record["measures"], tuple(record["notes"]), job.picture)


def verdict_on(own: Own, records: Path) -> Verdict:
    """What is odd about a scan: fixed limits, and outliers beside those scans whose records lie in a folder, if any."""
    cohort = [read_json(path)["measures"] for path in sorted(records.glob("*.json"))]
    verdict = judge([*cohort, own.measures])[-1]
    return verdict._replace(look=[*verdict.look, *own.notes])


def refuse_flagged(scan: Path, verdict: Verdict, *, raw: bool, keep: bool) -> None:
    """Raises InputError where a scan does not meet the fixed limits, unless it is to be kept: a network has an answer
    for any picture.
    """
    if verdict.flagged and not keep:
        hint = "" if raw else "; a head as it was scanned needs RAW = True (YOUR_SCAN_RAW=yes)"
        advice = f"the models know no such scan, and would answer all the same{hint}"
        raise InputError.of(f"{scan}: {advice}; KEEP_FLAGGED = True goes on", verdict.flagged)


def quality_table(own: Own) -> pd.DataFrame:
    """Each measure of a scan with the fixed limits that it has to meet."""
    rows = {
        rule.title: {
            "this scan": "not known" if own.measures.get(rule.name) is None else f"{own.measures[rule.name]:.4g}",
            "expected": rule.limits if np.isfinite([rule.low, rule.high]).any() else "",
        }
        for rule in RULES
        if rule.name in own.measures
    }
    return pd.DataFrame(rows).T


def known_to(own: Own, ledgers: dict[str, Sequence[str]]) -> list[str]:
    """A warning for each model that was trained on a subject of this name: what it says of the scan is worth nothing.

    Names alone are compared; who gave the person another name is not found out.
    """
    entry = ledger_of_subjects([own.name])[0]
    return [f"{what} was trained on a subject called {own.name}" for what, seen in ledgers.items() if entry in seen]


# ---- reconstruction --------------------------------------------------------------------------------------------------


def reconstruction_rows(own: Own, x_hat: np.ndarray, held_out: Path) -> pd.DataFrame:
    """How close a reconstruction (D, H, W) comes, beside held-out scans (metrics.csv of VAE.infer).

    A percentile of 50 is the median; NaN where there is no such table. A scan of the same name does not count.
    """
    found = reconstruction_metrics(torch.from_numpy(x_hat), torch.from_numpy(own.volume))
    others = pd.DataFrame(columns=["subject", *found])
    if held_out.is_file():
        others = pd.read_csv(held_out, dtype={"subject": str})
    others = others[others["subject"] != own.name]
    rows = {
        title: {
            "this scan": found[name],
            "median of held-out scans": others[name].median(),
            "percentile among them": percentile(found[name], others[name].to_numpy()),
        }
        for name, title in (("psnr_head", "PSNR, dB"), ("ssim_head", "SSIM"), ("nmse_head", "NMSE"))
    }
    return pd.DataFrame(rows).T.astype(float).round(3)


def unlike(rows: pd.DataFrame) -> list[str]:
    """A warning where hardly any held-out scan is reconstructed as badly as this one (`reconstruction_rows`)."""
    place = rows.loc["PSNR, dB", "percentile among them"]
    if not place < RARE:
        return []
    told = f"{place:.1f} % of the held-out scans are reconstructed as badly"
    return [f"{told}: the models have hardly seen such a scan, and what they say of it is worth little"]


def worst_regions(own: Own, x_hat: np.ndarray, count: int = 8) -> pd.DataFrame:
    """The regions of the atlas with the largest mean absolute error, intensities in [0, 1]."""
    errors = region_errors(x_hat, own.volume, atlas(own.grid)).set_index("region").rename_axis(None)
    return errors.sort_values("mae", ascending=False, kind="stable").head(count).round(3)


def percentile(value: float, others: np.ndarray) -> float:
    """Share of `others` (N,) below a value, ties counting half, in per cent; NaN where there is none."""
    return float(percentileofscore(others, value, kind="mean")) if len(others) else np.nan


# ---- regional volumes ------------------------------------------------------------------------------------------------


def healthy(table: Path, grid: Grid, cache: Path | None = None) -> ScanStack:
    """The controls of a table of scans."""
    frame = read_table(table)
    controls = frame[frame["label"] == 0].reset_index(drop=True)
    if controls.empty:
        raise InputError(f"{table}: no HC in it to compare with")
    return load_scans(controls, grid, cache_dir=cache)


def volumes_beside(own: Own, controls: ScanStack) -> pd.DataFrame:
    """Every regional volume (ml) and asymmetry of a scan beside those of controls, the most unusual first.

    Columns: this scan; median, low and high of the controls (RANGE); percentile of this scan among them.
    """

    def measure(volume: np.ndarray) -> np.ndarray:
        return region_table([volume], own.grid)[1][0]

    names, values = region_table([own.volume], own.grid)
    others = controls.measured(f"all_regions{VERSION}", measure, what="regions of the controls")  # (N, measures)
    low, median, high = np.percentile(others, [RANGE[0], 50, RANGE[1]], axis=0)
    places = [percentile(value, column) for value, column in zip(values[0], others.T, strict=True)]
    columns = {"this scan": values[0], "median HC": median, "low HC": low, "high HC": high, "percentile": places}
    table = pd.DataFrame(columns, index=list(names))
    return table.loc[(table["percentile"] - 50).abs().sort_values(ascending=False, kind="stable").index]


def outside(table: pd.DataFrame, controls: int) -> str:
    """How many measures lie outside the range of so many controls, and how many would by chance."""
    beyond = (table["this scan"] < table["low HC"]) | (table["this scan"] > table["high HC"])
    chance = (1 - (RANGE[1] - RANGE[0]) / 100) * len(table)
    return (
        f"{int(beyond.sum())} of {len(table)} measures lie outside the range of 95 % of {controls} controls; in a "
        f"control {chance:.0f} do on average."
    )


def beside_controls(table: pd.DataFrame) -> Figure:
    """Percentiles among controls of SHOWN_STRUCTURES, left and right, and of their asymmetry."""
    names = [
        name
        for structure in SHOWN_STRUCTURES
        for name in (f"Left {structure}", f"Right {structure}", f"{ASYMMETRY}{structure}")
        if name in table.index
    ]
    figure = new_figure(figsize=(8, 0.28 * len(names) + 0.8), layout="constrained")
    axis = figure.subplots()
    axis.axvspan(*RANGE, color="0.92")
    axis.axvline(50, color="0.7", linewidth=1)
    axis.plot(table.loc[names[::-1], "percentile"], range(len(names)), "o", color="black")
    axis.set(xlim=(-2, 102), yticks=range(len(names)), yticklabels=names[::-1])
    axis.set_xlabel("percentile of this scan among the controls of the training table")
    return figure
