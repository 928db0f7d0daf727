"""What tools of the field write about regional volumes, each as one table: a row per scan, a column per name of theirs.

Which of their names is which region of our atlas, and what that was read from: volume_names.csv.

Checked against the programs' source or tables, not against output that we made with them:

- FreeSurfer 7 (mri_segstats.cpp) and 5.1, FastSurfer 2.4 (segstats.py): stats files below SUBJECTS_DIR. What is empty
  has no line there. FastSurfer alone writes no eTIV into aseg+DKT.stats unless it registered to Talairach space.
- SynthSeg 2.0 and mri_synthseg (predict_synthseg.py): one CSV with a row per scan, or one CSV of one scan, whose first
  column has no name. Its names are from headers that others published. SynthSeg 1 writes no intracranial volume.
- HippUnfold 1 (gen_volume_tsv.py): a TSV per subject with a row per hemisphere and a column per subfield.
- deepmriprep 0.1 (preprocess.py): a CSV per scan with a row per region, and one with the intracranial volume.
- NiChart_DLMUSE 1 (CalcROIVol.py, MUSE_ROI_complete_list.csv): one CSV with indices for names.

From documentation alone: asegstats2table, and the columns MUSE_Volume_47 and DLICV of MUSE tables.
"""

import csv
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cohort.atlas import native_atlas
from cohort.listing.cells import MISSING
from cohort.listing.delimited import RawTable, read_delimited
from runtime.errors import InputError

TITLES = {
    "own": "our own columns", "freesurfer": "FreeSurfer or FastSurfer", "synthseg": "SynthSeg",
    "hippunfold": "HippUnfold", "deepmriprep": "deepmriprep", "muse": "MUSE",
}  # fmt: skip
"""The tools, as volume_names.csv and as messages call them."""
HEAD = "head"
"""Stands for the size of the head among the regions of volume_names.csv."""
OWN = "own"
"""Tables with our own names of columns: `volume_column`, and ``head_mm3``."""
KINDS = (
    "a SUBJECTS_DIR of FreeSurfer or FastSurfer, an output folder of HippUnfold or deepmriprep, the CSV of SynthSeg, a "
    "MUSE table, a table of asegstats2table, or columns such as volume_left_hippocampus_mm3"
)
_IDS = ("subject", "participant_id", "mrid", "measure:volume", "")
"""What the column of scans is called, in whatever capitals; it has no name where SynthSeg read one scan."""
_SESSIONS = ("session", "session_id")
_NO_SUBFIELDS = {"subject", "hemi", "Cyst", *_SESSIONS}

Key = tuple[str, str]
"""Subject and session, without the prefixes of BIDS; the session is empty where none is known."""


class Measured(NamedTuple):
    """What a tool wrote: text by scan and the tool's own names, empty where it wrote nothing."""

    tool: str
    """One of TITLES."""
    keys: list[Key]
    texts: pd.DataFrame


def volume_column(region: str) -> str:
    """The column of a region in tables of our own: ``Left Hippocampus`` to ``volume_left_hippocampus_mm3``."""
    return f"volume_{region.lower().replace(' ', '_')}_mm3"


@cache
def regions_of(tool: str) -> dict[str, str]:
    """The tool's names, in small letters, and which region of the atlas, or HEAD, each is."""
    if tool == OWN:
        own = {volume_column(region): region for region in native_atlas()[0].codes}
        return {**own, "head_mm3": HEAD}
    return {name.lower(): region for other, name, region in names_and_regions() if other == tool}


@cache
def names_and_regions() -> list[tuple[str, str, str]]:
    """The rows of volume_names.csv: tool, its name, region of the atlas or HEAD."""
    with Path(__file__).with_name("volume_names.csv").open(encoding="utf-8", newline="") as file:
        return [(row["tool"], row["name"], row["region"]) for row in csv.DictReader(file)]


def key_of(text: str) -> Key:
    """Whose scan a name is: of ``sub-01_ses-2_T1w.nii.gz``, 01 and 2; of other names the whole, without an ending."""
    if bids := re.match(r"sub-([^_.]+)(?:_ses-([^_.]+))?(?=[_.]|$)", text):
        return bids[1], bids[2] or ""
    return re.sub(r"(\.nii)?(\.gz)?$|\.mgz$|\.pkl$", "", text), ""


def read_measured(path: Path) -> Measured:
    """The table, whatever tool it is from; InputError where it is of none that is known."""
    if not path.is_dir():
        raw = read_delimited(path)
        if raw.problems:
            raise InputError.of(f"{path}: the table of volumes was refused", raw.problems)
        return _hippunfold([raw]) if {"hemi", "subject"} <= set(raw.columns) else _wide(raw)
    for pattern, read in _FOLDERS.items():
        if files := sorted(path.glob(pattern)):
            return read(files)
    sought = ", ".join(_FOLDERS)
    raise InputError(f"{path}: no volumes in this folder (sought: {sought}); expected {KINDS}")


def of_columns(frame: pd.DataFrame) -> Measured:
    """The volumes in a table of scans itself, in columns of our own names."""
    once = frame.drop_duplicates(["subject", "session"])
    return Measured(OWN, list(map(key_of_row, once["subject"], once["session"])), once)


def key_of_row(subject: str, session: str) -> Key:
    """Whose scan a row of a table of scans is."""
    return subject.removeprefix("sub-"), session.removeprefix("ses-")


def _wide(raw: RawTable) -> Measured:
    """A row per scan; the tool is the one that knows most of the columns."""
    names = {name.lower(): name for name in raw.columns}
    ids = [names[name] for name in _IDS if name in names]
    if not ids:
        told = ", ".join(_IDS[:-1])
        raise InputError(f"{raw.path}: no column says whose a row is ({told}); it has {', '.join(raw.columns[:8])}")
    sizes = {tool: len(names.keys() & regions_of(tool)) for tool in TITLES}
    tool = max(sizes, key=sizes.get)
    texts = pd.DataFrame(raw.rows)
    keys = [key_of(text) for text in texts[ids[0]]]
    if session := next((names[name] for name in _SESSIONS if name in names), None):
        given = ("" if text in MISSING else text for text in texts[session])
        keys = [key_of_row(subject, visit) for (subject, _), visit in zip(keys, given, strict=True)]
    return Measured(tool, keys, texts)


def _stats(files: Iterable[Path]) -> Measured:
    """Files below the folders of subjects."""
    found = {file.parents[1].name: _stats_of(file) for file in files}
    return Measured("freesurfer", [key_of(name) for name in found], pd.DataFrame(found.values()).fillna(""))


def _stats_of(file: Path) -> dict[str, str]:
    """mm^3 of the structures and of the measures above them; nothing of a file that ends before its table."""
    found, columns = {}, []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if line.startswith("# Measure ") and line.count(",") > 2:
            fields = [field.strip() for field in line.removeprefix("# Measure ").split(",")]
            found[fields[0]] = fields[-2]
        elif line.startswith("# ColHeaders"):
            columns = words[2:]
            if not {"StructName", "Volume_mm3"} <= set(columns):
                raise InputError(f"{file}: its columns are {', '.join(columns)}; expected StructName and Volume_mm3")
        elif words and not line.startswith("#") and len(words) == len(columns):
            row = dict(zip(columns, words, strict=True))
            found[row["StructName"]] = row["Volume_mm3"]
    return found


def _need(raw: RawTable, *columns: str) -> None:
    if absent := [name for name in columns if name not in raw.columns]:
        raise InputError(f"{raw.path}: no column {', '.join(absent)}; it has {', '.join(raw.columns[:8])}")


def _hippunfold(tables: Iterable[RawTable]) -> Measured:
    """The hippocampus of each hemisphere, L and R: the sum of its subfields without cysts; 0 where one of them is."""
    found: dict[Key, dict[str, str]] = {}
    for raw in tables:
        _need(raw, "subject", "hemi")
        fields = [name for name in raw.columns if name not in _NO_SUBFIELDS]
        for index, row in enumerate(raw.rows):
            session = next((row[name] for name in _SESSIONS if name in row), key_of(raw.path.name)[1])
            sides = found.setdefault((key_of(row["subject"])[0], session.removeprefix("ses-")), {})
            if row["hemi"] in sides:
                raw.fault(index, "hemi", f"{row['subject']} has {row['hemi']} twice; give one table of one atlas")
            try:
                parts = [float(row[name]) for name in fields]
            except ValueError as error:
                raw.fault(index, "hemi", f"{row['subject']}: a subfield {error}")
                continue
            sides[row["hemi"]] = str(sum(parts) if min(parts) > 0 else 0.0)
        if raw.problems:
            raise InputError.of(f"{raw.path}: the volumes of HippUnfold were refused", raw.problems)
    return Measured("hippunfold", list(found), pd.DataFrame(found.values()).fillna(""))


def _deepmriprep(files: Iterable[Path]) -> Measured:
    """The tissue of each region of its Neuromorphometrics atlas; names are the region's and the tissue's."""
    found = {}
    for file in files:
        raw = read_delimited(file)
        _need(raw, "ROIname")
        tissues = [name for name in raw.columns if name.endswith("_mm3")]
        texts = {f"{row['ROIname']} {tissue}": row[tissue] for row in raw.rows for tissue in tissues}
        head = file.with_name(file.name.replace(_ATLAS, "tiv", 1))
        if file.parent.name == _ATLAS:
            head = file.parents[1] / "tiv" / file.name
        if head.is_file():
            texts |= read_delimited(head).rows[0]
        found[file.name.removeprefix(_ATLAS).removesuffix(".csv")] = texts
    return Measured("deepmriprep", [key_of(name) for name in found], pd.DataFrame(found.values()).fillna(""))


_ATLAS = "neuromorphometrics_volumes"
_FOLDERS: dict[str, Callable[[list[Path]], Measured]] = {
    "*/stats/aseg.stats": _stats,
    "*/stats/aseg+DKT.stats": _stats,
    "**/*_volumes.tsv": lambda files: _hippunfold(map(read_delimited, files)),
    f"**/{_ATLAS}*.csv": _deepmriprep,
    f"**/{_ATLAS}/*.csv": _deepmriprep,
}
"""What is looked for below a folder; the first that is there is read. FastSurfer's surfaces come with FreeSurfer's."""
