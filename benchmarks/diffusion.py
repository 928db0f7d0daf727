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
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.timing import matrix_rate, now, short, time_turns
from diffusion.config import VARIANTS, ModelConfig, ProcessConfig
from diffusion.model import DiT
from diffusion.process import build_process
from diffusion.sampler import SAMPLERS, guided
from runtime.cli import describe, run_script
from runtime.device import Device, cpu_has_bfloat16, pick_device
from runtime.runs import environment
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
    """Times training, sampling and single volumes, and prints three tables."""
    device = pick_device("auto", config.threads)
    for name, value in {**environment(device), "cores": len(os.sched_getaffinity(0)), "latent": LATENT}.items():
        print(f"{name}: {value}")
    rate = matrix_rate(device)
    print(f"measured matrix rate, {short(device.precision)}: {rate / 1e12:.2f} TFLOP/s")
    training(config, device, rate)
    sampling(config, device, rate)


def training(config: BenchmarkConfig, device: Device, rate: float) -> None:
    """Forward, loss and backward; the optimiser's cost is the same for all."""
    header = f"training, batch {config.train_batch} | attention | precision | median s | samples/s"
    header += " | times materialised float32 | model TFLOP/s | of matrix rate | peak"
    print(f"\n| {header} |\n|{'---|' * 9}")
    precisions = [torch.float32, torch.bfloat16] if has_bfloat16(device) else [torch.float32]
    for variant in config.variants:
        plain, fused = network(variant, device), network(variant, device)
        if device.kind.type == "cuda":
            for block in fused.blocks:
                block.compile(dynamic=False)
        rows = [
            (attention, precision, TrainingStep(model, config.train_batch, Device(device.kind, precision), attention))
            for precision in precisions
            for attention, model in (("materialised", plain), ("fused", fused))
        ]
        seconds, peaks = time_turns([step for *_, step in rows], config.repeats, device)
        flops = 3 * forward_flops(VARIANTS[variant]) * config.train_batch
        for (attention, precision, _), median, peak in zip(rows, seconds, peaks, strict=True):
            speed = f"{median:.4f} | {config.train_batch / median:.1f} | {seconds[0] / median:.2f}"
            done = f"{flops / median / 1e12:.2f} | {flops / median / rate:.0%}"
            print(f"| DiT-{variant} | {attention} | {str(precision)[6:]} | {speed} | {done} | {peak} |", flush=True)


class TrainingStep:
    """One forward and backward pass of noise prediction on random latents."""

    def __init__(self, model: DiT, batch: int, device: Device, attention: str) -> None:
        self.model, self.device, self.attention = model, device, attention
        draw = torch.Generator().manual_seed(0)
        self.z, self.eps = (torch.randn((batch, *LATENT), generator=draw).to(device.kind) for _ in range(2))
        self.t = torch.randint(1000, (batch,), generator=draw).to(device.kind)
        self.y = torch.randint(2, (batch,), generator=draw).to(device.kind)

    def __call__(self) -> None:
        with materialised() if self.attention == "materialised" else contextless(), self.device.autocast():
            loss = F.mse_loss(self.model(self.z, self.t, self.y), self.eps)
        self.model.zero_grad(set_to_none=True)
        loss.backward()


def sampling(config: BenchmarkConfig, device: Device, rate: float) -> None:
    """Whole volumes: noise to voxels, with decoding; few steps beside a step for every timestep."""
    header = f"sampling, batch {config.synth_batch}, guidance {config.guidance} | sampler | steps | s per volume"
    header += " | volumes/s | of it decoding | times 1000 steps, end to end | without decoding | model TFLOP/s"
    print(f"\n| {header} | of matrix rate |\n|{'---|' * 10}")
    process = build_process(ProcessConfig())
    decoder = device.module(Autoencoder(VAE_PRESETS["paper"].model).eval().requires_grad_(False))
    for variant in config.variants:
        model = network(variant, device).eval().requires_grad_(False)
        if device.kind.type == "cuda":
            model.forward = torch.compile(model.forward, mode="reduce-overhead", dynamic=False)
            decoder.decoder.compile()
        measured = {}
        for name, steps, repeats in (("dpmpp", config.steps, config.repeats), ("ddpm", process.timesteps, 1)):
            job = Sampling(name, steps, model, process, decoder, device, config)
            if repeats > 1:
                job()
            runs = [job() for _ in range(repeats)]
            measured[name] = tuple(statistics.median(part) for part in zip(*runs, strict=True))
        flops = forward_flops(VARIANTS[variant]) * (1 if config.guidance == 1.0 else 2)
        slow_network, slow_decoding = measured["ddpm"]
        for name, steps in (("dpmpp", config.steps), ("ddpm", process.timesteps)):
            of_network, decoding = measured[name]
            total = of_network + decoding
            done = flops * steps / of_network
            print(f"| DiT-{variant} | {name} | {steps} | {total:.3f} | {1 / total:.3f} | {decoding:.3f} s | "
                  f"{(slow_network + slow_decoding) / total:.1f} | {slow_network / of_network:.1f} | "
                  f"{done / 1e12:.2f} | {done / rate:.0%} |", flush=True)  # fmt: skip


class Sampling:
    """Generates volumes in batches; a call returns seconds per volume of network and sampler, and of decoding."""

    def __init__(self, name: str, steps: int, model: DiT, process, decoder: nn.Module, device: Device,
                 config: BenchmarkConfig) -> None:  # fmt: skip
        self.name, self.steps, self.model, self.process = name, steps, model, process
        self.decoder, self.device, self.config = decoder, device, config

    @torch.no_grad()
    def __call__(self) -> tuple[float, float]:
        size, count = self.config.synth_batch, max(self.config.volumes, self.config.synth_batch)
        draw = torch.Generator(self.device.kind).manual_seed(0)

        def noise() -> torch.Tensor:
            return torch.randn((size, *LATENT), generator=draw, device=self.device.kind)

        y = torch.ones(size, dtype=torch.long, device=self.device.kind)
        spent = [0.0, 0.0]
        for _ in range(0, count, size):
            started = now(self.device)
            with self.device.autocast():
                denoise = guided(self.model, self.process, y, guidance=self.config.guidance)
                z = SAMPLERS[self.name](denoise, noise(), self.process, self.steps, noise)
                between = now(self.device)
                self.decoder.decode(self.device.tensor(z))
            spent[0] += between - started
            spent[1] += now(self.device) - between
        made = size * math.ceil(count / size)
        return spent[0] / made, spent[1] / made


def network(variant: str, device: Device) -> DiT:
    """A DiT whose output is not zero, as after training."""
    torch.manual_seed(0)
    model = DiT(replace(VARIANTS[variant]), LATENT)
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


@contextmanager
def contextless() -> Iterator[None]:
    """Fused attention, as the model has it."""
    yield


def has_bfloat16(device: Device) -> bool:
    """Whether the device has fast kernels for it."""
    return device.kind.type == "cuda" or cpu_has_bfloat16()


if __name__ == "__main__":
    run_script(main, BenchmarkConfig, description=describe(__doc__))
