"""From two checkpoints and seeds to volumes: a batch of latents is sampled, decoded and written.

Volume k comes from seed k alone. A CPU always samples as many latents at once and seed k is always at the same place
among them, so that volume k has the same bytes whatever else is made.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, repeat, zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from cohort.labelling.reading import Reader
from cohort.tables import CLASS_NAMES
from cohort.volumes import Volume
from diffusion.checkpoint import LoadedDiffusion
from diffusion.config import SIDE_CODES
from diffusion.covariates import standardise
from diffusion.generation.refusal import Refusal
from diffusion.model import DiT
from diffusion.sampler import SAMPLERS, Guide, guided
from diffusion.synthetic_folder import Settings, SyntheticFolder, Wanted
from runtime import distributed, memory, seeding
from runtime.device import Device, in_batches
from runtime.errors import InputError
from VAE.checkpoint import LoadedVAE

WRITERS = 8
"""Threads that write a batch's volumes. One after the other they took 100 ms a volume of the paper grid, on a busy
disk, and 25 ms by eight: a GPU is to make one in less."""
CPU_BATCH = 8
"""Latents of a network with a linear start that a CPU samples at once: reading the axes of that start takes longer than
all else, and is done once for all. Of others, one: nothing is shared but time and memory."""
Batch = list[Wanted | None]
"""What is made at once, by place; None where a place stays empty."""


class Models(NamedTuple):
    """Both checkpoints on their device."""

    vae: LoadedVAE
    diffusion: LoadedDiffusion
    device: Device
    refusal: Refusal | None = None
    reader: Reader | None = None
    """The network that labels regions, where labels are wanted."""
    tile: int = 0
    """Of `LoadedVAE.decode`."""
    guide: LoadedDiffusion | None = None
    """The worse model of --guide-by."""


def generate(folder: SyntheticFolder, missing: list[Wanted], models: Models, asked: int | None) -> None:
    """Samples, decodes and writes this process's share, one batch in memory at a time; of `asked` volumes on a GPU."""
    settings, on_cpu = folder.settings, models.device.kind.type == "cpu"
    each = 0 if on_cpu else volume_bytes(models, settings, 1)
    size = cpu_batch(models) if on_cpu else models.device.inference_batch(asked, each)
    if distributed.is_main() and missing:
        found = memory.forecast(volume_bytes(models, settings, size), models.device, "convolutions")
        print(found.text(f"{size} volumes at once" if size > 1 else "a volume", models.device.kind))
    desc = f"{CLASS_NAMES[settings.label]} volumes"
    with (
        tqdm(total=len(missing), desc=desc, unit="volume", disable=not distributed.is_main()) as bar,
        ThreadPoolExecutor(WRITERS) as pool,
    ):
        began = time.perf_counter()
        share = in_places(distributed.run_of(missing), size)
        for places, (images, refused) in in_batches(share, size, lambda batch, _: synthesise(batch, models, settings)):
            batch = [item for item in places if item is not None]
            seconds = (time.perf_counter() - began) / max(len(batch), 1)
            volumes = [finished(image, item, models, settings) for image, item in zip(images, batch, strict=True)]
            list(pool.map(folder.add, volumes, batch, repeat(seconds), refused))
            # All processes have equal shares: what this one has done, the others have too, more or less.
            bar.update(min(len(batch) * distributed.world_size(), len(missing) - bar.n))
            began = time.perf_counter()


def cpu_batch(models: Models) -> int:
    """How many latents a CPU samples at once: never another number, since its kernels round differently by that."""
    return CPU_BATCH if models.diffusion.model.start is not None else 1


def in_places(wanted: list[Wanted], size: int) -> Batch:
    """The wanted ones for batches of `size`, one after the other: a seed has always the same place in its batch, since
    kernels may round differently by that, too; None holds the places that nobody takes.
    """
    queues: list[list[Wanted]] = [[] for _ in range(size)]
    for item in wanted:
        queues[item.seed % size].append(item)
    return list(chain.from_iterable(zip_longest(*queues)))


def finished(image: np.ndarray, item: Wanted, models: Models, settings: Settings) -> Volume:
    """A volume as it is written; InputError where it is none."""
    if not np.isfinite(image).all():
        raise InputError(f"seed {item.seed} gave values that are not finite; it was not written")
    return Volume(
        image=image, label=item.label, seed=item.seed, affine=models.vae.grid.affine, vae=settings.vae,
        diffusion=settings.diffusion, sampler=settings.sampler, steps=settings.steps, guidance=settings.guidance,
        side=item.side,
    )  # fmt: skip


def volume_bytes(models: Models, settings: Settings, count: int) -> int:
    """What sampling so many volumes at once, and decoding them, takes besides the weights."""
    halves = 1 if settings.guidance == 1 or settings.guide else 2

    def work(networks: tuple[DiT, nn.Module]) -> None:
        dit, vae = networks
        z, y = memory.zeros(dit, halves * count, *dit.latent_shape), memory.zeros(dit, halves * count)
        with models.device.autocast():
            DiT.forward(dit, z, models.diffusion.process.spread_times(y), y.long())  # not what is compiled of it
            decode(z, [*range(count)], models._replace(vae=replace(models.vae, model=vae)))

    return memory.inference_bytes(work, (models.diffusion.model, models.vae.model))


@torch.no_grad()
def synthesise(batch: Batch, models: Models, settings: Settings) -> tuple[np.ndarray, list[int]]:
    """Makes a batch of volumes, each from its own seed: (N, D, H, W) float32 in [0, 1], one for each of the N places
    that are taken; and how many samples of each were refused before.
    """
    places = [place for place, item in enumerate(batch) if item is not None]
    if not places:
        return np.empty(0), []
    with models.device.autocast():
        z, refused = accepted(batch, models, settings)
        x = decode(models.diffusion.space.leave(z), places, models)
    return x[:, 0].float().cpu().numpy(), [refused[place] for place in places]


def decode(z: torch.Tensor, places: list[int], models: Models) -> torch.Tensor:
    """Volumes (N, 1, D, H, W) of some of a batch of latents; on a CPU one by one: as fast, in the memory of one."""
    if models.device.kind.type == "cpu":
        one_by_one = (models.vae.decode(models.device.tensor(z[place : place + 1]), models.tile) for place in places)
        return torch.cat(list(one_by_one))
    return models.vae.decode(models.device.tensor(z), models.tile)[places]


def accepted(batch: Batch, models: Models, settings: Settings) -> tuple[torch.Tensor, list[int]]:
    """`sample`, again for those that are refused; and how often that was, by place."""
    if models.refusal is None:
        return sample(batch, models, settings), [0] * len(batch)

    def draw(places: list[int], again: int) -> torch.Tensor:
        return sample([item if k in places else None for k, item in enumerate(batch)], models, settings, again)

    return models.refusal.accepted(draw, [None if item is None else item.seed for item in batch])


def sample(batch: Batch, models: Models, settings: Settings, draw: int = 0) -> torch.Tensor:
    """Latents in the network's space, (B, C, D, H, W), by the given draw of each seed.

    Places that nobody takes get somebody else's, so that the network always sees one shape.
    """
    diffusion, device = models.diffusion, models.device
    anybody = next(item for item in batch if item is not None)
    filled = [item or anybody for item in batch]
    purpose = ("synthetic", draw) if draw else ("synthetic",)
    generators = [seeding.generator(item.seed, *purpose, device=device.kind) for item in filled]
    shape = diffusion.model.latent_shape

    def noise() -> torch.Tensor:
        return torch.stack([torch.randn(shape, generator=own, device=device.kind) for own in generators])

    y = torch.tensor([item.label for item in filled], device=device.kind)
    side = torch.tensor([SIDE_CODES[item.side] for item in filled], device=device.kind)
    guide = models.guide and Guide(models.guide.model, models.guide.process)
    how = {"guidance": settings.guidance, "interval": settings.guidance_interval, "side": side, "guide": guide}
    if diffusion.covariates:
        values = torch.tensor([[item.value(name) for name in diffusion.covariates] for item in filled])
        how["covariates"] = standardise(values, diffusion.covariates).to(device.kind)
    denoise = guided(diffusion.model, diffusion.process, y, **how)
    return SAMPLERS[settings.sampler](denoise, noise(), diffusion.process, settings.steps, noise)
