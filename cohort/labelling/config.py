"""Configuration of the network that labels regions: what becomes the command line, and the table of presets."""

from dataclasses import dataclass, field

from cohort.grids import GridName
from cohort.labelling.network import ModelConfig
from runtime.config import RunConfig
from runtime.files import ROOT


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Everything one training depends on. It reads no scans: all it learns from is made on the way."""

    grid: GridName = "paper"
    """Voxel grid, as of the scans that are to be labelled: paper, demo, smoke, 1mm, 2mm, a spacing in mm such as 3 or
    3@160x192x160, or a JSON file (cohort/grids.py)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture."""
    held_out: int = 24
    """Anatomies, each imaged twice, on which the best checkpoint is chosen; 2 or more."""
    volume_weight: float = 1.0
    """Weight of the error of whole volumes (of their logarithms), beside the cross-entropy of voxels."""
    ema_share: float = 0.1
    """Share of the steps so far over which weights are averaged; the averaged ones are what loaders return."""


PRESETS = {
    # Seconds: the continuous-integration chain. Quality is not the point.
    "smoke": TrainConfig(
        grid="smoke", run_dir=ROOT / "runs/smoke/labels", model=ModelConfig(channels=(8, 16, 16)), held_out=2,
        steps=20, batch_size=2, lr=3e-3, warmup_steps=5, log_every_steps=10, val_every_steps=10, save_every_steps=10,
    ),
    # Half an hour of one core.
    "demo": TrainConfig(
        grid="demo", run_dir=ROOT / "runs/demo/labels", steps=4000, batch_size=4, lr=3e-3, warmup_steps=50,
        log_every_steps=20, val_every_steps=400, save_every_steps=200,
    ),
    # The same at full resolution on a GPU; not trained by us yet.
    "paper": TrainConfig(
        run_dir=ROOT / "runs/paper/labels", model=ModelConfig(channels=(24, 48, 96, 192, 192)), steps=20_000,
        batch_size=4, lr=1e-3, warmup_steps=500, val_every_steps=1000, save_every_steps=1000,
    ),
}  # fmt: skip
