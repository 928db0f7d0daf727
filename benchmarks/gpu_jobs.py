"""The jobs of the table of speed targets: each at its best settings, beside a reference where there is one.

Training rows are the training scripts' own steps, with draws, optimiser and averages, on the preset `paper`; sampling
rows are `diffusion.save_synth`'s batches, decoded, on the host. The floating-point operations are those of networks
alone, counted with imitations.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import vae as vae_networks
from benchmarks.classifier import RESNETS, jobs_of, monais
from benchmarks.diffusion import materialised, network
from benchmarks.timing import count_flops
from classifier.model import build_model
from cohort.grids import parse_grid, preset_of
from diffusion import train as diffusion_training
from diffusion.checkpoint import LoadedDiffusion
from diffusion.config import PRESETS as DIFFUSION
from diffusion.config import VARIANTS, ModelConfig
from diffusion.dataset import LatentSpace
from diffusion.generation import volumes
from diffusion.model import DiT
from diffusion.process import build_process
from diffusion.synthetic_folder import Settings, Wanted
from runtime import memory, training
from runtime.device import Device
from VAE import train as vae_training
from VAE.checkpoint import LoadedVAE
from VAE.config import PRESETS as VAES
from VAE.latents import Statistics
from VAE.model import Autoencoder

Part = Literal["dit", "vae", "classifier", "sampling"]
PARTS: dict[Part, float] = {"dit": 0.35, "vae": 0.3, "classifier": 0.1, "sampling": 0.25}
"""Shares of the time."""
OURS = "ours"
CUDNN = partial(
    sdpa_kernel, [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], set_priority=True
)
"""cuDNN's attention where it can; by default PyTorch chooses."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    grid: str
    dits: dict[str, tuple[ModelConfig, int]]
    """By name: architecture, and latents that it is trained on at once."""
    volumes: int
    """Volumes that an autoencoder sees at once."""
    scans: int
    """The same of a classifier."""
    samples: int
    """Volumes that are sampled at once: save_synth's batch on a GPU."""
    steps: tuple[int, int, int] = (25, 10, 1000)
    """Sampling steps: usual, few, and of the reference."""
    slices: int = 32
    """Of the perceptual loss."""


_BATCHES = {"S/4": 64, "B/4": 64, "L/4": 32, "XL/4": 32, "S/2": 16, "B/2": 16, "XL/2": 8}
FULL = Sizes("paper", {name: (VARIANTS[name], cases) for name, cases in _BATCHES.items()}, 16, 64, 16)
_TINY = ModelConfig(dim=32, depth=2, heads=1)
TINY = Sizes("smoke", {name: (_TINY, 2) for name in _BATCHES}, 1, 2, 2, (3, 2, 4), 4)


class Setting(NamedTuple):
    """What all jobs have in common."""

    data: Path
    """Folder of `benchmarks.gpu.write_data`."""
    sizes: Sizes
    compile_only: bool = False
    """Jobs run once, for what PyTorch then has compiled."""


class Work(NamedTuple):
    """What a row times, and by what its operations and its memory are foreseen."""

    job: Callable[[], object]
    networks: Any
    """For `memory.imitation`."""
    step: Callable[[Any, int], object]
    """The networks' part of the job, over so many cases."""
    layers: memory.Layers
    state: int = 0
    """Bytes of the optimiser's moments."""
    operations: Callable[[], int] | None = None
    """Floating-point operations of a case, where they are not those of `step`."""
    once: Callable[[], object] | None = None
    """What to warm up with, instead of the job."""


class Row(NamedTuple):
    """One row: `least` and `aim` are cases per second on one H200."""

    name: str
    network: str
    cases: int
    prepare: Callable[[Device], Work]
    least: float | None = None
    aim: float | None = None
    around: Callable[[], AbstractContextManager] = nullcontext
    """In which it is prepared, compiled and timed."""


# The rows.


def rows_of(part: Part, setting: Setting) -> Iterator[Row]:
    """All rows of a part, the most wanted first."""
    return {"dit": dit_rows, "vae": vae_rows, "classifier": classifier_rows, "sampling": sampling_rows}[part](setting)


def dit_rows(setting: Setting) -> Iterator[Row]:
    targets = {
        "S/4": (1200, 1750), "B/4": (500, 720), "XL/4": (120, 175), "L/4": (170, 240),
        "S/2": (200, 290), "B/2": (85, 125), "XL/2": (22, 32),
    }  # fmt: skip
    for name, (least, aim) in targets.items():
        architecture, cases = setting.sizes.dits[name]
        own = Row(f"DiT-{name}, train", OURS, cases, partial(dit, setting, architecture, cases), least, aim)
        yield own
        if name == "S/4":
            yield own._replace(network="materialised attention", around=materialised)
        if name in ("S/4", "XL/4", "S/2"):
            yield own._replace(network="cuDNN attention", around=CUDNN)


def dit(setting: Setting, architecture: ModelConfig, cases: int, device: Device) -> Work:
    """A step of diffusion.train."""
    if setting.compile_only:  # one block: what is compiled of it serves any number
        architecture = replace(architecture, depth=1)
    run = replace(
        DIFFUSION["paper"], latents=setting.data / "latents", model=replace(architecture, sides=True), batch_size=cases
    )
    process = build_process(run.process)
    data = diffusion_training.load_latents(run, device)
    model, data = diffusion_training.build(run, data, process, device)
    state = diffusion_training.fresh_state(model, run)
    steps = itertools.count(1)

    def job() -> None:
        step = next(steps)
        diffusion_training.train_step(model, process, data, state.optimiser, step, run, cases)
        for share, track in state.ema.items():
            training.average(track, model, training.rate_of_share(float(share), step))

    foreseen = partial(diffusion_training.passes, process=process, device=device)
    return Work(job, model, foreseen, "matrices", memory.MOMENTS * memory.weight_bytes(model))


def vae_rows(setting: Setting) -> Iterator[Row]:
    cases = setting.sizes.volumes
    for job, least, aim in (("decode", 220, 300), ("encode", 500, 700), ("train", 45, 65)):
        name = f"VAE, {job}" + ", L1 alone" * (job == "train")
        for own in (True, False):
            prepare = partial(autoencoder, setting, job, cases, own)
            yield Row(name, OURS if own else "MONAI", cases, prepare, least, aim)
    yield Row("VAE, train", OURS, cases, partial(vae_step, setting, 0, cases), 45, 65)
    slices = setting.sizes.slices
    yield Row(f"VAE, train, perceptual loss of {slices} slices", OURS, cases, partial(vae_step, setting, slices, cases),
              22, 40)  # fmt: skip


def autoencoder(setting: Setting, job: str, cases: int, own: bool, device: Device) -> Work:
    """What benchmarks.vae times, of our network or of MONAI's with its weights, both compiled and channels-last."""
    theirs, ours = vae_networks.pair(device.kind)
    network = device.module(ours if own else theirs)
    if device.compiles(True):
        network.encoder.compile(dynamic=False)
        network.decoder.compile(dynamic=False)
    shape = parse_grid(setting.sizes.grid).shape
    x = device.tensor(torch.rand(cases, 1, *shape))
    z = device.tensor(torch.randn(cases, *ours.latent_shape(shape)))

    def foreseen(imitated: nn.Module, count: int) -> None:
        fake = (device.tensor(memory.zeros(imitated, count, *value.shape[1:])) for value in (x, z))
        vae_networks.jobs_of(imitated, *fake, device)[job]()

    return Work(vae_networks.jobs_of(network, x, z, device)[job], network, foreseen, "convolutions")


def vae_step(setting: Setting, slices: int, cases: int, device: Device) -> Work:
    """A step of VAE.train, all its losses, with the perceptual one of so many slices where there are any."""
    grid, preset = parse_grid(setting.sizes.grid), VAES["paper"]
    loss = replace(preset.loss, perceptual=0.1, perceptual_slices=slices) if slices else preset.loss
    run = replace(
        preset, grid=grid.name, batch_size=cases, loss=loss, train_csv=setting.data / "train.csv",
        val_csv=setting.data / "val.csv", cache_dir=setting.data / "cache",
    )  # fmt: skip
    model, networks = vae_training.build(run, grid, device)
    train, *_ = vae_training.load_tables(run, grid, device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=run.lr, fused=True)
    state = vae_training.VAEState(
        model, optimiser, training.copy_weights(model), networks=networks, grid=grid, ledger=[]
    )
    steps = itertools.count(1)

    def job() -> None:
        step = next(steps)
        vae_training.train_step(model, state, train, step, run, cases)
        training.average(state.ema, model, training.rate_of_decay(run.ema_decay, step))

    foreseen = partial(vae_training.passes, state=state, config=run, device=device)
    return Work(job, model, foreseen, "convolutions", memory.MOMENTS * memory.weight_bytes(model))


def classifier_rows(setting: Setting) -> Iterator[Row]:
    cases = setting.sizes.scans
    for job, least, aim in (("train", 300, None), ("infer", 1000, None)):
        for own in (True, False):
            prepare = partial(classifier, setting, job, cases, own)
            yield Row(f"classifier, {job}", OURS if own else "MONAI ResNet18", cases, prepare, least, aim)


def classifier(setting: Setting, job: str, cases: int, own: bool, device: Device) -> Work:
    """What benchmarks.classifier times, of the ResNet of the grid's preset or of MONAI's."""
    grid = parse_grid(setting.sizes.grid)
    made = build_model(RESNETS[preset_of(grid)], grid, 0.3, 0.25) if own else monais("")["MONAI ResNet18"]
    network = device.module(made)
    if device.compiles(True):
        network.compile(dynamic=False)
    x = device.tensor(torch.rand(cases, 1, *grid.shape))

    def foreseen(imitated: nn.Module, count: int) -> None:
        imitated.eval()  # a norm over the batch refuses a batch of one
        with torch.set_grad_enabled(job == "train"), device.autocast():
            logits = imitated(device.tensor(memory.zeros(imitated, count, 1, *grid.shape)))
        if job == "train":
            logits.float().sum().backward()

    state = memory.MOMENTS * memory.weight_bytes(network)  # jobs_of makes an optimiser for both jobs
    return Work(jobs_of(network, x, device)[job], network, foreseen, "convolutions", state * (job == "train"))


def sampling_rows(setting: Setting) -> Iterator[Row]:
    sizes = setting.sizes
    usual, few, many = sizes.steps
    everywhere, half = (0.0, 1.0), middle_of(usual)
    plans = [  # steps, interval of guidance, volumes at once, and the targets of S and B
        (f"{usual} steps", usual, everywhere, sizes.samples, {"S/4": (45, 76), "B/4": (23, 39)}),
        (f"{usual} steps, in half of them", usual, half, sizes.samples, {"S/4": (55, 91), "B/4": (29, 49)}),
        (f"{few} steps", few, everywhere, sizes.samples, {"S/4": (76, 126), "B/4": (46, 77)}),
        (f"{usual} steps, one volume", usual, everywhere, 1, {"S/4": (1000 / 60, 1000 / 30)}),
    ]
    for name in ("S/4", "B/4"):
        architecture = sizes.dits[name][0]
        for what, steps, interval, cases, targets in plans:
            if name in targets:
                prepare = partial(sampling, setting, architecture, cases, steps, interval, "dpmpp")
                yield Row(f"DiT-{name}, volumes, guidance, {what}", OURS, cases, prepare, *targets[name])
    prepare = partial(sampling, setting, sizes.dits["S/4"][0], sizes.samples, many, everywhere, "ddpm")
    yield Row(f"DiT-S/4, volumes, guidance, {many} steps", "ancestral sampler", sizes.samples, prepare)


def middle_of(steps: int) -> tuple[float, float]:
    """The interval of guidance in which half of the sampler's steps lie, as shares of the process's time."""
    process = build_process(DIFFUSION["paper"].process)
    times = process.multistep_times(steps)
    return times[-1 - steps // 4] / process.timesteps, times[steps // 4] / process.timesteps


def sampling(
    setting: Setting, architecture: ModelConfig, cases: int, steps: int, interval: tuple[float, float], sampler: str,
    device: Device,
) -> Work:  # fmt: skip
    """A batch of save_synth: noise to volumes on the host."""
    grid = parse_grid(setting.sizes.grid)
    process, vae = build_process(DIFFUSION["paper"].process), Autoencoder(VAES["paper"].model)
    latent = vae.latent_shape(grid.shape)
    model = network(architecture, device, latent).eval().requires_grad_(False)
    device.module(vae.eval().requires_grad_(False))
    if device.compiles(True):
        model.compile_step()
        vae.compile_parts()
    statistics = Statistics((0.0,) * 4, (1.0,) * 4, 1, "train", "", grid.to_dict(), [])
    space = LatentSpace(statistics, torch.zeros(latent), torch.ones(latent))
    loaded = LoadedDiffusion(model, process, space, "", [], 0, 0.1, {}, DIFFUSION["paper"].process)
    models = volumes.Models(LoadedVAE(vae, grid, "", [], 0), loaded, device)
    settings = Settings(1, "", "", "ema", sampler, steps, 3.0, interval)
    wanted = [Wanted(1, seed) for seed in range(cases)]

    def evaluate(dit_: DiT, count: int) -> None:
        z, y = memory.zeros(dit_, count, *latent), memory.zeros(dit_, count).long()
        with torch.no_grad(), device.autocast():
            DiT.forward(dit_, z, y, y)  # not what is compiled of it

    def decode(vae_: Autoencoder, count: int) -> None:
        with torch.no_grad(), device.autocast():
            vae_.decode(device.tensor(memory.zeros(vae_, count, *latent)), grid.shape)

    def foreseen(networks: tuple[DiT, Autoencoder], count: int) -> None:
        evaluate(networks[0], 2 * count)
        decode(networks[1], count)

    def operations() -> int:
        times = (process.multistep_times if sampler == "dpmpp" else process.times)(steps)
        evaluations = sum(1 + (interval[0] <= t / process.timesteps <= interval[1]) for t in times)
        one, whole = (
            count_flops(partial(part, memory.imitation(own), 1)) for part, own in ((evaluate, model), (decode, vae))
        )
        return evaluations * one + whole

    job = partial(volumes.synthesise, wanted, models, settings)
    once = partial(volumes.synthesise, wanted, models, replace(settings, steps=setting.sizes.steps[1]))
    return Work(job, (model, vae), foreseen, "convolutions", operations=operations, once=once)
