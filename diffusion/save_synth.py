"""Generates synthetic volumes of one class: two checkpoints in, one volume pickle per seed out.

    python -m diffusion.save_synth --vae runs/demo/vae/checkpoints/best.pt \\
        --diffusion runs/demo/diffusion/checkpoints/best.pt --label TLE --count 100 --out synthetic_data_pkls_TLE

Volume k comes from seed k alone: it is the same whatever the batch size, the number of processes, or what was made
before. Existing volumes are kept, so the same command continues a stopped one. Writes <LABEL>_<seed>.pkl, manifest.csv
(one row per volume), ledger.json (hashes of the subjects behind the checkpoints), contact_sheet.png, and with --nifti
.nii.gz files that overlay the template in any viewer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from cohort.pictures import gallery
from cohort.tables import LABELS
from cohort.volumes import Volume, list_volumes, read_volume, volume_name, write_nifti, write_volume
from diffusion.checkpoint import LoadedDiffusion, load_diffusion
from diffusion.sampler import SAMPLERS, guided, spaced
from runtime import distributed, seeding
from runtime.cli import describe, run_script
from runtime.device import Device, Precision, pick_device
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write, write_json
from VAE.checkpoint import LoadedVAE, load_vae

MANIFEST = ["file", "label", "seed", "sampler", "steps", "guidance", "vae", "diffusion"]


@dataclass(frozen=True)
class SaveSynthConfig:
    """What to generate, with what, and where to."""

    vae: Path
    """The VAE checkpoint that the diffusion model's latents came from."""
    diffusion: Path
    """A diffusion checkpoint."""
    label: Literal["HC", "TLE"] = "HC"
    """Class of all volumes."""
    count: int = 100
    """Number of volumes: seeds first_seed ... first_seed + count - 1."""
    out: Path | None = None
    """Folder for the volumes; by default synthetic_data_pkls_<label> in the repository."""
    sampler: Literal["ddpm", "ddim"] = "ddim"
    """ddpm: ancestral (noise at every step). ddim: deterministic, good from 25 steps on."""
    steps: int = 50
    """Network evaluations per volume."""
    guidance: float = 1.0
    """Classifier-free guidance; 1 is the plain conditional model, larger is more typical of the class, less diverse."""
    first_seed: int = 0
    """Seed of the first volume."""
    batch_size: int | None = None
    """Volumes generated at once; by default 1 on a CPU (there volume k has the same bytes in any run), 16 on a GPU."""
    nifti: bool = False
    """Also write each volume as .nii.gz with its true affine."""
    precision: Precision = "auto"
    """Matrix precision."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


def main(config: SaveSynthConfig) -> None:
    """Checks, generates what is missing, writes the manifest."""
    device = pick_device(config.precision, config.threads)
    vae, diffusion = load_pair(config, device)
    out = config.out or ROOT / f"synthetic_data_pkls_{config.label}"
    seeds = range(config.first_seed, config.first_seed + config.count)
    refuse_strangers(out, config, vae, diffusion)
    missing = [seed for seed in seeds if not (out / volume_name(LABELS[config.label], seed)).exists()]
    if distributed.is_main():
        ledger = sorted({*vae.ledger, *diffusion.ledger})
        write_json(out / "ledger.json", {"vae": vae.hash, "diffusion": diffusion.hash, "ledger": ledger})
    started = time.perf_counter()
    share, size = distributed.shard(missing), device.inference_batch(config.batch_size)
    with tqdm(
        total=len(share), desc=f"{config.label} volumes", unit="volume", disable=not distributed.is_main()
    ) as bar:
        for start in range(0, len(share), size):
            batch = share[start : start + size]
            write(out, generate(batch, vae, diffusion, device, config), batch, vae, diffusion, config)
            bar.update(len(batch))
    seconds = time.perf_counter() - started
    distributed.barrier()
    if distributed.is_main():
        write_manifest(out)
        draw(out, config.label, list(seeds)[:6])
        rate = f", {len(missing) / seconds:.2f} volumes/s" if missing else ""
        print(f"{len(missing)} new of {config.count} {config.label} volumes in {out}{rate}")


def load_pair(config: SaveSynthConfig, device: Device) -> tuple[LoadedVAE, LoadedDiffusion]:
    """Both checkpoints, on the device.

    Raises:
        InputError: the VAE is not the one the latents came from, or the sampler's steps exceed the schedule.
    """
    vae, diffusion = load_vae(config.vae), load_diffusion(config.diffusion)
    if diffusion.space.statistics.vae != vae.hash:
        raise InputError(
            f"--vae {config.vae} is checkpoint {vae.hash}, but {config.diffusion} was trained on latents of "
            f"{diffusion.space.statistics.vae}"
        )
    try:
        spaced(diffusion.process.timesteps, config.steps)
    except ValueError as error:
        raise InputError(f"--steps: {error}") from None
    device.module(vae.model)
    device.module(diffusion.model)
    return vae, diffusion


@torch.no_grad()
def generate(
    seeds: list[int], vae: LoadedVAE, diffusion: LoadedDiffusion, device: Device, config: SaveSynthConfig
) -> np.ndarray:
    """Volumes of the given seeds, (B, D, H, W) float32 in [0, 1]; each depends on its own seed only."""
    draws = [seeding.generator(seed, "synthetic", device=device.kind) for seed in seeds]
    shape = diffusion.model.latent_shape

    def draw() -> torch.Tensor:
        return torch.stack([torch.randn(shape, generator=one, device=device.kind) for one in draws])

    y = torch.full((len(seeds),), LABELS[config.label], device=device.kind)
    with device.autocast():
        denoise = guided(diffusion.model, diffusion.process, diffusion.model.null_class, config.guidance)
        z = SAMPLERS[config.sampler](denoise, draw(), y, diffusion.process, config.steps, draw)
        x = vae.model.decode(device.tensor(diffusion.space.leave(z)))
    return x.clamp(0.0, 1.0)[:, 0].float().cpu().numpy()


def write(
    out: Path,
    volumes: np.ndarray,
    seeds: list[int],
    vae: LoadedVAE,
    diffusion: LoadedDiffusion,
    config: SaveSynthConfig,
) -> None:
    """Writes one file per volume, atomically."""
    label = LABELS[config.label]
    for image, seed in zip(volumes, seeds, strict=True):
        volume = Volume(
            image=image, label=label, seed=seed, affine=vae.grid.affine, vae=vae.hash, diffusion=diffusion.hash,
            sampler=config.sampler, steps=config.steps, guidance=config.guidance,
        )  # fmt: skip
        if not np.isfinite(image).all():
            raise InputError(
                f"{config.diffusion}: seed {seed} gave values that are not finite; nothing was written for it"
            )
        if config.nifti:
            write_nifti(out / volume_name(label, seed).replace(".pkl", ".nii.gz"), image, vae.grid.affine)
        write_volume(out / volume_name(label, seed), volume)


def refuse_strangers(out: Path, config: SaveSynthConfig, vae: LoadedVAE, diffusion: LoadedDiffusion) -> None:
    """Volumes of other checkpoints, settings or class in one folder would be evaluated as one set.

    Raises:
        InputError: names the files and what differs.
    """
    mine = {
        "label": LABELS[config.label], "vae": vae.hash, "diffusion": diffusion.hash, "sampler": config.sampler,
        "steps": config.steps, "guidance": config.guidance,
    }  # fmt: skip
    problems = []
    for path in list_volumes(out) if out.exists() else []:
        volume = read_volume(path)
        theirs = {name: getattr(volume, name) for name in mine}
        differing = [f"{name} {theirs[name]}, not {value}" for name, value in mine.items() if theirs[name] != value]
        if differing:
            problems.append(f"{path.name}: {'; '.join(differing)}")
    if problems:
        raise InputError.of(f"{out}: holds volumes of other checkpoints or settings; choose another --out", problems)


def write_manifest(out: Path) -> None:
    """manifest.csv: one row per volume in the folder, read from the volumes themselves."""
    rows = []
    for path in list_volumes(out):
        volume = read_volume(path)
        rows.append({"file": path.name, **{name: getattr(volume, name) for name in MANIFEST[1:]}})
    with atomic_write(out / "manifest.csv") as temporary:
        pd.DataFrame(rows, columns=MANIFEST).to_csv(temporary, index=False)


def draw(out: Path, label: str, seeds: list[int]) -> None:
    """The first volumes, three planes each."""
    volumes = [read_volume(out / volume_name(LABELS[label], seed)).image for seed in seeds]
    rows = [(f"seeds {seeds[k]} ...", volumes[k : k + 3]) for k in range(0, len(volumes), 3)]
    gallery(
        out / "contact_sheet.png", [row for row in rows if len(row[1]) == len(rows[0][1])], title=f"synthetic {label}"
    )


if __name__ == "__main__":
    run_script(main, SaveSynthConfig, description=describe(__doc__))
