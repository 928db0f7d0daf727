"""Checkpoints: tensors and plain values in one file, written whole or not at all, read without running it."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from runtime.errors import InputError
from runtime.files import ROOT, atomic_write, sha256

FORMAT = 1
# What torch.load raises on a file that is cut, changed or no checkpoint at all; it depends on where the damage is.
_DAMAGED = (
    pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, KeyError, AttributeError,
)  # fmt: skip


def save_checkpoint(path: Path | str, kind: str, contents: dict[str, Any]) -> None:
    """Writes `contents` atomically, with what kind of checkpoint it is, the format's version and the git commit.

    Args:
        path: ends in ``.pt``. The previous file stays until the new one is complete on disk.
        kind: what it holds, for example ``vae``; readers ask for it.
        contents: nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.

    Raises:
        TypeError: a value that `load_checkpoint` could not read back.
        InputError: it could not be written, for example because the disk is full.
    """
    _plain(contents, "contents")
    record = {"kind": kind, "format": FORMAT, "commit": git_commit(), **contents}
    try:
        with atomic_write(path) as temporary:
            torch.save(record, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer calls a full disk a RuntimeError
        reason = (error.strerror if isinstance(error, OSError) else None) or "the disk is full, or the writer failed"
        kept = "the previous checkpoint is intact" if Path(path).exists() else "there is no checkpoint yet"
        raise InputError(f"{path}: could not be written ({reason}); {kept}") from error


def load_checkpoint(path: Path | str, kind: str) -> dict[str, Any]:
    """Reads a checkpoint of the given kind onto the CPU.

    Raises:
        InputError: missing or damaged file, another kind, or another format version; names the file, got and expected.
    """
    return require_kind(load_tensors(path), path, kind)


def require_kind(record: dict[str, Any], path: Path | str, kind: str) -> dict[str, Any]:
    """The contents of a file that was read already, when they are a checkpoint of the given kind.

    Raises:
        InputError: another kind, or another format version; names the file, got and expected.
    """
    if "kind" not in record or "format" not in record:
        raise InputError(f"{path}: not a checkpoint of this project (it states neither kind nor format)")
    if record["kind"] != kind:
        raise InputError(f"{path}: a checkpoint of kind {record['kind']!r}, expected {kind!r}")
    if record["format"] != FORMAT:
        raise InputError(f"{path}: checkpoint format {record['format']}, this code reads format {FORMAT}")
    return record


def load_tensors(path: Path | str) -> dict[str, Any]:
    """Reads any file that torch.save wrote from a dict of tensors and plain values, onto the CPU, without running it.

    Raises:
        InputError: missing or damaged file, or one that holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a readable checkpoint: {reason}") from None
    if not isinstance(record, dict):
        raise InputError(f"{path}: holds a {type(record).__name__}, not a checkpoint of this project or a state dict")
    return record


def checkpoint_hash(path: Path | str) -> str:
    """The name by which artefacts refer to a checkpoint: the first 16 digits of its file's SHA-256."""
    return sha256(path)[:16]


def load_weights(network: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path | str) -> None:
    """Copies weights into a network, strictly.

    Raises:
        InputError: names the file and the parameters that are missing, not wanted or of another shape.
    """
    own = network.state_dict()
    problems = [f"{name}: missing" for name in own.keys() - weights.keys()]
    problems += [f"{name}: not part of this network" for name in weights.keys() - own.keys()]
    problems += [
        f"{name}: shape {tuple(weights[name].shape)}, this network has {tuple(own[name].shape)}"
        for name in own.keys() & weights.keys()
        if own[name].shape != weights[name].shape
    ]
    if problems:
        raise InputError.of(f"{path}: weights do not fit the network", sorted(problems))
    network.load_state_dict(weights)


def plain_fields(config: Any) -> dict[str, Any]:
    """A configuration dataclass as a checkpoint stores it and gives it back: tuples become lists."""
    fields = dataclasses.asdict(config)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def refuse_other(path: Path | str, record: dict[str, Any], wanted: dict[str, dict[str, Any]], what: str) -> None:
    """Refuses a checkpoint whose parts differ from a run's.

    Args:
        path: of the checkpoint, for the message.
        record: its contents.
        wanted: fields of each part, as this run has them.
        what: title of the refusal, for example ``another grid or architecture``.

    Raises:
        InputError: names each differing field with both values.
    """
    problems = [
        f"{part}.{name}: the checkpoint has {record[part].get(name)!r}, this run {value!r}"
        for part, fields in wanted.items()
        for name, value in fields.items()
        if record[part].get(name) != value
    ]
    if problems:
        raise InputError.of(f"{path}: {what}", problems)


@cache
def git_commit() -> str:
    """The repository's commit, with ``-dirty`` when tracked files differ from it; ``unknown`` outside a checkout."""
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit.stdout.strip()


def _plain(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _plain(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _plain(item, f"{where}[{index}]")
    elif value is not None and type(value) not in (bool, int, float, str) and not isinstance(value, torch.Tensor):
        raise TypeError(f"{where}: a checkpoint holds tensors and plain values, not {type(value).__name__}")
