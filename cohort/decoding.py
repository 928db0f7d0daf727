"""From the bytes of a scan's file to voxels and an affine, with everything that can be wrong on the way."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling
from nibabel.wrapstruct import WrapStructError
from tqdm import tqdm

from cohort.volumes import read_image
from runtime import distributed
from runtime.errors import InputError
from runtime.files import refuse_pointer, sha256

MAX_VOXELS = 2**28
"""Largest scan that is decoded (645 voxels cubed, 1 GiB as float32). Brains at 0.4 mm stay below; bombs do not."""
MAX_HEADER_BYTES = 2**20
"""Largest header with its extensions, and largest remainder after the voxels."""
ENDINGS = (".nii.gz", ".nii", ".pkl")

_HEADER_BYTES = {nib.Nifti1Header: 348, nib.Nifti2Header: 540}
_GZIP_MAGIC = b"\x1f\x8b"
_ADVICE = {"c": "complex voxels; save the magnitude", "V": "RGB voxels; save one channel"}


T = TypeVar("T")


class RefusedError(Exception):
    """Why a scan is refused, without its name, which `naming` adds."""


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Turns a refusal, or an error of reading, into an InputError that names the file."""
    try:
        yield
    except RefusedError as refusal:
        raise InputError(f"{path}: {refusal}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def ending_and_hash(path: Path) -> tuple[str, str]:
    """Which of ENDINGS a file's name has, and the SHA-256 of its bytes: together they say what reading it would give.

    The bytes do not say it alone: under a false ending they are refused.
    """
    with naming(path):
        ending = _ending(path)
        return ending, sha256(path)


def _ending(path: Path) -> str:
    """The ending of a file that has one of ENDINGS and is not empty."""
    ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)
    if ending is None:
        raise RefusedError(f"expected a name ending in {', '.join(ENDINGS)}")
    if not path.is_file():
        link = path.is_symlink()
        raise RefusedError("a symbolic link that leads nowhere (or to itself)" if link else "no such file")
    if path.stat().st_size == 0:
        raise RefusedError("the file is empty (0 bytes)")
    return ending


def read_voxels(path: Path) -> tuple[np.ndarray, np.ndarray | None, nib.Nifti1Header | None]:
    """Reads a scan's file to its end (only there does a gzip stream compare its checksum) and checks it.

    Returns:
        The voxels, float32 (three axes in the order of the file), finite and not all equal; the affine to world
        millimetres (RAS), float64 (4, 4), invertible, None for a pickle that has none; the header as stored, None for
        a pickle. RefusedError gives the reason; pickles and pointers of git-lfs raise an InputError.
    """
    ending = _ending(path)
    try:
        if ending == ".pkl":
            image, affine, header = *_read_pickle(path), None
        else:
            image, affine, header = _read_nifti(path, gzipped=ending == ".nii.gz")
    except (EOFError, isal_zlib.error, igzip.BadGzipFile) as error:
        raise RefusedError(f"truncated or damaged gzip data: {error}") from None
    except OSError as error:
        raise RefusedError(f"cannot be read: {error.strerror or error}") from None
    bad = image.size - int(np.count_nonzero(np.isfinite(image)))
    if bad:
        raise RefusedError(f"{bad} of {image.size} voxels are not finite (or beyond float32)")
    if image.min() == image.max():
        raise RefusedError(f"constant: every voxel is {image.flat[0]:g}")
    if affine is not None and not _is_invertible(affine):
        raise RefusedError("the determinant of the affine is zero (or not finite)")
    return image, affine, header


def _read_pickle(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    # Stated before it is read: eight bytes is the widest voxel.
    if path.stat().st_size > 8 * MAX_VOXELS + MAX_HEADER_BYTES:
        raise RefusedError(f"{path.stat().st_size} bytes; {MAX_VOXELS} voxels are the limit")
    image, affine = read_image(path)
    _check(image.dtype, image.shape)
    return _as_float32(image.reshape(image.shape[:3])), affine


def _read_nifti(path: Path, *, gzipped: bool) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Header]:
    refuse_pointer(path)
    with path.open("rb") as file:
        if gzipped != (file.read(2) == _GZIP_MAGIC):
            wrong = "named .nii.gz but not compressed; rename it to .nii, or compress it"
            raise RefusedError(wrong if gzipped else "named .nii but compressed; rename it to .nii.gz")
        file.seek(0)
        if gzipped:
            with igzip.IGzipFile(fileobj=file) as stream:
                return _decode_nifti(stream)
        return _decode_nifti(file)


def _decode_nifti(stream: BinaryIO) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Header]:
    """Header first, its sizes checked; then as many bytes as it announces; then the end."""
    head, header = _read_header(stream)
    shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), int(header.get_data_offset())
    if not len(head) <= offset <= MAX_HEADER_BYTES:
        raise RefusedError(f"the voxels begin at byte {offset}; expected {len(head)} to {MAX_HEADER_BYTES}")
    _check(dtype, shape)
    expected = math.prod(shape) * dtype.itemsize
    stream.read(offset - len(head))
    data = stream.read(expected)
    if len(data) < expected:
        raise RefusedError(f"truncated: {len(data)} bytes of voxels, the header announces {expected}")
    if len(stream.read(MAX_HEADER_BYTES + 1)) > MAX_HEADER_BYTES:
        raise RefusedError(f"more than {MAX_HEADER_BYTES} bytes follow the voxels that the header announces")
    stored = np.frombuffer(data, dtype).reshape(shape[:3], order="F")
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise RefusedError(f"the scale of its voxels is invalid: {error}") from None
    return _as_float32(apply_read_scaling(stored, slope, intercept)), _world(header), header


def _read_header(stream: BinaryIO) -> tuple[bytes, nib.Nifti1Header]:
    head = stream.read(_HEADER_BYTES[nib.Nifti1Header])
    sizes = {int.from_bytes(head[:4], order) for order in ("little", "big")}
    if 348 in sizes and head[344:348] == b"n+1\0":
        kind = nib.Nifti1Header
    elif 540 in sizes and head[4:8] == b"n+2\0":
        kind = nib.Nifti2Header
        head += stream.read(_HEADER_BYTES[kind] - len(head))
    else:
        raise RefusedError("not a single-file NIfTI: its header is another or damaged")
    try:
        return head, kind(head)
    except (HeaderDataError, WrapStructError) as error:
        raise RefusedError(f"not a valid NIfTI header: {error}") from None


def _world(header: nib.Nifti1Header) -> np.ndarray:
    """The sform when its code is above 0, else the qform."""
    if int(header["sform_code"]) > 0:
        return np.asarray(header.get_sform(), dtype=np.float64)
    if int(header["qform_code"]) <= 0:
        raise RefusedError("neither sform nor qform is set, so that left and right are unknown")
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise RefusedError(f"the qform is no rotation: {error}") from None


def _check(dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Real numbers on three axes of two voxels or more (trailing ones are tolerated), at most MAX_VOXELS of them."""
    if dtype.kind not in "fiub":
        raise RefusedError(_ADVICE.get(dtype.kind, f"voxels of type {dtype}; expected real numbers"))
    sizes = [int(size) for size in shape]
    if min(sizes, default=0) < 1:
        raise RefusedError(f"an impossible shape {tuple(sizes)}")
    if math.prod(sizes) > MAX_VOXELS:
        raise RefusedError(f"{math.prod(sizes)} voxels {tuple(sizes)}; the limit is {MAX_VOXELS}")
    if len(sizes) < 3 or min(sizes[:3]) < 2 or math.prod(sizes[3:]) != 1:
        hint = "; remove the leading axis of 1" if len(sizes) == 4 and sizes[0] == 1 else ""
        raise RefusedError(f"not three-dimensional: shape {tuple(sizes)}{hint}")


def _is_invertible(affine: np.ndarray) -> bool:
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    # Relative to the voxel's edges, so that small voxels are not taken for flat ones.
    return bool(np.isfinite(affine).all() and edges.all() and abs(np.linalg.det(affine[:3, :3] / edges)) >= 1e-6)


def _as_float32(image: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, and infinite is refused
        return np.asarray(image, dtype=np.float32)


def of_each(files: Sequence[str], work: Callable[[Path], T], cache: Path, desc: str) -> list[T | InputError]:
    """What `work` gives for each file, or the InputError it raised, in the order of `files`.

    Threads, not processes: hashing, inflating, filtering and interpolating all release the interpreter's lock.

    Raises:
        InputError: `work`, whose reading turns errors into refusals, could not write to its `cache`.
    """

    def attempt(file: str) -> T | InputError:
        try:
            return work(Path(file))
        except InputError as error:
            return error

    # Every process of a distributed run comes here. Each begins at its own place and finds the others' work done.
    start = len(files) * distributed.rank() // distributed.world_size()
    turned = [*files[start:], *files[:start]]
    bar = {"desc": desc, "unit": "scan", "delay": 1, "disable": not distributed.is_main()}
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        try:
            found = list(tqdm(pool.map(attempt, turned), total=len(files), **bar))
        except OSError as error:
            raise InputError(f"{cache}: the cache cannot be written: {error.strerror or error}") from error
    return found[len(files) - start :] + found[: len(files) - start]
