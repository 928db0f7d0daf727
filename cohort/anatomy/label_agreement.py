"""What a scan's own region labels say of its preparation: does it lie where it should, and is its brain whole?

Labels are int (D, H, W) with their affine to the scan's millimetres, in RAS order, coded as the packaged atlas is.
"""

from collections.abc import Collection
from functools import cache

import numpy as np
from scipy import ndimage

from cohort.atlas import native_atlas
from cohort.scans import edges_mm
from runtime.errors import InputError

FEWEST_REGIONS = 12
"""Regions in common with the atlas below which labels say nothing of a place: they are few, or coded otherwise."""
MARGIN_MM = 3.0
"""How far outside a brain mask tissue may lie before it counts as cut off."""


def label_affine(labels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The affine (4, 4), from template to scan (mm), that best lays the centroids of the atlas' regions on the labels'.

    Least squares over all regions that both have: in a healthy adult their centroids are 2 mm from where it puts them.
    InputError for fewer than FEWEST_REGIONS.
    """
    codes, marks = _template_centroids()
    there = np.isin(codes, labels)
    if there.sum() < FEWEST_REGIONS:
        raise InputError(f"{there.sum()} regions of the atlas are in the labels, expected {FEWEST_REGIONS} or more")
    seen = ndimage.center_of_mass(np.ones_like(labels), labels, codes[there]) @ affine[:3, :3].T + affine[:3, 3]
    matrix = np.eye(4)
    matrix[:3] = np.linalg.lstsq(_homogeneous(marks[there]), seen, rcond=None)[0].T
    return matrix


def placing_error(matrix: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> tuple[float, float]:
    """How far a matrix from template to scan (mm) is from that of the labels.

    Returns:
        The mean distance (mm, in the scan) between where the two put the atlas' centroids, and the ratio of their
        determinants, of the matrix over the labels': above 1 it lays the template on too large a brain.
    """
    right = label_affine(labels, affine)
    marks = _homogeneous(_template_centroids()[1])
    apart = np.linalg.norm((marks @ (matrix - right).T)[:, :3], axis=1)
    return float(apart.mean()), float(np.linalg.det(matrix[:3, :3]) / np.linalg.det(right[:3, :3]))


def cut_off(brain: np.ndarray, labels: np.ndarray, affine: np.ndarray, structures: Collection[str]) -> float:
    """Share of the structures, taken together, that lies more than MARGIN_MM outside a brain mask.

    `brain` is bool, in the voxels of the labels; nan where no structure has a label.
    """
    codes = native_atlas()[0].codes
    depth = ndimage.distance_transform_edt(~brain, sampling=edges_mm(affine))
    outside = depth[np.isin(labels, [codes[name] for name in structures])] > MARGIN_MM
    return float(outside.mean()) if outside.size else float("nan")


@cache
def _template_centroids() -> tuple[np.ndarray, np.ndarray]:
    """Codes (N,) of the atlas' regions and their centres of mass (N, 3), mm."""
    atlas, affine = native_atlas()
    codes = np.array([code for code in np.unique(atlas.labels) if code > 0])
    centres = ndimage.center_of_mass(np.ones_like(atlas.labels), atlas.labels, codes)
    return codes, centres @ affine[:3, :3].T + affine[:3, 3]


def _homogeneous(points: np.ndarray) -> np.ndarray:
    return np.hstack([points, np.ones((len(points), 1))])
