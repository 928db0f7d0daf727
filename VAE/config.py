"""Configuration of the VAE stage: dataclasses that become the command line, and the table of presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from runtime.device import Precision
from runtime.files import ROOT


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of the autoencoder; travels in the checkpoint."""

    channels: tuple[int, ...] = (32, 64, 128)
    """Width of each resolution level, finest first; each level but the last ends in a halving."""
    blocks: int = 1
    """ResNet blocks per level."""
    groups: int = 16
    """Groups of each GroupNorm; divides every width."""
    latent_channels: int = 4
    """Channels of the latent."""
    stem_patch: int = 1
    """Voxels per side that become channels before the first convolution (space-to-depth) and come back by pixel shuffle
    after the last. 1: full-resolution feature maps, the usual design."""
    linear_path: bool = False
    """Add a learned linear map from voxel blocks to the latent and back, started as their lowest DCT frequencies: the
    network begins as a low-pass codec and learns what that misses."""


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms. Reconstruction is the mean absolute error, weight 1."""

    kl: float = 1e-6
    """Weight of the KL divergence to the standard normal, summed over the latent and divided by the voxels."""
    perceptual: float = 0.0
    """Weight of the feature distance in the packaged EfficientNet-Lite0, on random slices of all three axes."""
    perceptual_slices: int = 8
    """Slices per step for the perceptual term."""
    adversarial: float = 0.0
    """Weight of the least-squares patch adversarial term (MONAI's patch discriminator)."""
    adversarial_start_step: int = 1000
    """Step from which the discriminator trains and counts."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything one VAE training run depends on."""

    grid: Literal["smoke", "demo", "paper"] = "paper"
    """Voxel grid: paper is 112x136x112 at 1.5 mm, demo 40x48x40 at 4 mm, smoke 20x24x20 at 8 mm."""
    train_csv: Path = ROOT / "data_csvs/train.csv"
    """Table of training scans."""
    val_csv: Path = ROOT / "data_csvs/val.csv"
    """Table of held-out scans; the best checkpoint is chosen on them."""
    run_dir: Path = ROOT / "runs/paper/vae"
    """Run folder. An existing run of the same configuration is continued."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Loss terms."""
    steps: int = 50_000
    """Optimiser steps."""
    batch_size: int = 8
    """Volumes per step, over all processes."""
    lr: float = 2e-4
    """Peak learning rate (AdamW, linear warm-up, cosine decay)."""
    warmup_steps: int = 500
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    ema_decay: float = 0.999
    """Decay per step of the averaged weights (with the usual warm-up); they are what loaders return."""
    log_every_steps: int = 50
    """Steps between two lines of the log."""
    val_every_steps: int = 1000
    """Steps between two validations and picture grids."""
    save_every_steps: int = 1000
    """Steps between two checkpoints."""
    precision: Precision = "auto"
    """Matrix precision; auto is bfloat16 where the device has fast kernels for it."""
    seed: int = 0
    """Seed of every random draw."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    cache_dir: Path | None = None
    """Folder of decoded scans; by default data/cache in the repository."""
    skip_bad: Path | None = None
    """Write unreadable scans to this table and go on without them (at most 2 percent); by default they stop it."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


PRESETS = {
    # Seconds: the continuous-integration chain. Quality is not the point.
    "smoke": TrainConfig(
        grid="smoke", run_dir=ROOT / "runs/smoke/vae",
        model=ModelConfig(channels=(16,), latent_channels=4, groups=8, stem_patch=2, linear_path=True),
        steps=40, batch_size=4, lr=2e-3, warmup_steps=5, ema_decay=0.95,
        log_every_steps=10, val_every_steps=20, save_every_steps=10,
    ),
    # Minutes on two CPU cores.
    "demo": TrainConfig(
        grid="demo", run_dir=ROOT / "runs/demo/vae",
        model=ModelConfig(channels=(32,), latent_channels=4, stem_patch=2, linear_path=True),
        loss=LossConfig(kl=1e-3),
        steps=500, batch_size=4, lr=2e-3, warmup_steps=30, ema_decay=0.99,
        log_every_steps=20, val_every_steps=100, save_every_steps=100,
    ),
    # The full model on a GPU.
    "paper": TrainConfig(),
}  # fmt: skip
