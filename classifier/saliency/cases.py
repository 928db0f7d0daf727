"""What is to be explained: real scans, synthetic volumes and reconstructions, in one table of cases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from cohort.decoding import RefusedError, read_voxels
from cohort.scans import Grid
from cohort.tables import CLASS_NAMES, COLUMNS, read_table
from cohort.volumes import list_volumes, read_volume
from runtime.errors import InputError

_RECONSTRUCTION = "_reconstruction"
"""How VAE.infer ends the names of its reconstructions."""


def read_cases(
    csv: Path | None, volumes: Sequence[Path], reconstructions: Sequence[Path], grid: Grid, limit: int | None = None
) -> pd.DataFrame:
    """The cases of all origins, one row each.

    Args:
        csv: table of real scans.
        volumes: folders of synthetic volume pickles; the intended class is their label.
        reconstructions: folders of VAE.infer (``--nifti``) or of volume pickles. A reconstruction is its subject's: the
            ledger, the class and the side are those of the scan in `csv`; without it the class is what the folder's
            metrics.csv or the pickle says.
        grid: the classifier's; what is not a real scan has to be on it already.
        limit: at most so many of each origin, HC and TLE in turn.

    Returns:
        the columns of `cohort.tables.read_table`, `origin` (real, synthetic or reconstruction) and `stem`, the name of
        the case's files, unique within its origin.

    Raises:
        InputError: nothing given or found, two cases of one name, reconstructions without a label, another grid.
    """
    if csv is None and not volumes and not reconstructions:
        raise InputError("nothing to explain: give --csv (scans), --volumes or --reconstructions (folders)")
    real = pd.DataFrame(columns=list(COLUMNS)) if csv is None else read_table(csv)
    parts = {
        "real": real,
        "synthetic": _table([row for folder in volumes for row in _synthetic(folder)]),
        "reconstruction": _table([row for folder in reconstructions for row in _reconstructed(folder, real)]),
    }
    parts = [_first_cases(part, origin, limit) for origin, part in parts.items() if len(part)]
    frame = pd.concat(parts, ignore_index=True)
    _refuse_other_grid(frame.loc[frame["origin"] != "real", "file"], grid)
    return frame


def with_outcomes(frame: pd.DataFrame, logits: np.ndarray, temperature: float, threshold: float | None) -> pd.DataFrame:
    """The cases with `logit`, `probability` and `outcome`: TP, FP, TN or FN against their label (TLE is positive).

    The outcome is empty where the checkpoint has no threshold yet.
    """
    frame = frame.assign(logit=logits, probability=expit(logits / temperature), outcome="")
    if threshold is not None:
        positive = frame["probability"] >= threshold
        right = positive == (frame["label"] == 1)
        frame["outcome"] = np.where(right, "T", "F") + np.where(positive, "P", "N").astype(object)
    return frame


def groups_of(row: pd.Series) -> list[str]:
    """The groups whose mean maps a case belongs to: its class, its side where known, its outcome where there is one."""
    side = [f"TLE_{row['side']}"] if row["side"] else []
    return [CLASS_NAMES[int(row["label"])], *side, *([row["outcome"]] if row["outcome"] else [])]


def _first_cases(frame: pd.DataFrame, origin: str, limit: int | None) -> pd.DataFrame:
    """The cases that count, with `origin` and `stem`; InputError where two stems of the whole table are equal."""
    stems = [re.sub(r"[^\w.-]", "_", _scan_name(row.subject, row.session)) for row in frame.itertuples()]
    frame = frame.assign(origin=origin, stem=stems)
    twice = frame[frame.duplicated("stem", keep=False)]
    if len(twice):
        raise InputError.of(f"{origin}: cases of one name would overwrite each other's maps", twice["file"].tolist())
    turn = frame.groupby("label").cumcount()
    return frame.iloc[np.lexsort((frame["label"], turn))[:limit]]


def _scan_name(subject: str, session: str) -> str:
    return f"{subject}_{session}" if session else str(subject)


def _table(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"label": "int64", "age": "float64"})


def _row(path: Path, subject: str, label: int, session: str = "") -> dict:
    texts = {"side": "", "session": session, "sex": "", "site": "", "diagnosis": CLASS_NAMES[label]}
    return {"subject": subject, "group": subject, "file": str(path.resolve()), "label": label, **texts}


def _synthetic(folder: Path) -> list[dict]:
    paths = list_volumes(folder)
    if not paths:
        raise InputError(f"{folder}: no volume pickles (*.pkl) to explain")
    return [_row(path, f"synthetic_{path.stem}", read_volume(path).label) for path in paths]


def _reconstructed(folder: Path, real: pd.DataFrame) -> list[dict]:
    """Rows of a folder of reconstructions: NIfTI files of VAE.infer, volume pickles, or both."""
    pickles = list_volumes(folder)
    niftis = [*folder.glob(f"*{_RECONSTRUCTION}.nii.gz"), *folder.glob(f"*{_RECONSTRUCTION}.nii")]
    niftis = sorted(path for path in niftis if not path.name.startswith("."))
    if not pickles and not niftis:
        raise InputError(f"{folder}: no reconstructions (*{_RECONSTRUCTION}.nii.gz of VAE.infer --nifti, or *.pkl)")
    known = {_scan_name(row["subject"], row["session"]): row.to_dict() for _, row in real.iterrows()}
    measured = _measured(folder / "metrics.csv") if niftis else {}
    rows, unlabelled = [], []
    for path in [*niftis, *pickles]:
        name = path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".pkl").removesuffix(_RECONSTRUCTION)
        if name in known:
            rows.append({**known[name], "file": str(path.resolve())})
        elif path.suffix == ".pkl":
            rows.append(_row(path, name, read_volume(path).label))
        elif name in measured:
            rows.append(_row(path, *measured[name]))
        else:
            unlabelled.append(str(path))
    if unlabelled:
        raise InputError.of(
            "reconstructions of unknown class; give --csv with their scans, or keep metrics.csv beside them", unlabelled
        )
    return rows


def _measured(path: Path) -> dict[str, tuple[str, int, str]]:
    """Subject, label and session by scan from VAE.infer's metrics.csv; nothing when it is not there."""
    if not path.is_file():
        return {}
    frame = pd.read_csv(path, dtype={"subject": str, "session": str}, keep_default_na=False)
    missing = [name for name in ("subject", "session", "label") if name not in frame.columns]
    if missing or not frame["label"].isin([0, 1]).all():
        raise InputError(f"{path}: not VAE.infer's measurements: no column {', '.join(missing) or 'label of 0 and 1'}")
    return {_scan_name(row.subject, row.session): (row.subject, int(row.label), row.session)
            for row in frame.itertuples()}  # fmt: skip


def _refuse_other_grid(files: Sequence[str], grid: Grid) -> None:
    """What a network made is on its own grid; resampling it unasked would explain another volume than the user's."""
    problems = []
    for file in files:
        try:
            image, affine = read_voxels(Path(file))
        except RefusedError as refusal:
            problems.append(f"{file}: {refusal}")
            continue
        if image.shape != grid.shape:
            problems.append(f"{file}: shape {image.shape}")
        elif affine is not None and not np.allclose(affine, grid.affine, rtol=0, atol=1e-3):
            problems.append(f"{file}: its affine places the voxels elsewhere")
    if problems:
        raise InputError.of(
            f"volumes that are not on the classifier's grid {grid.name} {grid.shape}, {grid.spacing_mm:g} mm", problems
        )
