"""What is to be explained: real scans, synthetic volumes and reconstructions, in one table of cases."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from cohort.decoding import RefusedError, read_voxels
from cohort.grids import Grid
from cohort.tables import CLASS_NAMES, COLUMNS, read_table
from cohort.volumes import list_volumes, read_volume
from runtime.errors import InputError

_RECONSTRUCTION = re.compile(r"(?!\.)(.+)_reconstruction\.nii(\.gz)?")
"""How VAE.infer calls the reconstruction of a scan; unfinished files are hidden ones."""


def read_cases(
    csv: Path | None, volumes: Sequence[Path], reconstructions: Sequence[Path], grid: Grid, limit: int | None = None
) -> pd.DataFrame:
    """The cases of all origins, at most `limit` of each, HC and TLE in turn; what is no real scan must be on `grid`.

    A synthetic volume's label and side are those that it was made for; a reconstruction (VAE.infer ``--nifti``) has the
    subject, class and side of its scan in `csv`. To the columns of `cohort.tables.read_table` come `origin` (real,
    synthetic or reconstruction) and `stem`, the name of the case's files, unique within its origin.
    """
    if csv is None and not volumes and not reconstructions:
        raise InputError("nothing to explain: give --csv (scans), --volumes or --reconstructions (folders)")
    real = pd.DataFrame(columns=list(COLUMNS)) if csv is None else read_table(csv)
    synthetic = pd.DataFrame([row for folder in volumes for row in _synthetic(folder)], columns=list(COLUMNS))
    parts = {"real": real, "synthetic": synthetic, "reconstruction": _reconstructed(reconstructions, real)}
    parts = [_first_cases(part, origin, limit) for origin, part in parts.items() if len(part)]
    frame = pd.concat(parts, ignore_index=True).astype({"label": "int64", "age": "float64"})
    _refuse_other_grid(frame.loc[frame["origin"] != "real", "file"], grid)
    return frame


def with_outcomes(frame: pd.DataFrame, logits: np.ndarray, temperature: float, threshold: float | None) -> pd.DataFrame:
    """The cases with `logit`, `probability`, `outcome` and `groups`, the names of the means that they belong to.

    The outcome is TP, FP, TN or FN against their label (TLE is positive), empty while a checkpoint has no threshold.
    The groups are the class, the side where it is known, and the outcome where there is one.
    """
    frame = frame.assign(logit=logits, probability=expit(logits / temperature), outcome="")
    if threshold is not None:
        positive = frame["probability"] >= threshold
        right = positive == (frame["label"] == 1)
        frame["outcome"] = np.where(right, "T", "F") + np.where(positive, "P", "N").astype(object)
    names = zip(frame["label"], frame["side"], frame["outcome"], strict=True)
    groups = [(CLASS_NAMES[label], f"TLE_{side}" if side else "", outcome) for label, side, outcome in names]
    return frame.assign(groups=[[name for name in case if name] for case in groups])


def _first_cases(frame: pd.DataFrame, origin: str, limit: int | None) -> pd.DataFrame:
    """The cases that count, with `origin` and `stem`; InputError where two stems of the whole table are equal."""
    stems = [re.sub(r"[^\w.-]", "_", name) for name in _scan_names(frame)]
    frame = frame.assign(origin=origin, stem=stems)
    twice = frame[frame.duplicated("stem", keep=False)]
    if len(twice):
        raise InputError.of(f"{origin}: cases of one name would overwrite each other's maps", twice["file"].tolist())
    return frame.iloc[np.lexsort((frame["label"], frame.groupby("label").cumcount()))[:limit]]


def _scan_names(frame: pd.DataFrame) -> list[str]:
    return [f"{row.subject}_{row.session}" if row.session else row.subject for row in frame.itertuples()]


def _synthetic(folder: Path) -> list[dict]:
    paths = list_volumes(folder)
    if not paths:
        raise InputError(f"{folder}: no volume pickles (*.pkl) to explain")
    rows = []
    for path in paths:
        name, volume = f"synthetic_{path.stem}", read_volume(path)
        label, side = volume.label, volume.side
        diagnosis = f"{CLASS_NAMES[label]}-{side}" if side else CLASS_NAMES[label]
        unknown = dict.fromkeys(("session", "sex", "site"), "")
        given = {"subject": name, "group": name, "file": str(path.resolve())}
        rows.append({**given, **unknown, "label": label, "side": side, "diagnosis": diagnosis})
    return rows


def _reconstructed(folders: Sequence[Path], real: pd.DataFrame) -> pd.DataFrame:
    """The rows of the scans that folders hold reconstructions of, with these as their files."""
    rows_of, rows, files, unknown = {name: row for row, name in enumerate(_scan_names(real))}, [], [], []
    for folder in folders:
        found = {path: match[1] for path in sorted(folder.glob("*")) if (match := _RECONSTRUCTION.fullmatch(path.name))}
        if not found:
            raise InputError(f"{folder}: no reconstructions (*_reconstruction.nii.gz of VAE.infer --nifti)")
        known = {path: rows_of[name] for path, name in found.items() if name in rows_of}
        unknown += [str(path) for path in found if path not in known]
        rows += known.values()
        files += [str(path.resolve()) for path in known]
    if unknown:
        raise InputError.of("reconstructions of unknown class: their scans are not in --csv", unknown)
    return real.iloc[rows].assign(file=files)


def _refuse_other_grid(files: Sequence[str], grid: Grid) -> None:
    """What a network made is on its own grid; resampling it unasked would explain another volume than the user's."""
    problems = []
    for file in files:
        try:
            image, affine, _ = read_voxels(Path(file))
        except RefusedError as refusal:
            problems.append(f"{file}: {refusal}")
            continue
        if image.shape != grid.shape:
            problems.append(f"{file}: shape {image.shape}")
        elif affine is not None and not np.allclose(affine, grid.affine, rtol=0, atol=1e-3):
            problems.append(f"{file}: its affine places the voxels elsewhere")
    if problems:
        wanted = f"{grid.name} {grid.shape}, {grid.spacing_mm:g} mm"
        raise InputError.of(f"volumes that are not on the classifier's grid {wanted}", problems)
