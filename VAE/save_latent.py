"""Encodes the scans of one or more tables into latent pickles, and computes the training split's statistics.

    python -m VAE.save_latent --checkpoint runs/demo/vae/checkpoints/best.pt \\
        --csv data_csvs/train.csv data_csvs/val.csv --out latents/demo

Each table becomes a split, a subfolder with the table's name; the first one is the training split. Existing latents of
the same checkpoint are kept, those of another are refused. Under torchrun the scans are shared among the processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from cohort.ledger import ledger_of
from cohort.scans import load_scans
from cohort.tables import read_table
from runtime import distributed
from runtime.cli import describe, run_script
from runtime.device import Device, Precision, pick_device
from runtime.errors import InputError
from runtime.files import ROOT
from VAE.checkpoint import LoadedVAE, load_vae
from VAE.dataset import Volumes
from VAE.latents import (
    Latent,
    compute_statistics,
    list_latents,
    read_latent,
    read_split,
    write_latent,
    write_statistics,
)


@dataclass(frozen=True)
class SaveLatentConfig:
    """What to encode, with what, and where to."""

    checkpoint: Path
    """A VAE checkpoint."""
    csv: tuple[Path, ...] = (ROOT / "data_csvs/train.csv", ROOT / "data_csvs/val.csv")
    """Tables of scans; the first is the training split, whose statistics are written."""
    out: Path = ROOT / "latents"
    """Folder for statistics.json and one subfolder per table."""
    batch_size: int | None = None
    """Scans encoded at once; by default 1 on a CPU (same bytes whatever is missing), 16 on a GPU."""
    precision: Precision = "auto"
    """Matrix precision."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    cache_dir: Path | None = None
    """Folder of decoded scans; by default data/cache in the repository."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


def main(config: SaveLatentConfig) -> None:
    """Encodes every table, then writes the statistics."""
    device = pick_device(config.precision, config.threads)
    vae = load_vae(config.checkpoint)
    splits = [path.stem for path in config.csv]
    if len(set(splits)) < len(splits):
        raise InputError(f"--csv: two tables have one name: {splits}; each names its split's folder")
    frames = [read_table(path) for path in config.csv]
    for path, split, frame in zip(config.csv, splits, frames, strict=True):
        volumes = Volumes(load_scans(frame, vae.grid, cache_dir=config.cache_dir), device)
        made = encode(volumes, vae, device, config.out / split, device.inference_batch(config.batch_size))
        if distributed.is_main():
            refuse_strangers(config.out / split, volumes)
            print(f"{path}: {made} encoded by this process, {len(volumes)} latents in {config.out / split}")
    distributed.barrier()
    if distributed.is_main():
        ledger = sorted({*vae.ledger, *ledger_of(frames[0])})
        statistics = compute_statistics(read_split(config.out, splits[0]), split=splits[0], ledger=ledger)
        write_statistics(config.out, statistics)
        print(f"statistics of {statistics.count} training latents in {config.out / 'statistics.json'}")


@torch.no_grad()
def encode(volumes: Volumes, vae: LoadedVAE, device: Device, folder: Path, batch_size: int) -> int:
    """Writes the latents that are not there yet, this process's share; returns how many.

    Raises:
        InputError: a latent of another VAE is in the folder.
    """
    model = device.module(vae.model)
    names = latent_names(volumes)
    share = [row for row in distributed.shard(range(len(volumes))) if not _present(folder / names[row], vae.hash)]
    bar = tqdm(total=len(share), desc=f"encoding {folder.name}", unit="scan", disable=not distributed.is_main())
    for start in range(0, len(share), batch_size):
        rows = share[start : start + batch_size]
        with device.autocast():
            mu, logvar = model.encode(volumes.batch(torch.tensor(rows)))
        for place, row in enumerate(rows):
            entry = volumes.frame.iloc[row]
            latent = Latent(
                mu=mu[place].cpu().numpy(), logvar=logvar[place].cpu().numpy(),
                label=int(entry.label), subject=str(entry.subject), vae=vae.hash, grid=vae.grid.to_dict(),
            )  # fmt: skip
            write_latent(folder / names[row], latent)
        bar.update(len(rows))
    bar.close()
    return len(share)


def latent_names(volumes: Volumes) -> list[str]:
    """File name of each scan's latent: subject, and session where there is one."""
    return [
        f"{entry.subject}_{entry.session}.pkl" if entry.session else f"{entry.subject}.pkl"
        for entry in volumes.frame.itertuples()
    ]


def _present(path: Path, vae_hash: str) -> bool:
    if not path.exists():
        return False
    made_by = read_latent(path).vae
    if made_by != vae_hash:
        raise InputError(f"{path}: made by VAE {made_by}, this one is {vae_hash}; give another --out")
    return True


def refuse_strangers(folder: Path, volumes: Volumes) -> None:
    """Latents of subjects that are not in the table would silently join the training set.

    Raises:
        InputError: names the files.
    """
    strangers = sorted({path.name for path in list_latents(folder)} - set(latent_names(volumes)))
    if strangers:
        raise InputError.of(f"{folder}: latents of scans that are not in the table", strangers)


if __name__ == "__main__":
    run_script(main, SaveLatentConfig, description=describe(__doc__))
