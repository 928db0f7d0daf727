"""Generates synthetic volumes: two checkpoints in, one volume pickle per seed out.

    python -m diffusion.save_synth --vae runs/demo/vae/checkpoints/best.pt \\
        --diffusion runs/demo/diffusion/checkpoints/best.pt --label TLE --count 100 --out synthetic_data_pkls_TLE

Volume k comes from seed k alone. On a CPU it has the same bytes whatever the batch size, the number of processes or
what was made before, with as many threads; on a GPU it has them for equal batch sizes. Existing volumes are kept, so
the same command continues a stopped one. Each class has its folder (`diffusion.synthetic_folder`): <LABEL>_<seed>.pkl,
manifest.csv, settings.json, ledger.json, contact_sheet.png, with --nifti .nii.gz files that overlay the template in any
viewer. --bids DIR writes a BIDS derivative dataset besides.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from cohort.pictures import gallery
from cohort.tables import CLASS_NAMES, LABELS
from cohort.volumes import Volume, read_volume, volume_name, write_nifti
from diffusion import bids_derivative
from diffusion.checkpoint import LoadedDiffusion, Weights, load_diffusion
from diffusion.synthesis import Models, check_guidance, check_pair, check_schedule, compile_network, synthesise
from diffusion.synthetic_folder import Settings, SyntheticFolder
from diffusion.wanted import Wanted, count_wanted, read_wanted
from runtime import distributed
from runtime.cli import describe, run_script
from runtime.device import Device, Precision, pick_device
from runtime.errors import InputError
from runtime.files import ROOT
from VAE.checkpoint import LoadedVAE, load_vae


@dataclass(frozen=True)
class SaveSynthConfig:
    """What to generate, with what, and where to."""

    vae: Path
    """The VAE checkpoint that the diffusion model's latents came from."""
    diffusion: Path
    """A diffusion checkpoint."""
    label: Literal["HC", "TLE"] | None = None
    """Class of all volumes; or give --table."""
    count: int | None = None
    """Number of volumes of --label, 100 by default: seeds first_seed ... first_seed + count - 1."""
    table: Path | None = None
    """Instead of --label: a CSV of wanted volumes with the column label and, optionally, seed, age (years), sex (F or
    M) and count; empty age and sex are not told to the model."""
    out: Path | None = None
    """Folder of one class, where {label} stands for its name; by default synthetic_data_pkls_{label} in the
    repository."""
    sampler: Literal["dpmpp", "ddpm", "ddim", "euler", "heun"] = "dpmpp"
    """ddpm: ancestral, noise at every step. ddim, dpmpp: deterministic; dpmpp needs fewest steps. euler, heun: for
    flows."""
    steps: int = 25
    """Sampling steps."""
    guidance: float = 1.0
    """Classifier-free guidance; 1 is the plain conditional model, larger is more typical of the class, less diverse."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Noise levels in which guidance acts, low and high, as shares of the process's time."""
    weights: Weights = "ema"
    """ema: weights averaged over training. raw: those of its last step."""
    first_seed: int = 0
    """Seed of the first volume; with a table, of the first row without a seed."""
    batch_size: int | None = None
    """Volumes generated at once on a GPU, 16 by default: volume k has the same bytes in every run with the same batch
    size, and is the same to rounding in others. A CPU, where batches save little, makes one at a time: same bytes
    whatever is given."""
    nifti: bool = False
    """Also write each volume as .nii.gz with its true affine."""
    bids: Path | None = None
    """Also write the volumes into this BIDS derivative dataset; both classes may share one."""
    verify: bool = False
    """First read every volume that the folder has and compare its SHA-256 with the manifest's."""
    compile: bool = True
    """Compile the network (torch.compile) on a GPU; a CPU always runs eagerly."""
    precision: Precision = "auto"
    """Matrix precision."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


def main(config: SaveSynthConfig) -> None:
    """Checks everything, then makes what is missing of each class."""
    wanted = list_wanted(config)
    device = pick_device(config.precision, config.threads)
    models = load_models(config, device)
    refuse_untold(config, wanted, models.diffusion)
    folders = open_folders(config, wanted, models)
    for folder, part in folders:
        folder.refuse_others()
        if config.bids is not None:
            bids_derivative.refuse_others(config.bids, part, folder.settings, models.vae.grid)
    with ExitStack() as stack:
        if distributed.is_main():
            for folder, _ in folders:
                stack.enter_context(folder.locked())
                ledger = {*models.vae.ledger, *models.diffusion.ledger}
                folder.settle(ledger, adopt=not models.diffusion.covariates)
        distributed.barrier()
        for folder, part in folders:
            if config.verify:
                folder.verify()
            make(folder, part, models, config)
        if config.bids is not None and distributed.is_main():
            bids_derivative.describe(config.bids)


def list_wanted(config: SaveSynthConfig) -> list[Wanted]:
    """The volumes to make, from --label and --count or from --table.

    Raises:
        InputError: both or neither were given, or a number that is none.
    """
    if (config.label is None) == (config.table is None) or (config.table is not None and config.count is not None):
        raise InputError("give either --label, with --count, or --table")
    if config.first_seed < 0 or (config.count is not None and config.count < 1):
        raise InputError(f"--first-seed {config.first_seed} --count {config.count}: expected 0 or more, 1 or more")
    if config.batch_size is not None and config.batch_size < 1:
        raise InputError(f"--batch-size {config.batch_size}: expected 1 or more")
    if config.table is not None:
        return read_wanted(config.table, config.first_seed)
    return count_wanted(LABELS[config.label], 100 if config.count is None else config.count, config.first_seed)


def load_models(config: SaveSynthConfig, device: Device) -> Models:
    """Both checkpoints on the device, the network compiled where that is asked for.

    Raises:
        InputError: the VAE is not the one the latents came from, or guidance without a null class.
    """
    vae, diffusion = load_vae(config.vae), load_diffusion(config.diffusion, weights=config.weights)
    check_pair(vae, diffusion)
    check_guidance(diffusion, config.guidance, config.guidance_interval)
    device.module(vae.model)
    device.module(diffusion.model)
    if config.compile and device.kind.type == "cuda":
        compile_network(diffusion.model)
    return Models(vae, diffusion, device)


def refuse_untold(config: SaveSynthConfig, wanted: list[Wanted], diffusion: LoadedDiffusion) -> None:
    """Refuses an age or sex that the model would not hear.

    Raises:
        InputError: names what was asked for and what the model knows.
    """
    asked = {name for one in wanted for name, text in one.texts().items() if text}
    deaf = sorted(asked - set(diffusion.covariates))
    if deaf:
        known = ", ".join(diffusion.covariates) or "none"
        raise InputError(f"{config.table}: asks for {', '.join(deaf)}; {config.diffusion} knows of these: {known}")


def open_folders(
    config: SaveSynthConfig, wanted: list[Wanted], models: Models
) -> list[tuple[SyntheticFolder, list[Wanted]]]:
    """The folder of each class that volumes are wanted of, and these. Nothing is written yet.

    Raises:
        InputError: --out names one folder for two classes, or the sampler does not suit the process.
    """
    out = str(config.out or ROOT / "synthetic_data_pkls_{label}")
    parts = {label: [one for one in wanted if one.label == label] for label in LABELS.values()}
    parts = {label: part for label, part in parts.items() if part}
    if len(parts) > 1 and "{label}" not in out:
        raise InputError(f"--out {out}: volumes of two classes need two folders; write {{label}} where the class goes")
    check_schedule(models.diffusion, config.sampler, config.steps)
    folders = []
    for label, part in parts.items():
        settings = Settings(
            label, models.vae.hash, models.diffusion.hash, config.weights, config.sampler, config.steps,
            config.guidance, config.guidance_interval,
        )  # fmt: skip
        folders.append((SyntheticFolder(Path(out.replace("{label}", CLASS_NAMES[label])), settings), part))
    return folders


def make(folder: SyntheticFolder, wanted: list[Wanted], models: Models, config: SaveSynthConfig) -> None:
    """Makes what is missing of one class, this process's share; the main process then closes the books."""
    missing, label = folder.missing(wanted), CLASS_NAMES[folder.settings.label]
    started = time.perf_counter()
    generate(folder, missing, models, config)
    export(folder, distributed.shard(wanted), models, config)
    distributed.barrier()
    if distributed.is_main():
        folder.merge()
        draw_sheet(folder, wanted[:6])
        seconds = time.perf_counter() - started
        rate = f", {len(missing) / seconds:.2f} volumes/s" if missing else ""
        print(f"{len(missing)} new of {len(wanted)} {label} volumes in {folder.path}{rate}")


def generate(folder: SyntheticFolder, missing: list[Wanted], models: Models, config: SaveSynthConfig) -> None:
    """Samples, decodes and writes this process's share, one batch in memory at a time."""
    share = distributed.shard(missing)
    size = 1 if models.device.kind.type == "cpu" else models.device.inference_batch(config.batch_size)
    label = CLASS_NAMES[folder.settings.label]
    with tqdm(total=len(missing), desc=f"{label} volumes", unit="volume", disable=not distributed.is_main()) as bar:
        for start in range(0, len(share), size):
            batch, began = share[start : start + size], time.perf_counter()
            images = synthesise(batch, size, models, folder.settings)
            seconds = (time.perf_counter() - began) / len(batch)
            for image, one in zip(images, batch, strict=True):
                folder.add(as_volume(image, one, folder.settings, models.vae), one, seconds)
            # All processes have equal shares: what this one has done, the others have too, more or less.
            bar.update(min(len(batch) * distributed.world_size(), len(missing) - bar.n))


def as_volume(image: np.ndarray, wanted: Wanted, settings: Settings, vae: LoadedVAE) -> Volume:
    """One image with its origin.

    Raises:
        InputError: values that are not finite.
    """
    if not np.isfinite(image).all():
        raise InputError(f"seed {wanted.seed} gave values that are not finite; it was not written")
    return Volume(
        image=image, label=wanted.label, seed=wanted.seed, affine=vae.grid.affine, vae=settings.vae,
        diffusion=settings.diffusion, sampler=settings.sampler, steps=settings.steps, guidance=settings.guidance,
    )  # fmt: skip


def export(folder: SyntheticFolder, wanted: list[Wanted], models: Models, config: SaveSynthConfig) -> None:
    """Writes the NIfTI and BIDS files that are asked for and not there yet, from the volumes in the folder."""
    grid = models.vae.grid
    for one in tqdm(wanted, desc="exporting", unit="volume", delay=2, disable=not distributed.is_main()):
        path = folder.path / volume_name(one.label, one.seed)
        nifti = path.with_suffix(".nii.gz")
        if config.nifti and not nifti.exists():
            write_nifti(nifti, read_volume(path).image, grid.affine)
        if config.bids is not None and not bids_derivative.sidecar_path(config.bids, one).exists():
            bids_derivative.add(config.bids, read_volume(path), one, folder.settings, grid)


def draw_sheet(folder: SyntheticFolder, wanted: list[Wanted]) -> None:
    """contact_sheet.png: the first volumes, three planes each, three to a row."""
    names = [volume_name(one.label, one.seed) for one in wanted]
    images = [read_volume(folder.path / name).image for name in names]
    rows = [(f"seed {wanted[k].seed} ...", images[k : k + 3]) for k in range(0, len(images), 3)]
    gallery(folder.path / "contact_sheet.png", rows, title=f"synthetic {CLASS_NAMES[folder.settings.label]}")


if __name__ == "__main__":
    run_script(main, SaveSynthConfig, description=describe(__doc__))
