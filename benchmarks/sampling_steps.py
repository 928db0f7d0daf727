"""How many sampling steps a generator needs: realism, time and distance to the most steps, for every sampler.

    python -m benchmarks.sampling_steps --steps 5 10 15 25 50 100 1000

Each setting makes the same volumes of each class from the same noise by diffusion.save_synth and is measured by
evaluation.evaluate_synth against the held-out scans. The root mean square difference to the volumes of the most steps
says when a deterministic sampler has converged. Writes fid_results/demo_steps.json, which the report shows, and prints
it; the same command again continues.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.timing import print_table, time_command
from cohort.grids import GridName
from cohort.tables import CLASS_NAMES
from cohort.volumes import list_volumes, read_volume
from diffusion.checkpoint import load_diffusion
from diffusion.sampler import samplers_for
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.device import pick_device
from runtime.files import ROOT, read_json, write_json
from runtime.runs import environment


@dataclass(frozen=True)
class StepsConfig(ScriptConfig):
    runs: Path = ROOT / "runs/demo"
    """Folder of the runs vae and diffusion; volumes and evaluations of each setting go to sampling_steps in it."""
    tables: Path = ROOT / "data/demo"
    """Folder of train.csv and test.csv."""
    grid: GridName = "demo"
    """Grid of scans and volumes."""
    steps: tuple[int, ...] = (5, 10, 15, 25, 50, 100, 1000)
    """Numbers of steps."""
    per_class: int = 18
    """Volumes of each class at every setting."""
    out: Path = ROOT / "fid_results/demo_steps.json"
    """The result."""


def main(config: StepsConfig) -> None:
    process = load_diffusion(config.runs / "diffusion/checkpoints/best.pt").process
    rows = []
    for sampler in samplers_for(process):
        for steps in sorted(config.steps, reverse=True):
            figures = measure(config, sampler, steps)["results"]["overall"]["held_out"]
            folders = folders_of(config, sampler, steps).values()
            seconds = pd.concat(pd.read_csv(folder / "manifest.csv") for folder in folders)["seconds"]
            rows.append(
                {
                    "sampler": sampler, "steps": steps, "evaluations": 2 * steps - 1 if sampler == "heun" else steps,
                    "seconds_per_volume": float(seconds.mean()),
                    "rms_to_most_steps": None if sampler == "ddpm" else gap(config, sampler, steps),  # stochastic
                    **{metric: figures["synthetic"][metric] for metric in ("fid", "kid")},
                }
            )  # fmt: skip
            result = {"per_class": config.per_class, "floor": figures["floor"], "rows": rows}
            write_json(config.out, {**result, "environment": environment(pick_device())})
    brackets = "{mean:.3g} [{low:.3g}, {high:.3g}]".format
    print("floor (real against real):", *(f"{name} {brackets(**figures['floor'][name])}" for name in ("fid", "kid")))
    print_table([row | {name: brackets(**row[name]) for name in ("fid", "kid")} for row in rows])


def measure(config: StepsConfig, sampler: str, steps: int) -> dict:
    """The evaluation of one setting, whose volumes are made first; what is done already is not done again."""
    folders = folders_of(config, sampler, steps)
    for label, folder in folders.items():
        time_command(
            "diffusion.save_synth", "--vae", config.runs / "vae/checkpoints/best.pt",
            "--diffusion", config.runs / "diffusion/checkpoints/best.pt", "--label", label, "--count", config.per_class,
            "--sampler", sampler, "--steps", steps, "--out", folder,
        )  # fmt: skip
    out = config.runs / f"sampling_steps/{sampler}_{steps}.json"
    time_command(
        "evaluation.evaluate_synth", "--real-train", config.tables / "train.csv",
        "--real-test", config.tables / "test.csv", "--synth-hc", folders["HC"], "--synth-tle", folders["TLE"],
        "--grid", config.grid, "--parts", "--repeats", 40, "--out", out,
    )  # fmt: skip
    return read_json(out)


def folders_of(config: StepsConfig, sampler: str, steps: int) -> dict[str, Path]:
    return {label: config.runs / f"sampling_steps/{sampler}_{steps}" / label for label in CLASS_NAMES}


def gap(config: StepsConfig, sampler: str, steps: int) -> float:
    """Root mean square difference to the volumes of the most steps, seed by seed."""
    own, most = (
        np.stack([read_volume(path).image for folder in folders.values() for path in list_volumes(folder)])
        for folders in (folders_of(config, sampler, count) for count in (steps, max(config.steps)))
    )
    return float(np.sqrt(np.mean((own - most) ** 2)))


if __name__ == "__main__":
    run_script(main, StepsConfig, description=describe(__doc__))
