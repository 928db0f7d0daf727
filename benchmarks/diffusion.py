"""Speed of training and sampling: the DiT beside itself with materialised attention, 25 steps beside 1000, in one run.

    python -m benchmarks.diffusion                                        # CPU: DiT-S/4, batch 4
    python -m benchmarks.diffusion --variants S/4 B/4 XL/4 --train-batch 64 --synth-batch 32   # GPU

Latents are 4x28x34x28 (volumes of 112x136x112), weights random: speed does not depend on them. The reference attention
writes out all scores, as plain code does, ours is what `diffusion.model.dit.attend` chooses; the reference sampler is
ancestral with a step for every timestep.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.timing import count_flops, expect, introduce, print_table, short, time_turns
from cohort.grids import GRIDS
from diffusion.config import VARIANTS, ModelConfig, ProcessConfig
from diffusion.model import DiT
from diffusion.process import build_process
from diffusion.sampler import SAMPLERS, guided
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.device import Device, cpu_has_bfloat16, pick_device
from VAE.config import PRESETS as VAE_PRESETS
from VAE.model import Autoencoder

LATENT = (4, 28, 34, 28)
STEPS = {"dpmpp": 25, "ddpm": 1000}


@dataclass(frozen=True)
class BenchmarkConfig(ScriptConfig):
    variants: tuple[str, ...] = ("S/4",)
    """Rows of diffusion.config.VARIANTS."""
    train_batch: int = 4
    """Latents per training step."""
    synth_batch: int = 1
    """Volumes sampled at once."""
    repeats: int = 5
    """Timed turns of each; the median counts. The 1000-step sampler is timed once."""


def main(config: BenchmarkConfig) -> None:
    expect(minutes=sum(minutes_of(variant, config) for variant in config.variants))
    device = pick_device()
    rate = introduce(device, latent=LATENT)
    for title, measure in (("training", training), ("sampling", sampling)):
        print(f"\n{title}, batch {config.train_batch if measure is training else config.synth_batch}\n")
        print_table([row for variant in config.variants for row in measure(variant, config, device, rate)])


def minutes_of(variant: str, config: BenchmarkConfig) -> float:
    """Of a variant on two cores, roughly: seconds of S/4, by the products of a token and the number of tokens."""
    seconds = 3.1 * config.train_batch * (config.repeats + 2) + config.synth_batch * (250 + 7.4 * (config.repeats + 1))
    small, own = VARIANTS["S/4"], VARIANTS[variant]
    tokens = math.prod(small.patch) / math.prod(own.patch)
    return seconds / 60 * tokens * own.depth * own.dim**2 / (small.depth * small.dim**2)


def training(variant: str, config: BenchmarkConfig, device: Device, rate: float) -> list[dict[str, object]]:
    """Forward, loss and backward of noise prediction; the optimiser's cost is the same for all."""
    draw = torch.Generator().manual_seed(0)
    z, eps = (torch.randn((config.train_batch, *LATENT), generator=draw).to(device.kind) for _ in range(2))
    t = torch.randint(1000, (config.train_batch,), generator=draw).to(device.kind)
    y = torch.randint(2, (config.train_batch,), generator=draw).to(device.kind)

    def step(model: DiT, precision: torch.dtype, attention: Callable) -> None:
        with attention(), Device(device.kind, precision).autocast():
            loss = F.mse_loss(model(z, t, y), eps)
        model.zero_grad(set_to_none=True)
        loss.backward()

    plain, ours = (network(VARIANTS[variant], device, LATENT) for _ in range(2))
    flops = count_flops(partial(step, plain, torch.float32, materialised))
    if device.kind.type == "cuda":
        for block in ours.blocks:
            block.compile(dynamic=False)
    fast = device.kind.type == "cuda" or cpu_has_bfloat16()
    jobs = {
        f"{attention}, {short(precision)}": partial(step, model, precision, context)
        for precision in ([torch.float32, torch.bfloat16] if fast else [torch.float32])
        for attention, model, context in (("materialised", plain, materialised), ("ours", ours, nullcontext))
    }
    found = time_turns(jobs, config.repeats, device)
    slowest = found["materialised, float32"][0]
    return [
        {
            "network": f"DiT-{variant}", **dict(zip(("attention", "precision"), name.split(", "), strict=True)),
            "median s": seconds,
            "samples/s": config.train_batch / seconds, "times materialised float32": slowest / seconds,
            "TFLOP/s": flops / seconds / 1e12, "of matrix rate": f"{flops / seconds / rate:.0%}", "peak": peak,
        }
        for name, (seconds, peak) in found.items()
    ]  # fmt: skip


@torch.no_grad()
def sampling(variant: str, config: BenchmarkConfig, device: Device, rate: float) -> list[dict[str, object]]:
    """Whole volumes, noise to voxels with decoding: few steps beside a step for every timestep."""
    process, size = build_process(ProcessConfig()), config.synth_batch
    model = network(VARIANTS[variant], device).eval().requires_grad_(False)
    decoder = device.module(Autoencoder(VAE_PRESETS["paper"].model).eval().requires_grad_(False))
    y = torch.ones(size, dtype=torch.long, device=device.kind)
    z = torch.randn((size, *LATENT), device=device.kind)
    with materialised():
        flops = count_flops(lambda: model(z, y, y)) / size
    if device.kind.type == "cuda":
        model.compile_step()
        decoder.compile_parts()

    noise = partial(torch.randn_like, z)

    def latents(name: str) -> None:
        with device.autocast():
            SAMPLERS[name](guided(model, process, y), noise(), process, STEPS[name], noise)

    def decode() -> None:
        with device.autocast():
            decoder.decode(device.tensor(z), GRIDS["paper"].shape)

    found = time_turns({"dpmpp": partial(latents, "dpmpp"), "decoding": decode}, config.repeats, device, warm_ups=1)
    found |= time_turns({"ddpm": partial(latents, "ddpm")}, 1, device, warm_ups=0)
    each = {name: seconds / size for name, (seconds, _) in found.items()}
    return [
        {
            "network": f"DiT-{variant}", "sampler": name, "steps": steps, "s per volume": each[name] + each["decoding"],
            "of it decoding": each["decoding"],
            "times 1000 steps": (each["ddpm"] + each["decoding"]) / (each[name] + each["decoding"]),
            "without decoding": each["ddpm"] / each[name], "TFLOP/s": flops * steps / each[name] / 1e12,
            "of matrix rate": f"{flops * steps / each[name] / rate:.0%}",
        }
        for name, steps in STEPS.items()
    ]  # fmt: skip


def network(config: ModelConfig, device: Device, latent: tuple[int, int, int, int] = LATENT) -> DiT:
    """A DiT whose output is not zero, as after training."""
    torch.manual_seed(0)
    model = DiT(config, latent)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return device.module(model)


@contextmanager
def materialised() -> Iterator[None]:
    """Attention as plain code writes it: all scores in memory, before and after the softmax."""

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v

    with mock.patch.object(F, "scaled_dot_product_attention", plain):
        yield


if __name__ == "__main__":
    run_script(main, BenchmarkConfig, description=describe(__doc__))
