"""Shows where a classifier looks: attribution maps of scans and volumes, group means, rankings by atlas region.

    python -m classifier.generate_saliency_maps --checkpoint runs/demo/classifier/checkpoints/best.pt \\
        --csv data_csvs/test.csv --volumes synthetic_data_pkls_HC synthetic_data_pkls_TLE \\
        --reconstructions runs/demo/infer --methods smoothgrad integrated_gradients --out runs/demo/saliency

Writes, in <method>/<origin>/ (origins: real, synthetic, reconstruction), one NIfTI map per volume, pictures, and mean
maps by class, side and outcome; beside the methods cases.csv, groups.csv, region_ranking.csv, lateralisation.csv,
agreement.csv, and maps.json (settings, completeness). The same command goes on where it was stopped, and makes again
only maps whose checkpoint, volume or settings have changed. How to read all this: SALIENCY_README.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from classifier.checkpoint import LoadedClassifier, load_classifier
from classifier.dataset import Volumes
from classifier.saliency import attribution, figures, files
from classifier.saliency.cases import groups_of, read_cases, with_outcomes
from classifier.saliency.regions import Relevance, choose_regions, region_means
from classifier.saliency.tables import Maps, tables_of
from cohort.atlas import LICENCE_NOTE, Atlas, atlas
from cohort.ledger import refuse_overlap
from cohort.stacks import load_scans
from cohort.tables import CLASS_NAMES
from cohort.volumes import write_nifti
from runtime.checkpoints import git_commit
from runtime.cli import describe, run_script
from runtime.device import pick_device
from runtime.files import ROOT, atomic_write, locked, write_json

CASE_COLUMNS = ("origin", "stem", "subject", "session", "group", "label", "side", "diagnosis", "logit", "probability",
                "outcome", "file")  # fmt: skip
"""Of cases.csv."""


@dataclass(frozen=True)
class SaliencyConfig:
    """Which classifier, which volumes, which methods."""

    checkpoint: Path
    """Checkpoint of classifier.train."""
    csv: Path | None = None
    """Table of real scans to explain."""
    volumes: tuple[Path, ...] = ()
    """Folders of synthetic volumes to explain; their outcome is against the class they were made for."""
    reconstructions: tuple[Path, ...] = ()
    """Folders of reconstructions to explain, of VAE.infer with --nifti; class and side are those of their scans in
    --csv."""
    methods: tuple[str, ...] = ("smoothgrad", "integrated_gradients", "integrated_gradients_hc", "occlusion")
    """Attribution methods; a wrong name lists the known ones."""
    regions: tuple[str, ...] = ()
    """Atlas regions to rank and to occlude, such as "Left Hippocampus"; by default all."""
    out: Path = ROOT / "runs/saliency"
    """Folder for maps, pictures and tables."""
    limit: int | None = None
    """Explain only so many volumes of each origin, HC and TLE in turn from the top of the table; by default all."""
    pictures: int = 8
    """Pictures for the first so many volumes of each origin and method; 0: not even of means."""
    ig_steps: int = 32
    """Points on the path of integrated gradients."""
    noise_samples: int = 16
    """Noisy copies in SmoothGrad."""
    batch: int | None = None
    """Volumes evaluated at once (points of a path count each); by default 8 on a CPU and 32 on a GPU."""
    resamples: int = 2000
    """Bootstrap resamples of subjects for the intervals."""
    allow_leak: bool = False
    """Also explain subjects that the classifier was trained on; maps.json then says so."""
    seed: int = 0
    """Seed of the methods' noise and of the bootstrap."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    cache_dir: Path | None = None
    """Folder of decoded scans; by default data/cache in the repository."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


@dataclass(frozen=True)
class Job:
    """A classifier, the volumes to explain, and how."""

    config: SaliencyConfig
    loaded: LoadedClassifier
    cases: pd.DataFrame
    """One row per volume: classifier.saliency.cases."""
    volumes: Volumes
    regions: Atlas
    context: attribution.Context

    def stem(self, method: str, origin: str, name: str) -> Path:
        """Path of a map, without an ending."""
        return self.config.out / method / origin / name

    def case_stem(self, method: str, row: int) -> Path:
        """Path of a case's map."""
        return self.stem(method, self.cases["origin"][row], self.cases["stem"][row])


def main(config: SaliencyConfig) -> None:
    """Loads, attributes, averages, ranks, compares."""
    attribution.check_methods(config.methods)
    loaded = load_classifier(config.checkpoint)
    regions = choose_regions(atlas(loaded.grid), config.regions)
    cases = read_cases(config.csv, config.volumes, config.reconstructions, loaded.grid, config.limit)
    leak = refuse_overlap(cases, loaded.ledger, what=f"classifier {config.checkpoint}", allow_leak=config.allow_leak)
    config.out.mkdir(parents=True, exist_ok=True)
    with locked(config.out):
        job = open_job(config, loaded, regions, cases)
        made = {method: make_maps(job, method) for method in config.methods}
        pairs = [(method, origin) for method in config.methods for origin in cases["origin"].unique()]
        found = {pair: gather(job, *pair) for pair in tqdm(pairs, desc="group means", unit="method", delay=1)}
        write_tables(job, found)
        write_json(config.out / "maps.json", summary(job, found, leak, made))


def open_job(config: SaliencyConfig, loaded: LoadedClassifier, regions: Atlas, cases: pd.DataFrame) -> Job:
    """Loads the volumes, and compares their logits with the checkpoint's threshold."""
    device = pick_device("float32", config.threads)  # bfloat16 would round small attributions away
    device.module(loaded.model)
    volumes = Volumes(load_scans(cases, loaded.grid, cache_dir=config.cache_dir), device)
    context = attribution.context_for(
        loaded, regions, device, batch=config.batch, ig_steps=config.ig_steps, noise_samples=config.noise_samples,
        seed=config.seed,
    )  # fmt: skip
    with torch.no_grad():
        rows = torch.arange(len(volumes)).split(context.batch)
        logits = torch.cat([loaded.model(volumes.batch(part)).float().cpu() for part in rows]).double().numpy()
    cases = with_outcomes(cases, logits, loaded.temperature, loaded.threshold)
    return Job(config, loaded, cases, volumes, regions, context)


def make_maps(job: Job, method: str) -> int:
    """Makes the maps of a method that are not there yet; returns how many."""
    settings, hashes = attribution.settings_of(method, job.context), job.volumes.scans.hashes
    recipes = [files.recipe(job.loaded.hash, volume, method, settings) for volume in hashes]
    missing = [row for row, wanted in enumerate(recipes) if not files.is_made(job.case_stem(method, row), wanted)]
    with tqdm(total=len(recipes), initial=len(recipes) - len(missing), desc=method, unit="map") as bar:
        for start in range(0, len(missing), job.context.batch):
            rows = missing[start : start + job.context.batch]
            x = job.volumes.batch(torch.tensor(rows))
            indices = [files.volume_index(hashes[row]) for row in rows]
            maps = attribution.attribute(job.loaded.model, x, method, job.context, indices)
            errors = attribution.completeness_errors(job.loaded.model, x, method, job.context, maps)
            for row, map_, error in zip(rows, maps, errors, strict=True):
                files.write_map(job.case_stem(method, row), map_, job.volumes.grid.affine, recipes[row], error)
            bar.update(len(rows))
    return len(missing)


def gather(job: Job, method: str, origin: str) -> Maps:
    """Reads the maps of one method and origin once: strength by region, means by group; draws the first ones."""
    cases = job.cases[job.cases["origin"] == origin]
    magnitudes = np.empty((len(cases), len(job.regions.names)))
    columns = cases["label"].to_numpy(np.int64), cases["diagnosis"].to_numpy(str), cases["group"].to_numpy(str)
    found = Maps(Relevance(magnitudes, *columns))
    for place, (row, case) in enumerate(cases.iterrows()):
        map_, error = files.read_map(job.case_stem(method, row))
        magnitudes[place] = region_means(np.abs(map_), job.regions)
        found.add(map_, groups_of(case), error)
        if place < job.config.pictures:
            outcome = f"p(TLE) = {case['probability']:.2f}" + (f", {case['outcome']}" if case["outcome"] else "")
            title = f"{method}, {origin} {case['subject']} ({case['diagnosis']}), {outcome}"
            draw(job, method, job.case_stem(method, row), job.volumes.scans.volumes[row], map_, title)
    write_means(job, method, origin, found)
    return found


def draw(job: Job, method: str, stem: Path, anatomy: np.ndarray, map_: np.ndarray, title: str) -> None:
    """One picture of a map over anatomy."""
    kind = attribution.METHODS[method]
    ends = ("speaks for HC", "speaks for TLE") if kind.signed else None
    if stem.name == "mean_TLE_minus_HC":
        ends = ("more in HC", "more in TLE")
    picture = stem.with_name(f"{stem.name}.png")
    figures.over_anatomy(picture, anatomy, map_, job.volumes.grid.affine, title=title, unit=kind.unit, ends=ends)


def write_means(job: Job, method: str, origin: str, maps: Maps) -> None:
    """Mean map of each group, and TLE minus HC where both are there: maps follow edges, and the difference less so."""
    means = {group: total / maps.counts[group] for group, total in maps.sums.items()}
    titles = {group: f"mean {group.replace('_', '-')} (n = {maps.counts[group]})" for group in means}
    if set(CLASS_NAMES) <= set(means):
        means["TLE_minus_HC"] = means["TLE"] - means["HC"]
        titles["TLE_minus_HC"] = f"mean TLE minus mean HC (n = {maps.counts['TLE']} and {maps.counts['HC']})"
    for group, mean in means.items():
        stem = job.stem(method, origin, f"mean_{group}")
        write_nifti(stem.with_name(f"{stem.name}.nii.gz"), mean, job.volumes.grid.affine)
        if job.config.pictures:
            draw(job, method, stem, job.loaded.mean_hc.numpy(), mean, f"{method}, {origin}, {titles[group]}")


def write_tables(job: Job, found: dict[tuple[str, str], Maps]) -> None:
    """The tables beside the methods, and what they say in a few printed lines."""
    config = job.config
    written = tables_of(found, job.regions, config.resamples, config.seed) | {"cases": job.cases[list(CASE_COLUMNS)]}
    for name, table in written.items():
        with atomic_write(config.out / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")
    for (method, origin), table in written["region_ranking"].groupby(["method", "origin"], sort=False):
        top = ", ".join(f"{row.region} ({row.voxels} voxels)" for row in table.head(5).itertuples())
        differ = table[(table["difference_low"] > 0) | (table["difference_high"] < 0)]
        print(f"{method}, {origin}: {top}; TLE and HC differ in {len(differ)} of {len(table)} regions (95 % intervals)")
    if job.loaded.threshold is None:
        print("no means of true and false positives and negatives: the run has not finished and has no threshold")


def summary(job: Job, found: dict[tuple[str, str], Maps], leak: bool, made: dict[str, int]) -> dict[str, Any]:
    """What maps.json says."""
    methods = {name: attribution.METHODS[name] for name in job.config.methods}
    errors = {
        name: np.abs([error for (method, _), maps in found.items() if method == name for error in maps.errors])
        for name in methods if name in attribution.COMPLETE
    }  # fmt: skip
    volumes = job.cases.groupby("origin", sort=False)["label"]
    return {
        "checkpoint": job.loaded.hash, "commit": git_commit(), "grid": job.loaded.grid.to_dict(), "leak": leak,
        "temperature": job.loaded.temperature, "threshold": job.loaded.threshold, "seed": job.config.seed,
        "volumes": {
            origin: {name: int((labels == code).sum()) for code, name in enumerate(CLASS_NAMES)}
            for origin, labels in volumes
        },
        "methods": list(methods), "maps_made_now": made, "resamples": job.config.resamples,
        "settings": {name: attribution.settings_of(name, job.context) for name in methods},
        "units": {name: method.unit for name, method in methods.items()},
        "not_signed": [name for name, method in methods.items() if not method.signed],
        "completeness_error_logits": {
            name: {"mean_abs": float(values.mean()), "max_abs": float(values.max())} for name, values in errors.items()
        },
        "licence": LICENCE_NOTE,
    }  # fmt: skip


if __name__ == "__main__":
    run_script(main, SaliencyConfig, description=describe(__doc__))
