"""A folder of synthetic volumes of one class: what is wanted, what it was made with, what is still to be made.

    <LABEL>_<seed>.pkl   volumes (`cohort.volumes`)
    settings.json        checkpoints and sampling settings, the same for every volume in the folder
    manifest.csv         one row per volume: COLUMNS
    ledger.json          hashes of the subjects behind the checkpoints
    .rows-<rank>.jsonl   rows not in manifest.csv yet, one file per process; a killed run leaves them to the next

A volume with a row counts as made and is not read again: opening a folder costs a listing and one table, whatever its
size. Volumes without a row (of a run that was killed between the two, or without a manifest) are read and checked.
`SyntheticFolder.verify` reads everything.
"""

import csv
import datetime
import itertools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from cohort.listing.cells import MISSING, parse_age, parse_sex
from cohort.listing.delimited import read_column, read_delimited
from cohort.tables import CLASS_NAMES, LABELS, SIDES
from cohort.volumes import Volume, list_volumes, read_volume, volume_name, write_volume
from diffusion.covariates import SEX_CODES, VOLUMES
from runtime import distributed
from runtime.checkpoints import plain_fields
from runtime.errors import InputError, differences
from runtime.files import atomic_write, read_json, sha256, write_json

COLUMNS = (
    "file", "label", "side", "seed", "sampler", "steps", "guidance", "age", "sex", "vae", "diffusion", "sha256",
    "seconds", "made", "refused",
)  # fmt: skip
"""Of manifest.csv. `side`: empty where it is unknown, and absent in older files; `seconds`: to make it, a batch's time
shared evenly; `made`: UTC; empty where it is not known; `refused`: samples of this seed that were too near to a
training subject, absent in older files. Then those of `diffusion.covariates.VOLUMES` that were asked for (ml)."""
LATER = {"side": "", "refused": ""}
"""Columns that older files lack, and what they then hold."""

Row = dict[str, str]


@dataclass(frozen=True)
class Wanted:
    """One volume to make."""

    label: int
    """Class code: 0 HC, 1 TLE."""
    seed: int
    """Everything random about it; unique within its class."""
    age: float | None = None
    """Years; None where unknown."""
    sex: str = ""
    """F or M; empty where unknown."""
    side: str = ""
    """Of a TLE, L or R; empty where unknown."""
    volumes: tuple[tuple[str, float], ...] = ()
    """Those of `diffusion.covariates.VOLUMES` that are known, with ml."""

    def value(self, covariate: str) -> float:
        """A covariate as a number in its own unit; NaN where unknown."""
        age = math.nan if self.age is None else self.age
        return {"age": age, "sex": SEX_CODES[self.sex], **dict(self.volumes)}.get(covariate, math.nan)

    def texts(self) -> dict[str, str]:
        """Side, age and sex as tables write them, empty where unknown, and the volumes that are known."""
        age = "" if self.age is None else str(self.age).removesuffix(".0")
        return {"side": self.side, "age": age, "sex": self.sex, **{name: f"{ml:g}" for name, ml in self.volumes}}


@dataclass(frozen=True)
class Settings:
    """What all volumes of a folder have in common: a set of volumes is evaluated as a whole."""

    label: int
    vae: str
    """Hash of the VAE's checkpoint."""
    diffusion: str
    """Hash of the diffusion checkpoint."""
    weights: str
    """``ema`` or ``raw``."""
    sampler: str
    steps: int
    guidance: float
    guidance_interval: tuple[float, float]
    """Share of the noise levels in which guidance acts."""
    refuse_level: float = 0.0
    """Share of held-out people who would have been refused as too near to a training subject; 0: nothing was."""
    guide: str = ""
    """Hash of the checkpoint of autoguidance; empty without."""


@dataclass(frozen=True)
class SyntheticFolder:
    """One folder. Of many processes, the main one alone locks the folder, settles and merges; all call the rest."""

    path: Path
    settings: Settings

    def refuse_others(self) -> None:
        """Compares settings.json, where there is one; InputError names each other setting with both values."""
        file, mine = self.path / "settings.json", plain_fields(self.settings)
        older = {"refuse_level": 0.0, "guide": ""}  # what their files lack
        there = {**older, **read_json(file)} if file.exists() else mine
        self._refuse(differences("folder", there, mine))

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            title = f"{self.path}: holds volumes of other checkpoints or settings; choose another --out"
            raise InputError.of(title, problems)

    def settle(self, ledger: Iterable[str], *, adopt: bool) -> None:
        """Takes over what earlier runs left: their rows, and volumes without one; then writes settings and ledger.

        `ledger` has the hashes of the subjects behind the checkpoints. `adopt` gives volumes without a row one from
        what they say about themselves. They do not say their age and sex: where the model knows these, such volumes
        stay without and are made anew when wanted.
        """
        rows = self._all_rows()
        unlisted, problems = {}, []
        for path in (path for path in list_volumes(self.path) if path.name not in rows):
            volume = read_volume(path)
            problems += self._faults(path, volume)
            unlisted[path] = volume.side
        self._refuse(problems)
        settings = self.settings
        write_json(self.path / "settings.json", plain_fields(settings))
        origin = {"vae": settings.vae, "diffusion": settings.diffusion, "ledger": sorted(set(ledger))}
        write_json(self.path / "ledger.json", origin)
        if adopt:
            for path, side in unlisted.items():
                made = Wanted(settings.label, int(path.stem.split("_")[1]), side=side)
                rows[path.name] = self._row(made, sha256(path))
        self._write(rows)

    def rows(self) -> dict[str, Row]:
        """manifest.csv by file name, as text; empty where there is none, InputError for one of another version."""
        file = self.path / "manifest.csv"
        if not file.exists():
            return {}
        with file.open(encoding="utf-8", newline="") as text:
            table = csv.DictReader(text)
            if missing := [name for name in COLUMNS if name not in (*LATER, *(table.fieldnames or ()))]:
                hint = "without the file, all volumes are read again"
                raise InputError(f"{file}: columns {', '.join(missing)} are missing; {hint}")
            return {row["file"]: {**LATER, **row} for row in table}

    def missing(self, wanted: list[Wanted]) -> list[Wanted]:
        """What is not in the folder yet; InputError where one has another side, age, sex or anatomy than is wanted."""
        rows = self.rows()
        found = [(item, rows.get(volume_name(item.label, item.seed))) for item in wanted]
        unknown = dict.fromkeys(VOLUMES, "")
        problems = [
            f"{row['file']}: {name} {row.get(name) or 'unknown'}, wanted {text or 'unknown'}"
            for item, row in found
            for name, text in ((unknown | item.texts()).items() if row else ())
            if (row.get(name) or "") != text
        ]
        if problems:
            title = f"{self.path}: volumes with another side, age, sex or anatomy; choose other seeds or --out"
            raise InputError.of(title, problems)
        return [item for item, row in found if row is None]

    def add(self, volume: Volume, wanted: Wanted, seconds: float, refused: int) -> None:
        """Writes a volume, then its row into this process's part of the manifest."""
        path = self.path / volume_name(wanted.label, wanted.seed)
        write_volume(path, volume)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        row = self._row(wanted, sha256(path)) | {"seconds": f"{seconds:.3f}", "made": now, "refused": str(refused)}
        with (self.path / f".rows-{distributed.rank()}.jsonl").open("a", encoding="utf-8") as part:
            part.write(json.dumps(row) + "\n")

    def merge(self) -> None:
        """Brings all processes' rows into manifest.csv."""
        self._write(self._all_rows())

    def verify(self) -> None:
        """Compares the SHA-256 of every volume with its row's, shared among the processes; InputError lists others."""
        share = distributed.shard(list(self.rows().values()))
        bar = tqdm(share, desc=f"verifying {self.path.name}", unit="volume", disable=not distributed.is_main())
        changed = [row["file"] for row in bar if sha256(self.path / row["file"]) != row["sha256"]]
        changed = sorted(name for part in distributed.gather(changed) for name in part)
        if changed:
            hint = "files that are not what manifest.csv says; the same command makes removed ones anew"
            raise InputError.of(f"{self.path}: {hint}", changed)

    def _all_rows(self) -> dict[str, Row]:
        """Rows whose volumes are there, of the manifest and of all parts; of two for one volume, the later."""
        rows = self.rows()
        for part in sorted(self.path.glob(".rows-*.jsonl")):
            for line in part.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue  # cut by a kill: its volume is read like any other without a row
                rows[row["file"]] = row
        present = {path.name for path in list_volumes(self.path)}
        return {name: row for name, row in rows.items() if name in present}

    def _write(self, rows: dict[str, Row]) -> None:
        ordered = sorted(rows.values(), key=lambda row: int(row["seed"]))
        asked = [name for name in VOLUMES if any(row.get(name) for row in ordered)]
        with atomic_write(self.path / "manifest.csv") as temporary:
            pd.DataFrame(ordered, columns=[*COLUMNS, *asked]).to_csv(temporary, index=False)
        for part in self.path.glob(".rows-*.jsonl"):
            part.unlink()

    def _row(self, wanted: Wanted, digest: str) -> Row:
        settings = self.settings
        return {
            "file": volume_name(wanted.label, wanted.seed), "label": CLASS_NAMES[wanted.label], "side": wanted.side,
            "seed": str(wanted.seed), "sampler": settings.sampler, "steps": str(settings.steps),
            "guidance": str(settings.guidance), **wanted.texts(), "vae": settings.vae,
            "diffusion": settings.diffusion, "sha256": digest, "seconds": "", "made": "", "refused": "",
        }  # fmt: skip

    def _faults(self, path: Path, volume: Volume) -> list[str]:
        """Why a volume does not belong here."""
        mine = plain_fields(self.settings)
        names = ("label", "vae", "diffusion", "sampler", "steps", "guidance")
        differing = [
            f"{name} {getattr(volume, name)}, not {mine[name]}" for name in names if getattr(volume, name) != mine[name]
        ]
        if not differing and (volume.seed is None or path.name != volume_name(volume.label, volume.seed)):
            differing = [f"its seed is {volume.seed}"]
        return [f"{path.name}: {'; '.join(differing)}"] if differing else []


def read_wanted(path: Path | str, first_seed: int = 0) -> list[Wanted]:
    """Reads a table of wanted volumes: one entry per volume, in the order of the rows.

    The columns are `label` (HC or TLE) and, optionally, `seed`, `age` (years), `sex` (F or M), `count` (consecutive
    seeds), `side` (L or R, of a TLE) and VOLUMES (ml, such as `hippocampus_left`); empty and ``n/a`` are unknown. Rows
    without a seed get the lowest ones from `first_seed` on that no row of their class names.

    Raises:
        InputError: lists every fault with file, line and column; among them seeds that one class has twice.
    """
    raw = read_delimited(Path(path))
    if "label" not in raw.columns or not set(raw.columns) <= set(_READERS):
        expected = ", ".join(name for name in _READERS if name != "label")
        raise InputError(f"{path}: columns {', '.join(raw.columns)}; expected label and, where needed, {expected}")
    columns = [read_column(raw, name, read, default) for name, (read, default) in _READERS.items()]
    rows = list(zip(*columns, strict=True))
    taken: dict[tuple[int, int], int] = {}
    for index, (label, first, _, _, count, side, *_) in enumerate(rows if not raw.problems else ()):
        if side and not label:
            raw.fault(index, "side", f"{side}, but HC has no side")
        for seed in range(first, first + count) if first is not None else ():
            earlier = taken.setdefault((label, seed), index)
            if earlier != index:
                raw.fault(index, "seed", f"{CLASS_NAMES[label]} has seed {seed} on line {raw.lines[earlier]} already")
    if raw.problems:
        raise InputError.of(f"{path}: the table was refused", raw.problems)
    free = {
        label: filter(lambda seed, label=label: (label, seed) not in taken, itertools.count(first_seed))
        for label in LABELS.values()
    }
    return [
        Wanted(label, seed, age, sex, side, tuple((name, ml) for name, ml in zip(VOLUMES, volumes, strict=True) if ml))
        for label, first, age, sex, count, side, *volumes in rows
        for seed in itertools.islice(free[label] if first is None else itertools.count(first), count)
    ]


def _label(text: str) -> int:
    if text not in LABELS:
        raise ValueError(f"{text!r}; expected {' or '.join(LABELS)}")
    return LABELS[text]


def _side(text: str) -> str:
    if text not in {*SIDES.values(), *MISSING}:
        raise ValueError(f"{text!r}; expected L or R")
    return "" if text in MISSING else text


def _ml(text: str) -> float | None:
    if text in MISSING:
        return None
    try:
        ml = float(text)
    except ValueError:
        ml = math.nan
    if not 0 < ml < math.inf:
        raise ValueError(f"{text!r}; expected a volume in ml, above 0")
    return ml


def _whole(text: str, least: int, absent: int | None) -> int | None:
    if text in MISSING:
        return absent
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{text!r}; expected a whole number from {least} on")
    return int(text)


_READERS: dict[str, tuple[Callable[[str], Any], Any]] = {
    "label": (_label, None),
    "seed": (lambda text: _whole(text, 0, None), None),
    "age": (lambda text: None if math.isnan(age := parse_age(text)) else age, None),
    "sex": (parse_sex, ""),
    "count": (lambda text: _whole(text, 1, 1), 1),
    "side": (_side, ""),
    **dict.fromkeys(VOLUMES, (_ml, None)),
}
"""How each column of a table of wanted volumes is read, and its value where the table has no such column."""
