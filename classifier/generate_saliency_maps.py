"""Shows where a classifier looks: attribution maps of scans or volumes, group means, and a ranking by atlas region.

    python -m classifier.generate_saliency_maps --checkpoint runs/demo/classifier/checkpoints/best.pt \\
        --csv data_csvs/test.csv --methods integrated_gradients smoothgrad --out runs/demo/saliency

Writes, in the folder of each method, one NIfTI map and one picture per volume and the mean maps by class; beside them
region_ranking.csv (all methods) and maps.json (settings, completeness, logits). How to read them: SALIENCY_README.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from classifier import attribution, figures
from classifier.checkpoint import LoadedClassifier, load_classifier
from classifier.dataset import Volumes
from classifier.regions import rank_regions, region_means
from cohort.atlas import LICENCE_NOTE, Atlas, atlas
from cohort.ledger import refuse_overlap
from cohort.scans import load_scans
from cohort.tables import CLASS_NAMES, COLUMNS, read_table
from cohort.volumes import list_volumes, read_volume, write_nifti
from runtime import seeding
from runtime.cli import describe, run_script
from runtime.device import Device, pick_device
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write, write_json


@dataclass(frozen=True)
class SaliencyConfig:
    """Which classifier, which volumes, which methods."""

    checkpoint: Path
    """Checkpoint of classifier.train."""
    csv: Path | None = None
    """Table of scans to explain."""
    volumes: Path | None = None
    """Folder of volume pickles to explain, instead of a table."""
    methods: tuple[str, ...] = ("integrated_gradients", "integrated_gradients_hc", "smoothgrad", "occlusion")
    """Attribution methods; a wrong name lists the known ones."""
    out: Path = ROOT / "runs/saliency"
    """Folder for maps, pictures and the ranking."""
    limit: int | None = None
    """Explain only so many volumes, HC and TLE in turn from the top of the table; by default all."""
    pictures: int = 8
    """Pictures for the first so many volumes of each method (maps are written for all)."""
    ig_steps: int = 32
    """Points along the path of integrated gradients."""
    noise_samples: int = 16
    """Noisy copies in SmoothGrad."""
    resamples: int = 2000
    """Bootstrap resamples of subjects for the ranking's intervals."""
    allow_leak: bool = False
    """Also explain subjects that the classifier was trained on; maps.json then says so."""
    seed: int = 0
    """Seed of SmoothGrad's noise and of the bootstrap."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    cache_dir: Path | None = None
    """Folder of decoded scans; by default data/cache in the repository."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


@dataclass(frozen=True)
class Job:
    """What stays the same from volume to volume."""

    config: SaliencyConfig
    loaded: LoadedClassifier
    volumes: Volumes
    regions: Atlas
    context: attribution.Context


@dataclass
class Sums:
    """Running results of one method; maps themselves go to disk, so that any number of volumes fits."""

    total: np.ndarray
    """float64 (2, D, H, W), summed maps by class."""
    magnitudes: list[np.ndarray] = field(default_factory=list)
    """Per volume, mean |map| of each region."""
    errors: list[float] = field(default_factory=list)
    """Per volume, how far the map is from complete, in logits; for the methods that promise it."""


def main(config: SaliencyConfig) -> None:
    """Loads, attributes, averages, ranks."""
    attribution.check_methods(config.methods)
    device = pick_device("float32", config.threads)  # bfloat16 would round small attributions away
    loaded = load_classifier(config.checkpoint)
    frame = choose(config)
    leak = refuse_overlap(frame, loaded.ledger, what=f"classifier {config.checkpoint}", allow_leak=config.allow_leak)
    volumes = Volumes(load_scans(frame, loaded.grid, cache_dir=config.cache_dir), device)
    regions = atlas(loaded.grid)
    device.module(loaded.model)
    job = Job(config, loaded, volumes, regions, context_of(config, loaded, regions, device))
    sums = {name: Sums(np.zeros((2, *loaded.grid.shape))) for name in config.methods}
    with torch.no_grad():
        logits = [float(loaded.model(volumes.batch(torch.tensor([index])))) for index in range(len(volumes))]
    for index in tqdm(range(len(volumes)), desc="attribution", unit="volume"):
        for method in config.methods:
            explain(job, method, index, sums[method])
    for method in config.methods:
        write_means(job, method, sums[method])
    table = rank(job, sums)
    with atomic_write(config.out / "region_ranking.csv") as temporary:
        table.to_csv(temporary, index=False)
    write_json(config.out / "maps.json", summary(job, logits, sums, leak))
    report(table, config.methods)


def choose(config: SaliencyConfig) -> pd.DataFrame:
    """The rows to explain, from a table or a folder of volumes, HC and TLE in turn.

    Raises:
        InputError: neither or both given, or nothing in them.
    """
    if (config.csv is None) == (config.volumes is None):
        raise InputError("give either --csv (scans) or --volumes (a folder of volume pickles)")
    frame = read_table(config.csv) if config.csv is not None else volume_rows(config.volumes)
    turn = frame.groupby("label").cumcount()
    frame = frame.iloc[np.lexsort((frame["label"], turn))[: config.limit]].reset_index(drop=True)
    if frame.empty:
        raise InputError(f"{config.csv or config.volumes}: nothing to explain")
    return frame


def volume_rows(folder: Path) -> pd.DataFrame:
    """One row per volume pickle of a folder, labels from the files."""
    rows = []
    for path in list_volumes(folder):
        label, subject = read_volume(path).label, f"synthetic_{path.stem}"
        texts = {"side": "", "session": "", "sex": "", "site": "", "diagnosis": CLASS_NAMES[label]}
        rows.append({"subject": subject, "group": subject, "file": str(path.resolve()), "label": label, **texts})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def context_of(config: SaliencyConfig, loaded: LoadedClassifier, regions: Atlas, device: Device) -> attribution.Context:
    """Baseline and regions on the device."""
    return attribution.Context(
        mean_hc=device.tensor(loaded.mean_hc[None, None]),
        regions=torch.from_numpy(regions.labels.astype(np.int64))[None, None].to(device.kind),
        ig_steps=config.ig_steps,
        noise_samples=config.noise_samples,
        seed=config.seed,
    )


def explain(job: Job, method: str, index: int, sums: Sums) -> None:
    """One map of one volume, to disk and into the sums."""
    model, x = job.loaded.model, job.volumes.batch(torch.tensor([index]))
    map_ = attribution.attribute(model, x, method, job.context, index)
    row = job.volumes.frame.iloc[index]
    stem = job.config.out / method / file_stem(row["subject"], row["session"])
    write_nifti(Path(f"{stem}.nii.gz"), map_, job.volumes.grid.affine)
    if index < job.config.pictures:
        title = f"{method}, {row['subject']} ({row['diagnosis']})"
        figures.over_anatomy(Path(f"{stem}.png"), x[0, 0].cpu().numpy(), map_, title=title)
    sums.total[int(row["label"])] += map_
    sums.magnitudes.append(region_means(np.abs(map_), job.regions))
    if method in attribution.COMPLETE:
        sums.errors.append(attribution.completeness_error(model, x, method, job.context, map_))


def file_stem(subject: str, session: str) -> str:
    """A file name for a scan; what file systems dislike becomes an underscore."""
    return re.sub(r"[^\w.-]", "_", f"{subject}_{session}" if session else subject)


def write_means(job: Job, method: str, sums: Sums) -> None:
    """Mean map of each class, and TLE minus HC where both are there: maps follow edges, and the difference less so."""
    counts = job.volumes.frame["label"].value_counts()
    means = {name: sums.total[code] / counts[code] for code, name in enumerate(CLASS_NAMES) if code in counts}
    if len(means) == 2:
        means["TLE_minus_HC"] = means["TLE"] - means["HC"]
    for name, mean in means.items():
        stem = job.config.out / method / f"mean_{name}"
        write_nifti(Path(f"{stem}.nii.gz"), mean, job.volumes.grid.affine)
        figures.over_anatomy(Path(f"{stem}.png"), job.loaded.mean_hc.numpy(), mean, title=f"{method}, mean {name}")


def rank(job: Job, sums: dict[str, Sums]) -> pd.DataFrame:
    """The rankings of all methods, one below the other."""
    frame = job.volumes.frame
    tables = []
    for method, part in sums.items():
        rng = seeding.rng(job.config.seed, "regions")
        table = rank_regions(
            np.array(part.magnitudes), frame["label"].to_numpy(), frame["group"].to_numpy(), job.regions, rng,
            job.config.resamples,
        )  # fmt: skip
        table.insert(0, "method", method)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def summary(job: Job, logits: list[float], sums: dict[str, Sums], leak: bool) -> dict[str, Any]:
    """What maps.json says."""
    config, frame = job.config, job.volumes.frame
    return {
        "checkpoint": job.loaded.hash, "grid": job.loaded.grid.to_dict(), "leak": leak, "seed": config.seed,
        "volumes": {name: int((frame["label"] == code).sum()) for code, name in enumerate(CLASS_NAMES)},
        "methods": list(config.methods), "ig_steps": config.ig_steps, "noise_samples": config.noise_samples,
        "completeness_error_logits": {
            name: {"mean_abs": float(np.mean(np.abs(part.errors))), "max_abs": float(np.max(np.abs(part.errors)))}
            for name, part in sums.items() if part.errors
        },
        "logits": dict(zip(map(file_stem, frame["subject"], frame["session"]), logits, strict=True)),
        "licence": LICENCE_NOTE,
    }  # fmt: skip


def report(table: pd.DataFrame, methods: tuple[str, ...]) -> None:
    """The five first regions of each method."""
    for method in methods:
        top = table[table["method"] == method].head(5)
        print(f"{method}: " + ", ".join(f"{row.region} ({row.voxels} voxels)" for row in top.itertuples()))


if __name__ == "__main__":
    run_script(main, SaliencyConfig, description=describe(__doc__))
