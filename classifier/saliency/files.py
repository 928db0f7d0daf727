"""Attribution maps on disk: a NIfTI file and, beside it, a JSON file of what it was made from.

The JSON is written last and names everything that the voxels depend on, so that a map is made again if and only if the
checkpoint, the volume, the method or one of its settings has changed. `stem` is a map's path without an ending.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from cohort.volumes import write_nifti
from runtime.errors import InputError
from runtime.files import read_json, write_json

FORMAT = 1
"""Raise it with any change of what a method computes."""


def recipe(checkpoint: str, volume: str, method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What a map is made from: hashes of checkpoint and volume file, method, and the settings that matter to it."""
    return {"format": FORMAT, "checkpoint": checkpoint, "volume": volume, "method": method, "settings": settings}


def volume_index(volume: str) -> int:
    """The address of a volume's random draws, from the hash of its file: the same in every table it stands in."""
    return int(hashlib.sha256(volume.encode()).hexdigest()[:12], 16)


def is_made(stem: Path, wanted: dict[str, Any]) -> bool:
    """Whether the map with this recipe is there."""
    note, nifti = _files(stem)
    return note.is_file() and nifti.is_file() and read_json(note)["recipe"] == json.loads(json.dumps(wanted))


def write_map(stem: Path, map_: np.ndarray, affine: np.ndarray, made_from: dict[str, Any], error: float | None) -> None:
    """Writes a map (D, H, W) and its note; `error` is how far from complete it is in logits, None if it need not be."""
    note, nifti = _files(stem)
    write_nifti(nifti, map_, affine)
    write_json(note, {"recipe": made_from, "completeness_error_logits": error})


def read_map(stem: Path) -> tuple[np.ndarray, float | None]:
    """The map (D, H, W) and its error of completeness; InputError for a damaged file."""
    note, nifti = _files(stem)
    try:
        map_ = np.asarray(nib.load(nifti).dataobj, dtype=np.float32)
    except (OSError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise InputError(f"{nifti}: not a whole map: {error}; delete it, and it is made again") from None
    return map_, read_json(note)["completeness_error_logits"]


def _files(stem: Path) -> tuple[Path, Path]:
    return stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.nii.gz")
