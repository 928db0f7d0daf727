"""Whose scans are to be prepared: a table, a folder of NIfTI files, or a BIDS dataset, as one frame."""

import hashlib
import os
import re
from pathlib import Path

import pandas as pd

from cohort.listing.bids import no_image, people
from cohort.listing.choice import Choice, t1_images
from cohort.listing.reading import PLAIN, Reading
from cohort.tables import DIAGNOSES, SHOWN, Listed, list_table
from runtime.errors import InputError
from runtime.files import absence


def list_scans(source: Path, reading: Reading = PLAIN, *, derivatives: str | None = None) -> Listed:
    """Lists scans, with brain masks where there are any.

    Args:
        source: a table (`cohort.tables.read_table`); or a folder with participants.tsv or participants.csv; or a BIDS
            dataset without one; or any folder, of which every ``.nii`` and ``.nii.gz`` below it is a scan (links to
            folders are not followed, hidden ones not entered).
        reading: as in `read_table`; its map and root are for tables only.
        derivatives: which folder of a BIDS dataset's ``derivatives`` the masks are taken from; needed where several
            have masks.

    Returns:
        As of `cohort.tables.list_table`, the frame with `mask` (absolute path, or empty) and `name` (unique, safe as a
        file's name). A scan that lies in a folder named by a diagnosis (``HC/P001.nii.gz``) has it; else, without a
        table, `diagnosis` is empty.
    """
    source = Path(source)
    if not source.is_dir() and (reason := absence(source, "table or folder")):
        raise InputError(f"{source}: {reason}")
    tables = [source / f"participants.{ending}" for ending in ("tsv", "csv")] if source.is_dir() else [source]
    table = next((path for path in tables if os.path.lexists(path)), None)
    listed = list_table(table, reading) if table else _folder(source, reading)
    if table and (note := _in_no_row(listed.frame)):
        listed.notes.append(f"{table}: {note}")
    frame, root = listed.frame, source if source.is_dir() else source.parent
    is_bids = source.is_dir() or source.suffix == ".tsv"
    given = frame["mask"] if "mask" in frame.columns else pd.Series("", index=frame.index)
    masks = [os.path.abspath((reading.data_root or root) / mask) if mask not in ("", "n/a") else "" for mask in given]
    if is_bids and not any(masks):
        masks = _derived_masks(root, frame["file"], derivatives)
    return listed._replace(frame=frame.assign(mask=masks, name=_names(frame)))


def _folder(folder: Path, reading: Reading) -> Listed:
    """The scans of a folder without a table."""
    choice, rows = Choice(reading.prefer), []
    participants = people(folder)
    for person in participants:
        images = choice.of(t1_images(person))
        rows += [(person.name, image.file, image.text, "", image.absent) for image in images]
        rows += [] if images else [(person.name, person / "anat", "", "", no_image(person))]
    if not participants:
        stem = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
        images = _images(folder)
        rows = [(stem.sub("", image.name), image, "", image.parent.name, absence(image)) for image in images]
    if not rows:
        raise InputError(f"{folder}: no .nii or .nii.gz files in it")
    choice.refuse_unmatched()
    frame = pd.DataFrame(rows, columns=["subject", "file", "session", "diagnosis", "absent"])
    frame["file"] = frame["file"].map(os.path.abspath)
    frame["diagnosis"] = frame["diagnosis"].where(frame["diagnosis"].isin(list(DIAGNOSES)), "")
    if reading.all_hc and (ill := sorted(set(frame["diagnosis"]) - {"", "HC"})):
        raise InputError(
            f"{folder}: it has folders called {', '.join(ill)}, but --all-hc says that everybody is healthy"
        )
    frame["diagnosis"] = "HC" if reading.all_hc else frame["diagnosis"]
    again = frame[frame.duplicated(["subject", "session"], keep=False)]
    if len(again):
        problems = [f"{row.file}: another file is called {row.subject} too" for row in again.itertuples()]
        raise InputError.of(f"{folder}: files whose names are not unique; give a table", problems)
    absent = frame.pop("absent").to_numpy(dtype=object)
    return Listed(
        frame, absent, frame["subject"].tolist(), [], [f"{folder}: {note}" for note in [choice.note()] if note]
    )


def _in_no_row(frame: pd.DataFrame) -> str:
    """Words on files beside a table's scans that are called like them, numbers apart, and are in none of its cells."""
    named = {os.path.basename(cell) for name in frame for cell in frame[name] if isinstance(cell, str)}
    patterns = {_pattern(os.path.basename(file)) for file in frame["file"]}
    folders = sorted({folder for folder in map(os.path.dirname, frame["file"]) if os.path.isdir(folder)})
    there = [name for folder in folders for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    others = [name for name in there if name not in named and _pattern(name) in patterns]
    if not others:
        return ""
    more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    return f"no row names {len(others)} scans that lie beside its own: {', '.join(others[:SHOWN])}{more}"


def _pattern(name: str) -> str:
    """A file's name without its numbers, that of T1 and T2 excepted."""
    return re.sub(r"(?<!T)\d+", "#", name)


def _images(folder: Path) -> list[Path]:
    """All NIfTI files below a folder, sorted; nothing hidden, nor behind links to folders, which may go in circles."""
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(here) / name for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.name.lower().endswith((".nii.gz", ".nii")))


def _derived_masks(root: Path, files: pd.Series, derivatives: str | None) -> list[str]:
    """Brain masks in the space of the scans, from ``derivatives/NAME/sub-X/[ses-Y/]anat/*_desc-brain_mask.nii.gz``."""
    pipelines = [root / "derivatives" / derivatives] if derivatives else sorted(root.glob("derivatives/[!.]*"))
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
