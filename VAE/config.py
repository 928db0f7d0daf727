"""Configuration of the VAE stage: dataclasses that become the command line, and the table of presets."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cohort.grids import GridName
from runtime.config import FitConfig
from runtime.errors import InputError
from runtime.files import ROOT


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of the autoencoder; travels in the checkpoint."""

    channels: tuple[int, ...] = (32, 64, 128)
    """Width of each resolution level, finest first; each level but the last ends in a halving."""
    blocks: int | tuple[int, ...] = 1
    """ResNet blocks per level: one number for all, or one for each, finest first."""
    groups: int = 16
    """Groups of each GroupNorm; divides every width."""
    latent_channels: int = 4
    """Channels of the latent."""
    attention: bool = False
    """Self-attention between two more ResNet blocks at the lowest resolution."""
    attention_side: Literal["both", "encoder", "decoder"] = "both"
    """Where `attention` adds it."""
    attention_levels: tuple[bool, ...] = ()
    """Levels, finest first, whose every ResNet block is followed by self-attention, in encoder and decoder; () is none.
    Its cost grows with the square of the level's voxels."""
    upsampling: Literal["nearest", "linear", "transposed"] = "nearest"
    """How the decoder doubles its resolution: nearest or linear (as MAISI's autoencoder) before a convolution, or by a
    transposed convolution."""
    stem_patch: int = 1
    """Voxels per side that become channels before the first convolution (space-to-depth) and come back by pixel shuffle
    after the last. 1: full-resolution feature maps, the usual design."""
    linear_path: bool = False
    """Add a learned linear map from voxel blocks to the latent and back, started as their lowest DCT frequencies: the
    network begins as a low-pass codec and learns what that misses."""
    support: bool = False
    """A second output that tells the head from its surroundings: voxels outside become exactly 0, as they are in scans,
    and the others have the scans' distribution of intensities (VAE/model/output.py). Imported networks have none."""

    def levels(self) -> list[tuple[int, int, bool]]:
        """Width, ResNet blocks and attention of each level, finest first; InputError where their numbers differ."""
        count = len(self.channels)
        blocks = (self.blocks,) * count if isinstance(self.blocks, int) else self.blocks
        attention = self.attention_levels or (False,) * count
        if not len(blocks) == len(attention) == count:
            found = f"model.blocks {len(blocks)}, model.attention_levels {len(attention)}"
            raise InputError(f"model.channels gives {count} levels, {found}")
        return list(zip(self.channels, blocks, attention, strict=True))


@dataclass(frozen=True)
class LossConfig:
    """Kinds, weights and first steps of the loss terms. The reconstruction's weight is 1."""

    reconstruction: Literal["l1", "l2"] = "l1"
    """Mean absolute (l1) or mean squared (l2) error over all voxels."""
    support: float = 0.1
    """Weight of the cross-entropy of the second output, where the model has one; the reconstruction error then counts
    inside the head only, still divided by all voxels."""
    kl: float = 1e-6
    """Weight of the KL divergence to the standard normal, summed over the latent and divided by the voxels."""
    kl_start_step: int = 1
    """Step from which the KL term counts; it is logged from the first."""
    perceptual: float = 0.0
    """Weight of a distance in the features of a fixed network."""
    perceptual_network: Literal[
        "efficientnet_lite0", "radimagenet_resnet50", "medicalnet_resnet10_23datasets",
        "medicalnet_resnet50_23datasets", "lpips_alex", "lpips_vgg", "lpips_squeeze",
    ] = "efficientnet_lite0"  # fmt: skip
    """The fixed network. efficientnet_lite0 comes with the installation; the others need --loss.perceptual-weights.
    medicalnet looks at whole volumes, the others at slices; lpips weighs channels by human judgements of likeness."""
    perceptual_weights: Path | None = None
    """File of weights for a perceptual network that is not part of the installation. For lpips_squeeze, say:
    torch.save(lpips.LPIPS(net="squeeze").state_dict(), FILE), once where lpips and torchvision are installed."""
    perceptual_slices: int = 8
    """Slices per step, drawn evenly from all slices of all three axes."""
    perceptual_start_step: int = 1
    """Step from which the perceptual term counts."""
    adversarial: float = 0.0
    """Weight of the patch adversarial term (MONAI's patch discriminator)."""
    adversarial_kind: Literal["least_squares", "hinge"] = "least_squares"
    """Adversarial loss."""
    adversarial_start_step: int = 1000
    """Step from which the discriminator trains and counts."""
    adversarial_warmup_steps: int = 500
    """Steps over which the adversarial weight then rises from 0."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random variants of training volumes; each number is the largest deviation, drawn evenly in both directions."""

    rotate_degrees: float = 0.0
    """Rotation about each axis, degrees."""
    scale: float = 0.0
    """Relative change of size along each axis: 0.05 is up to 5 percent."""
    shift_voxels: float = 0.0
    """Shift along each axis, voxels."""
    gamma: float = 0.0
    """Exponent of the intensity curve, as a natural logarithm: 0.2 is x ** (0.82 to 1.22)."""
    bias: float = 0.0
    """Natural logarithm of a smooth multiplicative field: 0.1 is about 10 percent."""
    flip: float = 0.0
    """Chance of a left-right flip. Flipping exchanges left and right TLE; leave it at 0 when the side matters."""


@dataclass(frozen=True)
class TrainConfig(FitConfig):
    """Everything one VAE training run depends on."""

    grid: GridName = "paper"
    """Voxel grid: paper 112x136x112 at 1.5 mm, demo 40x48x40 at 4 mm, smoke 20x24x20 at 8 mm, 1mm, 2mm, a spacing in mm
    such as 3 or 3@160x192x160 with the sides of its field of view, or a JSON file (cohort/grids.py). A preset's network
    works on any: sizes that do not divide by its reduction are padded and cropped."""
    train_csv: Path = ROOT / "data_csvs/train.csv"
    """Table of training scans."""
    val_csv: Path = ROOT / "data_csvs/val.csv"
    """Table of held-out scans; the best checkpoint is chosen on them."""
    init: Path | None = None
    """Checkpoint of another run, or of VAE.import_weights, whose averaged weights this one starts from; of the same
    architecture, and of the same grid unless --init-other-grid."""
    init_other_grid: bool = False
    """Take the weights of --init although they were trained on another grid; convolutions have no size of their own."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Loss terms."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of training volumes; off by default."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    ema_decay: float = 0.999
    """Decay per step of the averaged weights (with the usual warm-up); they are what loaders return."""
    patch: int = 0
    """Train on random cubes of so many voxels per side, a multiple of the model's reduction, instead of whole volumes;
    smaller axes stay whole. For grids whose volumes do not fit: the network is convolutional, and works on whole ones
    afterwards. Only its group norms see a difference."""
    allow_one_class: bool = False
    """Train on a table that has only HC or only TLE."""
    allow_leak: bool = False
    """Go on although a held-out scan is a copy of a training scan; the log then says so."""
    cache_dir: Path | None = None
    """Folder of decoded scans; by default data/cache in the repository."""
    skip_bad: Path | None = None
    """Write unreadable scans to this table and go on without them (at most 2 percent); by default they stop it."""


PRESETS = {
    # Seconds: the continuous-integration chain. Quality is not the point.
    "smoke": TrainConfig(
        grid="smoke", train_csv=ROOT / "data/smoke/train.csv", val_csv=ROOT / "data/smoke/val.csv",
        cache_dir=ROOT / "data/smoke/cache", run_dir=ROOT / "runs/smoke/vae",
        model=ModelConfig(channels=(16,), latent_channels=4, groups=8, stem_patch=2, linear_path=True, support=True),
        steps=40, batch_size=4, lr=2e-3, warmup_steps=5, ema_decay=0.95,
        log_every_steps=10, val_every_steps=20, save_every_steps=10,
    ),
    # Minutes on two CPU cores.
    "demo": TrainConfig(
        grid="demo", train_csv=ROOT / "data/demo/train.csv", val_csv=ROOT / "data/demo/val.csv",
        cache_dir=ROOT / "data/demo/cache", run_dir=ROOT / "runs/demo/vae",
        model=ModelConfig(channels=(32,), latent_channels=6, stem_patch=2, linear_path=True, support=True),
        loss=LossConfig(kl=3e-3),
        steps=500, batch_size=4, lr=2e-3, warmup_steps=30, ema_decay=0.99,
        log_every_steps=20, val_every_steps=100, save_every_steps=100,
    ),
    # The full model on a GPU. Recipes are published with KL weights from 1e-6 to 0.2 in these units; this one is the
    # largest that cost no reconstruction in a short run at 2 mm (benchmarks/RESULTS.md).
    "paper": TrainConfig(
        run_dir=ROOT / "runs/paper/vae", model=ModelConfig(support=True), loss=LossConfig(kl=1e-2),
        steps=50_000, batch_size=8, lr=2e-4, warmup_steps=500,
        val_every_steps=1000, save_every_steps=1000,
    ),
}  # fmt: skip
