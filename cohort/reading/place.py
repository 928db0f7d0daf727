"""Whether what a scan shows lies where a brain in template space does: by its voxels, whatever its header says."""

from dataclasses import dataclass
from functools import cache
from itertools import permutations, product

import numpy as np

from cohort.atlas import load_template
from cohort.atlas import resample as template_onto
from cohort.decoding import RefusedError
from cohort.grids import GRIDS
from cohort.scans import WAY_ON, head_mask, normalise, resample

COARSE = GRIDS["smoke"]
"""The grid on which scans are compared with the template."""
LEAST_CORRELATION = 0.3
"""With the template, on the coarse grid. Prepared brains have 0.98, their grey matter 0.8, whole heads as scanned 0.57
to 0.74, stripped ones as scanned 0.49 to 0.6; a brain with its corner where its middle belongs has -0.1."""
BETTER_TURNED = 0.1
"""By how much the correlation must grow for a scan to be called turned: 0.17 or more for brains with two axes exchanged
or one reversed, at most 0.09 for heads as scanned."""
TURNED_CORRELATION = 0.8
"""Least correlation of a scan that is called turned, after it was turned back."""
FARTHEST_MM = 20.0
"""Distance of centres of mass from which a scan is hardly in template space. Prepared brains have 7 mm, whole heads as
scanned up to 18."""


@dataclass(frozen=True)
class Place:
    """How a scan lies against the template."""

    correlation: float
    """Pearson, over all voxels of COARSE; 0 where there is no head on it."""
    turned: float
    """The greatest after any other exchange or reversal of axes. Left and right, alike in the template, stay."""
    away_mm: float
    """Between the centres of mass of the head and of the template's brain."""


def place_of(image: np.ndarray, affine: np.ndarray) -> Place:
    """Compares a scan with the template.

    Args:
        image: float32 (D, H, W) in RAS order, air 0.
        affine: (4, 4) to mm.
    """
    scan = normalise(resample(image, affine, COARSE.affine, COARSE.shape)[0])
    if not (head := head_mask(scan)).any() or np.ptp(scan) == 0:
        return Place(0.0, 0.0, np.inf)
    # Only a cube can be turned: the middle one.
    side, extra = COARSE.shape[0], (COARSE.shape[1] - COARSE.shape[0]) // 2
    cube, goal = (volume[:, extra : extra + side] for volume in (scan, _template()))
    turns = [
        cube.transpose(order)[:, :: flips[0], :: flips[1]]
        for order in permutations(range(3))
        for flips in product((1, -1), repeat=2)
    ]
    as_it_is, *others = [_correlation(turn, goal) for turn in turns]
    away = _centre_mm(head) - _centre_mm(_template() > 0)
    # The gain is measured in the cube alone, and added to what the whole has.
    whole = _correlation(scan, _template())
    return Place(whole, whole + max(others) - as_it_is, float(np.linalg.norm(away)))


def refuse_misplaced(place: Place) -> None:
    """RefusedError for a scan that shows no brain there, or one that lies turned."""
    if place.turned > max(place.correlation + BETTER_TURNED, TURNED_CORRELATION):
        raise RefusedError(
            f"its axes are not what its header says: it agrees with the template better when they are exchanged or "
            f"reversed (correlation {place.turned:.2f} against {place.correlation:.2f}); if you know where they point: "
            "cohort.prepare --reset-affine LAS (or RAS, ...)"
        )
    if place.correlation < LEAST_CORRELATION:
        raise RefusedError(
            "it shows no brain where the template has one (correlation "
            f"{place.correlation:.2f}; expected {LEAST_CORRELATION:g} or more): {WAY_ON}"
        )


def place_warnings(place: Place) -> list[str]:
    """What is unusual about where a scan lies."""
    if place.away_mm <= FARTHEST_MM:
        return []
    return [
        f"its centre of mass lies {place.away_mm:.0f} mm from the template's; expected {FARTHEST_MM:g} or less in "
        "template space, into which cohort.prepare brings scans"
    ]


@cache
def _template() -> np.ndarray:
    source = load_template("icbm2009a")
    return template_onto(np.asarray(source.dataobj), source.affine, COARSE)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) if np.ptp(a) > 0 else 0.0


def _centre_mm(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(axis=0) * COARSE.spacing_mm
