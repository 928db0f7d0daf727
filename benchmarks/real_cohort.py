"""What the whole pipeline does with a folder of real heads: preparation, anatomy, autoencoder, generator, privacy.

    python -m benchmarks.real_cohort --participants healthy.csv --work runs/real_cohort

Each step is the command that a user would give, at 4 mm by default, with its time and memory. Who failed or was flagged
in preparation is counted and left out. Region labels (a column `labels`, codes of Neuromorphometrics) add what can be
held against them; a table of healthy people alone becomes one of both classes by `cohort.plant`. Only means over people
are kept: the result names nobody. The same command continues.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import ndimage

from benchmarks.timing import print_table, time_command
from cohort.anatomy.label_agreement import cut_off, placing_error
from cohort.anatomy.regional_volumes import region_volumes
from cohort.atlas import REGIONS, STRUCTURES, atlas, native_atlas
from cohort.decoding import read_voxels
from cohort.grids import GRIDS, Grid
from cohort.preparation.participants import list_scans
from cohort.preparation.placing import read_place
from cohort.preparation.quality import RULES, flags
from cohort.scans import fill_holes, load_scan, resample, to_ras
from cohort.simulation.volunteers import read_head, usable, with_volumes
from cohort.tables import CLASS_NAMES, DIAGNOSES, read_table, write_table
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.device import pick_device
from runtime.errors import InputError
from runtime.files import ROOT, read_json, write_json
from runtime.runs import environment

DICE_GRID = GRIDS["2mm"]
"""Voxels in which regions are compared."""
CODES = {name: code for name, code in native_atlas()[0].codes.items() if code > 0}
POLES = [name for name in CODES if name.endswith("temporal pole")]
CEREBELLUM = [name for name in CODES if "Cerebell" in name]
JUDGED = {
    "distance from where the labels lay the template, mm": (0.0, 4.0),
    "determinant over that of the labels": (0.92, 1.08),
    "Dice of the brain with all labels, filled": (0.96, 1.0),
    "temporal poles more than 3 mm outside the brain, %": (0.0, 1.0),
    "cerebellum more than 3 mm outside the brain, %": (0.0, 1.0),
}
"""What labels say of a preparation, and what is right; the shares leave room for stray voxels of the labels."""
LADDER = ("floor", "reconstructed", "gaussian", "gaussian_64", "synthetic", "blurred", "noisy")


@dataclass(frozen=True)
class RealConfig(ScriptConfig):
    participants: Path
    """Table of scans, or BIDS dataset."""
    work: Path = ROOT / "runs/real_cohort"
    """Folder of everything that is made on the way."""
    out: Path = ROOT / "benchmarks/real_cohort.json"
    """The JSON file of the figures."""
    preset: Literal["smoke", "demo"] = "demo"
    """Grid and networks: demo 4 mm, smoke 8 mm."""
    parts: tuple[Literal["anatomy", "autoencoder", "generator"], ...] = ("anatomy", "autoencoder", "generator")
    """What to measure after preparation; the generator needs the autoencoder of the same folder."""
    vae: Path | None = None
    """A VAE that has seen simulations only: it is measured on the same held-out scans, and one is tuned from it."""
    effect_size: float = 1.0
    """Cohen's d of the planted disease, where all people are healthy."""
    vae_steps: int = 500
    """Steps of each VAE, as the demo's."""
    diffusion_steps: int = 600
    """Steps of the diffusion model, as the demo's."""
    volumes: int = 90
    """Synthetic volumes of each class."""
    workers: int = 1
    """Processes of preparation."""


def main(config: RealConfig) -> None:
    """Step by step; the JSON holds what is there so far."""
    result: dict[str, Any] = {"participants": config.participants.name, "environment": environment(pick_device())}
    costs: dict[str, dict[str, float]] = {}
    for name, found in steps(config, costs):
        result |= {name: found, "costs": costs}
        write_json(config.out, result)
        print(f"\n{name}")
        print_table(found if isinstance(found, list) else [found])
    print("\ntime and memory of each command")
    print_table([{"command": name, **cost} for name, cost in costs.items()])


def steps(config: RealConfig, costs: dict[str, dict[str, float]]) -> Iterator[tuple[str, Any]]:
    """Runs the pipeline; yields the name of a table and its rows as each part is done."""

    def run(name: str, module: str, *words: object, expected: tuple[int, ...] = (0,)) -> None:
        print(f"python -m {module} {' '.join(map(str, words))}", flush=True)
        costs[name] = time_command(module, *words, expected=expected)

    work, prepared = config.work, config.work / "prepared"
    run(
        "prepare", "cohort.prepare", "--participants", config.participants, "--out", prepared, "--index",
        prepared / "index.csv", "--grid", config.preset, "--workers", config.workers, expected=(0, 1),
    )  # fmt: skip
    people = list_scans(config.participants).there()
    yield "quality", quality(people, prepared)
    if "labels" in people.columns and "anatomy" in config.parts:
        base, grid = config.participants.parent, GRIDS[config.preset]
        yield "placement", placement(people, base, prepared, grid)
        yield "anatomy", anatomy(people, base, prepared, grid)
    if not {"autoencoder", "generator"} & set(config.parts):
        return
    index = usable_index(prepared / "index.csv", work / "index.csv")
    if index["label"].nunique() == 1:
        run(
            "plant", "cohort.plant", "--participants", config.participants, "--prepared", prepared, "--out",
            work / "planted", "--index", work / "index.csv", "--effect-size", config.effect_size, "--partial",
        )  # fmt: skip
    run("split", "cohort.split", "--index", work / "index.csv", "--out", work)
    divided = {name: list(read_table(work / f"{name}.csv")["diagnosis"]) for name in ("train", "val", "test")}
    yield (
        "subjects",
        [{"split": name} | {label: found.count(label) for label in DIAGNOSES} for name, found in divided.items()],
    )
    if "autoencoder" in config.parts:
        yield "autoencoder", list(autoencoders(config, run))
    if "generator" in config.parts:
        yield from generator(config, run)


def usable_index(source: Path, target: Path) -> pd.DataFrame:
    """The prepared scans that no rule flags, written as a table."""
    index = read_table(source)
    good = index[flags(index) == ""]
    if good.empty:
        raise InputError(f"{source}: every scan is flagged; see qc.html beside it")
    write_table(target, good)
    return good


def quality(people: pd.DataFrame, prepared: Path) -> list[dict[str, object]]:
    """How many scans came out well, and the spread of each measure among them and among the others."""
    index = read_table(prepared / "index.csv")
    odd = flags(index) != ""
    rows: list[dict[str, object]] = [
        {"measure": "scans", "well": int((~odd).sum()), "flagged": int(odd.sum()), "failed": len(people) - len(index)}
    ]
    records = [read_json(prepared / "records" / f"{scan_name(file)}.json") for file in index["file"]]
    for rule in RULES:
        values = np.array([record["measures"].get(rule.name) for record in records], dtype=float)
        rows.append({"measure": rule.title, "well": span(values[~odd]), "flagged": span(values[odd]), "failed": "-"})
    return rows


def span(values: np.ndarray) -> str:
    """Median and range, of three or more people."""
    known = values[np.isfinite(values)]
    return f"{np.median(known):.3g} [{known.min():.3g}, {known.max():.3g}]" if len(known) > 2 else "-"


def placement(people: pd.DataFrame, base: Path, prepared: Path, grid: Grid) -> list[dict[str, object]]:
    """Whether scans lie where their labels say, and brains are whole; who does not, by whether it was flagged."""
    people, _ = usable(with_volumes(people, base, CODES))  # failed labels do not count, failed scans do
    index = read_table(prepared / "index.csv")
    well = dict(zip(map(scan_name, index["file"]), flags(index) == "", strict=True))
    people = people[people["name"].isin(list(well))]
    found = np.array([judged(person, prepared, grid) for person in people.itertuples()])
    accepted = people["name"].map(well).to_numpy(dtype=bool)
    rows = []
    for (title, (low, high)), values in zip(JUDGED.items(), found.T, strict=True):
        beyond = ~((values >= low) & (values <= high))
        rows.append(
            {"measure": title, "N": len(values), "found": span(values), "right": f"{low:g} to {high:g}",
             "beyond, flagged": int((beyond & ~accepted).sum()), "beyond, accepted": int((beyond & accepted).sum())}
        )  # fmt: skip
    return rows


def judged(person: Any, prepared: Path, grid: Grid) -> list[float]:
    """The measures JUDGED of one prepared scan."""
    matrix = np.array(read_json(prepared / "records" / f"{person.name}.json")["matrix"])
    labels, affine = labels_of(person)
    image = read_voxels(prepared / "scans" / f"{person.name}.nii.gz")[0]
    brain = resample((image != 0).astype(np.float32), matrix @ grid.affine, affine, labels.shape)[0] > 0.5
    return against_labels(matrix, brain, labels, affine)


def against_labels(matrix: np.ndarray, brain: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> list[float]:
    """The measures JUDGED of a matrix from template to scan (mm) and of a brain (bool), in the voxels of the labels."""
    outside = [100 * cut_off(brain, labels, affine, structures) for structures in (POLES, CEREBELLUM)]
    return [*placing_error(matrix, labels, affine), dice(brain, fill_holes(labels > 0)), *outside]


def labels_of(person: Any) -> tuple[np.ndarray, np.ndarray]:
    """Region labels of a scan, (D, H, W) in RAS order, and their affine."""
    _, labels, _ = read_head(person.file, person.labels)
    return to_ras(labels, read_voxels(Path(person.file))[1])


def scan_name(file: str) -> str:
    """What a prepared scan's record is called."""
    return Path(file).name.split(".nii")[0]


def anatomy(people: pd.DataFrame, base: Path, prepared: Path, grid: Grid) -> list[dict[str, object]]:
    """Labels beside what the prepared scans say: overlap with the atlas after the affine, and regional volumes."""
    fine = DICE_GRID
    reference, overlaps, true, scans = atlas(fine).labels, [], [], []
    people, _ = usable(with_volumes(people, base, CODES, prepared))  # neither failed labels nor failed scans
    for person in people.itertuples():
        place = read_place(prepared, person.name)
        image, affine = labels_of(person)
        placed = nearest(image, affine, place.matrix @ fine.affine, fine.shape)
        overlaps.append([dice(placed == CODES[name], reference == CODES[name]) for name in REGIONS])
        scans.append(load_scan(place.scan, grid))
        ml = np.abs(np.linalg.det(affine[:3, :3])) / 1000 / np.linalg.det(place.matrix[:3, :3])
        true.append([(image == CODES[name]).sum() * ml for name in REGIONS])
    measured, true = region_volumes(scans, grid, REGIONS), np.array(true)
    rows = []
    for place, structure in enumerate(STRUCTURES):
        both = slice(2 * place, 2 * place + 2)  # left and right
        good = (true[:, both] > 0).all(axis=1)
        r = np.mean([np.corrcoef(measured[good, i], true[good, i])[0, 1] for i in (2 * place, 2 * place + 1)])
        bias = 100 * (measured[good, both].mean() / true[good, both].mean() - 1)
        rows.append(
            {"structure": structure, "N": int(good.sum()), "Dice": pm(np.array(overlaps)[good, both].ravel()),
             "r": f"{r:.2f}", "bias, %": round(float(bias))}
        )  # fmt: skip
    return rows


def nearest(labels: np.ndarray, affine: np.ndarray, target: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Labels (D, H, W) on another lattice, the nearest of each voxel."""
    way = np.linalg.inv(affine) @ target
    return ndimage.affine_transform(labels, way[:3, :3], way[:3, 3], shape, order=0)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice's coefficient of two masks."""
    return float(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))


def pm(values: Any) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


def autoencoders(config: RealConfig, run: Any) -> Iterator[dict[str, object]]:
    """Reconstruction of held-out real scans by each VAE, inside the head."""
    work = config.work
    common = ["--train-csv", work / "train.csv", "--val-csv", work / "val.csv", "--cache-dir", work / "cache"]
    common += ["--steps", config.vae_steps]
    run("VAE", "VAE.train", config.preset, *common, "--run-dir", work / "vae")
    checkpoints = {"trained on these scans": work / "vae/checkpoints/best.pt"}
    if config.vae is not None:
        run("VAE, tuned", "VAE.train", config.preset, *common, "--run-dir", work / "vae_tuned", "--init", config.vae)
        checkpoints |= {"simulations only": config.vae, "tuned from it": work / "vae_tuned/checkpoints/best.pt"}
    for number, (name, checkpoint) in enumerate(checkpoints.items()):
        out = work / f"infer{number}"
        run(
            f"infer, {name}", "VAE.infer", "--checkpoint", checkpoint, "--csv", work / "test.csv", "--out", out,
            "--cache-dir", work / "cache",
        )  # fmt: skip
        summary = read_json(out / "summary.json")
        cells = {key: f"{summary['mean'][key]:.4g} ± {summary['std'][key]:.2g}" for key in ("psnr_head", "ssim_head")}
        yield {"VAE": name, "N": summary["scans"], "PSNR, dB": cells["psnr_head"], "SSIM": cells["ssim_head"]}


def generator(config: RealConfig, run: Any) -> Iterator[tuple[str, Any]]:
    """Latents, DiT, volumes, and what evaluation.evaluate_synth says of them."""
    work = config.work
    vae, dit = work / "vae/checkpoints/best.pt", work / "diffusion/checkpoints/best.pt"
    run(
        "latents", "VAE.save_latent", "--checkpoint", vae, "--csv", work / "train.csv", work / "val.csv", "--out",
        work / "latents", "--mirrored", "--cache-dir", work / "cache",
    )  # fmt: skip
    run(
        "DiT", "diffusion.train", config.preset, "--latents", work / "latents", "--vae", vae, "--run-dir",
        work / "diffusion", "--steps", config.diffusion_steps,
    )  # fmt: skip
    folders = {label: work / f"synthetic_data_pkls_{label}" for label in CLASS_NAMES}
    for label, folder in folders.items():
        run(
            f"volumes, {label}", "diffusion.save_synth", "--vae", vae, "--diffusion", dit, "--label", label, "--count",
            config.volumes, "--out", folder,
        )  # fmt: skip
    run(
        "evaluation", "evaluation.evaluate_synth", "--real-train", work / "train.csv", "--real-test", work / "test.csv",
        "--synth-hc", folders["HC"], "--synth-tle", folders["TLE"], "--grid", config.preset, "--vae", vae,
        "--diffusion", dit, "--out", work / "evaluation.json",
    )  # fmt: skip
    found = read_json(work / "evaluation.json")
    rungs = found["results"]["overall"]["held_out"]
    yield "FID ladder", [
        {"sample": name, "N": found["n"]["per_draw"]["overall"], "FID": interval(rungs[name]["fid"]),
         "KID": interval(rungs[name]["kid"])}
        for name in LADDER if name in rungs
    ]  # fmt: skip
    yield "support", support(found["diversity"]["support"])
    yield from privacy(found["privacy"])


def support(found: dict[str, Any]) -> list[dict[str, object]]:
    """How much of held-out people the volumes cover, and how many of them lie among people; or why it was skipped."""
    if "skipped" in found["support"]["overall"]:
        return [found["support"]["overall"]]
    samples = found["support"]["overall"]["held_out"]
    return [
        {"sample": name, "k": found["k"], "N": found["n"]["overall"]}
        | {key: interval(samples[name][key]) for key in ("coverage", "recall", "precision", "density")}
        for name in LADDER if name in samples
    ]  # fmt: skip


def privacy(found: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """The audit by space, and the attacks; one row with the reason where there are too few people."""
    if "skipped" in found:
        yield "audit", [found]
        return
    yield "audit", [
        {"space": name, "volumes": space["synthetic"]["n"]["volumes"],
         "nearer to training, %": interval(scaled(space["synthetic"]["closer_to_training"], "share", 100)),
         "p": space["synthetic"]["closer_to_training"]["p"], "copies": space["synthetic"]["copies"]["copies"]}
        for name, space in found["audit"]["spaces"].items()
    ]  # fmt: skip
    yield (
        "membership",
        [
            {"attack": name, "AUC": each if isinstance(each, str) else interval(scaled(each, "auc"))}
            for name, each in found["attacks"].items()
        ],
    )


def scaled(cell: dict[str, float], name: str, factor: float = 1.0) -> dict[str, float]:
    """A figure called otherwise, with its interval, as `interval` takes it."""
    return {"mean": factor * cell[name], "low": factor * cell["low"], "high": factor * cell["high"]}


def interval(cell: dict[str, float]) -> str:
    """A mean with its interval or range."""
    return f"{cell['mean']:.3g} [{cell['low']:.3g}, {cell['high']:.3g}]"


if __name__ == "__main__":
    run_script(main, RealConfig, description=describe(__doc__))
