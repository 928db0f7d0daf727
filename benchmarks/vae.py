"""Speed and memory of the autoencoder beside MONAI's AutoencoderKL with the same weights, in one run.

    python -m benchmarks.vae                            # CPU: 80x96x80, one volume
    python -m benchmarks.vae --shape 112 136 112 --batch-size 16 --repeats 20      # GPU

Both networks hold the same weights and see the same volumes. MONAI's is timed first, as its users run it: contiguous
tensors, eager, the C library's allocator as it comes. Then this project's settings are made (on a CPU: freed memory is
kept, see runtime.device) and both are timed in turns, so that what else the machine does falls on both. Prints medians
and ratios as a table in Markdown; on a GPU also peak memory and whether any convolution fell back to vol2col.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from monai.networks.nets import AutoencoderKL
from torch import nn

from benchmarks.timing import count_flops, matrix_rate, short, time_turns, vol2col_kernels
from runtime.cli import describe, run_script
from runtime.device import Device, cpu_has_bfloat16, pick_device
from runtime.runs import environment
from VAE.config import PRESETS
from VAE.model import Autoencoder


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to time."""

    shape: tuple[int, int, int] = (80, 96, 80)
    """Voxels (D, H, W); multiples of 4."""
    batch_size: int = 1
    """Volumes at once."""
    repeats: int = 5
    """Timed turns of each; the median counts."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


@dataclass(frozen=True)
class Contender:
    """A network with its own input tensors, and the precision it runs in."""

    name: str
    network: nn.Module
    x: torch.Tensor
    z: torch.Tensor
    device: Device

    def train(self) -> None:
        """Forward with posterior noise, L1, backward; no optimiser, whose cost is the same for both."""
        with self.device.autocast():
            if isinstance(self.network, Autoencoder):
                x_hat, _, _ = self.network(self.x, torch.randn_like(self.z))
            else:
                x_hat, _, _ = self.network(self.x)
            loss = (x_hat.float() - self.x).abs().mean()
        self.network.zero_grad(set_to_none=True)
        loss.backward()

    @torch.no_grad()
    def encode(self) -> None:
        """Volumes to posterior."""
        with self.device.autocast():
            self.network.encode(self.x)

    @torch.no_grad()
    def decode(self) -> None:
        """Latents to volumes."""
        with self.device.autocast():
            self.network.decode(self.z)


def main(config: BenchmarkConfig) -> None:
    """Times all contenders and prints the table."""
    kind = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cuda = kind.type == "cuda"
    torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
    precisions = [torch.float32, torch.bfloat16] if cuda or cpu_has_bfloat16() else [torch.float32]
    theirs, ours = pair(kind)
    x = torch.rand(config.batch_size, 1, *config.shape, generator=torch.Generator().manual_seed(0)).to(kind)
    z = torch.randn((config.batch_size, *ours.latent_shape(config.shape)), device=kind)
    jobs = ("train", "encode", "decode")
    users = [Contender(f"MONAI, {short(p)}, as its users run it", theirs, x, z, Device(kind, p)) for p in precisions]
    alone = {job: time_turns([getattr(one, job) for one in users], config.repeats, users[0].device) for job in jobs}

    device = pick_device("auto", config.threads)
    network = device.module(ours)
    if cuda:
        network.encoder.compile()
        network.decoder.compile()
    inputs = device.tensor(x), device.tensor(z)
    together = [
        contender
        for p in precisions
        for contender in (
            Contender(f"MONAI, {short(p)}, our settings", theirs, x, z, Device(kind, p)),
            Contender(f"ours, {short(p)}", network, *inputs, Device(kind, p)),
        )
    ]
    turns = {job: time_turns([getattr(one, job) for one in together], config.repeats, device) for job in jobs}
    for name, value in {**environment(device), "shape": config.shape, "batch": config.batch_size}.items():
        print(f"{name}: {value}")
    rate = matrix_rate(device)
    print(f"measured matrix rate, {short(device.precision)}: {rate / 1e12:.2f} TFLOP/s")
    print("\n| job | network | median s | volumes/s | times MONAI float32 as run | times MONAI same precision, as run "
          "| times MONAI same settings | GFLOP | of matrix rate | peak |\n|---" + "|---" * 9 + "|")  # fmt: skip
    for job in jobs:
        (before, memory), (after, memory_after) = alone[job], turns[job]
        for place, one in enumerate(users):
            report(job, one, before[place], (before[0], before[place], None), rate, memory[place])
        for place, one in enumerate(together):
            references = (before[0], before[place // 2], after[place - place % 2])
            report(job, one, after[place], references, rate, memory_after[place])
    if cuda:
        print(f"\nkernels of vol2col in our training step: {vol2col_kernels(together[-1].train)}")


def report(
    job: str, one: Contender, seconds: float, references: tuple[float | None, ...], rate: float, memory: str
) -> None:
    """One row of the table; the operations are those that the network itself performs."""
    flops = count_flops(getattr(one, job))
    ratios = " | ".join("-" if reference is None else f"{reference / seconds:.2f}" for reference in references)
    print(f"| {job} | {one.name} | {seconds:.3f} | {len(one.x) / seconds:.2f} | {ratios} | {flops / 1e9:.0f} | "
          f"{flops / seconds / rate:.0%} | {memory} |")  # fmt: skip


def pair(kind: torch.device) -> tuple[AutoencoderKL, Autoencoder]:
    """MONAI's network of the paper preset, random weights, and ours with the same."""
    config = PRESETS["paper"].model
    torch.manual_seed(0)
    theirs = AutoencoderKL(
        spatial_dims=3, in_channels=1, out_channels=1, channels=config.channels, norm_num_groups=config.groups,
        latent_channels=config.latent_channels, num_res_blocks=(config.blocks,) * len(config.channels),
        attention_levels=(False,) * len(config.channels), with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )  # fmt: skip
    ours = Autoencoder(config)
    # Both list their parameters in the order the data flow.
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    return theirs.to(kind), ours.to(kind)


if __name__ == "__main__":
    run_script(main, BenchmarkConfig, description=describe(__doc__))
