"""Volume pickles and NIfTI files of volumes: what they hold, how they are written, and what a reader refuses.

A volume pickle is a dict. Synthetic volumes have all the keys of `Volume`; scans that users keep as pickles may have
only `image` and `affine`, or only `image` and `label`.
"""

from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from cohort.tables import CLASS_NAMES, SIDES
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.pickles import load_pickle, save_pickle

FORMAT = 1
_MNI = 4
"""NIfTI's code for coordinates of the MNI152 space."""
_LARGEST = 32767
"""Of int16."""


@dataclass(frozen=True)
class Volume:
    """One volume and where it came from. What an older file does not say is None."""

    image: np.ndarray
    """float32 (D, H, W) = (left-right, back-front, foot-head)."""
    label: int
    """Class code: 0 HC, 1 TLE."""
    seed: int | None = None
    """Seed of this one sample."""
    affine: np.ndarray | None = None
    """float64 (4, 4): voxel indices to millimetres, RAS."""
    vae: str | None = None
    diffusion: str | None = None
    """Hashes of the checkpoints that decoded and sampled it."""
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    """Scale of classifier-free guidance; 1 is none."""
    side: str = ""
    """Side of a TLE, L or R; empty where it is unknown, in older files too, and for HC."""


_KINDS = {"vae": str, "diffusion": str, "sampler": str, "seed": int, "steps": int, "guidance": int | float}
"""What a file may say about a volume's origin."""


def volume_name(label: int, seed: int) -> str:
    """File name of a sample, for example ``TLE_000042.pkl``: the seed is the name, so nothing is overwritten unseen."""
    return f"{CLASS_NAMES[label]}_{seed:06d}.pkl"


def list_volumes(folder: Path | str) -> list[Path]:
    """The volume pickles in a folder, sorted by name; unfinished (hidden) files are left out."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder of volumes")
    return sorted(path for path in Path(folder).glob("*.pkl") if not path.name.startswith("."))


def write_volume(path: Path | str, volume: Volume) -> None:
    """Writes a volume pickle, atomically; nothing, but an InputError, where `read_volume` would refuse it."""
    contents = {"format": FORMAT, "image": np.ascontiguousarray(volume.image), "label": int(volume.label)}
    for name in ("side", "seed", "affine", "steps", "guidance", "vae", "diffusion", "sampler"):
        value = getattr(volume, name)
        contents[name] = value.item() if isinstance(value, np.number) else value  # plain numbers
    _as_volume(contents, path)
    save_pickle(path, contents)


def read_volume(path: Path | str) -> Volume:
    """Reads a volume pickle, also an older one with `image` and `label` only; InputError names the file and faults."""
    return _as_volume(load_pickle(path), path)


def side_of(path: Path | str) -> str:
    """The side that a volume pickle names; empty also for a file that `read_volume` refuses, as who loads it will say.

    For tables of volumes.
    """
    try:
        return read_volume(path).side
    except InputError:
        return ""


def read_image(path: Path | str) -> tuple[np.ndarray, np.ndarray | None]:
    """The array of a volume pickle as it is stored, and its affine, which is None when the file has none.

    For scans kept as pickles, whose voxels `cohort.scans.load_scan` checks like those of any other scan.
    """
    return _checked(load_pickle(path), path, whole=False)


def write_nifti(
    path: Path | str, image: np.ndarray, affine: np.ndarray, *, dtype: type = np.float32, description: str = ""
) -> None:
    """Writes (D, H, W) as a NIfTI in MNI152 space that overlays the template in any viewer, atomically.

    `affine` (4, 4) in mm is stored as sform and as qform, both with code 4; `description` has at most 79 bytes.
    """
    _save(path, np.asarray(image, dtype=dtype), affine, description)


def write_scan(path: Path | str, image: np.ndarray, affine: np.ndarray) -> None:
    """`write_nifti` of a scan (D, H, W) in int16, with a scale where its values are no whole numbers from 0 to 32767.

    Whole numbers are kept exactly. Others are off by at most half a step, which is the largest value over 65535; where
    there are negative ones, the largest magnitude over 32767. 0, the mark of background, stays 0, and nothing else
    becomes 0: values nearer to it than half a step are off by up to a whole one.
    """
    high = float(np.abs(image).max())
    if image.min() >= 0 and high <= _LARGEST and np.array_equal(image, np.rint(image)):
        _save(path, image.astype(np.int16), affine)
        return
    zero = 0 if image.min() < 0 else -1 - _LARGEST  # the whole number that stands for 0
    step = np.float32(high / (_LARGEST - zero))
    numbers = np.rint(image / step)
    numbers = np.where(numbers == 0, np.sign(image), numbers)
    stored = np.clip(numbers + zero, -1 - _LARGEST, _LARGEST).astype(np.int16)
    _save(path, stored, affine, scale=(step, -zero * step))


def _save(
    path: Path | str, stored: np.ndarray, affine: np.ndarray, description: str = "",
    scale: tuple[float, float] | None = None,
) -> None:  # fmt: skip
    nifti = nib.Nifti1Image(stored, affine)
    nifti.set_sform(affine, code=_MNI)
    nifti.set_qform(affine, code=_MNI)
    nifti.header.set_xyzt_units("mm")
    nifti.header["descrip"] = description.encode()
    if scale is not None:
        nifti.header.set_slope_inter(*scale)  # of numbers that are scaled already
    with atomic_write(path) as temporary:
        nib.save(nifti, temporary)


def _as_volume(contents: Any, path: Path | str) -> Volume:
    image, affine = _checked(contents, path, whole=True)
    origin = {name: contents.get(name) for name in _KINDS}
    side = contents.get("side") or ""
    return Volume(np.asarray(image, dtype=np.float32), int(contents["label"]), affine=affine, side=side, **origin)


def _checked(contents: Any, path: Path | str, *, whole: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Image and affine of a file's contents; InputError where they, or if `whole` voxels and origin, are faulty."""
    problems = _problems_of_frame(contents) or (_problems_of_content(contents) if whole else [])
    if problems:
        raise InputError.of(f"{path}: not a volume pickle", problems)
    affine = contents.get("affine")
    return contents["image"], None if affine is None else np.asarray(affine, dtype=np.float64)


def _problems_of_frame(contents: Any) -> list[str]:
    """What is wrong with the dict itself, its format, its `image` as an array and its `affine`."""
    if not isinstance(contents, dict):
        return [f"it holds a {type(contents).__name__}, expected a dict"]
    problems = []
    if contents.get("format", FORMAT) != FORMAT:
        problems.append(f"format {contents['format']!r}, this version reads {FORMAT}")
    if not isinstance(contents.get("image"), np.ndarray):
        problems.append(f"image: expected an array, got {type(contents.get('image')).__name__}")
    affine = contents.get("affine")
    numeric = isinstance(affine, np.ndarray) and affine.shape == (4, 4) and affine.dtype.kind in "fiu"
    if affine is not None and not (numeric and np.isfinite(affine).all() and affine[3].tolist() == [0, 0, 0, 1]):
        problems.append("affine: expected 4x4 finite numbers with the last row 0 0 0 1")
    return problems


def _problems_of_content(contents: dict) -> list[str]:
    """What is wrong with the voxels, the label and what is said about their origin."""
    image, label = contents["image"], contents.get("label")
    problems = []
    if image.dtype.kind not in "fiu":
        problems.append(f"image: expected real numbers, got {image.dtype}")
    elif bad := image.size - int(np.count_nonzero(np.isfinite(image))):
        problems.append(f"image: {bad} voxels are not finite")
    if image.ndim != 3 or not image.size:
        problems.append(f"image: expected the shape (D, H, W), got {image.shape}")
    if not isinstance(label, Integral) or isinstance(label, bool) or not 0 <= label < len(CLASS_NAMES):
        problems.append(f"label: expected 0 (HC) or 1 (TLE), got {label!r}")
    side = "" if contents.get("side") is None else str(contents["side"])
    if side not in ("", *SIDES.values()) or (side and label == 0):
        problems.append(f"side: expected L, R or nothing, of a TLE; got {side!r}")
    for name, kind in _KINDS.items():
        if not isinstance(contents.get(name), kind | None):
            problems.append(f"{name}: got {contents[name]!r}")
    return problems
