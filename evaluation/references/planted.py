"""Positive control: cohorts in which one hippocampus of every patient is darker, and how much of that a volume shows.

The change is measured plainly, by the mean intensity of the atlas hippocampi, so that a generator that carries it over
cannot be missed for want of a good measure.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from cohort.atlas import atlas
from cohort.grids import Grid

HIPPOCAMPI = {"L": "Left Hippocampus", "R": "Right Hippocampus"}


def brightness(volumes: Sequence[np.ndarray], grid: Grid) -> np.ndarray:
    """Mean intensity of the left and the right hippocampus of N volumes (D, H, W) on the grid, float64 (N, 2)."""
    regions = atlas(grid)
    codes = [regions.codes[name] for name in HIPPOCAMPI.values()]
    return np.array([ndimage.mean(np.asarray(volume, np.float64), regions.labels, codes) for volume in volumes])


def ipsilateral_change(before: np.ndarray, after: np.ndarray, sides: Sequence[str], spread: np.ndarray) -> float:
    """Mean change of `brightness` (N, 2) on each one's own side (N,), L or R, in units of `spread` (2,): Cohen's d of a
    change of the same subjects, or of the same noise, with the spread of people."""
    columns = ["LR".index(side) for side in sides]
    return float(np.mean(((after - before) / spread)[np.arange(len(sides)), columns]))
