"""Configuration of the diffusion stage: dataclasses that become the command line, and the table of presets."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from cohort.anatomy.volume_tables import KnownVolumes
from runtime.config import FitConfig
from runtime.errors import InputError
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
    positions: Literal["sincos", "rotary"] = "sincos"
    """How tokens know where they are: a fixed sine-cosine vector added once, or queries and keys rotated by their
    position along each axis (3D rotary embedding)."""
    qk_norm: bool = True
    """RMS normalisation of queries and keys: stable in bfloat16."""
    gelu: Literal["tanh", "exact"] = "tanh"
    """Form of the MLPs' activation; exact is that of older checkpoints."""
    covariates: tuple[str, ...] = ()
    """Continuous conditions besides the class, each of which may be unknown: age, sex, and of --volumes (ml)
    hippocampus_left, hippocampus_right, ventricles and so on."""
    linear_rank: int = 0
    """Principal axes of the linear start: the network adds to the closed-form denoiser of a Gaussian fitted to the
    training latents. A quarter as many as latents overfit little, and are taken where this is more than half as many.
    For runs of minutes; 0 is the plain DiT."""
    means_window: float = 0.0
    """Positions of the latent, as the width of a Gaussian neighbourhood (1, for example), over which the linear start
    compares what a label or a covariate changes with what chance would, and shrinks it accordingly; 0 takes all as
    estimated. Means of a few hundred people differ by chance everywhere: a label then changes a little of all."""
    classes: int = 2
    """Classes; one more embedding, the null class, stands for an unknown one (classifier-free guidance)."""
    sides: bool = False
    """A TLE's side is a condition besides its class, where latents of both sides say theirs; it may be unknown."""

    def check(self, latent: tuple[int, int, int, int]) -> None:
        """InputError where no network for latents of this shape (C, d, h, w) can be built."""
        if any(patch > size for patch, size in zip(self.patch, latent[1:], strict=True)):
            raise InputError(f"--model.patch {self.patch} is larger than the latent {latent[1:]}")
        if self.dim % self.heads:
            raise InputError(f"--model.dim {self.dim} does not divide by --model.heads {self.heads}")
        for flag, value in (("linear-rank", self.linear_rank), ("means-window", self.means_window)):
            if value < 0:
                raise InputError(f"--model.{flag} {value:g}: expected 0 or more")
        if self.means_window and not self.linear_rank:
            raise InputError(f"--model.means-window {self.means_window:g} is of the start of --model.linear-rank")


SIDE_CODES = {"L": 0, "R": 1, "": 2}
"""Rows of the side's embedding. The last is the null side: of a TLE of unknown side, of HC, and of the null class."""
NO_SIDE = SIDE_CODES[""]


# Width and depth of Peebles and Xie 2023, table 1; heads of 64 or 128 dimensions (its XL has 72: slow on tensor cores).
_SIZES = {"S": (384, 12, 6), "B": (768, 12, 6), "L": (1024, 24, 8), "XL": (1152, 28, 9)}
_PATCHES = {"4": (4, 2, 4), "2": (2, 2, 2), "1": (1, 2, 2)}
VARIANTS = {
    f"{size}/{patch}": ModelConfig(dim=dim, depth=depth, heads=heads, patch=_PATCHES[patch])
    for size, (dim, depth, heads) in _SIZES.items()
    for patch in _PATCHES
}
"""DiT-S/4 to DiT-XL/1: the number after the slash is the patch's side along left-right."""


@dataclass(frozen=True)
class ProcessConfig:
    """The noising process and what the network predicts; travels in the checkpoint."""

    schedule: Literal["linear", "scaled_linear", "cosine", "flow"] = "linear"
    """linear, scaled_linear, cosine: diffusion in discrete time (DDPM). flow: a straight line from latent to noise in
    continuous time (rectified flow)."""
    timesteps: int = 1000
    """Steps of the forward process; for flow, what time 1 is called inside the network."""
    target: Literal["noise", "x0", "velocity"] = "noise"
    """What the network predicts, and in whose units the loss is taken. A flow predicts its velocity or x0."""
    min_snr: float = 0.0
    """Cap on the signal-to-noise ratio in the loss weights (min-SNR; 5 is usual); 0 weighs all timesteps equally."""
    time_mean: float = 0.0
    """Mean of the logit of a flow's training times; below 0 prefers little noise."""
    time_std: float = 1.0
    """Standard deviation of the logit of a flow's training times; 0 draws times evenly."""
    shift: float = 1.0
    """Moves a flow's times, in training and sampling, towards noise when above 1: for large latents."""
    centre: bool = False
    """Diffuse the difference from the mean training latent, scaled to unit variance at each position, instead of the
    latent itself."""


@dataclass(frozen=True)
class TrainConfig(KnownVolumes, FitConfig):
    """Everything one diffusion training run depends on."""

    latents: Path = ROOT / "latents/paper"
    """Folder of VAE.save_latent: statistics.json and one subfolder per split."""
    train_split: str = "train"
    """Subfolder to train on."""
    val_split: str = "val"
    """Subfolder whose loss chooses the best checkpoint."""
    tables: tuple[Path, ...] = ()
    """Tables with the subjects' age and sex, when --model.covariates names these."""
    vae: Path | None = None
    """VAE checkpoint, to decode pictures during training; without it there are none."""
    init: Path | None = None
    """Checkpoint whose averaged weights and latent space the run starts from: one of this stage, or a file with
    model_state and ema_state of NeuroLDM-3D. Architecture and process must be the same, and the grid unless
    --init-other-grid."""
    init_other_grid: bool = False
    """Take the weights of --init although their latents are of another grid: a table of positions is interpolated, and
    the latent space, with the linear start if any, is fitted to the latents of this run."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture."""
    process: ProcessConfig = field(default_factory=ProcessConfig)
    """Noising process and prediction target."""
    decay_share: float = 0.2
    """Share of the steps, at the end, over which the rate falls to a hundredth; 0 keeps it constant."""
    sample_posterior: bool = True
    """Train on draws from the VAE's posteriors, as latent diffusion does; else on their means, of which
    reconstructions are made. Where posteriors are wide against the differences between people, a short run learns
    little but their noise, and draws it (benchmarks/RESULTS.md)."""
    mix_mm: float = 0.0
    """Train on mixtures of two people of one class and side, whose shares vary over about so many mm, so that no
    training latent is a person's (diffusion/mixing.py); 0 trains on people as they are."""
    label_dropout: float = 0.1
    """Chance that a label is replaced by the null class; 0 leaves nothing to guide against."""
    side_dropout: float = 0.1
    """Chance that a TLE's side is hidden, besides --label-dropout, which hides class and side together."""
    covariate_dropout: float = 0.1
    """Chance, for each covariate, that it is hidden."""
    ema_shares: tuple[float, ...] = (0.05, 0.15)
    """Lengths of the weight averages, as shares of the steps so far: 0.05 remembers about the last 5 percent. The one
    with the lower held-out loss is what loaders return."""
    sample_every_steps: int = 10_000
    """Steps between two pictures of samples (needs --vae)."""


# DiT-S/4 in the published recipe: noise prediction, linear schedule, constant rate.
_PAPER = TrainConfig(
    run_dir=ROOT / "runs/paper/diffusion", model=replace(VARIANTS["S/4"], sides=True),
    steps=100_000, batch_size=64, lr=1e-4, warmup_steps=1000, decay_share=0.0,
    val_every_steps=2000, save_every_steps=2000,
)  # fmt: skip
PRESETS = {
    "smoke": TrainConfig(
        latents=ROOT / "runs/smoke/latents", run_dir=ROOT / "runs/smoke/diffusion",
        model=ModelConfig(dim=64, depth=2, heads=1, patch=(2, 2, 2), linear_rank=4, sides=True),
        process=ProcessConfig(target="velocity", centre=True),
        steps=60, batch_size=8, lr=1e-3, warmup_steps=10,
        log_every_steps=10, val_every_steps=30, sample_every_steps=0, save_every_steps=15,
    ),
    "demo": TrainConfig(
        latents=ROOT / "runs/demo/latents", run_dir=ROOT / "runs/demo/diffusion",
        model=ModelConfig(dim=256, depth=6, heads=4, patch=(4, 4, 4), linear_rank=512, means_window=1.0, sides=True),
        process=ProcessConfig(target="velocity", centre=True),
        steps=600, batch_size=8, lr=1e-3, warmup_steps=50, decay_share=0.4, sample_posterior=False,
        log_every_steps=20, val_every_steps=300, sample_every_steps=300, save_every_steps=150,
    ),
    "paper": _PAPER,
    # The recipe we would start from on the full grid: rotary positions, rectified flow, warm-up-stable-decay.
    "flow": replace(
        _PAPER, run_dir=ROOT / "runs/flow/diffusion", model=replace(_PAPER.model, positions="rotary"),
        process=ProcessConfig(schedule="flow", target="velocity"), lr=2e-4, decay_share=0.2,
    ),
}  # fmt: skip
