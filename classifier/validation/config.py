"""Settings of a validation of maps: what is planted, how networks are trained, and how much is measured."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cohort.grids import GridName
from cohort.simulation.effects import LARGEST_PLANTED_D
from runtime.config import ScriptConfig
from runtime.errors import InputError
from runtime.files import ROOT


@dataclass(frozen=True)
class Effort:
    """How much is computed."""

    patients: int = 48
    """Test patients whose maps are made, half of each side, for every network."""
    controls: int = 48
    """Test controls whose maps are made, for the network that methods are judged on."""
    nulls: int = 200
    """Places elsewhere that the changed region is moved to."""
    cascade_patients: int = 12
    """Patients for the randomisation of weights."""
    faithful_patients: int = 24
    """Patients for deletion and insertion."""
    faithful_draws: int = 50
    """Random orders of regions."""
    ig_steps: int = 32
    """Points on the path of integrated gradients."""
    noise_samples: int = 25
    """Noisy copies in SmoothGrad."""
    resamples: int = 2000
    """Bootstrap resamples of patients."""


@dataclass(frozen=True)
class ValidationConfig(ScriptConfig):
    """What is planted, how networks are trained, and how much is measured."""

    grid: GridName = "paper"
    """Voxel grid of cohorts and networks; the preset of classifier.train is that of the nearest voxel size."""
    out: Path = ROOT / "runs/paper/validate_saliency"
    """Folder for everything."""
    subjects: int = 1200
    """Subjects of each cohort: half controls, a quarter with the change on the left, a quarter on the right."""
    signals: tuple[float, ...] = ()
    """Shares of its intensity that the hippocampus of the changed side loses, each between 0 and 1. Methods are judged
    on the strongest, or without any on the strongest dose: a grid may be too coarse to learn doses on."""
    doses: tuple[float, ...] = (1.9, 1.0, 0.5, 0.0)
    """Cohen's d of the planted loss of hippocampal volume against controls, each from 0 to 6 (half of it); 0, the
    cohort without any change, among them."""
    steps: int | None = None
    """Optimiser steps of each network; by default those of the preset."""
    lr: float | None = None
    """Peak learning rate; by default the preset's."""
    widths: tuple[int, ...] | None = None
    """Channels of each level of the networks, which are ResNets; by default the preset's."""
    stem_stride: int | None = None
    """Stride of their first convolution; by default the preset's."""
    augmentation: Literal["none", "standard", "strong"] = "standard"
    """Augmentation of the networks' training volumes."""
    effort: Effort = field(default_factory=Effort)
    """How much is measured."""
    counterfactuals: Path | None = None
    """Folder of diffusion.counterfactual --to HC for the test scans of the network that methods are judged on, by a
    generator of its cohort: the size of the difference is then one more method."""
    jobs: int = 1
    """Networks trained at once."""
    threads: int | None = None
    """CPU threads for maps and for each network; by default all cores for maps, and one for each of several jobs."""
    measure_unlearned: bool = False
    """Measure maps also when the network that methods are judged on has learned nothing; nothing is judged then."""
    seed: int = 1000
    """Seed of the cohorts, the networks, the noise of methods and the null places."""


EFFORT_ON_A_CPU = Effort(
    patients=16, controls=16, nulls=200, cascade_patients=4, faithful_patients=8,
    faithful_draws=20, ig_steps=16, noise_samples=12, resamples=1000,
)  # fmt: skip

PRESETS = {
    # Seconds: the continuous-integration chain. The networks learn nothing, so nothing is judged.
    "smoke": ValidationConfig(
        grid="smoke", out=ROOT / "runs/smoke/validate_saliency", subjects=48, signals=(0.6,), doses=(0.0,),
        effort=Effort(
            patients=4, controls=4, nulls=20, cascade_patients=2, faithful_patients=2,
            faithful_draws=3, ig_steps=4, noise_samples=4, resamples=200,
        ),
        measure_unlearned=True,
    ),
    # Minutes on two CPU cores: a change known to the voxel, which small networks learn completely. In so few steps the
    # corner mark is learned without augmentation, not with it. A planted loss of half a hippocampus is learned at the
    # rate 2e-4 by every seed tried, at 7e-4 by some, at 3e-3 by none.
    "demo": ValidationConfig(
        grid="demo", out=ROOT / "runs/demo/validate_saliency", subjects=500, signals=(0.6, 0.3), doses=(0.0,),
        steps=250, lr=2e-4, widths=(8, 16, 32, 64), stem_stride=2, augmentation="none", effort=EFFORT_ON_A_CPU,
        jobs=2,
    ),
    # The disease's own change, a loss of volume. At 4 mm only the largest are learned from 600 subjects.
    "doses": ValidationConfig(
        grid="demo", out=ROOT / "runs/demo/validate_saliency_doses", subjects=1000,
        doses=(6.0, 3.0, 1.9, 1.0, 0.5, 0.0),
        steps=400, lr=2e-4, widths=(8, 16, 32, 64), stem_stride=2, augmentation="none", effort=EFFORT_ON_A_CPU,
        jobs=2,
    ),
    # The full grid and network, on a GPU.
    "paper": ValidationConfig(),
}  # fmt: skip


def check(config: ValidationConfig) -> None:
    """Refuses settings that answer nothing."""
    doses, signals, effort = config.doses, config.signals, config.effort
    rules = {
        f"--doses {doses}: different ones, and 0 among them": 0 in doses and len(set(doses)) == len(doses),
        f"--doses {doses}: each from 0 to {LARGEST_PLANTED_D:g}": all(0 <= d <= LARGEST_PLANTED_D for d in doses),
        f"--signals {signals}: different ones between 0 and 1":
            all(0 < signal < 1 for signal in signals) and len(set(signals)) == len(signals),
        "--signals and --doses: something has to be planted": len(doses) + len(signals) > 1,
        "--effort.patients at least 2 (one of each side), --effort.controls at least 1":
            effort.patients > 1 and effort.controls > 0,
        f"--effort.nulls {effort.nulls}: with fewer than 19 no p-value reaches 5 %": effort.nulls >= 19,
        f"--jobs {config.jobs}: at least 1": config.jobs > 0,
        f"--counterfactuals {config.counterfactuals}: a folder of diffusion.counterfactual, with manifest.csv":
            config.counterfactuals is None or (config.counterfactuals / "manifest.csv").is_file(),
    }  # fmt: skip
    problems = [rule for rule, kept in rules.items() if not kept]
    if problems:
        raise InputError.of("settings refused", problems)
