"""Where the voxels of a NIfTI lie, as FSL, ITK and SPM read its header; and where a user says that they lie.

NIfTI-1 (https://nifti.nimh.nih.gov/nifti-1): an affine of its own (sform), a rigid one by a quaternion (qform), codes
that say whether each is set, and a unit of length.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from cohort.grids import CENTRE_MM

HEAD_MM = (100.0, 700.0)
"""Longest side of the field of view of a head; beyond these it is no head's, or not in mm."""

UNORIENTED = (
    "does not say where left and right are; if you know where its axes point, say so with cohort.prepare "
    "--reset-affine LAS (or RAS, ...)"
)
"""What a user can do about a scan whose file has no orientation."""
_UNITS = {1: ("metre", 1000.0), 3: ("micron", 0.001)}
"""Name, and length in mm, of the codes (lower three bits of xyzt_units) that are neither mm (2) nor unknown (0)."""
_ROUNDED = 0.01
"""By how much b, c, d of a half turn's quaternion may be longer than 1 and still be rounded."""


@dataclass(frozen=True)
class Placement:
    """Where voxels lie by the word of a user, whatever the header says."""

    orientation: str
    """Where the three axes of the file point, such as RAS or LIA."""
    spacing_mm: float | None = None
    """Edge of a voxel; None: as the header says."""

    def __post_init__(self) -> None:
        axes = {axis for axis in ("LR", "PA", "IS") for code in self.orientation if code in axis}
        if len(self.orientation) != 3 or len(axes) != 3:
            raise ValueError(
                f"{self.orientation!r} is no orientation; expected one each of L or R, A or P, S or I: RAS"
            )
        if self.spacing_mm is not None and not self.spacing_mm > 0:
            raise ValueError(f"voxels of {self.spacing_mm:g} mm; expected more than 0")

    def affine(self, shape: tuple[int, ...], edges_mm: np.ndarray) -> np.ndarray:
        """The affine of voxels with these edges; the middle of the image lies at CENTRE_MM."""
        turn = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(self.orientation), (1, 1, 1))
        affine = np.eye(4)
        edges = np.asarray(edges_mm, float) if self.spacing_mm is None else np.full(3, self.spacing_mm)
        # inv_ornt_aff leads from RAS voxels to those of the file; its transpose back.
        affine[:3, :3] = turn[:3, :3].T * edges
        affine[:3, 3] = np.array(CENTRE_MM) - affine[:3, :3] @ (np.array(shape[:3]) - 1) / 2
        return affine


def world(header: nib.Nifti1Header) -> np.ndarray:
    """The affine (4, 4) to millimetres (RAS): the sform where it is set and invertible, else the qform.

    Of a unit that would make no head of it while mm do, the scan is read in mm, as programs that ignore the unit do.

    Raises:
        HeaderDataError: neither is set, or what is set is none; the message is for the user.
    """
    affine = own_affine(header)
    return np.diag([_unit_mm(header, np.linalg.norm(affine[:3, :3], axis=0))] * 3 + [1.0]) @ affine


def stated_edges_mm(header: nib.Nifti1Header) -> np.ndarray:
    """Edges of a voxel (3,) as pixdim has them, in the unit that `world` would take."""
    edges = np.abs(header["pixdim"][1:4].astype(np.float64))
    return edges * _unit_mm(header, edges)


def own_affine(header: nib.Nifti1Header) -> np.ndarray:
    """`world` in the header's own unit of length."""
    sform, qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not sform and not qform:
        raise HeaderDataError(f"neither sform nor qform is set, so that it {UNORIENTED}")
    if sform and (not qform or not is_flat(header.get_sform())):
        return np.asarray(header.get_sform(), dtype=np.float64)
    return rigid(header)


def rigid(header: nib.Nifti1Header) -> np.ndarray:
    """The qform (4, 4), read as nifti1_io.c does where nibabel refuses.

    Of a half turn, rounding to float32 leaves b, c, d a little too long: they are made a unit again. Any sign of
    pixdim[0] but minus counts as plus, 0 too.
    """
    header = header.copy()
    names = ["quatern_b", "quatern_c", "quatern_d"]
    bcd = np.array([header[name] for name in names], dtype=np.float64)
    length = float(np.linalg.norm(bcd))
    if not length <= 1 + _ROUNDED:
        raise HeaderDataError(f"the qform is no rotation: b, c, d of its quaternion are {bcd.tolist()}")
    if length > 1:
        for name, value in zip(names, bcd / length, strict=True):
            header[name] = value
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    return np.asarray(header.get_qform(), dtype=np.float64)


def _unit_code(header: nib.Nifti1Header) -> int:
    return int(header["xyzt_units"]) % 8


def unit_text(header: nib.Nifti1Header, affine: np.ndarray) -> str:
    """What was made of a unit that is not mm, for a warning; empty for mm and unknown.

    `affine` is what `world` gave.
    """
    code = _unit_code(header)
    if code in (0, 2):
        return ""
    name, _ = _UNITS.get(code, (f"code {code}", 1.0))
    if np.allclose(affine, own_affine(header)):
        return f"the unit of length is {name}, which makes no head of it; it is read as mm"
    return f"the unit of length is {name}, and it is read so; programs that ignore units take it for mm"


def is_flat(affine: np.ndarray) -> bool:
    """Whether an affine is not finite or loses a dimension."""
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    # Relative to the voxel's edges, so that small voxels are not taken for flat ones.
    return not (np.isfinite(affine).all() and edges.all() and abs(np.linalg.det(affine[:3, :3] / edges)) >= 1e-6)


def _unit_mm(header: nib.Nifti1Header, edges: np.ndarray) -> float:
    """The length in mm of the unit that makes a head of voxels with these edges; the header's own where none does."""
    _, factor = _UNITS.get(_unit_code(header), ("", 1.0))
    longest = float((edges * header.get_data_shape()[:3]).max())
    return factor if _is_head(longest * factor) or not _is_head(longest) else 1.0


def _is_head(longest_mm: float) -> bool:
    return HEAD_MM[0] <= longest_mm <= HEAD_MM[1]
