"""Whose scans are to be prepared: a table, a folder of NIfTI files, or a BIDS dataset, as one frame."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from cohort.tables import DIAGNOSES, read_table, t1_images
from runtime.errors import InputError


def list_scans(
    source: Path,
    *,
    data_root: Path | None = None,
    label_column: str = "diagnosis",
    label_map: Mapping[str, str] | None = None,
    derivatives: str | None = None,
) -> pd.DataFrame:
    """Lists scans, with brain masks where there are any.

    Args:
        source: a table (`cohort.tables.read_table`); or a BIDS dataset, with its participants.tsv or without; or any
            folder, of which every ``.nii`` and ``.nii.gz`` below it is a scan (links to folders are not followed).
        data_root, label_column, label_map: as in `read_table`; for tables only.
        derivatives: which folder of a BIDS dataset's ``derivatives`` the masks are taken from; needed where several
            have masks.

    Returns:
        A table's columns (`file` need not be there: one absent scan is for the caller to report, and must not stop the
        others), and `mask` (absolute path, or empty) and `name` (unique, safe as a file's name). A scan that
        lies in a folder named by a diagnosis (``HC/P001.nii.gz``) has it; else, without a table, `diagnosis` is empty.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(f"{source}: no such table or folder")
    table = source / "participants.tsv" if source.is_dir() else source
    if table.is_file():
        frame = read_table(table, data_root=data_root, label_column=label_column, label_map=label_map, keep_absent=True)
    else:
        frame = _folder(source)
    root = table.parent if source.is_dir() or source.suffix == ".tsv" else None
    given = frame["mask"] if "mask" in frame.columns else pd.Series("", index=frame.index)
    base = data_root or table.parent
    masks = [os.path.abspath(base / mask) if mask not in ("", "n/a") else "" for mask in given]
    if root is not None and not any(masks):
        masks = _derived_masks(root, frame["file"], derivatives)
    return frame.assign(mask=masks, name=_names(frame))


def _folder(folder: Path) -> pd.DataFrame:
    """The scans of a folder without a table."""
    people = sorted(path for path in folder.glob("sub-*") if path.is_dir())
    if people:
        rows = [(person.name, *image, person.name) for person in people for image in t1_images(person)]
    else:
        stem = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
        rows = [(stem.sub("", image.name), image, "", image.parent.name) for image in _images(folder)]
    if not rows:
        wanted = "sub-*/anat/*_T1w.nii.gz" if people else ".nii or .nii.gz files"
        raise InputError(f"{folder}: no {wanted} in it")
    frame = pd.DataFrame(rows, columns=["subject", "file", "session", "diagnosis"])
    frame["file"] = frame["file"].map(os.path.abspath)
    frame["diagnosis"] = frame["diagnosis"].where(frame["diagnosis"].isin(list(DIAGNOSES)), "")
    again = frame[frame.duplicated(["subject", "session"], keep=False)]
    if len(again):
        problems = [f"{row.file}: another file is called {row.subject} too" for row in again.itertuples()]
        raise InputError.of(f"{folder}: files whose names are not unique; give a table", problems)
    return frame


def _images(folder: Path) -> list[Path]:
    """All NIfTI files below a folder, sorted; not behind links to folders, which may lead in circles."""
    found = [Path(here) / name for here, _, names in os.walk(folder) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.name.lower().endswith((".nii.gz", ".nii")))


def _derived_masks(root: Path, files: pd.Series, derivatives: str | None) -> list[str]:
    """Brain masks in the space of the scans, from ``derivatives/NAME/sub-X/[ses-Y/]anat/*_desc-brain_mask.nii.gz``."""
    pipelines = [root / "derivatives" / derivatives] if derivatives else sorted(root.glob("derivatives/*"))
    if derivatives and not pipelines[0].is_dir():
        raise InputError(f"--derivatives {derivatives}: no folder {pipelines[0]}")
    found: dict[str, dict[str, str]] = {}
    for pipeline in pipelines:
        for file in files:
            image = Path(file)
            inside = pipeline / os.path.relpath(image.parent, os.path.abspath(root))
            for mask in sorted(inside.glob(f"{image.name.split('_T1w.nii')[0]}_desc-brain_mask.nii*")):
                found.setdefault(pipeline.name, {}).setdefault(file, os.path.abspath(mask))
    if len(found) > 1:
        raise InputError(f"{root}: brain masks in derivatives/{{{', '.join(found)}}}; choose one by --derivatives")
    return [next(iter(found.values()), {}).get(file, "") for file in files]


def _names(frame: pd.DataFrame) -> list[str]:
    """Subject and session as a file's name. Where letters had to be replaced, a hash keeps different people apart."""
    plain, marked = [], []
    for subject, session in zip(frame["subject"], frame["session"], strict=True):
        text = f"{subject}_{session}" if session else subject
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", text)[:100].lstrip(".")
        mark = hashlib.sha256(f"{subject}\0{session}".encode()).hexdigest()[:8]
        marked.append(f"{safe}-{mark}")
        plain.append(safe if safe == text else marked[-1])
    # Some file systems do not tell small letters from capitals.
    again = pd.Series(plain, dtype=str).str.lower().duplicated(keep=False)
    return [long if twice else short for short, long, twice in zip(plain, marked, again, strict=True)]
