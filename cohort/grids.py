"""Grids: the boxes of voxels that all stages work on, by name, spacing, field of view or file; `parse_grid` reads them.

    paper, demo, smoke, 1mm, 2mm    GRIDS
    2                               voxels of 2 mm; the smallest box of whole voxels that holds what paper's holds
    1@160x192x160                   voxels of 1 mm, a field of view of 160 x 192 x 160 mm (D, H, W)
    mine.json                       `Grid.to_dict` as JSON, also with a middle of its own

All lie in MNI152NLin2009a space. A field of view that is no multiple of the spacing grows to whole voxels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro.constructors import PrimitiveConstructorSpec

from runtime.errors import InputError
from runtime.files import read_json

Sizes = tuple[int, int, int]

CENTRE_MM = (0.0, -17.0, 8.0)
"""Middle of the template's brain, and of every grid that says no other."""
TEMPLATE_MM = ((-98.5, -134.5, -78.5), (98.5, 98.5, 116.5))
"""Lowest and highest coordinates that the templates' images reach (`cohort.atlas`): beyond, there is nothing."""
MIDPLANE_MM = 1e-3
"""Largest distance of a grid's middle from the plane between left and right, which mirror images are about."""
LEAST_MM = 100.0
"""Least length of a grid's longest side: less holds no head (`cohort.reading.headers.HEAD_MM`)."""
FEWEST_VOXELS = 8
"""Along an axis; the smoke grid, which shows hardly any anatomy, has 20."""
MOST_VOXELS = 2**26
"""A feature map of 32 channels on more voxels has more values than 32-bit indices reach. It is 0.44 mm over paper's
field of view."""
EXPECTED = (
    "expected paper, demo, smoke, 1mm, 2mm, a spacing in mm such as 2 or 1@160x192x160, or a file such as mine.json"
)


@dataclass(frozen=True)
class Grid:
    """A box of voxels in MNI152 space (NLin2009a), its axes along those of the world."""

    name: str
    shape: Sizes
    """Voxels (D, H, W)."""
    spacing_mm: float
    """Edge of a voxel, equal along the three axes."""
    centre_mm: tuple[float, float, float]
    """Middle of the field of view in world millimetres."""

    @property
    def affine(self) -> np.ndarray:
        """From voxel indices to millimetres, RAS."""
        affine = np.diag([self.spacing_mm] * 3 + [1.0])
        affine[:3, 3] = np.array(self.centre_mm) - self.spacing_mm * (np.array(self.shape) - 1) / 2
        return affine

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Length of each side of the field of view."""
        return tuple(size * self.spacing_mm for size in self.shape)  # type: ignore[return-value]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints, latents and JSON."""
        return {**asdict(self), "shape": list(self.shape), "centre_mm": list(self.centre_mm)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Grid:
        """The inverse of `to_dict`; raises InputError where `values` are no grid."""
        try:
            d, h, w = (int(size) for size in values["shape"])
            x, y, z = (float(place) for place in values["centre_mm"])
            grid = cls(str(values["name"]), (d, h, w), float(values["spacing_mm"]), (x, y, z))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not a grid: {values!r} ({type(error).__name__}: {error})") from None
        if min(d, h, w) < 1 or not grid.spacing_mm > 0:
            raise InputError(f"not a grid: {values!r}")
        return grid


# `paper` (168 x 204 x 168 mm) holds the template's brain, stem included, with 3 mm to spare at the foot and 7 mm or
# more elsewhere; in the 160 x 192 x 160 mm of the others the lowest end of the brain stem touches the foot of the field
# of view.
GRIDS = {
    grid.name: grid
    for grid in (
        Grid("paper", (112, 136, 112), 1.5, CENTRE_MM),
        Grid("demo", (40, 48, 40), 4.0, CENTRE_MM),
        Grid("smoke", (20, 24, 20), 8.0, CENTRE_MM),
        Grid("1mm", (160, 192, 160), 1.0, CENTRE_MM),
        Grid("2mm", (80, 96, 80), 2.0, CENTRE_MM),
    )
}
PRESETS = ("paper", "demo", "smoke")
"""Presets of the training scripts, each named after the grid that it was made for."""


def parse_grid(text: str) -> Grid:
    """The grid that a command line or configuration names, in one of the ways above.

    Its name says what it is, whichever way it was given: that of GRIDS, else SPACING@FOV in whole voxels, which is read
    as the same grid again. Only a grid with a middle of its own keeps the name that its file gives it.

    Raises:
        InputError: the text is none of these; the spacing is not above 0; the field of view leaves the template or
            holds no head; there are too few or too many voxels.
    """
    if text in GRIDS:
        return GRIDS[text]
    grid = named(Grid.from_dict(read_json(text)) if text.endswith(".json") else _of_spacing(text))
    if problems := _problems(grid):
        raise InputError.of(f"grid {text} refused", problems)
    return grid


def named(grid: Grid) -> Grid:
    """The same grid under the name that `parse_grid` gives it."""
    for known in GRIDS.values():
        if replace(grid, name=known.name) == known:
            return known
    if grid.centre_mm != CENTRE_MM:
        return grid
    return replace(grid, name=f"{grid.spacing_mm:.10g}@{'x'.join(f'{side:.10g}' for side in grid.extent_mm)}")


def refuse_other_grid(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], *, allowed: bool) -> None:
    """InputError where the weights in a file were trained on another grid (both as `Grid.to_dict`), unless `allowed`.

    Files of other programs, and latents of these, do not say theirs, and pass.
    """
    if theirs and ours and theirs != ours and not allowed:
        raise InputError(
            f"{path}: trained on the grid {theirs['name']} {tuple(theirs['shape'])}, this run has {ours['name']} "
            f"{tuple(ours['shape'])}; --init-other-grid goes on from its weights"
        )


def _of_spacing(text: str) -> Grid:
    """SPACING or SPACING@FOV as a grid without a name yet; InputError where it is neither."""
    spacing, *extent = re.split("[@x]", text)
    try:
        edge, sides = float(spacing), [float(side) for side in extent] or GRIDS["paper"].extent_mm
    except ValueError:
        edge, sides = math.nan, []
    if len(sides) != 3 or not all(map(math.isfinite, (edge, *sides))):
        raise InputError(f"grid {text}: {EXPECTED}")
    if min(edge, *sides) <= 0:
        raise InputError(f"grid {text}: the spacing and the sides of the field of view are lengths in mm, above 0")
    # Rounded first: 4.2 / 0.7 is a little more than 6.
    d, h, w = (math.ceil(round(side / edge, 6)) for side in sides)
    return Grid(text, (d, h, w), edge, CENTRE_MM)


def _problems(grid: Grid) -> list[str]:
    """Why no stage can work on a grid."""
    problems = []
    if grid.name in GRIDS and grid != GRIDS[grid.name]:
        problems.append(f"its name {grid.name} is that of another grid, {GRIDS[grid.name].to_dict()}")
    low, high = grid.affine[:3, 3], grid.affine[:3, 3] + grid.spacing_mm * (np.array(grid.shape) - 1)
    if (low < TEMPLATE_MM[0]).any() or (high > TEMPLATE_MM[1]).any():
        ends = " to ".join(str(end.round(1).tolist()) for end in (low, high))
        box = " to ".join(str(list(end)) for end in TEMPLATE_MM)
        problems.append(f"it leaves the template: its voxels lie from {ends} mm, the template reaches from {box} mm")
    if abs(grid.centre_mm[0]) > MIDPLANE_MM:
        problems.append(
            f"its middle lies at x = {grid.centre_mm[0]:g} mm: mirror images need one between left and right, 0"
        )
    if max(grid.extent_mm) < LEAST_MM:
        problems.append(f"its longest side is {max(grid.extent_mm):.6g} mm, less than {LEAST_MM:g}: no head fits")
    if min(grid.shape) < FEWEST_VOXELS:
        problems.append(f"{grid.shape} voxels: at least {FEWEST_VOXELS} along each axis; choose a finer spacing")
    if math.prod(grid.shape) > MOST_VOXELS:
        count = f"{math.prod(grid.shape):,} voxels {grid.shape}"
        problems.append(f"{count}: at most {MOST_VOXELS:,}; choose a coarser spacing")
    return problems


def preset_of(grid: Grid) -> str:
    """The preset whose own grid's spacing is nearest, as a ratio: its networks and trainings suit this grid best."""
    return min(PRESETS, key=lambda name: abs(math.log(grid.spacing_mm / GRIDS[name].spacing_mm)))


def kept_name(text: str) -> str:
    """What a configuration keeps of a word for `parse_grid`: it names the same grid wherever it is read."""
    grid = parse_grid(text)
    return grid.name if grid.centre_mm == CENTRE_MM else str(Path(text).resolve())


GridName = Annotated[
    str,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="GRID",
        instance_from_str=lambda words: kept_name(words[0]),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    ),
]
"""Type of a configuration's field that names a grid for `parse_grid`; the command line refuses what is none."""
