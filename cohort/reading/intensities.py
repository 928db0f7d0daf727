"""What of a scan is background, and which value its air has: not 0 by itself, nor is tissue always positive.

Raw scans, stripped brains and what most tools write have air near 0 and tissue above it; they are taken as they are.
Others are standardised (z-scores, -1 to 1), shifted (MP2RAGE UNI from -0.5 to 0.5), or filled outside with a value of
some tool (-1000, NaN). `plain` makes the former of the latter.
"""

from itertools import product

import numpy as np
from scipy import ndimage

SIGNED = 0.05
"""A scan whose 0.5 percentile lies this far below 0, as a share of its 99.5 percentile, has negative tissue or air.
Less is what sharp interpolation and filters leave around edges."""
SHARE_OF_BORDER = 0.05
"""Least share of the border that a fill value has."""
SOLID = 0.8
"""Least share of a fill's voxels on the border under which the next two layers have it too; noise has no such depth."""
CORNER = 4
"""Edge of a cube in the corner of a scan, in voxels, that has one value only where a tool has filled it."""
FARTHEST_FILL = 1.0
"""A fill below the scan's darkest voxel by more than this share of its range is no value of air: a tool's mark."""
OUTLYING = 0.1
"""Least share of a scan's range by which single voxels lie below the rest when they are outliers, and not its air."""
STANDARDISED = 0.01
"""Largest mean, and distance of the standard deviation from 1, of an image standardised with its background."""
BRIGHT_AIR, ROUGH_AIR = 0.2, 0.1
"""Median, and mean difference of neighbours, on the border, as shares of the scan's range, from which air is the noise
of a ratio of images (MP2RAGE UNI: Marques et al. 2010, NeuroImage 49:1271) that is as bright as tissue."""
UNSURE = "; look at the brain's edge"
"""How a note ends where background and tissue cannot be told apart for certain."""
ROUGHNESS_VOXELS = 5
"""Edge of the cube over which differences of neighbours are averaged to tell such noise from tissue."""
ALL_NOISE = 0.95
"""Share of such air from which a volume has nothing else, and is left to those who judge what it shows."""
PADDED = 0.5
"""Share of the border of a box under which the value that fills all beyond it was put there to pad a scan. Around a
brain that was cut out, the same value has most of the border of any box."""
_SAMPLED = 1_000_000
"""Voxels from which percentiles are taken."""


def plain(image: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """A scan with air at 0 and tissue above it; the same array where that is so already.

    Args:
        image: float32 (D, H, W), finite but for a background of NaN (`is_background`).

    Returns:
        float32 (D, H, W), background exactly 0 and, unless the scan was only filled outside, all else above 0: the
        scan's own values less those of its air. And what was found and done, a sentence each; empty for most scans.
    """
    fills = _fills(image)
    marks = [value for value in fills if value != 0]
    if not marks and image.min() >= 0:
        return _without_bright_air(image, [])
    outside = np.zeros(image.shape, dtype=bool)
    for value in marks:
        filled = np.isnan(image) if np.isnan(value) else image == value
        # What is darker than all else is no tissue, in a head's cavities either.
        outside |= filled if value == np.nanmin(image) else joined_to_border(filled)
    rest = image[~outside]
    tissue = _sample(rest[rest != 0])
    if not tissue.size:
        return image, []
    # What touches a fill, or the end of the scan, may be a mean of it and of air: no sign of negative tissue.
    mixed = ndimage.binary_dilation(outside, np.ones((3, 3, 3)), border_value=1) if marks else outside
    within = _sample(image[~mixed])
    low, high = np.percentile(tissue, (0.5, 99.5))
    signed = bool(low < -SIGNED * high and (not within.size or np.percentile(within, 0.1) < 0))
    if not marks and not signed:
        return image, []
    air = _air(marks, float(rest.min()), tissue, signed=signed, standardised=_is_standardised(image))
    notes = [f"its background is {value:g} and was set to 0" for value in marks if value != air]
    if air == 0:
        return np.where(outside | mixed & (image < 0), np.float32(0), image), notes
    # Darkest tissue in place of air; or a fill that may have nothing to do with the scan's own zero.
    unsure = UNSURE if (0 in fills and air not in fills) or air > 0 else ""
    notes.append(f"{air:.4g} is taken for air: the intensities reach from {low:.4g} to {high:.4g}{unsure}")
    background = outside | (image == 0) if 0 in fills else outside
    least = np.float32((high - air) * 2.0**-12)
    moved = np.where(background, np.float32(0), np.maximum(image - np.float32(air), least)).astype(np.float32)
    return _without_bright_air(moved, notes)


def field_of_view(image: np.ndarray) -> tuple[slice, slice, slice]:
    """The box of a scan (D, H, W) beyond which a tool has padded it with one value, or with several in turn."""
    box = tuple(slice(0, size) for size in image.shape)
    while inner := _without_padding(image[box]):
        box = tuple(slice(old.start + new.start, old.start + new.stop) for old, new in zip(box, inner, strict=True))
    return box


def _without_padding(image: np.ndarray) -> tuple[slice, ...] | None:
    """The box within the padding of one value; None where there is none."""
    for value in np.unique(image[np.ix_(*[(0, -1)] * 3)]):
        other = ~np.isnan(image) if np.isnan(value) else image != value
        if not other.any():
            return None  # a scan of one value: those who judge scans say so
        ends = [np.flatnonzero(other.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
        box = tuple(slice(first, last + 1) for first, last in ends)
        if other[box].size < other.size and np.mean(~_border(other[box], 0)) < PADDED:
            return box
    return None


def is_background(mask: np.ndarray, count: int) -> bool:
    """Whether `count` voxels (of NaN) are all in a mask (D, H, W), and that is joined to the border everywhere."""
    return bool(np.count_nonzero(joined_to_border(mask)) == count)


def joined_to_border(mask: np.ndarray) -> np.ndarray:
    """The parts of a mask (D, H, W) that reach a face of the volume."""
    parts, count = ndimage.label(mask)
    kept = np.zeros(count + 1, dtype=bool)
    for face in _layers(parts, 0):
        kept[np.unique(face)] = True
    kept[0] = False
    return kept[parts]


def _layers(image: np.ndarray, depth: int) -> list[np.ndarray]:
    """The six layers of a volume at a depth below its faces."""
    return [np.moveaxis(image, axis, 0)[place] for axis in range(3) for place in (depth, -1 - depth)]


def _border(image: np.ndarray, depth: int) -> np.ndarray:
    """The voxels of these layers, in one order for all depths (layers below a face are as large as it)."""
    return np.concatenate([layer.ravel() for layer in _layers(image, depth)])


def _fills(image: np.ndarray) -> list[float]:
    """Values that the border shares exactly over a region with depth, or a corner over a whole cube; NaN among them."""
    nan = [np.nan] if np.isnan(image.min()) else []
    if min(image.shape) < 6:
        return nan
    layers = [_border(image, depth) for depth in range(3)]
    values, counts = np.unique(layers[0], return_counts=True)
    found = nan + _of_corners(image)
    for value in values[(counts >= SHARE_OF_BORDER * layers[0].size) & ~np.isnan(values)]:
        same = [layer == value for layer in layers]
        if np.count_nonzero(same[0] & same[1] & same[2]) >= SOLID * np.count_nonzero(same[0]):
            found.append(float(value))
    return list(dict.fromkeys(found))


def _of_corners(image: np.ndarray) -> list[float]:
    """Values that fill cubes in the corners: what is left there when a turned scan is written along other axes."""
    ends = [(slice(None, CORNER), slice(-CORNER, None))] * 3
    cubes = [image[corner] for corner in product(*ends)]
    return [float(cube.flat[0]) for cube in cubes if np.ptp(cube) == 0]


def _air(fills: list[float], darkest: float, tissue: np.ndarray, *, signed: bool, standardised: bool) -> float:
    """The value of air: a fill's below all else (`darkest`); or 0, and in a signed scan the lowest but for outliers."""
    below = [value for value in fills if value <= darkest]
    if not signed:
        return next((value for value in below if value > 0 or standardised), 0.0)
    low, high = np.percentile(tissue, (0.1, 99.5))
    near = [value for value in below if low - value <= FARTHEST_FILL * (high - low)]
    lowest = float(tissue.min()) if low - tissue.min() <= OUTLYING * (high - low) else float(low)
    return max(near, default=lowest)


def _is_standardised(image: np.ndarray) -> bool:
    """Whether an image has mean 0 and deviation 1, background included, as a z-score of all its voxels has."""
    values = _sample(image[np.isfinite(image)])
    return bool(abs(values.mean()) < STANDARDISED and abs(values.std() - 1) < STANDARDISED)


def _sample(values: np.ndarray) -> np.ndarray:
    return values[:: max(1, values.size // _SAMPLED)]


def _without_bright_air(image: np.ndarray, notes: list[str]) -> tuple[np.ndarray, list[str]]:
    """Sets air to 0 where it is noise as bright as tissue; noise is what changes most from voxel to voxel."""
    border = [_border(image, depth) for depth in (0, 1)]
    high = np.percentile(_sample(image.ravel(order="K")), 99.5)
    rough = float(np.abs(border[0] - border[1]).mean())
    if np.median(border[0]) < BRIGHT_AIR * high or rough < ROUGH_AIR * high:
        return image, notes
    steps = [np.abs(np.diff(image, axis=axis)) for axis in range(3)]
    steps = [np.pad(step, [(0, own == axis) for own in range(3)], mode="edge") for axis, step in enumerate(steps)]
    noisy = ndimage.uniform_filter(sum(steps) / 3, ROUGHNESS_VOXELS, output=np.float32) > rough / 2
    air = joined_to_border(ndimage.binary_closing(np.pad(noisy, 3, mode="edge"), iterations=2)[3:-3, 3:-3, 3:-3])
    if air.mean() > ALL_NOISE:
        return image, notes
    note = "its air is noise as bright as tissue (MP2RAGE UNI?) and was set to 0"
    return np.where(air, np.float32(0), image), [*notes, f"{note}{UNSURE}"]
