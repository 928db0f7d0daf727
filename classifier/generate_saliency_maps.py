"""Shows where a classifier looks: attribution maps of scans and volumes, group means, rankings by atlas region.

    python -m classifier.generate_saliency_maps --checkpoint runs/demo/classifier/checkpoints/best.pt \\
        --csv data/demo/test.csv --volumes runs/demo/synthetic_data_pkls_HC runs/demo/synthetic_data_pkls_TLE \\
        --reconstructions runs/demo/infer --methods smoothgrad integrated_gradients --out runs/demo/saliency

Writes, in <method>/<origin>/ (origins: real, synthetic, reconstruction), one NIfTI map per volume, pictures, and mean
maps by class, side and outcome; beside the methods cases.csv, groups.csv, region_ranking.csv, lateralisation.csv,
agreement.csv, and maps.json (settings, completeness). The same command goes on where it was stopped, and makes again
only maps whose checkpoint, volume or settings have changed. How to read all this: SALIENCY_README.md.
"""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from classifier.checkpoint import LoadedClassifier, load_classifier
from classifier.dataset import Volumes
from classifier.saliency import attribution, figures
from classifier.saliency.cases import read_cases, with_outcomes
from classifier.saliency.regions import Relevance, choose_regions, region_means, region_sums, tables_of
from cohort.atlas import LICENCE_NOTE, Atlas, atlas
from cohort.ledger import refuse_overlap
from cohort.stacks import load_scans
from cohort.tables import CLASS_NAMES, write_csv
from cohort.volumes import write_nifti
from runtime.checkpoints import git_commit
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.device import pick_device
from runtime.errors import InputError
from runtime.files import ROOT, locked, read_json, write_json

CASE_COLUMNS = ("origin", "stem", "subject", "session", "group", "label", "side", "diagnosis", "logit", "probability",
                "outcome", "file")  # fmt: skip
"""Of cases.csv."""
FORMAT = 1
"""Of maps: raise it with any change of what a method computes."""


@dataclass(frozen=True)
class SaliencyConfig(ScriptConfig):
    """Which classifier, which volumes, which methods."""

    checkpoint: Path
    """Checkpoint of classifier.train."""
    csv: Path | None = None
    """Table of real scans to explain."""
    volumes: tuple[Path, ...] = ()
    """Folders of synthetic volumes to explain; their outcome is against the class they were made for."""
    reconstructions: tuple[Path, ...] = ()
    """Folders of reconstructions to explain (VAE.infer --nifti); class and side are those of their scans in --csv."""
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

    def files(self, method: str, row: int) -> list[Path]:
        """Of a case: the note on what its map was made from, the map, its picture."""
        origin, stem = self.cases.loc[row, ["origin", "stem"]]
        return [self.config.out / method / origin / f"{stem}{ending}" for ending in (".json", ".nii.gz", ".png")]


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
        gathered = {pair: gather(job, *pair) for pair in tqdm(pairs, desc="group means", unit="method", delay=1)}
        write_tables(job, {pair: relevance for pair, (relevance, _) in gathered.items()})
        errors = {
            name: np.abs([error for (method, _), (_, part) in gathered.items() if method == name for error in part])
            for name in config.methods if name in attribution.COMPLETE
        }  # fmt: skip
        write_json(config.out / "maps.json", summary(job, errors, leak, made))


def open_job(config: SaliencyConfig, loaded: LoadedClassifier, regions: Atlas, cases: pd.DataFrame) -> Job:
    """Loads the volumes, and compares their logits with the checkpoint's threshold."""
    device = pick_device("float32", config.threads)  # bfloat16 would round small attributions away
    device.module(loaded.model)
    volumes = Volumes(load_scans(cases, loaded.grid, cache_dir=config.cache_dir), device)
    numbers = {name: getattr(config, name) for name in ("batch", "ig_steps", "noise_samples", "seed")}
    context = attribution.context_for(loaded, regions, device, **numbers)
    with torch.no_grad():
        rows = torch.arange(len(volumes)).split(context.batch)
        logits = torch.cat([loaded.model(volumes.batch(part)).float().cpu() for part in rows]).double().numpy()
    cases = with_outcomes(cases, logits, loaded.temperature, loaded.threshold)
    return Job(config, loaded, cases, volumes, regions, context)


def make_maps(job: Job, method: str) -> int:
    """Makes the maps of a method that are not there yet; returns how many.

    A map's note is written last and names everything that the voxels depend on, so that it is made again if and only if
    the checkpoint, the volume, the method or one of its settings has changed.
    """
    settings, hashes = attribution.settings_of(method, job.context), job.volumes.scans.hashes
    same = {"format": FORMAT, "checkpoint": job.loaded.hash}
    recipes = [{**same, "volume": volume, "method": method, "settings": settings} for volume in hashes]
    missing = [row for row, recipe in enumerate(recipes) if not is_made(job, method, row, recipe)]
    with tqdm(total=len(recipes), initial=len(recipes) - len(missing), desc=method, unit="map") as bar:
        for start in range(0, len(missing), job.context.batch):
            rows = missing[start : start + job.context.batch]
            x = job.volumes.batch(torch.tensor(rows))
            # the address of a volume's random draws, from the hash of its file: the same in every table it stands in
            indices = [int(hashlib.sha256(hashes[row].encode()).hexdigest()[:12], 16) for row in rows]
            maps = attribution.attribute(job.loaded.model, x, method, job.context, indices)
            errors = attribution.completeness_errors(job.loaded.model, x, method, job.context, maps)
            for row, map_, error in zip(rows, maps, errors, strict=True):
                note, nifti, _ = job.files(method, row)
                write_nifti(nifti, map_, job.volumes.grid.affine)
                write_json(note, {"recipe": recipes[row], "completeness_error_logits": error})
            bar.update(len(rows))
    return len(missing)


def is_made(job: Job, method: str, row: int, recipe: dict[str, Any]) -> bool:
    """Whether a case's map with this recipe is there."""
    note, nifti, _ = job.files(method, row)
    return note.is_file() and nifti.is_file() and read_json(note)["recipe"] == recipe


def read_map(nifti: Path) -> np.ndarray:
    """A map (D, H, W)."""
    try:
        return np.asarray(nib.load(nifti).dataobj, dtype=np.float32)
    except (OSError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise InputError(f"{nifti}: not a whole map: {error}; delete it, and it is made again") from None


def gather(job: Job, method: str, origin: str) -> tuple[Relevance, list[float | None]]:
    """Reads the maps of one method and origin once, and draws the first ones and the means of groups.

    Returns how strong each map is in each region, and how far it is from complete, in logits (None: it need not be).
    """
    cases = job.cases[job.cases["origin"] == origin]
    magnitudes, logits = np.empty((2, len(cases), len(job.regions.names)))
    sums, errors = defaultdict(float), []
    for place, (row, case) in enumerate(cases.iterrows()):
        note, nifti, picture = job.files(method, row)
        map_ = read_map(nifti)
        errors.append(read_json(note)["completeness_error_logits"])
        magnitudes[place], logits[place] = region_means(np.abs(map_), job.regions), region_sums(map_, job.regions)
        for group in case["groups"]:
            sums[group] = sums[group] + map_.astype(np.float64)
        if place < job.config.pictures:
            outcome = f"p(TLE) = {case['probability']:.2f}" + (f", {case['outcome']}" if case["outcome"] else "")
            title = f"{method}, {origin} {case['subject']} ({case['diagnosis']}), {outcome}"
            draw(job, method, picture, job.volumes.scans.volumes[row], map_, title)
    write_means(job, method, origin, sums)
    columns = cases["label"].to_numpy(np.int64), cases["diagnosis"].to_numpy(str), cases["group"].to_numpy(str)
    return Relevance(magnitudes, *columns, logits if method in attribution.COMPLETE else None), errors


def draw(job: Job, method: str, picture: Path, anatomy: np.ndarray, map_: np.ndarray, title: str) -> None:
    """One picture of a map over anatomy."""
    kind = attribution.METHODS[method]
    ends = ("speaks for HC", "speaks for TLE") if kind.signed else None
    if picture.name == "mean_TLE_minus_HC.png":
        ends = ("more in HC", "more in TLE")
    figures.over_anatomy(picture, anatomy, map_, job.volumes.grid.affine, title=title, unit=kind.unit, ends=ends)


def group_sizes(cases: pd.DataFrame) -> pd.Series:
    """Volumes by origin (in the order of the table) and group."""
    sizes = cases.explode("groups").groupby(["origin", "groups"]).size()
    return sizes.reindex(cases["origin"].unique(), level="origin")


def write_means(job: Job, method: str, origin: str, sums: dict[str, np.ndarray]) -> None:
    """Mean map of each group, and TLE minus HC where both are there: maps follow edges, and the difference less so."""
    folder, sizes = job.config.out / method / origin, group_sizes(job.cases)[origin]
    means = {group: total / sizes[group] for group, total in sums.items()}
    titles = {group: f"mean {group.replace('_', '-')} (n = {sizes[group]})" for group in means}
    if set(CLASS_NAMES) <= set(means):
        means["TLE_minus_HC"] = means["TLE"] - means["HC"]
        titles["TLE_minus_HC"] = f"mean TLE minus mean HC (n = {sizes['TLE']} and {sizes['HC']})"
    for group, mean in means.items():
        write_nifti(folder / f"mean_{group}.nii.gz", mean, job.volumes.grid.affine)
        if job.config.pictures:
            title = f"{method}, {origin}, {titles[group]}"
            draw(job, method, folder / f"mean_{group}.png", job.loaded.mean_hc.numpy(), mean, title)


def write_tables(job: Job, found: dict[tuple[str, str], Relevance]) -> None:
    """The tables beside the methods, and what they say in a few printed lines."""
    config = job.config
    groups = group_sizes(job.cases).rename_axis(["origin", "group"]).reset_index(name="volumes")
    written = tables_of(found, job.regions, config.resamples, config.seed)
    for name, table in {**written, "groups": groups, "cases": job.cases[list(CASE_COLUMNS)]}.items():
        write_csv(config.out / f"{name}.csv", table)
    for (method, origin), table in written["region_ranking"].groupby(["method", "origin"], sort=False):
        top = ", ".join(f"{row.region} ({row.voxels} voxels)" for row in table.head(5).itertuples())
        differ = table[(table["difference_low"] > 0) | (table["difference_high"] < 0)]
        print(f"{method}, {origin}: {top}; TLE and HC differ in {len(differ)} of {len(table)} regions (95 % intervals)")
    if job.loaded.threshold is None:
        print("no means of true and false positives and negatives: the run has not finished and has no threshold")


def summary(job: Job, errors: dict[str, np.ndarray], leak: bool, made: dict[str, int]) -> dict[str, Any]:
    """What maps.json says."""
    methods = {name: attribution.METHODS[name] for name in job.config.methods}
    return {
        "checkpoint": job.loaded.hash, "commit": git_commit(), "grid": job.loaded.grid.to_dict(), "leak": leak,
        "temperature": job.loaded.temperature, "threshold": job.loaded.threshold, "seed": job.config.seed,
        "volumes": {origin: {name: int((labels == code).sum()) for code, name in enumerate(CLASS_NAMES)}
                    for origin, labels in job.cases.groupby("origin", sort=False)["label"]},
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
