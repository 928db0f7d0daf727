"""Volumes of tissue by anatomical region, measured on scans as they are: no registration, no trained network."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from scipy import ndimage, sparse

from cohort.anatomy.grey_matter import TISSUES, is_grey_matter_map, tissue_fractions, tissue_levels, without_bias
from cohort.atlas import SIDES, Atlas, atlas, tissue
from cohort.grids import Grid
from runtime.errors import InputError

DILATE_MM = 3.0
"""Residual misalignment that a region's mask makes room for, in mm: at least one voxel on coarse grids."""
MIN_VOXELS = 8
"""Regions with fewer voxels on the grid are left out, on both sides; at 4 mm the accumbens (8 and 9) stays."""
ASYMMETRY = "asymmetry of "
IPSILATERAL, CONTRALATERAL = "ipsilateral ", "contralateral "
T1, GREY_MATTER = "T1", "grey-matter map"

_SUMMED = (
    ({"CSF", "Lateral Ventricle", "Inf Lat Vent", "3rd Ventricle", "4th Ventricle"}, ("csf",)),
    ({"Cerebral White Matter", "Cerebellum White Matter", "Optic Chiasm"}, ("wm",)),
    ({"Brain Stem", "Ventral DC"}, ("gm", "wm")),
)

VERSION = 1
"""Of what `region_volumes` computes. Raise it with any change: volumes that were kept are then measured anew."""
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


METHOD_OF_MAPS = (
    "grey-matter maps: their sum inside each dilated atlas region, in ml where a map's largest values are 1; regions "
    "of fluid or white matter alone have none."
)


def tissues_in(region: str) -> tuple[str, ...]:
    """The tissues that are summed in a region of the atlas."""
    structure = region.removeprefix("Left ").removeprefix("Right ")
    return next((tissues for structures, tissues in _SUMMED if structure in structures), ("gm",))


@cache
def _template(grid: Grid) -> tuple[Atlas, dict[str, np.ndarray]]:
    """Labels and tissue probabilities on a grid; reading them takes longer than measuring a few hundred scans."""
    return atlas(grid), tissue(grid)


def dilated_mask(region: str, grid: Grid) -> np.ndarray:
    """A region of the atlas, grown by DILATE_MM: bool (D, H, W)."""
    steps = max(1, round(DILATE_MM / grid.spacing_mm))
    return ndimage.binary_dilation(_template(grid)[0].mask(region), iterations=steps)


@cache
def _summations(grid: Grid, regions: tuple[str, ...]) -> tuple[np.ndarray, list[sparse.csr_array]]:
    """The V voxels in any of the regions, as flat indices; and for each of TISSUES a matrix (regions, V): ml of a voxel
    in the regions that measure this tissue, 0 elsewhere.
    """
    masks = [np.flatnonzero(dilated_mask(region, grid)) for region in regions]
    inside = np.unique(np.concatenate(masks))
    matrices = []
    for kind in TISSUES:
        columns = [mask if kind in tissues_in(name) else mask[:0] for name, mask in zip(regions, masks, strict=True)]
        ends = np.cumsum([0, *map(len, columns)])
        ml, places = np.full(ends[-1], grid.spacing_mm**3 / 1000), np.searchsorted(inside, np.concatenate(columns))
        matrices.append(sparse.csr_array((ml, places, ends), (len(regions), len(inside))))
    return inside, matrices


def region_volumes(
    volumes: Sequence[np.ndarray], grid: Grid, regions: tuple[str, ...], *, unbias: bool = True
) -> np.ndarray:
    """Tissue (ml) in dilated regions of the atlas (METHOD), float64 (N, regions), a volume per core at a time.

    `volumes` are N of (D, H, W) on the grid, in [0, 1], 0 outside the brain: an array, or a stack that is read as it is
    indexed. `unbias` divides each by its smooth bias first. Grey-matter maps are summed as they are (METHOD_OF_MAPS).
    """
    (inside, matrices), tissues = _summations(grid, regions), _template(grid)[1]

    if contrast_of(volumes, grid) == GREY_MATTER:
        grey = matrices[TISSUES.index("gm")]
        return np.array([grey @ np.asarray(volume).ravel()[inside] for volume in volumes]).reshape(-1, len(regions))

    def measure(index: int) -> np.ndarray:
        volume = np.asarray(volumes[index])
        flat = without_bias(volume, tissues, grid) if unbias else volume
        shares = tissue_fractions(flat.ravel()[inside], tissue_levels(flat, tissues))
        return sum(matrix @ share for matrix, share in zip(matrices, shares, strict=True))

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the filters run without the interpreter's lock
        return np.array(list(pool.map(measure, range(len(volumes))))).reshape(-1, len(regions))


def contrast_of(volumes: Sequence[np.ndarray], grid: Grid) -> str:
    """T1 or GREY_MATTER, of all volumes (D, H, W) on the grid; InputError for a mixture."""
    return one_contrast([is_grey_matter_map(np.asarray(volume), _template(grid)[1]) for volume in volumes])


def one_contrast(maps: Sequence[bool]) -> str:
    """T1 or GREY_MATTER, from whether each volume is a grey-matter map; InputError for a mixture."""
    if any(maps) and not all(maps):
        raise InputError(
            f"{sum(maps)} of {len(maps)} volumes are grey-matter maps, the others T1-weighted; use one kind"
        )
    return GREY_MATTER if any(maps) else T1


@cache
def regions_on(grid: Grid) -> tuple[str, ...]:
    """Regions that have MIN_VOXELS on a grid; of a structure with two sides, both or none."""
    labels = _template(grid)[0]
    counts = np.bincount(labels.labels.ravel(), minlength=max(labels.names) + 1)
    small = {name for name, code in labels.codes.items() if counts[code] < MIN_VOXELS}
    small |= {f"{side} {name.partition(' ')[2]}" for name in small if name.startswith(SIDES) for side in SIDES}
    return tuple(name for name in labels.codes if name not in small)


def region_table(volumes: Sequence[np.ndarray], grid: Grid) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and float64 (N, measures) of all regions that the grid can hold, in every volume.

    First ml of tissue per region, then ``asymmetry of ...`` for each structure with two sides, (L - R) / (L + R) in
    [-1, 1], 0 where neither side holds any.
    """
    regions = regions_on(grid)
    return with_asymmetries(regions, region_volumes(volumes, grid, regions))


def with_asymmetries(regions: tuple[str, ...], ml: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and columns of volumes (N, regions), then those of the asymmetries, as `region_table` has them."""
    structures = [name.removeprefix("Left ") for name in regions if name.startswith("Left ")]
    left, right = (ml[:, columns_of(regions, [f"{side} {structure}" for structure in structures])] for side in SIDES)
    total = left + right
    asymmetry = np.divide(left - right, total, out=np.zeros_like(total), where=total > 0)
    return (*regions, *(ASYMMETRY + structure for structure in structures)), np.hstack([ml, asymmetry])


def by_side(names: tuple[str, ...], values: np.ndarray, sides: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Measures (N, M) of structures with two sides, in the order of each subject's own side.

    `sides` is (N,) of L and R. First IPSILATERAL, then CONTRALATERAL names; then asymmetries, where there are any, now
    (ipsilateral - contralateral) / (ipsilateral + contralateral). Other measures are left out.
    """
    structures = [name.removeprefix("Left ") for name in names if name.startswith("Left ")]
    left, right = (values[:, columns_of(names, [f"{side} {structure}" for structure in structures])] for side in SIDES)
    asymmetries = [name for name in names if name.startswith(ASYMMETRY)]
    is_left = (np.asarray(sides) == "L")[:, None]
    ordered = (np.where(is_left, left, right), np.where(is_left, right, left))
    turned = np.where(is_left, 1, -1) * values[:, columns_of(names, asymmetries)]
    labelled = (kind + structure for kind in (IPSILATERAL, CONTRALATERAL) for structure in structures)
    return (*labelled, *asymmetries), np.hstack([*ordered, turned])


def columns_of(names: tuple[str, ...], wanted: Iterable[str]) -> list[int]:
    """The places of the wanted measures in `names`, in the order wanted; those that are not measured are left out."""
    return [names.index(name) for name in wanted if name in names]
