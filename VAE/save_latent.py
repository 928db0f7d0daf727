"""Encodes the scans of one or more tables into latent pickles, and computes the training split's statistics.

    python -m VAE.save_latent --checkpoint runs/demo/vae/checkpoints/best.pt \\
        --csv data/demo/train.csv data/demo/val.csv --out runs/demo/latents

Each table becomes a split, a subfolder with the table's name; the first one is the training split, and the statistics
are of it alone. A latent has its scan's class and side. Existing latents of the same checkpoint are kept, those of
another are refused. SHA256SUMS in each subfolder lists the files' checksums (`sha256sum --check SHA256SUMS`).
--mirrored adds the mirror image of each training scan as <subject>_mirrored.pkl, and --augmented-copies random variants
as <subject>_variant1.pkl and so on. Under torchrun the scans are shared among the processes.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from cohort.ledger import ledger_of
from cohort.stacks import Volumes, load_scans
from cohort.tables import read_table
from runtime import distributed, memory, seeding
from runtime.cli import describe, run_script
from runtime.config import DeviceConfig
from runtime.device import Device, in_batches, pick_device
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write, sha256
from VAE import latents
from VAE.checkpoint import LoadedVAE, load_vae
from VAE.config import AugmentConfig
from VAE.dataset import augment
from VAE.model import Autoencoder

MIRRORED = -1
"""The variant of a scan that is its mirror image."""
OTHER_SIDE = {"L": "R", "R": "L", "": ""}

Item = tuple[int, int, str]
"""One latent to make: the table's row, which variant of it (0: the scan itself), and the file's name."""


@dataclass(frozen=True)
class SaveLatentConfig(DeviceConfig):
    """What to encode, with what, and where to."""

    checkpoint: Path
    """A VAE checkpoint."""
    csv: tuple[Path, ...] = (ROOT / "data_csvs/train.csv", ROOT / "data_csvs/val.csv")
    """Tables of scans; the first is the training split, whose statistics are written."""
    out: Path = ROOT / "latents"
    """Folder for statistics.json and one subfolder per table."""
    statistics_of: Path | None = None
    """Encode nothing: only write statistics.json for the latents of another program in the subfolder train of this
    folder. They are taken to be of --checkpoint, whose latents must have their shape."""
    mirrored: bool = False
    """Encode each training scan also as its mirror image, a TLE's with the other side: twice the latents, in which left
    and right are alike. What healthy brains have of asymmetry is lost."""
    augmented_copies: int = 0
    """Random variants of each training scan to encode besides the scan itself; a small cohort's latents go further."""
    augment: AugmentConfig = AugmentConfig(rotate_degrees=5, scale=0.03, shift_voxels=1, gamma=0.1, bias=0.1)
    """How the variants differ; only used with --augmented-copies."""
    seed: int = 0
    """Seed of the variants."""
    tile: int = 0
    """Voxels of the slabs to encode in, an even multiple of the model's reduction: less memory, and the same result to
    rounding. 0: whole volumes."""
    batch_size: int | None = None
    """Scans encoded at once; by default 1 on a CPU (same bytes whatever is missing), on a GPU what its free memory
    holds, at most 16."""
    cache_dir: Path | None = None
    """Folder of decoded scans; by default data/cache in the repository."""


def main(config: SaveLatentConfig) -> None:
    """Encodes every table, then writes the statistics."""
    device = pick_device(config.precision, config.threads)
    vae = load_vae(config.checkpoint)
    if config.statistics_of is not None:
        describe_latents(config.statistics_of, vae)
        return
    splits = [path.stem for path in config.csv]
    if len(set(splits)) < len(splits):
        raise InputError(f"--csv: two tables have one name: {splits}; each names its split's folder")
    frames = [read_table(path) for path in config.csv]
    for path, split, frame in zip(config.csv, splits, frames, strict=True):
        volumes = Volumes(load_scans(frame, vae.grid, cache_dir=config.cache_dir), device)
        trained_on = split == splits[0]
        copies = config.augmented_copies if trained_on else 0
        items = list_items(volumes.frame, copies=copies, mirrored=config.mirrored and trained_on)
        refuse_others(config.out / split, items)
        distributed.barrier()
        made = encode(volumes, items, vae, device, config.out / split, config)
        print(f"{path}: {made} encoded by this process; {len(items)} latents in {config.out / split}")
    distributed.barrier()
    if distributed.dismiss():
        for folder in (config.out / split for split in splits):
            with atomic_write(folder / "SHA256SUMS") as temporary:
                temporary.write_text("".join(f"{sha256(path)}  {path.name}\n" for path in latents.list_latents(folder)))
        ledgers = [sorted({*vae.ledger, *ledger_of(frame)}) for frame in frames]
        for split, ledger in zip(splits, ledgers, strict=True):
            latents.write_ledger(config.out, split, ledger)
        train = latents.read_split(config.out, splits[0])
        statistics = latents.compute_statistics(train, split=splits[0], ledger=ledgers[0])
        latents.write_statistics(config.out, statistics)
        print(f"statistics of {statistics.count} training latents in {config.out / 'statistics.json'}")


def describe_latents(folder: Path, vae: LoadedVAE) -> None:
    """Writes statistics.json for latents of other programs, which do not say what they are of."""
    records = latents.read_split(folder, "train")
    shape = vae.model.latent_shape(vae.grid.shape)
    if records[0].mu.shape != shape or records[0].vae not in ("", vae.hash):
        raise InputError(
            f"{folder}: latents {records[0].mu.shape} of VAE {records[0].vae or 'unknown'}; those of --checkpoint are "
            f"{shape}, of {vae.hash}"
        )
    ledger = latents.read_ledger(folder, "train", {record.subject for record in records})
    found = latents.compute_statistics(records, split="train", ledger=sorted({*vae.ledger, *ledger}))
    latents.write_statistics(folder, replace(found, vae=vae.hash, grid=vae.grid.to_dict()))
    print(f"statistics of {found.count} training latents in {folder / 'statistics.json'}")


def list_items(frame: pd.DataFrame, copies: int, *, mirrored: bool = False) -> list[Item]:
    """All latents of a table, named by subject, and session where there is one: each scan, its mirror image where
    asked, and `copies` variants.
    """
    names = {0: "", **({MIRRORED: latents.MIRRORED} if mirrored else {})}
    names |= {variant: f"_variant{variant}" for variant in range(1, copies + 1)}
    return [
        (row, variant, f"{latents.stem(entry)}{ending}.pkl")
        for row, entry in enumerate(frame.itertuples())
        for variant, ending in names.items()
    ]


@torch.no_grad()
def encode(
    volumes: Volumes, items: list[Item], vae: LoadedVAE, device: Device, folder: Path, config: SaveLatentConfig
) -> int:
    """Writes this process's share of the latents that are not there yet; returns how many. Refuses another VAE's."""
    model = device.module(vae.model)
    if device.compiles(config.compile):
        model.compile_parts()
    vae.refuse_tile(config.tile)
    size = device.inference_batch(config.batch_size, encoding_bytes(vae, device, 1, config.tile))
    found = memory.forecast(encoding_bytes(vae, device, size, config.tile), device, "convolutions")
    if distributed.is_main():
        print(found.text(f"encoding {size} at once", device.kind))
    sides = {name: side_of(volumes.frame["side"].iloc[row], variant, config) for row, variant, name in items}
    share = [item for item in distributed.shard(items) if not _present(folder / item[2], vae.hash, sides[item[2]])]

    def posterior(batch: list[Item], size: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = [volume(volumes, item, config) for item in batch]
        with device.autocast():
            filled = torch.cat(x + x[-1:] * (size - len(x)))  # filled up: the network sees one shape
            mu, logvar = vae.encode(filled, config.tile)
        return mu.cpu(), logvar.cpu()

    bar = tqdm(total=len(share), desc=f"encoding {folder.name}", unit="scan", disable=not distributed.is_main())
    for batch, (mu, logvar) in in_batches(share, size, posterior):
        for place, (row, variant, name) in enumerate(batch):
            entry = volumes.frame.iloc[row]
            latent = latents.Latent(
                mu=mu[place].numpy(), logvar=logvar[place].numpy(),
                label=int(entry.label), subject=str(entry.subject), vae=vae.hash, grid=vae.grid.to_dict(),
                side=sides[name], mirrored=variant == MIRRORED,
            )  # fmt: skip
            latents.write_latent(folder / name, latent)
        bar.update(len(batch))
    bar.close()
    return len(share)


def encoding_bytes(vae: LoadedVAE, device: Device, count: int, tile: int) -> int:
    """What encoding so many scans at once takes besides the weights."""

    def work(model: Autoencoder) -> None:
        with device.autocast():
            replace(vae, model=model).encode(device.tensor(memory.zeros(model, count, 1, *vae.grid.shape)), tile)

    return memory.inference_bytes(work, vae.model)


def side_of(side: str, variant: int, config: SaveLatentConfig) -> str:
    """The side of a scan or variant: the other one of a mirror image, empty where the variant may be mirrored."""
    if variant == MIRRORED:
        return OTHER_SIDE[side]
    return "" if variant and config.augment.flip else side


def volume(volumes: Volumes, item: Item, config: SaveLatentConfig) -> torch.Tensor:
    """One scan or variant (1, 1, D, H, W); a variant depends on the seed, its file name and its number only."""
    row, variant, name = item
    x = volumes.batch(torch.tensor([row]))
    if variant == MIRRORED:
        return x.flip(2)
    if variant == 0:
        return x
    return augment(x, config.augment, [seeding.generator(config.seed, f"variant of {name}", variant)])


def _present(path: Path, vae_hash: str, side: str) -> bool:
    """Whether a latent is there; one that says another side than its table, or as an older file none, is renewed."""
    if not path.exists():
        return False
    found = latents.read_latent(path)
    if found.vae != vae_hash:
        raise InputError(f"{path}: made by VAE {found.vae}, this one is {vae_hash}; give another --out")
    if found.side != side:
        latents.write_latent(path, replace(found, side=side))
    return True


def refuse_others(folder: Path, items: list[Item]) -> None:
    """Refuses latents that the table and options do not ask for: they would silently join the training set."""
    others = sorted({path.name for path in latents.list_latents(folder)} - {name for _, _, name in items})
    if others:
        raise InputError.of(f"{folder}: latents that this table and these options would not make", others)


if __name__ == "__main__":
    run_script(main, SaveLatentConfig, description=describe(__doc__))
