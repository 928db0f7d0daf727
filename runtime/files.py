"""Files that are either whole or absent: atomic writes, JSON, content hashes."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shlex
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
"""The repository. Default output paths start here, wherever a script is run from."""


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` when the block ends well, removes it otherwise.

    The file's data reach the disk before the rename and the folder's entry after it: after a power cut `path` holds
    the old content or the new, never a part. The temporary name keeps the suffixes (nibabel reads ``.nii.gz`` by name).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".tmp-", suffix="".join(path.suffixes), dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files private; shared folders expect the user's own mode
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path | str, *, shared: bool = False) -> Iterator[None]:
    """Holds a folder, made when absent, until the block ends; the kernel lets go of it when the process dies.

    Alone, or `shared` with others that say so too.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / ".lock").open("w") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is running in this folder") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            warnings.warn(f"{folder}: its file system has no locks; see to it that one process uses it", stacklevel=3)
        yield


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. Not-a-number is refused: JSON has none, and readers differ."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """Reads a JSON file; raises InputError that names the file when it is missing or not JSON."""
    try:
        refuse_pointer(path)
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSON file: {error}") from None


def sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def absence(path: Path | str, kind: str = "file") -> str:
    """Why no file can be read at `path`, and where the next step is ours to know, that; empty where there is one.

    Folders that git-annex (DataLad) manages hold links, which lead nowhere until their files are fetched.
    """
    if os.path.isfile(path):
        return ""
    if os.path.islink(path):
        target, place = os.readlink(path), shlex.quote(str(path))
        return f"not fetched: a symbolic link that leads nowhere (to {target}); datalad get {place}, or mend the link"
    return f"a folder, not a {kind}" if os.path.isdir(path) else f"no such {kind}"


def refuse_pointer(path: Path | str) -> None:
    """InputError where git-lfs or git-annex has left its pointer, a little text, in the place of a file."""
    with Path(path).open("rb") as file:
        begin = file.read(256)
    if begin.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: a pointer of git-lfs, not the file itself; fetch it with git lfs pull")
    # Where links cannot be made, git writes what the link would have been as text: ../.git/annex/objects/...
    if re.match(rb"[./]*(\.git/)?annex/objects/", begin):
        raise InputError(f"{path}: a pointer of git-annex, not the file itself; fetch it with git annex get")
