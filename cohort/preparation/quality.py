"""How well a prepared scan came out: measures, limits that it must meet, and which of a cohort to look at first."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from cohort.atlas import load_template, resample, tissue
from cohort.grids import Grid
from cohort.scans import fill_holes
from cohort.tables import MISSING

ROBUST_Z = 3.5
"""Distance from the median, in robust standard deviations, from which a scan is an outlier (Iglewicz & Hoaglin 1993,
How to Detect and Handle Outliers)."""
FEWEST = 8
"""Scans below which a cohort has no robust standard deviation worth the name; then only the fixed limits hold."""
SITE_FEWEST = 20
"""Scans of one site from which on they are compared with one another: sites differ by scanner and protocol, so that a
site with noisier scans would be named as a whole, and the odd one of a good site not at all."""
PURE = 0.9
"""Least probability of a voxel that is taken for grey or white matter."""


PASSED = "ok"
"""What the column `qc` of an index says of a scan in which nothing was odd; else it says what was."""
LOOK = "look: "
"""What `qc` begins with where a scan meets every fixed limit and is worth a look; such scans are kept."""


class Verdict(NamedTuple):
    """What is odd about a scan of a cohort; nothing is left out on account of it."""

    flagged: list[str]
    """Fixed limits that it does not meet: it lies elsewhere, or is no such scan."""
    look: list[str]
    """Where it is an outlier of this cohort, as a few of any large one are; and what was odd about its intensities."""
    score: float
    """For sorting: the largest distance from the cohort in the bad direction, in robust standard deviations; twice
    ROBUST_Z, or more, beyond a fixed limit."""

    @property
    def reasons(self) -> list[str]:
        return self.flagged + self.look

    @property
    def text(self) -> str:
        """What the column `qc` says."""
        return ("" if self.flagged else LOOK) + "; ".join(self.reasons) if self.reasons else PASSED


class Rule(NamedTuple):
    """A measure and what is odd about it."""

    name: str
    title: str
    """With the unit."""
    worse: str
    """Which way is worse: ``low``, ``high`` or ``both``."""
    floor: float
    """Least robust standard deviation: smaller differences mean nothing even in a very uniform cohort."""
    low: float = -math.inf
    high: float = math.inf
    """Limits beyond which a scan is flagged whatever the others are."""

    @property
    def limits(self) -> str:
        if math.isinf(self.low):
            return f"{self.high:g} or less"
        return f"{self.low:g} or more" if math.isinf(self.high) else f"{self.low:g} to {self.high:g}"


RULES = (
    Rule("template_correlation", "correlation with the template inside the brain", "low", 0.02, low=0.33),
    Rule("brain_ml", "brain mask, ml", "both", 60.0, low=800.0, high=2050.0),
    Rule("brain_seen", "share of the template's brain inside the field of view", "low", 0.01, low=0.95),
    Rule("affine_jacobian", "Jacobian determinant of the affine (scan over template)", "both", 0.05, 0.45, 1.1),
    Rule("warp_jacobian_min", "least Jacobian determinant of the warp", "low", 0.05, low=0.0),
    Rule("warp_jacobian_max", "largest Jacobian determinant of the warp", "high", 0.3),
    Rule("brain_at_floor", "share of the brain at one dark value", "high", 0.01, high=0.03),
    Rule("snr", "signal-to-noise in white matter", "low", 1.0),
    Rule("contrast", "contrast of white and grey matter over noise", "low", 0.2, low=0.3),
)
"""The brain mask of the template, 1.9 litres, includes the fluid in the sulci: masks are larger than brain tissue."""


def measure(image: np.ndarray, brain: np.ndarray, seen: np.ndarray, grid: Grid) -> dict[str, float | None]:
    """Measures of a scan on a grid in template space, with its brain and what lay inside its field of view (bool).

    Returns:
        `template_correlation` (Pearson, where template and scan have brain); `brain_seen`; `snr`, mean over standard
        deviation in white matter, and `contrast`, |mean white - mean grey| over the root of the summed variances, both
        where the template's tissue is pure, as MRIQC defines them (Esteban et al. 2017, PLoS One 12:e0184661). None
        where it cannot be had.
    """
    template, maps = reference(grid)
    both = brain & seen & (template > 0)
    white, grey = (image[(maps[name] > PURE) & both] for name in ("wm", "gm"))
    with np.errstate(divide="ignore", invalid="ignore"):  # where nothing varies
        found = {
            "template_correlation": np.corrcoef(image[both], template[both])[0, 1] if both.sum() >= 50 else math.nan,
            "brain_seen": seen[template > 0].mean(),
            "snr": white.mean() / white.std(ddof=1) if white.size > 50 else math.nan,
            "contrast": abs(white.mean() - grey.mean()) / math.hypot(white.std(), grey.std())
            if min(white.size, grey.size) > 50
            else math.nan,
        }
    return {name: float(value) if math.isfinite(value) else None for name, value in found.items()}


@cache
def reference(grid: Grid) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The template, 0 outside its brain and above 0 inside, and its tissue (`cohort.atlas.tissue`), on a grid."""
    source = load_template("icbm2009a")
    values = np.asarray(source.dataobj)
    template = resample(values, source.affine, grid)
    inside = resample(fill_holes(values > 0).astype(np.float32), source.affine, grid) > 0.5
    return np.where(inside, np.maximum(template, 1e-3), 0), tissue(grid)


def judge(cohort: Sequence[Mapping[str, float | None]], sites: Sequence[str] = ()) -> list[Verdict]:
    """Applies RULES to the measures of a cohort.

    Args:
        cohort: the measures of each scan.
        sites: the site of each, empty where unknown. Outliers of a site with SITE_FEWEST scans are those among its own;
            all others are compared with the whole cohort.
    """
    verdicts = [Verdict([], [], 0.0) for _ in cohort]
    named = np.array(sites or [""] * len(cohort), dtype=object)
    large = [site for site, count in Counter(named).items() if site and count >= SITE_FEWEST]
    for rule in RULES:
        values = np.array([measures.get(rule.name) for measures in cohort], dtype=float)  # None becomes nan
        distance, middle = _distances(values, rule)
        medians = np.full(len(values), f"median {middle:.4g}", dtype=object)
        for site in large:
            own = named == site
            distance[own], middle = _distances(values[own], rule)
            medians[own] = f"median of {site} {middle:.4g}"
        beyond = (values < rule.low) | (values > rule.high)
        for row in np.flatnonzero(beyond):
            verdicts[row].flagged.append(f"{rule.title}: {values[row]:.4g}, expected {rule.limits}")
        for row in np.flatnonzero(~beyond & (distance > ROBUST_Z)):
            verdicts[row].look.append(f"{rule.title}: {values[row]:.4g}, {medians[row]}")
        scores = np.where(beyond, np.maximum(distance, 2 * ROBUST_Z), distance)
        verdicts = [old._replace(score=max(old.score, new)) for old, new in zip(verdicts, scores.tolist(), strict=True)]
    return verdicts


def flags(table: pd.DataFrame) -> pd.Series:
    """Why `cohort.prepare` flagged each scan of a table (its column `qc`); empty where it did not."""
    said = _said(table)
    return said.mask(said.str.startswith(LOOK), "")


def looks(table: pd.DataFrame) -> pd.Series:
    """Why each scan of a table that is not flagged is worth a look; empty where it is not."""
    said = _said(table)
    return said.where(said.str.startswith(LOOK), "").str.removeprefix(LOOK)


def _said(table: pd.DataFrame) -> pd.Series:
    said = table.get("qc", pd.Series("", index=table.index, dtype=object)).fillna("")
    return said.mask(said.isin([PASSED, *MISSING]), "").astype(str)


def beyond_limits(measures: Mapping[str, float | None]) -> list[str]:
    """Which measures of one scan lie beyond a fixed limit."""
    return [
        rule.name
        for rule in RULES
        if (value := measures.get(rule.name)) is not None and not rule.low <= value <= rule.high
    ]


def _distances(values: np.ndarray, rule: Rule) -> tuple[np.ndarray, float]:
    """Distance of each value from the median in the bad direction, in robust standard deviations; and the median.

    -inf where there is no value, and everywhere in a cohort of less than FEWEST.
    """
    known = values[~np.isnan(values)]
    if len(known) < FEWEST:
        return np.full(len(values), -np.inf), math.nan
    middle = float(np.median(known))
    spread = max(1.4826 * float(np.median(np.abs(known - middle))), rule.floor)
    away = (values - middle) / spread
    signed = {"low": -away, "high": away, "both": np.abs(away)}[rule.worse]
    return np.where(np.isnan(signed), -np.inf, signed), middle
