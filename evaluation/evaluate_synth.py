"""Measures whether synthetic volumes can be trusted: realism, diversity, anatomy, privacy; one JSON and a data card.

    python -m evaluation.evaluate_synth --real-train data/demo/train.csv --real-test data/demo/test.csv \\
        --synth-hc runs/demo/synthetic_data_pkls_HC --synth-tle runs/demo/synthetic_data_pkls_TLE \\
        --out fid_results/demo.json --vae runs/demo/vae/checkpoints/best.pt \\
        --diffusion runs/demo/diffusion/checkpoints/best.pt

Reads scans and volumes, writes NAME.json (its fields: fid_results/README.md), NAME.md (the synthetic data card),
NAME_privacy.md (the privacy card) and figures beside it. Run again with the same inputs it has nothing to do. On a CPU
with two threads or more the audit of privacy has half of them in a process of its own, while the other parts are
measured: the result is the same to the bit as that of one after the other, with so many threads.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from cohort.anatomy.volume_tables import KnownVolumes, VolumeTable
from cohort.grids import Grid, GridName, parse_grid
from cohort.labelling.reading import LabelsFrom, Reader
from cohort.stacks import ScanStack, VolumeStack, load_scans
from cohort.tables import read_table
from cohort.volumes import list_volumes
from diffusion.checkpoint import load_diffusion
from evaluation import anatomy, cards, diversity, figures, realism
from evaluation.effects import class_counts
from evaluation.features import CACHE, WEIGHTS_SHA256, SliceProtocol
from evaluation.inputs import Synthetic, check_counts, check_ledgers, fingerprint, folders_of, read_synthetic
from evaluation.networks import Weights, open_networks, read_weights
from evaluation.posteriors import Codec
from evaluation.privacy import audit as privacy
from evaluation.references import controls
from runtime import distributed
from runtime.checkpoints import checkpoint_hash, git_commit
from runtime.cli import describe, run_script
from runtime.config import Precision
from runtime.device import pick_device
from runtime.errors import InputError
from runtime.files import ROOT, read_json, write_json
from runtime.workers import begun
from VAE.checkpoint import load_vae

FORMAT = 7
PARTS = ("diversity", "anatomy", "privacy")


@dataclass(frozen=True)
class EvaluateConfig(LabelsFrom, KnownVolumes):
    """What is compared with what."""

    real_train: Path = ROOT / "data_csvs" / "train.csv"
    """Table of the scans the generator was trained on; they also fix the principal axes."""
    real_test: Path = ROOT / "data_csvs" / "test.csv"
    """Table of held-out scans, used neither for training nor for choosing a model."""
    synth_hc: Path = ROOT / "synthetic_data_pkls_HC"
    """Folder of synthetic volumes of controls."""
    synth_tle: Path = ROOT / "synthetic_data_pkls_TLE"
    """Folder of synthetic volumes of patients."""
    synth_swap: Path | None = None
    """Folder of patients of the seeds of --synth-tle, each of the other side or all of one (save_synth --side): adds
    TLE-L against TLE-R from the same noise to the anatomy part, and is used for nothing else."""
    vae: Path | None = None
    """The generator's VAE checkpoint: adds what the generator has to beat (Gaussians in the VAE's latents) and what it
    cannot (reconstructions), and to the privacy part a latent space and an attack on the VAE."""
    diffusion: Path | None = None
    """The generator's diffusion checkpoint: adds an attack on the DiT (needs --vae too)."""
    weights: tuple[str, ...] = ()
    """Weights of more feature networks, NAME=FILE=SHA256 each: inception_v3, radimagenet_resnet50,
    medicalnet_resnet10, medicalnet_resnet50. Without them these are reported as skipped."""
    parts: tuple[Literal["diversity", "anatomy", "privacy"], ...] = PARTS
    """What to measure besides the distances."""
    out: Path = ROOT / "fid_results" / "demo.json"
    """The result."""
    grid: GridName = "demo"
    """Grid on which all volumes are compared (cohort/grids.py)."""
    slices: int = 4
    """Slices per volume and axis for 2D networks."""
    repeats: int = 40
    """Draws of subjects, over which figures are averaged."""
    pairs: int = 100
    """Pairs of volumes on each side and in each group for MS-SSIM."""
    seed: int = 0
    """Of draws, controls and permutations."""
    allow_leak: bool = False
    """Evaluate even on subjects that the volumes' checkpoints were trained on; the result then says so."""
    precision: Precision = "float32"
    """Of the feature network. float32 makes figures of different machines comparable."""
    model_precision: Precision = "auto"
    """Of VAE and diffusion model: that in which latents were saved and volumes made; auto as in these scripts."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    cache_dir: Path = CACHE
    """Where features are kept; may be deleted at any time."""
    scan_cache: Path | None = None
    """Folder of decoded scans, such as that of the VAE's training; by default data/cache in the repository."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


def main(config: EvaluateConfig) -> None:
    """Checks, measures part by part, draws, writes."""
    if not distributed.dismiss():
        return
    grid, weights = grid_of(config), read_weights(config.weights)
    reader = config.label_reader(grid) if "anatomy" in config.parts else None
    folders = folders_of(config.synth_hc, config.synth_tle)
    tables = {"train": read_table(config.real_train), "test": read_table(config.real_test)}
    swap = {} if config.synth_swap is None else {"swap": list_volumes(config.synth_swap)}
    made = (config.synth_hc, config.synth_tle, *([config.synth_swap] if swap else []))
    leak, warnings = check_ledgers(tables, made, allow_leak=config.allow_leak, audit="privacy" in config.parts)
    firsts = {name: table.drop_duplicates("subject") for name, table in tables.items()}
    scans = {name: load_scans(table, grid, cache_dir=config.scan_cache) for name, table in firsts.items()}
    known = config.known_volumes() if "anatomy" in config.parts else None
    files = {"vae": config.vae, "diffusion": config.diffusion, **({"labels": config.labels_from} if reader else {})}
    numbers = (config.grid, config.slices, config.repeats, config.pairs, config.seed)
    precisions = (config.precision, config.model_precision)
    settings = [FORMAT, *numbers, *precisions, config.allow_leak, sorted(config.parts), known and known.digest()]
    inputs = fingerprint(scans, folders | swap, files, weights, settings)
    if is_done(config, inputs):
        print(f"{config.out}: done already, for the same inputs")
        return
    synthetic = read_synthetic(folders, grid, config.cache_dir / "synthetic", config.synth_swap)
    check_checkpoints(config, synthetic)
    warnings += check_counts(scans, synthetic)
    result = measure(config, grid, scans, synthetic, known, reader, weights)
    sets = {"real_train": scans["train"], "real_test": scans["test"], "synthetic": synthetic}
    result = {
        "format": FORMAT,
        "inputs": inputs,
        "commit": git_commit(),
        "leak": leak,
        "checkpoints": synthetic.checkpoints,
        "n": {name: class_counts(stack.labels) for name, stack in sets.items()} | {"per_draw": result["per_draw"]},
        "controls": controls.describe(),
        **result,
        "warnings": [*warnings, *result["warnings"]],
    }
    figures.draw_chart(figure_path(config, "fid"), result)
    figures.draw_sharpness(figure_path(config, "sharpness"), result, grid.spacing_mm)
    figures.draw_nearest(figure_path(config, "nearest"), scans["train"], synthetic.volumes, synthetic.labels)
    if "skipped" not in result.get("privacy", {"skipped": "not asked for"}):
        cards.write_privacy(config.out.with_name(f"{config.out.stem}_privacy.md"), result)
    cards.write(config.out.with_suffix(".md"), result)
    write_json(config.out, result)
    print(report(result))


def measure(
    config: EvaluateConfig,
    grid: Grid,
    scans: dict[str, ScanStack],
    synthetic: Synthetic,
    known: VolumeTable | None,
    reader: Reader | None,
    weights: dict[str, Weights],
) -> dict:
    """All parts that were asked for, and warnings; the audit beside the others where there is a thread for each."""
    device = pick_device(config.precision, config.threads)
    apart = "privacy" in config.parts and device.kind.type == "cpu" and torch.get_num_threads() > 1
    if apart:
        config = replace(config, threads=torch.get_num_threads() // 2)
        device = pick_device(config.precision, config.threads)
    codec = open_codec(config)
    posteriors = None if codec is None else {name: codec.encode(stack.volumes) for name, stack in scans.items()}
    mus = None if posteriors is None else {name: found.mu for name, found in posteriors.items()}
    with begun(audit, config, grid, scans, synthetic.volumes, mus, apart=apart) as audited:
        print("distances")
        networks, skipped = open_networks(grid, weights, per_axis=config.slices)
        draws = {"repeats": config.repeats, "seed": config.seed}
        result, support, warnings = realism.measure(
            scans, synthetic, codec, posteriors, networks, device, config.cache_dir, **draws
        )
        result["views"] |= {name: {"skipped": reason} for name, reason in skipped.items()}
        result |= {"protocol": protocol_of(config, grid, result["dimensions"]), "warnings": warnings}
        if "diversity" in config.parts:
            print("diversity")
            real, made = ((stack.volumes, stack.labels) for stack in (scans["test"], synthetic))
            alike = diversity.compare_ms_ssim(real, made, count=config.pairs, seed=config.seed)
            result["diversity"] = {"support": support, "ms_ssim": alike}
        if "anatomy" in config.parts:
            print("anatomy")
            figure = figure_path(config, "effects")
            result["anatomy"] = anatomy.measure(scans, synthetic, grid, known, figure, config.seed, reader)
        if "privacy" in config.parts:
            print("privacy")
            found = audited()
            if "skipped" not in found:
                pairs = found["audit"]["spaces"]["voxels"]["synthetic"]["pairs"]
                figures.draw_pairs(figure_path(config, "closest"), synthetic.volumes, scans["train"].volumes, pairs)
                found = privacy.without_names(found)
            result["privacy"] = found
    return result


def audit(
    config: EvaluateConfig,
    grid: Grid,
    scans: dict[str, ScanStack],
    volumes: VolumeStack,
    mus: dict[str, np.ndarray] | None,
) -> dict:
    """The privacy part, by whichever process: it opens the checkpoints itself. `mus` as `privacy.audit.measure`."""
    device = pick_device(config.precision, config.threads)
    diffusion = None if config.diffusion is None else load_diffusion(config.diffusion)
    return privacy.measure(scans, volumes, grid, open_codec(config), mus, diffusion, device, config.seed)


def open_codec(config: EvaluateConfig) -> Codec | None:
    """The VAE that was given, in the precision in which it was used."""
    if config.vae is None:
        return None
    return Codec(load_vae(config.vae), pick_device(config.model_precision, config.threads))


def check_checkpoints(config: EvaluateConfig, synthetic: Synthetic) -> None:
    """Raises InputError where a checkpoint that was given is not the one that the volumes state."""
    for flag, path in (("vae", config.vae), ("diffusion", config.diffusion)):
        stated = synthetic.checkpoints[flag]
        if path is not None and stated != [checkpoint_hash(path)]:
            raise InputError(f"--{flag} {path} is checkpoint {checkpoint_hash(path)}; the volumes name {stated}")


def grid_of(config: EvaluateConfig) -> Grid:
    """The grid by name, and the other settings checked."""
    numbers = (("slices", config.slices, 1), ("repeats", config.repeats, 2), ("pairs", config.pairs, 2))
    problems = [f"--{name} {value}: expected at least {least}" for name, value, least in numbers if value < least]
    if problems:
        raise InputError.of("settings refused", problems)
    return parse_grid(config.grid)


def is_done(config: EvaluateConfig, inputs: dict[str, str]) -> bool:
    """Whether the result is there already, with its figures; InputError where it is one of other inputs."""
    if not config.out.exists():
        return False
    old = read_json(config.out)
    before = old.get("inputs") if isinstance(old, dict) else None
    if before != inputs:
        known = before if isinstance(before, dict) else {}
        raise InputError.of(
            f"{config.out}: holds a result of other inputs; choose another --out or delete it",
            [f"{name}: {known.get(name)} there, {now} now" for name, now in inputs.items() if known.get(name) != now],
        )
    drawn = ["fid", "nearest", *(["effects"] if "anatomy" in config.parts else [])]
    return all(figure_path(config, name).exists() for name in drawn)


def protocol_of(config: EvaluateConfig, grid: Grid, dimensions: int) -> dict:
    """How the figures came about, in full."""
    slices = SliceProtocol.for_grid(grid.shape, config.slices)
    return {
        "network": "efficientnet-lite0, ImageNet",
        "weights_sha256": WEIGHTS_SHA256,
        "features": "last convolution, averaged over each slice, then over slices: one vector per volume and axis",
        "fid_dimensions": dimensions,
        "fid_projection": "principal axes of the training reals, per axis",
        "kid": "polynomial kernel (a.b/F + 1)^3 on all features, unbiased",
        "permutations": realism.PERMUTATIONS,
        "scans": "one per subject, the first in its table",
        "grid": grid.to_dict(),
        "slices": asdict(slices),
        "slice_positions": [slices.positions(extent) for extent in grid.shape],
        "preprocessing": "cohort.scans.normalise on both sides (0.5, 99.5 percentiles of non-zero voxels to 1/256, 1)",
        "repeats": config.repeats,
        "seed": config.seed,
        "precision": config.precision,
        "model_precision": config.model_precision,
    }


def figure_path(config: EvaluateConfig, name: str) -> Path:
    """``fid``: bars of distances; ``nearest``: nearest scans; ``effects``: of the diagnosis; ``closest``: pairs."""
    return config.out.with_name(f"{config.out.stem}_{name}.png")


def report(result: dict) -> str:
    """A few lines for people."""
    size = result["n"]["per_draw"]
    lines = [
        f"{'':9}{'N':>5} {'floor':>9} {'synthetic':>10} {'blurred':>9} {'shuffled':>9} {'KID synth.':>11} {'p':>7}"
    ]
    for group, references in result["results"].items():
        samples = references["held_out"]
        shown = {name: f"{sample['fid']['mean']:.3g}" for name, sample in samples.items()}
        kid, p = samples["synthetic"]["kid"]["mean"], result["all_volumes"][group]["kid_p_value"]
        lines.append(
            f"{group:9}{size[group]:5d} {shown['floor']:>9} {shown['synthetic']:>10} {shown['blurred']:>9} "
            f"{shown['shuffled']:>9} {kid:11.3g} {p:7.3f}"
        )
    return "\n".join([*lines, *result["warnings"]])


if __name__ == "__main__":
    run_script(main, EvaluateConfig, description=describe(__doc__))
