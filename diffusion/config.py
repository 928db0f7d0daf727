"""Configuration of the diffusion stage: dataclasses that become the command line, and the table of presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from runtime.device import Precision
from runtime.files import ROOT


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of the DiT; travels in the checkpoint."""

    dim: int = 384
    """Width of a token."""
    depth: int = 12
    """Transformer blocks."""
    heads: int = 6
    """Attention heads; dim / heads is 64 or 128 on a GPU, where fused attention is fastest."""
    patch: tuple[int, int, int] = (4, 2, 4)
    """Latent positions per token along (D, H, W). Sizes that do not divide are padded and cropped."""
    latent_channels: int = 4
    """Channels of the latent."""
    linear_rank: int = 0
    """Principal axes of the linear start: the network adds to the closed-form denoiser of a Gaussian fitted to the
    training latents. For runs of minutes; 0 is the plain DiT."""
    classes: int = 2
    """Classes; one more embedding, the null class, stands for 'not told' (classifier-free guidance)."""


@dataclass(frozen=True)
class ProcessConfig:
    """The noising process and what the network predicts; travels in the checkpoint."""

    timesteps: int = 1000
    """Steps of the forward process."""
    schedule: Literal["linear"] = "linear"
    """Noise schedule: beta rises linearly from 1e-4 to 0.02."""
    target: Literal["noise", "x0", "velocity"] = "noise"
    """What the network predicts, and in whose units the loss is taken."""
    centre: bool = False
    """Diffuse the difference from the mean training latent, scaled to unit variance at each position, instead of the
    latent itself."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything one diffusion training run depends on."""

    latents: Path = ROOT / "latents/paper"
    """Folder of VAE.save_latent: statistics.json and one subfolder per split."""
    train_split: str = "train"
    """Subfolder to train on."""
    val_split: str = "val"
    """Subfolder whose loss chooses the best checkpoint."""
    vae: Path | None = None
    """VAE checkpoint, to decode pictures during training; without it there are none."""
    run_dir: Path = ROOT / "runs/paper/diffusion"
    """Run folder. An existing run of the same configuration is continued."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture."""
    process: ProcessConfig = field(default_factory=ProcessConfig)
    """Noising process and prediction target."""
    steps: int = 100_000
    """Optimiser steps."""
    batch_size: int = 64
    """Latents per step, over all processes; half of each class."""
    lr: float = 1e-4
    """Peak learning rate (AdamW, linear warm-up, then constant, cosine over the last part)."""
    warmup_steps: int = 1000
    """Steps of linear warm-up."""
    decay_share: float = 0.2
    """Share of the steps, at the end, over which the rate falls to a hundredth."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    label_dropout: float = 0.1
    """Chance that a label is replaced by the null class."""
    ema_share: float = 0.05
    """Length of the weight average, as a share of the steps so far: it remembers about the last 5 percent."""
    log_every_steps: int = 50
    """Steps between two lines of the log."""
    val_every_steps: int = 2000
    """Steps between two held-out losses."""
    sample_every_steps: int = 10_000
    """Steps between two pictures of samples (needs --vae)."""
    save_every_steps: int = 2000
    """Steps between two checkpoints."""
    precision: Precision = "auto"
    """Matrix precision; auto is bfloat16 where the device has fast kernels for it."""
    seed: int = 0
    """Seed of every random draw."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


PRESETS = {
    "smoke": TrainConfig(
        latents=ROOT / "latents/smoke", run_dir=ROOT / "runs/smoke/diffusion",
        model=ModelConfig(dim=64, depth=2, heads=1, patch=(2, 2, 2), linear_rank=4),
        process=ProcessConfig(target="velocity", centre=True),
        steps=60, batch_size=8, lr=1e-3, warmup_steps=10,
        log_every_steps=10, val_every_steps=30, sample_every_steps=0, save_every_steps=15,
    ),
    "demo": TrainConfig(
        latents=ROOT / "latents/demo", run_dir=ROOT / "runs/demo/diffusion",
        model=ModelConfig(dim=256, depth=6, heads=4, patch=(4, 4, 4), linear_rank=64),
        process=ProcessConfig(target="velocity", centre=True),
        steps=900, batch_size=8, lr=1e-3, warmup_steps=50, decay_share=0.4,
        log_every_steps=20, val_every_steps=100, sample_every_steps=300, save_every_steps=100,
    ),
    # DiT-S in the shape of the published recipe: noise prediction, linear schedule, constant rate.
    "paper": TrainConfig(),
}  # fmt: skip
