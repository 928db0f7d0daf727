"""Volumes of tissue by anatomical region, measured on scans as they are: no registration, no trained network."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from scipy import sparse

from cohort.anatomy.grey_matter import TISSUES, dilated, tissue_fractions, without_bias
from cohort.atlas import REGIONS, SIDES, atlas, tissue
from cohort.scans import Grid
from runtime.errors import InputError

MIN_VOXELS = 8
"""Regions with fewer voxels on the grid are left out, on both sides; at 4 mm the accumbens (8 and 9) stays."""
ASYMMETRY = "asymmetry of "

_FLUID = {"CSF", "Lateral Ventricle", "Inf Lat Vent", "3rd Ventricle", "4th Ventricle"}
_WHITE = {"Cerebral White Matter", "Cerebellum White Matter", "Optic Chiasm"}
_MIXED = {"Brain Stem", "Ventral DC"}

METHOD = (
    "ml of tissue inside each dilated atlas region: intensities divided by a smooth bias, then shares of CSF, grey and "
    "white matter between the scan's own levels; ventricles CSF, white matter white, brain stem and ventral "
    "diencephalon grey and white, all others grey. Regions overlap, and people differ from the atlas: a volume follows "
    "the true one only in part, and effects on it are smaller than on the true one."
)
"""How the volumes come about.

Measured on the 300 demo scans (4 mm) against their true volumes; mean of the two sides of the correlation over
subjects: lateral ventricle 0.98, caudate 0.51, thalamus 0.46, hippocampus 0.45, accumbens 0.30, putamen 0.27,
amygdala 0.19, pallidum 0.09; mean 0.40. Alternatives: 0.21 without the division by the bias; 0.29 with grey and white
matter for the deep nuclei; 0.42 with the posterior of a Gaussian mixture of three tissues (template priors, fitted to
each scan) in place of the shares, too little more for a fit that may fail on a volume that is no brain.

Cohen's d of the 16 regions correlates by 0.67 with that of the true volumes. But the hippocampus has -0.21 on the left
and -0.01 on the right, in truth -0.63 and -0.68; perhaps because the temporal horn widens where it shrinks, and fluid
beside white matter has the intensity of grey matter at 4 mm.
"""


@dataclass(frozen=True)
class RegionMasks:
    """The measured regions of one grid."""

    names: tuple[str, ...]
    weights: dict[str, sparse.csr_array]
    """For each of TISSUES, (regions, voxels): ml of a voxel in the regions that measure this tissue, 0 elsewhere."""
    pairs: tuple[tuple[str, int, int], ...]
    """Structure and the places of its left and right in `names`."""
    tissues: dict[str, np.ndarray]
    """Tissue probabilities of the template."""


def tissue_of(region: str) -> tuple[str, ...]:
    """The tissues that are summed in a region of the atlas: fluid, white matter, both tissues, or grey matter."""
    structure = region.removeprefix("Left ").removeprefix("Right ")
    if structure in _FLUID:
        return ("csf",)
    if structure in _WHITE:
        return ("wm",)
    return ("gm", "wm") if structure in _MIXED else ("gm",)


@cache
def region_masks(grid: Grid) -> RegionMasks:
    """Dilated regions that have MIN_VOXELS; of a structure with two sides, both or none."""
    labels = atlas(grid)
    counts = np.bincount(labels.labels.ravel(), minlength=max(labels.names) + 1)
    large = {name for name, code in labels.codes.items() if counts[code] >= MIN_VOXELS}
    names = tuple(name for name in labels.codes if name in large and _other_side(name) in large)
    masks = [np.flatnonzero(dilated(labels.mask(name), grid)) for name in names]
    weights = {}
    for kind in TISSUES:
        columns = [mask if kind in tissue_of(name) else mask[:0] for name, mask in zip(names, masks, strict=True)]
        ends = np.concatenate([[0], np.cumsum([len(one) for one in columns])])
        ml = np.full(ends[-1], grid.spacing_mm**3 / 1000)
        weights[kind] = sparse.csr_array((ml, np.concatenate(columns), ends), shape=(len(names), labels.labels.size))
    left = [name.removeprefix("Left ") for name in names if name.startswith("Left ")]
    pairs = tuple((one, names.index(f"Left {one}"), names.index(f"Right {one}")) for one in left)
    return RegionMasks(names, weights, pairs, tissue(grid))


def _other_side(name: str) -> str:
    side, _, structure = name.partition(" ")
    return f"{SIDES[1 - SIDES.index(side)]} {structure}" if side in SIDES else name


def region_table(volumes: Sequence[np.ndarray], grid: Grid) -> tuple[tuple[str, ...], np.ndarray]:
    """Measures every volume, as many at a time as there are cores.

    Args:
        volumes: N of (D, H, W), on the grid, in [0, 1], 0 outside the brain; an array, or a stack that is read as it is
            indexed.

    Returns:
        names and float64 (N, measures): ml of tissue per region (METHOD), then ``asymmetry of ...`` for each structure
        with two sides, (L - R) / (L + R) in [-1, 1], 0 where neither side holds any.
    """
    masks = region_masks(grid)

    def measure(index: int) -> np.ndarray:
        volume = np.asarray(volumes[index])
        fractions = tissue_fractions(without_bias(volume, masks.tissues, grid), masks.tissues)
        return sum(masks.weights[kind] @ share.ravel() for kind, share in zip(TISSUES, fractions, strict=True))

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the filters run without the interpreter's lock
        ml = np.array(list(pool.map(measure, range(len(volumes))))).reshape(-1, len(masks.names))
    names = masks.names + tuple(ASYMMETRY + structure for structure, _, _ in masks.pairs)
    left, right = (ml[:, [pair[side] for pair in masks.pairs]] for side in (1, 2))
    total = left + right
    return names, np.hstack([ml, np.divide(left - right, total, out=np.zeros_like(total), where=total > 0)])


def truth_table(frame: pd.DataFrame) -> tuple[tuple[str, ...], np.ndarray]:
    """The true volumes of simulated scans, from the columns ``volume_<region>_mm3`` of the demo's truth.csv.

    Returns:
        the names of `cohort.atlas.REGIONS`, and float64 (N, 16) in ml.

    Raises:
        InputError: columns are missing; all are named.
    """
    columns = [f"volume_{region.lower().replace(' ', '_')}_mm3" for region in REGIONS]
    missing = [f"no column {column}" for column in columns if column not in frame]
    if missing:
        raise InputError.of("not a table of true volumes", missing)
    return REGIONS, frame[columns].to_numpy(dtype=np.float64) / 1000


def columns_of(names: tuple[str, ...], wanted: Iterable[str]) -> list[int]:
    """The places of the wanted measures in `names`, in the order wanted; those that are not measured are left out."""
    places = {name: place for place, name in enumerate(names)}
    return [places[name] for name in wanted if name in places]
