"""Reconstructs the scans of a table with a trained VAE and measures how close it comes, and where it does not.

    python -m VAE.infer --checkpoint runs/demo/vae/checkpoints/best.pt --csv data/demo/test.csv --out runs/demo/infer

Writes metrics.csv (one row per scan), regions.csv (one per scan and atlas region) with regions.png, summary.json (mean,
standard deviation and N of each measure; the worst regions; the health of each latent channel), worst_and_best.png, and
with --nifti each reconstruction and the scan as the network saw it. With --tile it works piece by piece, for volumes
that do not fit in memory as a whole. Under torchrun the scans are shared among the processes.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from cohort.atlas import LICENCE_NOTE, Atlas, atlas
from cohort.ledger import refuse_overlap
from cohort.stacks import Volumes, load_scans
from cohort.tables import read_table, write_csv
from cohort.volumes import write_nifti
from runtime import distributed, memory
from runtime.checkpoints import git_commit
from runtime.cli import describe, run_script
from runtime.config import DeviceConfig
from runtime.device import Device, pick_device
from runtime.files import ROOT, write_json
from VAE import metrics
from VAE.checkpoint import LoadedVAE, load_vae
from VAE.latents import stem
from VAE.model import Autoencoder


@dataclass(frozen=True)
class InferConfig(DeviceConfig):
    """What to reconstruct, with what, and where to."""

    checkpoint: Path
    """A VAE checkpoint (best.pt or last.pt of a run)."""
    csv: Path = ROOT / "data_csvs/test.csv"
    """Table of scans."""
    out: Path = ROOT / "runs/infer"
    """Folder for the results."""
    tile: int = 0
    """Voxels of the slabs to encode and decode in, an even multiple of the model's reduction: less memory, and the same
    result to rounding. 0: whole volumes."""
    nifti: bool = False
    """Also write <subject>_reconstruction.nii.gz and <subject>_scan.nii.gz, the scan as the network sees it (resampled,
    normalised). Both are on the model's grid, with its affine in world millimetres: in a viewer they overlay each other
    and the original scan, whose own voxels they do not have."""
    allow_leak: bool = False
    """Measure also subjects that the VAE was trained on; the summary then says so."""
    cache_dir: Path | None = None
    """Folder of decoded scans; by default data/cache in the repository."""


@dataclass
class Case:
    """What is kept of a scan."""

    measures: dict
    """Who it is, and `reconstruction_metrics`."""
    posterior: torch.Tensor
    """`posterior_sums`."""
    errors: pd.DataFrame
    """`region_errors`."""
    pair: tuple[np.ndarray, np.ndarray] | None
    """Reconstruction and scan (D, H, W), while it is one of the two worst or the two best."""


def main(config: InferConfig) -> None:
    """Loads, reconstructs, measures, writes."""
    device = pick_device(config.precision, config.threads)
    vae = load_vae(config.checkpoint)
    vae.refuse_tile(config.tile)
    frame = read_table(config.csv)
    what = f"{config.csv} with {config.checkpoint}"
    leak = refuse_overlap(frame, vae.ledger, what=what, allow_leak=config.allow_leak)
    volumes, labels = Volumes(load_scans(frame, vae.grid, cache_dir=config.cache_dir), device), atlas(vae.grid)
    cases = [case for part in distributed.gather(reconstruct(volumes, vae, labels, device, config)) for case in part]
    if not distributed.dismiss():
        return
    table = pd.DataFrame([case.measures for case in cases]).sort_values(["subject", "session"], kind="stable")
    write_csv(config.out / "metrics.csv", table)
    numbers = table.select_dtypes("number").drop(columns="label")
    positions = np.prod(vae.model.latent_shape(vae.grid.shape)[1:])
    summary = {
        "scans": len(table), "csv": str(config.csv), "vae": vae.hash, "vae_step": vae.step, "commit": git_commit(),
        "subjects_seen_in_training": leak, "tile": config.tile,
        "mean": numbers.mean().to_dict(), "std": numbers.std(ddof=0).to_dict(),
        "posterior": metrics.posterior_report([case.posterior for case in cases], int(positions)),
        "regions": write_regions(cases, labels, config.out),
    }  # fmt: skip
    write_json(config.out / "summary.json", summary)
    shown = extremes(cases)
    names = ", ".join(f"{case.measures['subject']} {case.measures['psnr_head']:.1f} dB" for case in shown)
    metrics.draw_pairs(config.out / "worst_and_best.png", [case.pair for case in shown], f"worst to best: {names}")
    tell(summary, config.out)


@torch.no_grad()
def reconstruct(volumes: Volumes, vae: LoadedVAE, labels: Atlas, device: Device, config: InferConfig) -> list[Case]:
    """Encodes, decodes and measures this process's share of the scans."""
    model, cases = device.module(vae.model), []
    if device.compiles(config.compile):
        model.compile_parts()
    share = distributed.shard(range(len(volumes)))
    free = memory.free_bytes(device.kind)
    found = memory.forecast(reconstruction_bytes(vae, config.tile, device), device, "convolutions")
    if distributed.is_main():
        print(found.text("a scan", device.kind))
    for row in tqdm(share, desc="reconstructing", unit="scan", disable=not distributed.is_main()):
        entry, x = volumes.frame.iloc[row], volumes.batch(torch.tensor([row]))
        with memory.explained(partial(memory_advice, vae, config.tile, device, free)), device.autocast():
            mu, logvar = vae.encode(x, config.tile)
            x_hat = vae.decode(mu, config.tile)
        x, x_hat = (volume[0, 0].float() for volume in (x, x_hat))
        who = {"subject": entry.subject, "session": entry.session, "label": int(entry.label)}
        measures = {**who, **metrics.reconstruction_metrics(x_hat, x)}
        x, x_hat = (volume.cpu().numpy() for volume in (x, x_hat))
        errors = metrics.region_errors(x_hat, x, labels)
        cases.append(Case(measures, metrics.posterior_sums(mu, logvar), errors.assign(**who), (x_hat, x)))
        extremes(cases)
        if config.nifti:
            for name, image in (("reconstruction", x_hat), ("scan", x)):
                write_nifti(config.out / f"{stem(entry)}_{name}.nii.gz", image, vae.grid.affine)
    return cases


def memory_advice(vae: LoadedVAE, tile: int, device: Device, free: int) -> str:
    """What to do when one scan runs out of memory, of which so much was `free` before the first."""
    least = 2 * vae.model.factor
    edges = [least * 2**k for k in range(10) if least * 2**k < (tile or max(vae.grid.shape))]
    needs = {
        edge: memory.forecast(reconstruction_bytes(vae, edge, device), device, "convolutions").work for edge in edges
    }
    fitting = [edge for edge, need in needs.items() if need < free]
    what = f"out of memory at {f'slabs of {tile} voxels' if tile else 'a single scan'}"
    hint = f"--tile {fitting[-1]} works piece by piece" if fitting else "smaller slabs do not fit either"
    return f"{what}; {memory.size_text(free)} were free: {hint}"


def reconstruction_bytes(vae: LoadedVAE, tile: int, device: Device) -> int:
    """What a volume's way to the latent and back takes besides the weights."""

    def work(model: Autoencoder) -> None:
        own = replace(vae, model=model)
        with device.autocast():
            own.decode(own.encode(device.tensor(memory.zeros(model, 1, 1, *vae.grid.shape)), tile)[0], tile)

    return memory.inference_bytes(work, vae.model)


def extremes(cases: list[Case]) -> list[Case]:
    """The two worst and the two best by PSNR inside the head; lets go of the volumes of all others."""
    held = sorted((case for case in cases if case.pair), key=lambda case: case.measures["psnr_head"])
    for case in held[2:-2]:
        case.pair = None
    return [case for case in held if case.pair]


def write_regions(cases: list[Case], labels: Atlas, out: Path) -> dict:
    """Writes regions.csv and regions.png; returns the summary's part."""
    who = ["subject", "session", "label"]
    errors = pd.concat([case.errors for case in cases], ignore_index=True).sort_values(who[:2], kind="stable")
    write_csv(out / "regions.csv", errors[[*who, "region", "voxels", "mae", "bias", "nmse"]])
    table = metrics.summarise_regions(errors)
    if len(table):
        metrics.draw_regions(out / "regions.png", table)
    return metrics.region_report(table, labels)


def tell(summary: dict, out: Path) -> None:
    """The main numbers on the terminal."""
    mean, dead = summary["mean"], summary["posterior"]["dead"]
    print(f"{summary['scans']} scans: PSNR {mean['psnr_head']:.2f} dB, SSIM {mean['ssim_head']:.3f}, "
          f"NMSE {mean['nmse_head']:.4f} inside the head; {out / 'metrics.csv'}")  # fmt: skip
    if dead:
        print(f"warning: of {len(summary['posterior']['channels'])} latent channels these carry next to nothing but "
              f"noise: {', '.join(map(str, dead))} (counted from 0; see posterior in summary.json)")  # fmt: skip
    worst = ", ".join(f"{row['region']} {row['mae']:.3f}" for row in summary["regions"]["worst"][:5])
    print(f"largest mean absolute error by region: {worst}; {out / 'regions.csv'}\n{LICENCE_NOTE}")


if __name__ == "__main__":
    run_script(main, InferConfig, description=describe(__doc__))
