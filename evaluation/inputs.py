"""What an evaluation reads: tables of real scans, folders of synthetic volumes; and what it refuses of them."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from cohort.grids import Grid
from cohort.ledger import ledger_beside, ledger_of, refuse_overlap, unseen
from cohort.scans import normalise
from cohort.stacks import ScanStack, VolumeStack
from cohort.tables import CLASS_NAMES, LABELS
from cohort.volumes import Volume, list_volumes, read_volume
from evaluation import fid
from evaluation.effects import class_counts
from evaluation.features import WEIGHTS_SHA256
from evaluation.networks import Weights
from evaluation.references import controls
from runtime.errors import InputError
from runtime.files import atomic_write, sha256


@dataclass(frozen=True)
class Synthetic:
    """The synthetic volumes of both folders."""

    volumes: VolumeStack
    """(D, H, W) each, in [0, 1], normalised like scans; read as they are indexed."""
    labels: np.ndarray
    """(N,) class codes."""
    seeds: list[int | None]
    """Of each volume; None where it does not say."""
    sides: np.ndarray
    """(N,) L or R of a TLE that was generated for a side, else empty."""
    checkpoints: dict[str, list[str]]
    """Hashes of the checkpoints that the volumes name, by stage."""
    swapped: "Synthetic | None" = None
    """Patients of the same seeds and the other side."""


def folders_of(synth_hc: Path, synth_tle: Path) -> dict[str, list[Path]]:
    """The volume pickles of each class's folder; InputError for one that is missing, or given twice."""
    if synth_hc.resolve() == synth_tle.resolve():
        raise InputError(f"--synth-hc and --synth-tle are the same folder, {synth_hc}; each class has its own")
    return dict(zip(CLASS_NAMES, map(list_volumes, (synth_hc, synth_tle)), strict=True))


def check_ledgers(
    tables: dict[str, pd.DataFrame], folders: Iterable[Path], *, allow_leak: bool, audit: bool
) -> tuple[bool, list[str]]:
    """Whether held-out subjects were seen in training, which is refused unless allowed; which folders do not say.

    Before an `audit` for copies of training subjects, all of those must be in the folders' ledgers: with subjects that
    the generator never saw every generator comes out clean.
    """
    test, warnings = tables["test"], []
    allowed = {"allow_leak": allow_leak}
    leaks = [refuse_overlap(test, ledger_of(tables["train"]), what="a model of --real-train", **allowed)]
    for folder in folders:
        entries = ledger_beside(folder)
        if entries is None:
            missing = folder / "ledger.json"
            warnings.append(f"{missing}: missing, so whether held-out subjects were trained on is not known")
            continue
        leaks.append(refuse_overlap(test, entries, what=f"what generated {folder}", **allowed))
        warnings += check_training(tables["train"], entries, folder, audit=audit)
    if any(leaks):
        warnings.append("LEAK: held-out subjects were trained on (allowed by --allow-leak); these figures flatter")
    return any(leaks), warnings


def check_training(train: pd.DataFrame, ledger: list[str], folder: Path, *, audit: bool) -> list[str]:
    """A warning when subjects called training subjects were not; InputError naming them when they are to be audited."""
    foreign, count = unseen(train, ledger), train["subject"].nunique()
    if not foreign:
        return []
    said = f"{len(foreign)} of {count} subjects of --real-train were never seen by what generated {folder}"
    if audit:
        raise InputError.of(
            f"{said}; an audit with them would come out clean whatever was copied. Give the table that the generator "
            "was trained on, or leave out the audit (--parts without privacy)", foreign,
        )  # fmt: skip
    return [said]


def read_synthetic(folders: dict[str, list[Path]], grid: Grid, cache_dir: Path, swap: Path | None = None) -> Synthetic:
    """Reads all volumes, one at a time, and keeps them scaled as scans are, in files of the cache named by content.

    `swap` is the folder of `Synthetic.swapped`.

    Raises:
        InputError: names every volume that is refused, with the reason; or `swap` is of other checkpoints.
    """
    swapped = None if swap is None else read_synthetic({"TLE": list_volumes(swap)}, grid, cache_dir)
    files, labels, seeds, sides, origins, problems = [], [], [], [], {"vae": set(), "diffusion": set()}, []
    for name, paths in folders.items():
        for path in tqdm(paths, desc=f"reading {name}", unit="volume", leave=False):
            try:
                volume = read_volume(path)
            except InputError as error:
                problems.append(str(error))
                continue
            faults = [f"{path}: {fault}" for fault in faults_of(volume, LABELS[name], grid)]
            problems += faults
            if not faults:
                files.append(keep(volume.image, cache_dir))
                labels.append(volume.label)
                seeds.append(volume.seed)
                sides.append(volume.side)
                for stage, hashes in origins.items():
                    hashes.add(getattr(volume, stage) or "not stated")
    if problems:
        raise InputError.of("synthetic volumes refused", problems)
    checkpoints = {stage: sorted(hashes) for stage, hashes in origins.items()}
    if swapped is not None and swapped.checkpoints != checkpoints:
        raise InputError(f"{swap}: volumes of {swapped.checkpoints}, those of the two classes are of {checkpoints}")
    stack = VolumeStack(files, grid.shape)
    return Synthetic(stack, np.array(labels), seeds, np.array(sides, dtype=str), checkpoints, swapped)


def keep(image: np.ndarray, cache_dir: Path) -> Path:
    """The place of a scaled volume in the cache, written by now."""
    path = cache_dir / f"{hashlib.sha256(np.ascontiguousarray(image)).hexdigest()[:32]}.npy"
    if not path.is_file():
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.save(file, normalise(image))
    return path


def faults_of(volume: Volume, label: int, grid: Grid) -> list[str]:
    """What speaks against comparing a volume, got and expected; its reader has checked that it is finite."""
    faults = []
    if volume.label != label:
        faults.append(f"class {CLASS_NAMES[volume.label]} in the folder for {CLASS_NAMES[label]}")
    if volume.image.shape != grid.shape:
        faults.append(f"shape {volume.image.shape}, the grid {grid.name} has {grid.shape}")
    elif volume.affine is not None and not np.allclose(volume.affine, grid.affine, atol=1e-3):
        faults.append(f"its affine is not that of the grid {grid.name}")
    elif volume.image.min() == volume.image.max():
        faults.append("constant")
    return faults


def check_counts(scans: dict[str, ScanStack], synthetic: Synthetic) -> list[str]:
    """Warnings about samples too small to trust and about repeated volumes; too small to compute is refused."""
    sides = {
        "--real-train": scans["train"].labels,
        "--real-test": scans["test"].labels,
        "synthetic volumes": synthetic.labels,
    }
    problems = [
        f"{side}: {count} of class {name}, at least {fid.MINIMUM_PER_CLASS} are needed "
        f"(and {fid.TRUSTED_PER_SIDE} in all for a figure to trust)"
        for side, labels in sides.items()
        for name, count in class_counts(labels).items()
        if count < fid.MINIMUM_PER_CLASS
    ]
    if problems:
        raise InputError.of("too few volumes", problems)
    warnings = [
        f"TOO FEW FOR A TRUSTWORTHY FIGURE: {side} has {len(labels)} volumes, fewer than {fid.TRUSTED_PER_SIDE}"
        for side, labels in sides.items()
        if len(labels) < fid.TRUSTED_PER_SIDE
    ]
    distinct = len(set(synthetic.volumes.files))  # named by their content
    if distinct < len(synthetic.volumes):
        warnings.append(f"only {distinct} of {len(synthetic.volumes)} synthetic volumes are distinct")
    return warnings


def fingerprint(
    scans: dict[str, ScanStack],
    folders: dict[str, list[Path]],
    files: dict[str, Path | None],
    weights: dict[str, Weights],
    settings: list,
) -> dict[str, str]:
    """Hash of each input's content; `settings` is everything else that the result depends on, as JSON values."""
    parts: dict[str, object] = {
        f"real_{name}": list(zip(stack.hashes, stack.labels.tolist(), strict=True)) for name, stack in scans.items()
    }
    parts |= {f"synth_{name.lower()}": [sha256(path) for path in paths] for name, paths in folders.items()}
    parts |= {name: sha256(path) if path is not None and path.is_file() else "none" for name, path in files.items()}
    parts["settings"] = [*settings, sorted((name, file.sha256) for name, file in weights.items())]
    parts["method"] = [WEIGHTS_SHA256, controls.describe()]
    return {name: hashlib.sha256(json.dumps(part).encode()).hexdigest()[:16] for name, part in parts.items()}
