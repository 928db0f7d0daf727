"""Autoencoders trained on the same scans for the same seconds, and for the same steps: what each reconstructs.

    python -m benchmarks.vae_quality --seconds 60 --steps 300

Contenders with one latent (4 channels, half resolution): MONAI's AutoencoderKL as its users run it, the same network
here, and the variants without full-resolution feature maps. All share optimiser, loss, schedule, batches and the
average of the weights; the learning rate follows the share of the time (or steps) that has passed. Held-out means the
test table. Prints a table in Markdown.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from monai.networks.nets import AutoencoderKL
from torch import nn

from cohort.ledger import ledger_of, refuse_overlap
from cohort.scans import GRIDS
from cohort.stacks import Volumes, load_scans
from cohort.tables import read_table
from runtime import seeding
from runtime.cli import describe, run_script
from runtime.device import Device, pick_device
from runtime.files import ROOT
from runtime.runs import environment
from runtime.training import average, copy_weights, rate_of_decay
from VAE.config import PRESETS, ModelConfig, TrainConfig
from VAE.dataset import batch_rows
from VAE.losses import LossNetworks, objective
from VAE.metrics import reconstruction_metrics
from VAE.model import Autoencoder


@dataclass(frozen=True)
class QualityConfig:
    """How long to train, and on what."""

    preset: str = "demo"
    """Row of VAE.config.PRESETS that gives grid, loss and optimiser."""
    seconds: float = 60.0
    """Time each network trains, in the first table."""
    steps: int = 300
    """Steps each network trains, in the second table; 0 leaves it out."""
    train_csv: Path = ROOT / "data_csvs/train.csv"
    """Training scans."""
    test_csv: Path = ROOT / "data_csvs/test.csv"
    """Held-out scans."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


class Monai(nn.Module):
    """MONAI's network behind our signature: noise passed in, posterior as log variance."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        levels = len(config.channels)
        self.network = AutoencoderKL(
            spatial_dims=3, in_channels=1, out_channels=1, channels=config.channels, norm_num_groups=config.groups,
            latent_channels=config.latent_channels, num_res_blocks=(config.blocks,) * levels,
            attention_levels=(False,) * levels, with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
        )  # fmt: skip

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mu, sigma = self.network.encode(x)
        return mu.float(), 2.0 * sigma.float().log()

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.network.decode(z).float()

    def forward(self, x: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.exp(0.5 * logvar) * eps), mu, logvar


USUAL = ModelConfig(channels=(32, 64))
SHUFFLE = ModelConfig(channels=(64,), stem_patch=2)
NARROW = ModelConfig(channels=(32,), stem_patch=2, linear_path=True)
PLAIN = torch.float32


def contenders(device: Device, *, monai: bool) -> list[tuple[str, nn.Module, Device]]:
    """Name, network and precision of each; weights by one seed."""
    slow = Device(device.kind, PLAIN)
    made = []
    for name, build, config, precision in (
        ("MONAI AutoencoderKL 32/64, float32", Monai, USUAL, slow),
        ("MONAI AutoencoderKL 32/64, autocast", Monai, USUAL, device),
        ("ours 32/64", Autoencoder, USUAL, device),
        ("ours 32/64 + linear path", Autoencoder, replace(USUAL, linear_path=True), device),
        ("space-to-depth 64", Autoencoder, SHUFFLE, device),
        ("space-to-depth 64 + linear path", Autoencoder, replace(SHUFFLE, linear_path=True), device),
        ("space-to-depth 32 + linear path (demo)", Autoencoder, NARROW, device),
    ):
        if build is Monai and not monai:
            continue
        torch.manual_seed(0)
        network = build(config)
        made.append((name, network.to(device.kind) if build is Monai else device.module(network), precision))
    return made


def main(config: QualityConfig) -> None:
    """Trains every contender twice and prints both tables."""
    device = pick_device("auto", config.threads)
    recipe = PRESETS[config.preset]
    grid = GRIDS[recipe.grid]
    frames = [read_table(path) for path in (config.train_csv, config.test_csv)]
    refuse_overlap(frames[1], ledger_of(frames[0]), what=str(config.test_csv))
    train, test = (Volumes(load_scans(frame, grid), device) for frame in frames)
    print({**environment(device), "training scans": len(train), "held-out scans": len(test), "grid": grid.shape})
    for title, limit in (
        (f"same time, {config.seconds:.0f} s", {"seconds": config.seconds}),
        (f"same steps, {config.steps}", {"steps": config.steps}),
    ):
        if not any(limit.values()):
            continue
        print(f"\n| {title} | steps | seconds | PSNR dB | SSIM | NMSE | parameters |\n|---|---|---|---|---|---|---|")
        # Step for step MONAI's network is ours: the second table would only repeat a row, at its price.
        for name, network, precision in contenders(device, monai="seconds" in limit):
            averaged, steps, seconds = fit(network, train, precision, recipe, **limit)
            network.load_state_dict(averaged)
            scores = evaluate(network.eval(), test, precision)
            count = sum(parameter.numel() for parameter in network.parameters())
            print(f"| {name} | {steps} | {seconds:.0f} | {scores['psnr_head']:.2f} | {scores['ssim_head']:.4f} | "
                  f"{scores['nmse_head']:.5f} | {count / 1e6:.2f} M |", flush=True)  # fmt: skip


def fit(
    network: nn.Module,
    train: Volumes,
    device: Device,
    recipe: TrainConfig,
    *,
    seconds: float = math.inf,
    steps: int = 10**9,
) -> tuple[dict[str, torch.Tensor], int, float]:
    """Trains until the time or the steps are over; returns averaged weights, steps done and seconds taken."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.lr, betas=(0.9, 0.95), fused=True)
    ema = copy_weights(network)
    shape = None
    started, step, passed = time.perf_counter(), 0, 0.0
    while step < steps and passed < seconds:
        step += 1
        share = min(1.0, max((step - 1) / steps, passed / seconds))
        rate = recipe.lr * min(1.0, step / recipe.warmup_steps) * (0.01 + 0.495 * (1 + math.cos(math.pi * share)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        x = train.batch(batch_rows(len(train), recipe.batch_size, step, recipe.seed))
        if isinstance(network, Monai):
            x = x.contiguous()
        with device.autocast():
            if shape is None:
                with torch.no_grad():
                    shape = network.encode(x)[0].shape
            noise = seeding.generator(recipe.seed, "posterior", step, device=device.kind)
            eps = torch.randn(shape, generator=noise, device=device.kind)
            x_hat, mu, logvar = network(x, eps)
            loss, _ = objective(x_hat, x, mu, logvar, LossNetworks(), recipe.loss, step, recipe.seed)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
        optimiser.step()
        average(ema, network, rate_of_decay(recipe.ema_decay, step))
        passed = time.perf_counter() - started
    return ema, step, passed


@torch.no_grad()
def evaluate(network: nn.Module, test: Volumes, device: Device) -> dict[str, float]:
    """Mean measures over the held-out scans, reconstructed from `mu`."""
    rows = []
    for row in range(len(test)):
        x = test.batch(torch.tensor([row]))
        with device.autocast():
            x_hat = network.decode(network.encode(x)[0])
        rows.append(reconstruction_metrics(*(volume[0, 0].float().cpu().numpy() for volume in (x_hat, x))))
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


if __name__ == "__main__":
    run_script(main, QualityConfig, description=describe(__doc__))
