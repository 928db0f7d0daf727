"""Does a map point at a region that is known to have changed? Pointing game, enrichment, average precision.

It is a map's magnitude that counts. All measures are computed for many places of the region at once (`places`, from
`Moves.places` of `spatial_nulls`), the first of which is the true one: the others make the null distribution.

- pointing: share of the strongest voxels (one, unless several tie) in the widened region: 0 or 1 without ties. Source:
  the pointing game of Zhang et al. 2018, IJCV 126:1084.
- enrichment: share of the magnitude that lies in the region over the region's share of the brain: 1 for a map without
  preference.
- average_precision: area under the precision-recall curve of the magnitude as a detector of the region's voxels,
  step-wise as in scikit-learn; the region's share of the brain for a map without preference.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

REACH_MM = 3.0
"""How far from the region the pointing game still counts a hit; half a voxel is added, since a voxel has an extent."""


def widen(region: np.ndarray, spacing_mm: float, reach_mm: float = REACH_MM) -> np.ndarray:
    """The voxels whose centre is within `reach_mm` plus half a voxel of a region's voxel centre, bool (D, H, W)."""
    distance = ndimage.distance_transform_edt(~region, sampling=spacing_mm)
    return distance <= reach_mm + spacing_mm / 2 + 1e-6


def localise(map_: np.ndarray, brain: np.ndarray, places: np.ndarray, wide_places: np.ndarray) -> dict[str, np.ndarray]:
    """All measures (K,) of one map (D, H, W), at K places of the region.

    Places are flat voxel indices, int (K, n), -1 off the grid; `wide_places` are those of the widened region. Only
    voxels of the brain, bool (D, H, W), count. NaN where a place has none, and for enrichment where the map is 0.
    """
    strength = np.where(brain, np.abs(map_), -1.0).ravel()
    inside, wide = _within(places, brain), _within(wide_places, brain)
    values = strength[brain.ravel()]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(inside, strength[places], 0.0).sum(axis=1) / values.sum()
        return {
            "pointing": (wide & (strength[wide_places] == values.max())).sum(axis=1) / np.sum(values == values.max()),
            "enrichment": share / (inside.sum(axis=1) / len(values)),
            "average_precision": _average_precision(strength, values, places, inside),
        }


def _within(places: np.ndarray, brain: np.ndarray) -> np.ndarray:
    return (places >= 0) & brain.ravel()[places]


def _average_precision(strength: np.ndarray, values: np.ndarray, places: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Mean, over the region's voxels, of the precision at the threshold that each of them sets.

    A voxel's precision is the number of region voxels at least as strong over that of brain voxels at least as strong;
    the latter does not depend on the place, so that all brain voxels are sorted only once.
    """
    ascending = np.sort(values)
    called = len(values) - np.searchsorted(ascending, strength[places], side="left")
    # (K, n), strongest voxel first, absent ones last
    called = np.sort(np.where(inside, called, len(values) + 1), axis=1)
    # Voxels that tie share the count of the last of them.
    last = np.where(np.diff(called, axis=1, append=len(values) + 2) > 0, np.arange(1, called.shape[1] + 1), np.inf)
    found = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    precision = np.where(called <= len(values), found / called, 0.0)
    return precision.sum(axis=1) / inside.sum(axis=1)
