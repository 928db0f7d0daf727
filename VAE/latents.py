"""Latents on disk: one pickle per scan and one statistics.json per folder. The contract between VAE and diffusion.

    <folder>/statistics.json          per-channel mean and std over the training split, N, VAE hash, grid, ledger
    <folder>/<split>/ledger.json      hashes of all subjects seen by the VAE or encoded into this split
    <folder>/<split>/<subject>.pkl    mu, logvar (C, d, h, w) float32; label, side, mirrored, subject, format, vae, grid

`mu` and `logvar` are raw, as the encoder gives them. `Statistics.normalise` makes a sample of the posterior zero mean
and unit variance per channel, and `denormalise` undoes it before decoding.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cohort.ledger import ledger_beside, ledger_of_subjects
from cohort.tables import SIDES
from runtime.errors import InputError
from runtime.files import read_json, write_json
from runtime.pickles import load_pickle, save_pickle

FORMAT = 1
MIRRORED = "_mirrored"
"""End of the name of a mirror image's file."""


@dataclass(frozen=True)
class Latent:
    """The posterior of one scan."""

    mu: np.ndarray
    logvar: np.ndarray
    label: int
    subject: str
    vae: str
    """Hash of the checkpoint that made it; empty for files of older programs."""
    grid: dict[str, Any]
    side: str = ""
    """Side of a TLE, L or R; empty where it is unknown, in older files too, and for HC. A mirror image's is its own."""
    mirrored: bool = False
    """Of the mirror image of the scan: what is known of the subject's left is its right."""


@dataclass(frozen=True)
class Statistics:
    """Per-channel mean and standard deviation of posterior samples over the training split."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    count: int
    """Scans they were computed from."""
    split: str
    vae: str
    grid: dict[str, Any]
    ledger: list[str]
    """As the training split's ledger.json."""

    def columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation as (C, 1, 1, 1), to normalise latents (B, C, d, h, w) with and undo it."""
        mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (self.mean, self.std))
        return mean, std


def stem(entry: Any) -> str:
    """What files of a table's row are called: its subject, and session where there is one."""
    return f"{entry.subject}_{entry.session}" if entry.session else f"{entry.subject}"


def write_latent(path: Path, latent: Latent) -> None:
    """Writes one latent atomically."""
    save_pickle(path, {**asdict(latent), "format": FORMAT})


def read_latent(path: Path) -> Latent:
    """Reads one latent, also an older dict of ``mu``, ``logvar`` and ``label`` alone; InputError says what is wrong."""
    record = load_pickle(path)
    if not isinstance(record, dict) or not {"mu", "logvar", "label"} <= record.keys():
        raise InputError(f"{path}: not a latent: expected a dict with mu, logvar and label")
    if record.get("format", FORMAT) != FORMAT:
        raise InputError(f"{path}: latent format {record['format']}, this code reads {FORMAT}")
    mu, logvar = (np.asarray(record[name], dtype=np.float32) for name in ("mu", "logvar"))
    if mu.ndim != 4 or mu.shape != logvar.shape:
        raise InputError(f"{path}: mu {mu.shape} and logvar {logvar.shape}, expected two equal shapes (C, d, h, w)")
    if not (np.isfinite(mu).all() and np.isfinite(logvar).all()):
        raise InputError(f"{path}: values that are not finite")
    if not isinstance(record["label"], int | np.integer):
        raise InputError(f"{path}: label {record['label']!r}, expected a class code: 0 for HC, 1 for TLE")
    side = str(record.get("side", ""))
    if side not in ("", *SIDES.values()) or (side and record["label"] == 0):
        raise InputError(f"{path}: side {side!r}, expected L, R or nothing, of a TLE")
    subject, vae, grid = record.get("subject", path.stem), record.get("vae", ""), record.get("grid", {})
    mirrored = bool(record.get("mirrored", path.stem.endswith(MIRRORED)))  # older files have it in their name alone
    return Latent(mu, logvar, int(record["label"]), str(subject), str(vae), grid, side, mirrored)


def list_latents(folder: Path) -> list[Path]:
    """The latents in a folder, sorted; not hidden files, which others may be writing or have left behind."""
    return sorted(path for path in folder.glob("*.pkl") if not path.name.startswith("."))


def read_split(folder: Path, split: str) -> list[Latent]:
    """Reads all latents of one split, sorted by file name; refuses latents of different VAEs, grids or shapes."""
    if not (paths := list_latents(folder / split)):
        raise InputError(f"{folder / split}: no latents (.pkl) here; make them with python -m VAE.save_latent")
    latents, problems = [], []
    for path in paths:
        try:
            latents.append(read_latent(path))
        except InputError as error:
            problems.append(str(error))
    for what, values in (
        ("VAE checkpoints", {latent.vae for latent in latents}),
        ("shapes", {latent.mu.shape for latent in latents}),
        ("grids", {str(latent.grid) for latent in latents}),
    ):
        if len(values) > 1:
            problems.append(f"latents of {len(values)} different {what} in one folder: {sorted(map(str, values))}")
    if problems:
        raise InputError.of(f"{folder / split}: latents refused", problems)
    return latents


def write_ledger(folder: Path, split: str, ledger: Iterable[str]) -> None:
    """Writes <folder>/<split>/ledger.json."""
    write_json(folder / split / "ledger.json", {"ledger": sorted(set(ledger))})


def read_ledger(folder: Path, split: str, subjects: Iterable[str]) -> list[str]:
    """The ledger of one split; in folders of older programs that have none, of the subjects that its latents name."""
    found = ledger_beside(folder / split)
    return ledger_of_subjects(subjects) if found is None else found


def compute_statistics(latents: Iterable[Latent], *, split: str, ledger: list[str]) -> Statistics:
    """Mean and variance over scans and positions of z ~ N(mu, exp(logvar)), in float64, one scan at a time.

    By the law of total variance, Var z = Var mu + E[exp(logvar)].
    """
    total, square, positions, count, latent = 0.0, 0.0, 0, 0, None
    for latent in latents:
        mu, logvar = (value.astype(np.float64).reshape(len(value), -1) for value in (latent.mu, latent.logvar))
        total, square = total + mu.sum(1), square + (mu**2 + np.exp(logvar)).sum(1)
        positions, count = positions + mu.shape[1], count + 1
    if latent is None:
        raise InputError("no latents to compute statistics from")
    mean = total / positions
    std = np.sqrt(square / positions - mean**2)
    numbers = {"mean": tuple(map(float, mean)), "std": tuple(map(float, std)), "count": count}
    return Statistics(**numbers, split=split, vae=latent.vae, grid=latent.grid, ledger=ledger)


def write_statistics(folder: Path, statistics: Statistics) -> None:
    """Writes <folder>/statistics.json."""
    write_json(folder / "statistics.json", asdict(statistics))


def read_statistics(folder: Path) -> Statistics:
    """Reads <folder>/statistics.json; InputError when it is absent or has other fields."""
    path = folder / "statistics.json"
    if not path.is_file():
        raise InputError(
            f"{path}: no such file. VAE.save_latent writes it beside its latents; for those of another program: "
            f"python -m VAE.save_latent --checkpoint VAE.pt --statistics-of {folder}"
        )
    return statistics_from_dict(read_json(path), path)


def statistics_from_dict(record: dict[str, Any], path: Path | str) -> Statistics:
    """Statistics from the plain values in a JSON file or a checkpoint."""
    try:
        return Statistics(**{**record, "mean": tuple(record["mean"]), "std": tuple(record["std"])})
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not latent statistics: {error}") from None
