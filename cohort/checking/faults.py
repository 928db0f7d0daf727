"""One scan examined: read to its end, its geometry and intensities judged, its voxels hashed, its thumbnail made."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from cohort.checking.duplicates import block_means, thumbnail
from cohort.decoding import RefusedError, naming, read_voxels
from cohort.grids import GRIDS
from cohort.reading import headers, place
from cohort.reading.intensities import plain
from cohort.scans import LEAST_COVERED, edges_mm, onto_grid, refuse_no_head, to_ras

VERSION = 4
"""Of what `examine` finds. Raise it with any change: cached examinations are then made anew."""

EDGE_MM = (0.2, 10.0)
"""Voxel edges beyond these are unusual for a T1 scan (or not in mm)."""
EXTENT_MM = (100.0, 400.0)
"""A field of view below cuts a head, above it is hardly in mm."""
ANISOTROPY = 4.0
"""Longest over shortest edge from which slices are too thick for regional volumes."""
FORMS_APART_MM = 1.0
"""Distance of a corner by sform and by qform that a viewer which prefers the other form would show."""
SPACING_APART = 0.01
"""Relative difference between the voxel sizes that a header states twice (pixdim and affine)."""
FEW_VALUES = 32
"""A scan with fewer distinct values is a mask or a map of labels, or was stored with too few bits."""
SATURATED = 0.02
"""Share of non-zero voxels at the very maximum from which a scan was clipped."""


@dataclass(frozen=True)
class Examination:
    """What is known of a scan that can be read; lists and not tuples, as JSON gives them back."""

    shape: list[int]
    """Voxels along the axes of the file."""
    spacing_mm: list[float]
    """Edges of a voxel along these axes, rounded to a micrometre."""
    orientation: str
    """Where the axes point, such as ``LAS``."""
    voxels: str
    """SHA-256 of the decoded voxels in RAS order, whatever the file's name, compression, number type or orientation."""
    mirrored: str
    """The same with left and right exchanged."""
    warnings: list[list[str]]
    """Kind and message of what is unusual."""

    @property
    def image(self) -> str:
        """One name for a scan's voxels and for their mirror image."""
        return min(self.voxels, self.mirrored)


def examine(path: Path) -> tuple[Examination, np.ndarray]:
    """Examines one scan: what was found, and its thumbnail (`cohort.checking.duplicates.thumbnail`)."""
    with naming(path):
        image, affine, header = read_voxels(path)
        affine = _affine_of_shape(image.shape) if affine is None else affine
        turned, turned_affine = to_ras(image, affine)
        values, notes = plain(turned)
        small = block_means(values, turned_affine)
        # What a network made is where its pickle says; what it shows is for others to judge.
        odd_place = [] if path.suffix == ".pkl" else _refused_or_odd(image.shape, turned_affine, *small)
    warnings = [["geometry", text] for text in (*geometry_warnings(image.shape, affine, header), *odd_place)]
    warnings += [["intensity", text] for text in (*intensity_warnings(values), *notes)]
    examination = Examination(
        shape=list(image.shape),
        spacing_mm=np.round(edges_mm(affine), 3).tolist(),
        orientation="".join(nib.aff2axcodes(affine)),
        voxels=hash_voxels(turned),
        mirrored=hash_voxels(turned[::-1]),
        warnings=warnings,
    )
    return examination, thumbnail(*small)


def _refused_or_odd(
    shape: tuple[int, ...], affine: np.ndarray, small: np.ndarray, small_affine: np.ndarray
) -> list[str]:
    """What is unusual about a scan's place; RefusedError where no training script would take it.

    `affine` and `shape` are the scan's, `small` the scan shrunk by `block_means`, all in RAS order.
    """
    refuse_no_head(shape, affine)
    grid = place.COARSE
    onto_grid(small, small_affine, grid.affine, grid, least=LEAST_COVERED)
    found = place.place_of(small, small_affine)
    place.refuse_misplaced(found)
    return place.place_warnings(found)


def hash_voxels(image: np.ndarray) -> str:
    """SHA-256 of an array's shape and its float32 values, -0 counted as 0."""
    values = np.ascontiguousarray(image, dtype=np.float32) + np.float32(0)
    return hashlib.sha256(repr(image.shape).encode() + values.tobytes()).hexdigest()


def _affine_of_shape(shape: tuple[int, ...]) -> np.ndarray:
    """The affine of the grid with a shape, for a pickle that has none."""
    for grid in GRIDS.values():
        if grid.shape == shape:
            return grid.affine
    raise RefusedError(f"no affine, and its shape {shape} is that of no grid")


def geometry_warnings(shape: tuple[int, ...], affine: np.ndarray, header: nib.Nifti1Header | None) -> list[str]:
    """What is unusual about where a scan's voxels lie, or contradictory; with the value and what was expected."""
    edges = edges_mm(affine)
    extent = edges * shape
    odd = {
        f"voxels of {_by(edges)} mm; expected edges of {EDGE_MM[0]:g} to {EDGE_MM[1]:g} mm": _beyond(edges, EDGE_MM),
        f"thick slices: voxels of {_by(edges)} mm": edges.max() > ANISOTROPY * edges.min(),
        f"a field of view of {_by(extent)} mm; expected {EXTENT_MM[0]:g} to {EXTENT_MM[1]:g} mm": (
            _beyond(extent, EXTENT_MM)
        ),
    }
    if header is not None:
        stated = headers.stated_edges_mm(header)
        apart = _forms_apart(shape, header)
        unit = headers.unit_text(header, affine)
        odd |= {
            unit: bool(unit),
            "the determinant of the sform is zero; the qform counts": (
                int(header["sform_code"]) > 0 and headers.is_flat(header.get_sform())
            ),
            f"pixdim says voxels of {_by(stated)} mm, the affine {_by(edges)} mm; the affine counts": (
                not np.allclose(stated, edges, rtol=SPACING_APART, atol=0)
            ),
            f"sform and qform place its corners up to {apart:.1f} mm apart; the sform counts": (
                not apart <= FORMS_APART_MM
            ),
        }
    return [text for text, is_odd in odd.items() if is_odd]


def _forms_apart(shape: tuple[int, ...], header: nib.Nifti1Header) -> float:
    """Largest distance in mm between a corner by sform and by qform; infinite where the qform is no rotation."""
    if int(header["sform_code"]) <= 0 or int(header["qform_code"]) <= 0 or headers.is_flat(header.get_sform()):
        return 0.0
    try:
        difference = header.get_sform() - headers.rigid(header)
    except nib.spatialimages.HeaderDataError:
        return np.inf
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shape], indexing="ij")).reshape(3, -1)
    return float(np.linalg.norm(difference[:3, :3] @ corners + difference[:3, 3:], axis=0).max())


def intensity_warnings(image: np.ndarray) -> list[str]:
    """What is unusual about a scan's values, which are finite and not all equal."""
    inside = image[image != 0]
    distinct = len(np.unique(inside[:: max(1, inside.size // 100_000)]))
    clipped = np.count_nonzero(inside == image.max()) / inside.size
    odd = {
        f"only {distinct} distinct values; a mask or a map of labels?": distinct < FEW_VALUES,
        f"clipped: {clipped:.1%} of the non-zero voxels have the greatest value {image.max():g}": (
            distinct >= FEW_VALUES and clipped > SATURATED
        ),
    }
    return [text for text, is_odd in odd.items() if is_odd]


def _beyond(values: np.ndarray, limits: tuple[float, float]) -> bool:
    return values.min() < limits[0] or values.max() > limits[1]


def _by(values: np.ndarray) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
