"""Checkpoints: tensors and plain values in one file, written whole or not at all, read without running it."""

import dataclasses
import pickle
import subprocess
import zipfile
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from runtime.errors import InputError, differences
from runtime.files import ROOT, atomic_write, refuse_pointer, sha256

FORMAT = 1
# What torch.load raises on a file that is cut, changed or no checkpoint at all; it depends on where the damage is.
_DAMAGED = (
    pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, KeyError, AttributeError,
)  # fmt: skip
Config = TypeVar("Config")


def save_checkpoint(path: Path | str, kind: str, contents: dict[str, Any]) -> None:
    """Writes nested dicts, lists and tuples of tensors and plain values atomically, with kind, format and git commit.

    InputError when it cannot, for example because the disk is full: the previous file stays.
    """
    _refuse_objects(contents, "contents")
    record = {"kind": kind, "format": FORMAT, "commit": git_commit(), **contents}
    try:
        with atomic_write(path) as temporary:
            torch.save(record, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer calls a full disk a RuntimeError
        reason = (error.strerror if isinstance(error, OSError) else None) or "the disk is full, or the writer failed"
        kept = "the previous checkpoint is intact" if Path(path).exists() else "there is no checkpoint yet"
        raise InputError(f"{path}: could not be written ({reason}); {kept}") from error


def load_checkpoint(path: Path | str, kind: str) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU; refuses a damaged file, another kind and another format version (InputError)."""
    return require_kind(load_tensors(path), path, kind)


def require_kind(record: dict[str, Any], path: Path | str, kind: str) -> dict[str, Any]:
    """The contents of a file that was read already, if they are a checkpoint of the given kind (else InputError)."""
    found = record.get("kind"), record.get("format")
    if found != (kind, FORMAT):
        raise InputError(f"{path}: a checkpoint of kind {found[0]!r}, format {found[1]}, expected {kind!r}, {FORMAT}")
    return record


def load_tensors(path: Path | str) -> dict[str, Any]:
    """Reads any file that torch.save wrote from a dict of tensors and plain values, without running it; on the CPU."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    refuse_pointer(path)
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        if "allowed global" in str(error):
            raise InputError(
                f"{path}: holds Python objects, such as a whole module, which reading would run; save its state_dict() "
                "instead: torch.save(module.state_dict(), FILE)"
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if reason.startswith("Weights only load failed"):  # and then torch explains how to read it all the same
            reason = "not a file of torch.save"
        raise InputError(f"{path}: not a readable checkpoint: {reason}") from None
    if not isinstance(record, dict):
        raise InputError(f"{path}: holds a {type(record).__name__}, not a checkpoint of this project or a state dict")
    return record


def checkpoint_hash(path: Path | str) -> str:
    """The name by which artefacts refer to a checkpoint: the first 16 digits of its file's SHA-256."""
    return sha256(path)[:16]


def load_weights(network: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path | str) -> None:
    """Copies weights into a network, strictly; InputError names what is missing, extra or of another shape."""
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


def config_from(config: type[Config], fields: dict[str, Any], path: Path | str) -> Config:
    """Inverse of `plain_fields`; raises InputError for fields that `config` does not have."""
    try:
        return config(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
    except TypeError as error:
        raise InputError(f"{path}: its configuration is not one of this version: {error}") from None


def resume(
    path: Path | str, record: dict[str, Any], network: torch.nn.Module, wanted: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Loads the raw weights of a checkpoint's contents into `network` for further training and returns the contents.

    InputError names each field of each part that differs from what the run has (`wanted`).
    """
    problems = [
        f"{part}.{line}" for part, fields in wanted.items() for line in differences("checkpoint", record[part], fields)
    ]
    if problems:
        raise InputError.of(f"{path}: of another network or other data", problems)
    load_weights(network, record["weights"], path)
    return record


@cache
def git_commit() -> str:
    """The repository's commit, with ``-dirty`` when tracked files differ from it; ``unknown`` outside a checkout."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _refuse_objects(value: Any, where: str) -> None:
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_objects(item, f"{where}[{key!r}]")
    elif value is not None and type(value) not in (bool, int, float, str) and not isinstance(value, torch.Tensor):
        raise TypeError(f"{where}: a checkpoint holds tensors and plain values, not {type(value).__name__}")
