"""From the bytes of a scan's file to voxels and an affine, with everything that can be wrong on the way."""

import hashlib
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling
from nibabel.wrapstruct import WrapStructError
from tqdm import tqdm

from cohort.reading import headers, intensities
from cohort.reading.headers import Placement
from cohort.volumes import read_image
from runtime import distributed
from runtime.errors import InputError
from runtime.files import refuse_pointer, sha256

MAX_VOXELS = 2**28
"""Largest scan that is decoded (645 voxels cubed, 1 GiB as float32). Brains at 0.4 mm stay below; bombs do not."""
MAX_HEADER_BYTES = 2**20
"""Largest header with its extensions, and largest remainder after the voxels."""
ENDINGS = (".nii.gz", ".nii", ".pkl", ".mgz", ".mgh", ".hdr", ".img")

_HEADER_BYTES = {nib.Nifti1Header: 348, nib.Nifti2Header: 540}
_GZIP_MAGIC = b"\x1f\x8b"
_SHOWN = 64
"""Bytes of a file's beginning from which text is known."""
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
        ending, files = _ending(path), parts(path)
        if len(files) == 1:
            return ending, sha256(path)
        return ending, hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


def parts(path: Path) -> tuple[Path, ...]:
    """The files of a scan: one, or header and voxels of a pair; RefusedError where one of the pair is missing."""
    if path.suffix.lower() not in (".hdr", ".img"):
        return (path,)
    pair = tuple(path.with_suffix(ending if path.suffix.islower() else ending.upper()) for ending in (".hdr", ".img"))
    for part in pair:
        if not part.is_file():
            raise RefusedError(f"one of a pair of files, of which {part.name} is missing")
    return pair


def _ending(path: Path) -> str:
    """The ending of a file that has one of ENDINGS and is not empty."""
    ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)
    if ending is None:
        raise RefusedError(f"expected a name ending in {', '.join(ENDINGS)}")
    if not path.is_file():
        raise RefusedError(_absence(path))
    if path.stat().st_size == 0:
        raise RefusedError("the file is empty (0 bytes)")
    return ending


def _absence(path: Path) -> str:
    if not path.is_symlink():
        return "no such file"
    if "annex/objects" in os.readlink(path):
        return "a link of git-annex whose content was not fetched; fetch it with git annex get (datalad get)"
    return "a symbolic link that leads nowhere (or to itself)"


def read_voxels(
    path: Path, placement: Placement | None = None
) -> tuple[np.ndarray, np.ndarray | None, nib.Nifti1Header | None]:
    """Reads a scan's file to its end (only there does a gzip stream compare its checksum) and checks it.

    Args:
        path: a file with one of ENDINGS.
        placement: where its voxels lie by the user's word; instead of its header's, and not for a pickle.

    Returns:
        The voxels, float32 (three axes in the order of the file), not all equal, finite but for a background of NaN;
        the affine to world millimetres (RAS), float64 (4, 4), invertible, None for a pickle that has none; the header
        as stored, None where the file is no NIfTI. RefusedError gives the reason; pickles and pointers of git-lfs and
        git-annex raise an InputError.
    """
    ending = _ending(path)
    try:
        if ending == ".pkl":
            image, affine, header = *_read_pickle(path), None
        elif ending in (".nii", ".nii.gz"):
            image, affine, header = _read_nifti(path, placement, gzipped=ending == ".nii.gz")
        else:
            image, affine, header = _read_other(path, placement)
    except (EOFError, isal_zlib.error, zlib.error, igzip.BadGzipFile) as error:
        if ending == ".nii.gz" and (behind := _bytes_behind(path)):
            raise RefusedError(
                f"{behind} bytes of something else follow its gzip data, which are whole; fetch it again, or write it "
                "anew: gzip -dcq FILE | gzip > NEW"
            ) from None
        raise RefusedError(f"truncated or damaged gzip data: {error}; fetch or make it again") from None
    except (HeaderDataError, WrapStructError, ImageFileError) as error:
        raise RefusedError(str(error)) from None
    except OSError as error:
        raise RefusedError(f"cannot be read: {error.strerror or error}") from None
    _refuse_values(image)
    if affine is not None and headers.is_flat(affine):
        raise RefusedError(f"the determinant of the affine is zero (or not finite), so that it {headers.UNORIENTED}")
    return image, affine, header


def _refuse_values(image: np.ndarray) -> None:
    """RefusedError for voxels that are not finite, unless they are a background of NaN, and for a constant image."""
    bad = image.size - int(np.count_nonzero(np.isfinite(image)))
    if bad and not intensities.is_background(np.isnan(image), bad):
        raise RefusedError(f"{bad} of {image.size} voxels are not finite (or beyond float32); set them to numbers")
    low, high = np.nanmin(image), np.nanmax(image)
    if low == high:
        raise RefusedError(f"constant: every voxel is {low:g}")


def _read_pickle(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    # Stated before it is read: eight bytes is the widest voxel.
    if path.stat().st_size > 8 * MAX_VOXELS + MAX_HEADER_BYTES:
        raise RefusedError(f"{path.stat().st_size} bytes; {MAX_VOXELS} voxels are the limit")
    image, affine = read_image(path)
    _check(image.dtype, image.shape)
    return _as_float32(image.reshape(image.shape[:3])), affine


def _read_nifti(
    path: Path, placement: Placement | None, *, gzipped: bool
) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Header]:
    refuse_pointer(path)
    with path.open("rb") as file:
        begin = file.read(_SHOWN)
        if gzipped != begin.startswith(_GZIP_MAGIC):
            _refuse_text(begin)
            wrong = "named .nii.gz but not compressed; rename it to .nii, or compress it"
            raise RefusedError(wrong if gzipped else "named .nii but compressed; rename it to .nii.gz")
        file.seek(0)
        if gzipped:
            with igzip.IGzipFile(fileobj=file) as stream:
                image, header = _decode_nifti(stream)
        else:
            _refuse_text(begin)
            image, header = _decode_nifti(file)
    if placement is None:
        return image, headers.world(header), header
    return image, placement.affine(image.shape, headers.stated_edges_mm(header)), header


def _refuse_text(begin: bytes) -> None:
    """RefusedError for a file that begins with text: a page of a server, mostly, saved under a scan's name."""
    text = begin.decode("utf-8", errors="replace")
    if not all(letter.isprintable() or letter in "\t\r\n" for letter in text):
        return
    page = "a web page" if text.lstrip().lower().startswith(("<!doctype", "<html")) else "text"
    start = " ".join(text.split())[:40]
    raise RefusedError(
        f"{page}, not a scan: it begins {start!r}; the download failed, or needs a login: fetch it again"
    )


def _decode_nifti(stream: BinaryIO) -> tuple[np.ndarray, nib.Nifti1Header]:
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
    return _as_float32(apply_read_scaling(stored, slope, intercept)), header


def _bytes_behind(path: Path) -> int:
    """How many bytes follow the first whole member of a gzip file and begin no other; 0 where it is not whole."""
    member = isal_zlib.decompressobj(wbits=31)
    with path.open("rb") as file:
        try:
            while not member.eof and (chunk := file.read(2**16)):  # of a bomb, 64 MiB at once
                member.decompress(chunk)
        except isal_zlib.error:
            return 0
        if not member.eof or member.unused_data.startswith(_GZIP_MAGIC):
            return 0
        return len(member.unused_data) + path.stat().st_size - file.tell()


def _read_header(stream: BinaryIO) -> tuple[bytes, nib.Nifti1Header]:
    head = stream.read(_HEADER_BYTES[nib.Nifti1Header])
    sizes = {int.from_bytes(head[:4], order) for order in ("little", "big")}
    if 348 in sizes and head[344:348] == b"n+1\0":
        kind = nib.Nifti1Header
    elif 540 in sizes and head[4:8] == b"n+2\0":
        kind = nib.Nifti2Header
        head += stream.read(_HEADER_BYTES[kind] - len(head))
    elif 348 in sizes:
        raise RefusedError("the header of a pair of files (.hdr and .img, Analyze or NIfTI); name the pair as such")
    else:
        raise RefusedError("not a single-file NIfTI: its header is another or damaged")
    try:
        return head, kind(head)
    except (HeaderDataError, WrapStructError) as error:
        raise RefusedError(f"not a valid NIfTI header: {error}") from None


def _read_other(path: Path, placement: Placement | None) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Header | None]:
    """A FreeSurfer volume, or a pair of files with or without an orientation (NIfTI, Analyze), by nibabel."""
    for part in parts(path):
        refuse_pointer(part)
        with part.open("rb") as file:
            _refuse_text(file.read(_SHOWN))
    image = nib.load(path)
    _check(image.get_data_dtype(), image.shape)
    header, is_nifti = image.header, isinstance(image, nib.Nifti1Pair)
    values = _as_float32(np.asanyarray(image.dataobj).reshape(image.shape[:3]))
    if placement is not None:
        edges = headers.stated_edges_mm(header) if is_nifti else np.array(header.get_zooms()[:3])
        affine = placement.affine(image.shape, edges)
    elif is_nifti:
        affine = headers.world(header)
    elif isinstance(image, nib.MGHImage) and int(header["goodRASFlag"]) > 0:
        affine = np.asarray(image.affine, dtype=np.float64)
    else:
        raise RefusedError(f"its format {headers.UNORIENTED}")
    return values, affine, header if is_nifti else None


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
        hint = ""
        if len(sizes) == 4:
            hint = "; remove the leading axis of 1" if sizes[0] == 1 else "; choose one image, such as one echo"
        raise RefusedError(f"not three-dimensional: shape {tuple(sizes)}{hint}")


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
