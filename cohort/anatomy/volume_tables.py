"""Volumes of atlas regions that a tool measured, by scan: read from what it wrote, matched to a table of scans.

Nothing is filled in: a scan without a row, a region of volume 0 (the tool failed there) and an empty cell are unknown
(NaN) and named. Units are told by magnitude, since no region is a thousand times smaller or larger than the atlas's:
tables in cm^3 are accepted with a warning, and what is neither mm^3 nor cm^3 (shares of the head, scores) is refused.
"""

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cohort.anatomy.volume_readers import (
    HEAD,
    KINDS,
    TITLES,
    Key,
    Measured,
    key_of,
    key_of_row,
    read_measured,
    regions_of,
)
from cohort.atlas import SIDES, native_atlas
from cohort.listing.cells import MISSING
from runtime.errors import InputError, InputWarning

USUAL_HEAD_ML = 1500.0
"""Size of a head to which volumes are brought where that is asked for, so that they stay in ml."""
SHOWN = 10
"""Scans that a message names; it counts the others."""
FEWEST_FOR_SIDES = 20
"""Scans from which on asymmetries are compared with our own; fewer say nothing."""
_DECADES = 1.0
"""How far the middle volumes of a table may be from the atlas's, in powers of ten, for their unit to be known."""


@dataclass(frozen=True, kw_only=True)
class KnownVolumes:
    """The flags of all scripts that use such tables."""

    volumes: Path | None = None
    """Volumes that a tool measured: SUBJECTS_DIR of FreeSurfer or FastSurfer, an output folder of HippUnfold or
    deepmriprep, the CSV of SynthSeg, a MUSE table, truth.csv of a simulated cohort (docs/your_own_data.md)."""
    per_head: bool = False
    """Divide these volumes by the size of the head (eTIV, intracranial volume), times 1500 ml."""

    def known_volumes(self) -> "VolumeTable | None":
        """The table of --volumes, None where none was given; InputError for --per-head without one."""
        if self.volumes is None and self.per_head:
            raise InputError("--per-head divides the volumes of --volumes; give these, too")
        return None if self.volumes is None else read_volumes(self.volumes, per_head=self.per_head)


@dataclass(frozen=True)
class VolumeTable:
    """Volumes (ml) by scan and region of the atlas; NaN where the tool gave none."""

    name: str
    """For messages: the path, or where else the volumes are from."""
    tool: str
    """For messages, one of the values of TITLES."""
    keys: list[Key]
    ml: pd.DataFrame
    texts: pd.DataFrame
    """The table as it was written."""

    @property
    def regions(self) -> tuple[str, ...]:
        """What it has, in the order of the table."""
        return tuple(self.ml.columns)

    def of(self, frame: pd.DataFrame, regions: Sequence[str]) -> np.ndarray:
        """Volumes (ml) for the rows of a table of scans, float64 (N, regions), NaN where unknown.

        A scan is known by subject and session, or by the name of its file. InputError for a region that the table has
        of nobody, and where it has none of the scans.
        """
        if absent := [region for region in regions if region not in self.ml]:
            told = f"{self.name} ({self.tool}) has no volumes of these regions, it has {', '.join(self.regions)}"
            raise InputError.of(told, absent)
        rows = self._rows(frame)
        if len(rows) and rows.max() < 0:
            theirs, ours = ("_".join(filter(None, key)) for key in (self.keys[0], key_of_row(*_first(frame))))
            raise InputError(f"{self.name}: has none of the {len(rows)} scans; it names {theirs}, the scans {ours}")
        values = np.vstack([self.ml[list(regions)].to_numpy(), np.full(len(regions), np.nan)])
        return values[rows]

    def knows_any(self, frame: pd.DataFrame) -> bool:
        """Whether it has a row of any scan."""
        return bool((self._rows(frame) >= 0).any())

    def text(self, frame: pd.DataFrame, column: str) -> pd.Series | None:
        """A column of the file as it was written, empty for scans without a row; None where there is none such."""
        if column not in self.texts:
            return None
        return pd.Series([*self.texts[column], ""]).iloc[self._rows(frame)].set_axis(frame.index)

    def warn(self, frame: pd.DataFrame, regions: Sequence[str]) -> None:
        """Names the scans that have no row, or not all of these volumes: nobody fills them in."""
        values, rows = self.of(frame, regions), self._rows(frame)
        lines: dict[str, None] = {}  # a repeated scan is said once
        for subject, row, own in zip(frame["subject"], rows, values, strict=True):
            unknown = [region for region, value in zip(regions, own, strict=True) if np.isnan(value)]
            whole = "no volume" if len(unknown) == len(regions) else f"no volume of {', '.join(unknown)}"
            lines |= {f"{subject}: {'no row' if row < 0 else f'{whole} (0 or empty)'}": None} if unknown else {}
        if lines:
            told = [*lines][:SHOWN] + [f"and {len(lines) - SHOWN} more"] * (len(lines) > SHOWN)
            title = f"{self.name}: {len(lines)} of {len(frame)} scans lack some of these volumes; nothing is filled in"
            warnings.warn("".join([title, *(f"\n  - {line}" for line in told)]), InputWarning, stacklevel=2)

    def digest(self) -> str:
        """A hash of all volumes and whose they are."""
        content = (self.ml.assign(key=self.keys)).to_csv(index=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _rows(self, frame: pd.DataFrame) -> np.ndarray:
        """The row of each scan, int (N,), -1 where there is none."""
        places = {key: row for row, key in enumerate(self.keys)}
        visits: dict[str, list[int]] = {}
        for row, (subject, _) in enumerate(self.keys):
            visits.setdefault(subject, []).append(row)

        def row_of(subject: str, session: str, file: str) -> int:
            key = key_of_row(subject, session)
            only = visits.get(key[0], []) if not session else []
            names = (key, (key[0], ""), key_of(Path(file).name))
            found = next((places[name] for name in names if name in places), -1)
            return only[0] if found < 0 and len(only) == 1 else found

        blank = [""] * len(frame)
        columns = (frame["subject"], frame.get("session", blank), frame.get("file", blank))
        return np.array([row_of(*map(str, scan)) for scan in zip(*columns, strict=True)], dtype=int)


def read_volumes(path: Path, *, per_head: bool = False) -> VolumeTable:
    """The volumes of a file or folder, as `volume_readers` knows them, in ml; with `per_head` for a head of 1500 ml.

    Raises:
        InputError: for other files, two rows of one scan, text in place of numbers, units that are none, and
            `per_head` where the table has no size of heads.
    """
    return as_ml(str(path), read_measured(path), per_head=per_head)


def as_ml(name: str, measured: Measured, *, per_head: bool = False) -> VolumeTable:
    """`read_volumes` of what has been read."""
    twice = sorted("_".join(filter(None, key)) for key, count in Counter(measured.keys).items() if count > 1)
    if twice:
        raise InputError.of(f"{name}: scans that are there twice", twice[:SHOWN])
    regions, numbers = regions_of(measured.tool), {}
    for column in measured.texts.columns:
        if (region := regions.get(column.lower())) and region not in numbers:
            numbers[region] = _numbers(name, measured, column)
    head = numbers.pop(HEAD, None)
    if not numbers:
        told = ", ".join(map(str, measured.texts.columns[:8]))
        raise InputError(f"{name}: none of its columns is a volume that is known ({told}, ...); expected {KINDS}")
    ml = pd.DataFrame({region: numbers[region] for region in native_atlas()[0].codes if region in numbers})
    ml = ml.where(ml > 0)
    factor = _ml_per_unit(name, ml, atlas_ml())
    if factor == 1:
        told = f"{name}: read in cm^3, since no {ml.columns[0]} is so small in mm^3 ({ml.iloc[:, 0].median():.3g})"
        warnings.warn(told, InputWarning, stacklevel=2)
    ml *= factor
    if per_head:
        ml = ml.mul(USUAL_HEAD_ML / _heads(name, measured.tool, head), axis=0)
    return VolumeTable(name, TITLES[measured.tool], measured.keys, ml, measured.texts)


def _numbers(name: str, measured: Measured, column: str) -> np.ndarray:
    texts = measured.texts[column].where(~measured.texts[column].isin(MISSING))
    numbers = pd.to_numeric(texts, errors="coerce")
    if (wrong := (texts.notna() & ~np.isfinite(numbers)).to_numpy()).any():
        row = int(np.argmax(wrong))
        whose = "_".join(filter(None, measured.keys[row]))
        raise InputError(f"{name}: column {column}, {whose}: {texts.iloc[row]!r} is not a number")
    return numbers.to_numpy(dtype=np.float64)


def _heads(name: str, tool: str, head: np.ndarray | None) -> np.ndarray:
    if head is None or not (head > 0).any():
        hints = {
            "own": "add a column head_mm3; volumes of a simulated cohort are of heads that have one size already",
            "freesurfer": "FastSurfer writes eTIV with its surfaces (aseg.stats) or after --tal_reg",
            "synthseg": "version 2 writes it",
            "deepmriprep": "ask it for the output tiv, too",
        }
        hint = hints.get(tool, "leave --per-head out")
        raise InputError(f"--per-head: {name} ({TITLES[tool]}) does not say how large heads are; {hint}")
    known = pd.DataFrame({HEAD: np.where(head > 0, head, np.nan)})
    return known[HEAD].to_numpy() * _ml_per_unit(name, known, {HEAD: USUAL_HEAD_ML})


def _ml_per_unit(name: str, volumes: pd.DataFrame, usual_ml: dict[str, float]) -> float:
    """0.001 for volumes in mm^3, 1 for cm^3, told by how far the middle ones are from the usual ones."""
    volumes = volumes[[region for region in volumes if region in usual_ml]]
    usual = np.array([usual_ml[region] for region in volumes])
    middles = volumes.median().to_numpy()
    decades = float(np.nanmedian(np.log10(middles / usual))) if np.isfinite(middles).any() else 3.0
    if abs(decades - 3) <= _DECADES:
        return 1e-3
    if abs(decades) <= _DECADES:
        return 1.0
    told = f"in the middle {volumes.columns[0]} {middles[0]:.3g}, in the atlas {usual[0] * 1000:.0f} mm^3"
    raise InputError(f"{name}: these are volumes neither in mm^3 nor in cm^3 ({told}); convert them, in mm^3")


def atlas_ml() -> dict[str, float]:
    """Volumes of the atlas's own regions, those that have any."""
    labels, affine = native_atlas()
    counts = np.bincount(labels.labels.ravel(), minlength=max(labels.names) + 1)
    voxel = abs(np.linalg.det(affine[:3, :3])) / 1000
    return {name: float(counts[code] * voxel) for name, code in labels.codes.items() if counts[code]}


def _first(frame: pd.DataFrame) -> tuple[str, str]:
    return str(frame["subject"].iloc[0]), str(frame["session"].iloc[0]) if "session" in frame else ""


def crossed_sides(table: VolumeTable, known: np.ndarray, own: np.ndarray, regions: Sequence[str]) -> str:
    """A sentence where left and right of a table seem exchanged, else empty.

    `known` and `own` (N, regions) are its volumes and our own measures of the same scans. Both sides follow the size of
    a person's structure; (L - R) / (L + R) does not, and that of exchanged sides runs against ours: its correlation,
    the mean over structures, lies more than three standard errors below 0.
    """
    found, scans = [], 0
    for structure in _structures(regions):
        left, right = ([values[:, regions.index(f"{side} {structure}")] for values in (known, own)] for side in SIDES)
        rows = np.isfinite(left[0] + right[0]) & (left[1] + right[1] > 0)
        index = np.stack([(a - b)[rows] / (a + b)[rows] for a, b in zip(left, right, strict=True)])
        if rows.sum() >= FEWEST_FOR_SIDES and index.std(axis=1).min() > 0:
            found.append(np.corrcoef(index)[0, 1])
            scans += int(rows.sum())
    if not found or np.mean(found) >= -3 / np.sqrt(scans):
        return ""
    figures = f"r {np.mean(found):.2f}, the mean of {len(found)} structures"
    return f"{table.name}: left and right look exchanged: asymmetries run against those that we measure ({figures})"


def _structures(regions: Sequence[str]) -> list[str]:
    names = [name.removeprefix("Left ") for name in regions if name.startswith("Left ")]
    return [name for name in names if f"{SIDES[1]} {name}" in regions]
