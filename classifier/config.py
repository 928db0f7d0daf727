"""Configuration of the classifier stage: dataclasses that become the command line, and the table of presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cohort.anatomy.volume_tables import KnownVolumes
from cohort.grids import GridName
from cohort.labelling.reading import LabelsFrom
from runtime.config import RunConfig
from runtime.files import ROOT


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of the network; travels in the checkpoint."""

    name: Literal["resnet", "hemispheres", "densenet121", "efficientnet"] = "resnet"
    """A dense 3D ResNet, one that compares the two halves of the head, MONAI's 3D DenseNet121, or MONAI's 2D
    EfficientNet-B0 with coronal slices as channels."""
    widths: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of each level (resnet, hemispheres); every level after the first halves each axis."""
    blocks: int = 2
    """Residual blocks per level (resnet, hemispheres)."""
    pool: Literal["attention", "mean"] = "attention"
    """How places of the last level are put together (resnet): weighted by a learned score, or averaged."""
    feature_norm: bool = True
    """Bring the pooled features to mean 0 and variance 1 over the batch before the last layer."""
    stem_stride: int = 2
    """Stride of the first convolution: 2 for fine grids, 1 for coarse ones."""
    groups: int = 8
    """Groups of each GroupNorm; divides every width."""
    dropout: float = 0.2
    """Share of the pooled features that is dropped in training."""
    outputs: Literal[1, 2] = 1
    """Logits: TLE against HC, and with 2 also right against left; hemispheres always has both."""
    region: Literal["head", "temporal"] = "head"
    """What is seen of each half (hemispheres): all, or a box around hippocampus and amygdala."""
    margin_mm: float = 10.0
    """How far that box reaches beyond them, in mm, no further than the midline."""
    summaries: int = 32
    """Numbers that are read out of each half: sums over channels and places, each with its own weight (hemispheres)."""
    volumes: int = 0
    """Structures whose volumes on either side are predicted too; training sets it: see --volumes-weight."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training volumes, drawn anew each step; mirroring is --mirror."""

    rotate_degrees: float = 4.0
    """Standard deviation of the rotation about each axis, in degrees."""
    shift_mm: float = 2.0
    """Standard deviation of the shift along each axis, in mm."""
    scale: float = 0.02
    """Standard deviation of the logarithm of the isotropic scale."""
    gamma: float = 0.1
    """Standard deviation of the logarithm of the exponent applied to intensities."""
    noise: float = 0.02
    """Standard deviation of added white noise, in intensity units (volumes span 0 to 1)."""

    def scaled(self, factor: float) -> AugmentConfig:
        return AugmentConfig(**{name: factor * value for name, value in asdict(self).items()})


STRENGTH = {"none": 0.0, "standard": 1.0, "strong": 2.0}
"""Factor on the standard deviations of AugmentConfig, by name of the augmentation."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LabelsFrom, KnownVolumes, RunConfig):
    """Everything one classifier run depends on. Every arm of an experiment takes the same steps, however many volumes
    it has; half of each batch is HC and half TLE.
    """

    grid: GridName = "paper"
    """Voxel grid (cohort/grids.py); a preset's network works on any."""
    train_csv: Path = ROOT / "data_csvs/train.csv"
    """Table of training scans."""
    val_csv: Path = ROOT / "data_csvs/val.csv"
    """Table of validation scans: the best checkpoint, the temperature and the threshold are chosen on them."""
    test_csv: Path = ROOT / "data_csvs/test.csv"
    """Table of held-out scans, used once, at the end."""
    folds: int = 0
    """Cross-validation with so many folds (3 or more) instead of the three tables: the scans of --index are divided by
    subject and group, with class, side and site in proportion. 0 for the three tables."""
    fold: int = 0
    """Which fold this run is tested on, from 0. It is validated on the next one and trained on all others."""
    index: tuple[Path, ...] = ()
    """Tables that --folds divides, joined; by default the training table, so that the test table stays locked."""
    real: int | None = None
    """How many real training subjects to use: by default all, 0 for synthetic volumes only. Those of a smaller number
    are among those of a larger one, with the classes in proportion."""
    synth_percent: float = 0.0
    """Synthetic volumes to add, in percent of the real training scans, class by class."""
    synth_count: int = 0
    """Synthetic volumes to add, in total, half of each class; instead of the percentage (needed with --real 0)."""
    duplicate_percent: float = 0.0
    """Real training scans to repeat, in percent, class by class: the control of --synth-percent with nothing new."""
    augmentation: Literal["none", "standard", "strong"] = "standard"
    """Strength of the classical augmentation: the standard deviations of --augment times 0, 1 or 2."""
    shuffle: Literal["none", "synthetic", "all"] = "none"
    """Null runs. synthetic: the labels of the synthetic volumes are permuted among them. all: those of the training and
    of the validation subjects too, each among themselves; test labels never. Then nothing is learned of volumes: a
    network that knows them tells patients from controls, one way round or the other, whatever its labels were."""
    synth_hc: Path = ROOT / "synthetic_data_pkls_HC"
    """Folder of synthetic controls (volume pickles and ledger.json)."""
    synth_tle: Path = ROOT / "synthetic_data_pkls_TLE"
    """Folder of synthetic patients."""
    allow_leak: bool = False
    """Go on when validation or test subjects were seen in training, by this run or by the synthetic volumes' makers, or
    when no ledger says so; the results then say so."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Standard deviations of the augmentation; see --augmentation."""
    mirror: bool = True
    """Mirror half of the training volumes left to right, drawn anew each step; a patient's side changes with it. It
    comes with every --augmentation, none too."""
    side_weight: float = 0.0
    """Weight of the loss of a second task, right against left, on the patients whose side is known; 0 leaves it out.
    Hemispheres learns the side always, by the cross-entropy over HC, TLE-L and TLE-R; this comes on top."""
    volumes_weight: float = 0.0
    """Weight of the loss of an auxiliary task, the volumes of --structures on either side, for those training scans
    whose volumes are known, by --volumes or columns of the training table; 0 leaves it out. It changes what is learned,
    and nothing of how the network is used."""
    structures: tuple[str, ...] = ("Hippocampus", "Amygdala")
    """Structures of --volumes-weight, as the atlas calls them."""
    ema_decay: float = 0.998
    """Decay per step of the averaged weights; validation, the best checkpoint and the results use them."""
    temperature: bool = True
    """Divide logits by one number fitted on validation, to calibrate probabilities (it changes no ranking)."""
    resamples: int = 2000
    """Bootstrap resamples of subjects for the intervals."""
    sample_seed: int = 0
    """Seed of the folds and of the choice of real subjects and synthetic volumes."""
    cache_dir: Path | None = None
    """Folder of decoded scans; by default data/cache in the repository."""
    skip_bad: Path | None = None
    """Go on without unreadable scans (refused above 2 percent) and list them, one CSV per split (bad_train.csv for
    bad.csv); by default they stop the run."""

    @property
    def learns_volumes(self) -> bool:
        """Whether volumes are a second lesson."""
        return self.volumes_weight > 0 and self.shuffle != "all"


def _in_its_folders(grid: str) -> dict[str, Any]:
    """Where `make demo` and `make smoke` keep the tables and volumes of their simulated cohort."""
    data, runs = ROOT / "data" / grid, ROOT / "runs" / grid
    tables = {f"{name}_csv": data / f"{name}.csv" for name in ("train", "val", "test")}
    synthetic = {f"synth_{label}": runs / f"synthetic_data_pkls_{label.upper()}" for label in ("hc", "tle")}
    return {"grid": grid, "run_dir": runs / "classifier", "cache_dir": data / "cache", **tables, **synthetic}


PRESETS = {
    # Seconds: the continuous-integration chain. Quality is not the point.
    "smoke": TrainConfig(
        **_in_its_folders("smoke"),
        model=ModelConfig(
            name="hemispheres", region="temporal", margin_mm=8.0, summaries=8, widths=(8, 16), blocks=1, stem_stride=1
        ),
        steps=40, batch_size=8, lr=3e-3, warmup_steps=5, weight_decay=0.05, ema_decay=0.9,
        log_every_steps=10, val_every_steps=10, save_every_steps=10,
    ),
    # Half a minute of one CPU core. With volumes as a second lesson it learns from 400 simulated scans what a ResNet of
    # the whole head does not: README has the figures. In so few steps augmentation keeps it from learning.
    "demo": TrainConfig(
        **_in_its_folders("demo"), augmentation="none", volumes=ROOT / "data/demo/truth.csv", volumes_weight=4.0,
        model=ModelConfig(
            name="hemispheres", region="temporal", margin_mm=4.0, summaries=8, widths=(8, 16, 32), blocks=1,
            stem_stride=1,
        ),
        steps=200, batch_size=16, lr=3e-3, warmup_steps=15, weight_decay=0.05, ema_decay=0.97,
        log_every_steps=10, val_every_steps=25, save_every_steps=50,
    ),
    # The full model on a GPU.
    "paper": TrainConfig(
        run_dir=ROOT / "runs/paper/classifier",
        steps=8000, batch_size=16, lr=2e-4, warmup_steps=400, weight_decay=0.05,
        val_every_steps=200, save_every_steps=400,
    ),
}  # fmt: skip
