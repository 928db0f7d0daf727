"""Speed of training and sampling: the DiT beside itself with materialised attention, 25 steps beside 1000, in one run.

    python -m benchmarks.diffusion                                        # CPU: DiT-S/4, batch 4
    python -m benchmarks.diffusion --variants S/4 B/4 XL/4 --train-batch 64 --synth-batch 32 --volumes 64   # GPU

Latents are 4x28x34x28 (volumes of 112x136x112), weights random: speed does not depend on them. The reference attention
writes out all scores, as plain code does; the reference sampler is ancestral with a step for every timestep. Everything
is timed in turns with medians, after warm-up, and stands beside the closed-form operations of the network and the
machine's measured matrix rate.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.timing import introduce, now, short, time_turns
from diffusion.config import VARIANTS, ModelConfig, ProcessConfig
from diffusion.model import DiT
from diffusion.process import Process, build_process
from diffusion.sampler import SAMPLERS, guided
from runtime.cli import describe, run_script
from runtime.device import Device, cpu_has_bfloat16, pick_device
from VAE.config import PRESETS as VAE_PRESETS
from VAE.model import Autoencoder

LATENT = (4, 28, 34, 28)


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to time."""

    variants: tuple[str, ...] = ("S/4",)
    """Rows of diffusion.config.VARIANTS."""
    train_batch: int = 4
    """Latents per training step."""
    synth_batch: int = 1
    """Volumes sampled at once."""
    volumes: int = 1
    """Volumes per timed sampling."""
    steps: int = 25
    """Steps of DPM-Solver++."""
    guidance: float = 1.0
    """Classifier-free guidance of both samplers; above 1 every step evaluates the network twice."""
    repeats: int = 5
    """Timed turns of each; the median counts. The 1000-step sampler is timed once."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


def main(config: BenchmarkConfig) -> None:
    """Times training and sampling, and prints both tables."""
    device = pick_device("auto", config.threads)
    rate = introduce(device, latent=LATENT)
    training(config, device, rate)
    sampling(config, device, rate)


def training(config: BenchmarkConfig, device: Device, rate: float) -> None:
    """Forward, loss and backward of noise prediction; the optimiser's cost is the same for all."""
    header = f"training, batch {config.train_batch} | attention | precision | median s | samples/s"
    header += " | times materialised float32 | model TFLOP/s | of matrix rate | peak"
    print(f"\n| {header} |\n|{'---|' * 9}")
    fast = device.kind.type == "cuda" or cpu_has_bfloat16()
    draw = torch.Generator().manual_seed(0)
    z, eps = (torch.randn((config.train_batch, *LATENT), generator=draw).to(device.kind) for _ in range(2))
    t = torch.randint(1000, (config.train_batch,), generator=draw).to(device.kind)
    y = torch.randint(2, (config.train_batch,), generator=draw).to(device.kind)

    def step(model: DiT, precision: torch.dtype, attention: Callable) -> None:
        with attention(), Device(device.kind, precision).autocast():
            loss = F.mse_loss(model(z, t, y), eps)
        model.zero_grad(set_to_none=True)
        loss.backward()

    for variant in config.variants:
        plain, fused = network(variant, device), network(variant, device)
        if device.kind.type == "cuda":
            for block in fused.blocks:
                block.compile(dynamic=False)
        jobs = {
            f"{attention} | {short(precision)}": partial(step, model, precision, context)
            for precision in ([torch.float32, torch.bfloat16] if fast else [torch.float32])
            for attention, model, context in (("materialised", plain, materialised), ("fused", fused, nullcontext))
        }
        found = time_turns(jobs, config.repeats, device)
        flops = 3 * forward_flops(VARIANTS[variant]) * config.train_batch
        slowest = found["materialised | float32"][0]
        for name, (median, peak) in found.items():
            speed = f"{median:.4f} | {config.train_batch / median:.1f} | {slowest / median:.2f}"
            done = f"{flops / median / 1e12:.2f} | {flops / median / rate:.0%}"
            print(f"| DiT-{variant} | {name} | {speed} | {done} | {peak} |", flush=True)


def sampling(config: BenchmarkConfig, device: Device, rate: float) -> None:
    """Whole volumes: noise to voxels, with decoding; few steps beside a step for every timestep."""
    header = f"sampling, batch {config.synth_batch}, guidance {config.guidance} | sampler | steps | s per volume"
    header += " | volumes/s | of it decoding | times 1000 steps, end to end | without decoding | model TFLOP/s"
    print(f"\n| {header} | of matrix rate |\n|{'---|' * 10}")
    process = build_process(ProcessConfig())
    decoder = device.module(Autoencoder(VAE_PRESETS["paper"].model).eval().requires_grad_(False))
    samplers = {"dpmpp": config.steps, "ddpm": process.timesteps}
    for variant in config.variants:
        model = network(variant, device).eval().requires_grad_(False)
        if device.kind.type == "cuda":
            model.forward = torch.compile(model.forward, mode="reduce-overhead", dynamic=False)
            decoder.decoder.compile()
        sample("dpmpp", 4, model, process, decoder, device, config)  # warms up
        measured = {}
        for name, steps in samplers.items():
            repeats = config.repeats if name == "dpmpp" else 1
            made = [sample(name, steps, model, process, decoder, device, config) for _ in range(repeats)]
            measured[name] = [statistics.median(part) for part in zip(*made, strict=True)]
        flops = forward_flops(VARIANTS[variant]) * (1 if config.guidance == 1.0 else 2)
        slow = measured["ddpm"]
        for name, steps in samplers.items():
            of_network, decoding = measured[name]
            total, done = of_network + decoding, flops * steps / of_network
            print(f"| DiT-{variant} | {name} | {steps} | {total:.3f} | {1 / total:.3f} | {decoding:.3f} s | "
                  f"{sum(slow) / total:.1f} | {slow[0] / of_network:.1f} | {done / 1e12:.2f} | {done / rate:.0%} |",
                  flush=True)  # fmt: skip


@torch.no_grad()
def sample(
    name: str, steps: int, model: DiT, process: Process, decoder: Autoencoder, device: Device, config: BenchmarkConfig
) -> tuple[float, float]:
    """Makes volumes in batches; returns seconds per volume of network and sampler, and of decoding."""
    size, batches = config.synth_batch, math.ceil(max(config.volumes, config.synth_batch) / config.synth_batch)
    draw = torch.Generator(device.kind).manual_seed(0)

    def noise() -> torch.Tensor:
        return torch.randn((size, *LATENT), generator=draw, device=device.kind)

    y = torch.ones(size, dtype=torch.long, device=device.kind)
    of_network = decoding = 0.0
    for _ in range(batches):
        started = now(device)
        with device.autocast():
            z = SAMPLERS[name](guided(model, process, y, guidance=config.guidance), noise(), process, steps, noise)
            between = now(device)
            decoder.decode(device.tensor(z))
        of_network += between - started
        decoding += now(device) - between
    return of_network / (size * batches), decoding / (size * batches)


def network(variant: str, device: Device) -> DiT:
    """A DiT whose output is not zero, as after training."""
    torch.manual_seed(0)
    model = DiT(VARIANTS[variant], LATENT)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return device.module(model)


def forward_flops(config: ModelConfig) -> int:
    """Products of one forward pass of one latent: 24 N d^2 + 4 N^2 d for each block, patches in and out, conditions."""
    sizes = [math.ceil(size / p) for size, p in zip(LATENT[1:], config.patch, strict=True)]
    N, d, L = math.prod(sizes), config.dim, config.depth
    width = LATENT[0] * math.prod(config.patch)
    return L * (24 * N * d * d + 4 * N * N * d) + 4 * N * d * width + 12 * L * d * d + 6 * d * d + 512 * d


@contextmanager
def materialised() -> Iterator[None]:
    """Attention as plain code writes it: all scores in memory, before and after the softmax."""
    fused = F.scaled_dot_product_attention

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v

    F.scaled_dot_product_attention = plain
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


if __name__ == "__main__":
    run_script(main, BenchmarkConfig, description=describe(__doc__))
