"""One scan examined: read to its end, its geometry and intensities judged, its voxels hashed, its thumbnail made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from cohort.checking.duplicates import thumbnail
from cohort.decoding import RefusedError, read_header, read_voxels
from cohort.scans import GRIDS, edges_mm, to_ras
from runtime.errors import InputError

VERSION = 2
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
NEGATIVE = 0.05
"""Share of negative voxels from which a scan is a difference or was standardised: 0 is then not its background."""

_MM, _UNKNOWN = 2, 0  # NIfTI-1 codes of units of length, the lower three bits of xyzt_units


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
    """Examines one scan.

    Returns:
        What was found, and the scan's thumbnail (`cohort.checking.duplicates.thumbnail`).

    Raises:
        InputError: the scan is refused; names the file and the reason.
    """
    try:
        image, affine = read_voxels(path)
        header = read_header(path)
        affine = _affine_of_shape(image.shape) if affine is None else affine
    except RefusedError as refusal:
        raise InputError(f"{path}: {refusal}") from None
    turned, turned_affine = to_ras(image, affine)
    warnings = [["geometry", text] for text in geometry_warnings(image.shape, affine, header)]
    warnings += [["intensity", text] for text in intensity_warnings(image)]
    examination = Examination(
        shape=list(image.shape),
        spacing_mm=np.round(edges_mm(affine), 3).tolist(),
        orientation="".join(nib.aff2axcodes(affine)),
        voxels=hash_voxels(turned),
        mirrored=hash_voxels(turned[::-1]),
        warnings=warnings,
    )
    return examination, thumbnail(turned, turned_affine)


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
    """What is unusual about where a scan's voxels lie; every message has the value and what was expected."""
    edges = edges_mm(affine)
    extent = edges * shape
    found = []
    if edges.min() < EDGE_MM[0] or edges.max() > EDGE_MM[1]:
        found.append(f"voxels of {_by(edges)} mm; expected edges of {EDGE_MM[0]:g} to {EDGE_MM[1]:g} mm")
    if edges.max() > ANISOTROPY * edges.min():
        found.append(f"thick slices: voxels of {_by(edges)} mm")
    if extent.min() < EXTENT_MM[0] or extent.max() > EXTENT_MM[1]:
        found.append(f"a field of view of {_by(extent)} mm; expected {EXTENT_MM[0]:g} to {EXTENT_MM[1]:g} mm")
    return found + (_header_warnings(shape, edges, header) if header is not None else [])


def _header_warnings(shape: tuple[int, ...], edges: np.ndarray, header: nib.Nifti1Header) -> list[str]:
    """Where a header contradicts itself."""
    found = []
    unit = int(header["xyzt_units"]) % 8
    if unit not in (_MM, _UNKNOWN):
        found.append(f"the unit of length is not mm (code {unit}); it is read as mm")
    stated = np.abs(header["pixdim"][1:4].astype(float))
    if not np.allclose(stated, edges, rtol=SPACING_APART, atol=0):
        found.append(f"pixdim says voxels of {_by(stated)} mm, the affine {_by(edges)} mm; the affine counts")
    if int(header["sform_code"]) > 0 and int(header["qform_code"]) > 0:
        apart = _forms_apart(shape, header)
        if not apart <= FORMS_APART_MM:
            found.append(f"sform and qform place its corners up to {apart:.1f} mm apart; the sform counts")
    return found


def _forms_apart(shape: tuple[int, ...], header: nib.Nifti1Header) -> float:
    """Largest distance in mm between a corner by sform and by qform; infinite where the qform is no rotation."""
    try:
        difference = header.get_sform() - header.get_qform()
    except (nib.spatialimages.HeaderDataError, ValueError):
        return np.inf
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shape], indexing="ij")).reshape(3, -1)
    return float(np.linalg.norm(difference[:3, :3] @ corners + difference[:3, 3:], axis=0).max())


def intensity_warnings(image: np.ndarray) -> list[str]:
    """What is unusual about a scan's values, which are finite and not all equal."""
    found = []
    inside = image[image != 0]
    sample = inside[:: max(1, inside.size // 100_000)]
    if len(np.unique(sample)) < FEW_VALUES:
        found.append(f"only {len(np.unique(sample))} distinct values; a mask or a map of labels?")
    elif (share := np.count_nonzero(inside == image.max()) / inside.size) > SATURATED:
        found.append(f"clipped: {share:.1%} of the non-zero voxels have the greatest value {image.max():g}")
    if (share := np.count_nonzero(inside < 0) / image.size) > NEGATIVE:
        found.append(f"{share:.0%} of the voxels are negative; the background is expected to be 0")
    return found


def _by(values: np.ndarray) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
