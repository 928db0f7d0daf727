"""How many sampling steps a generator needs: realism, time and distance to the most steps, for every sampler.

    python -m benchmarks.sampling_steps --steps 5 10 15 25 50 100 1000

Each setting makes the same volumes of each class from the same noise by diffusion.save_synth and is measured by
evaluation.evaluate_synth against the held-out scans. The row with the most steps is the reference of its deterministic
sampler: the root mean square difference to it says when a solver has converged. Writes fid_results/demo_steps.json, and
prints it as a table in Markdown; the same command again continues.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.timing import time_command
from cohort.tables import CLASS_NAMES
from cohort.volumes import list_volumes, read_volume
from diffusion.checkpoint import load_diffusion
from diffusion.sampler import evaluations, samplers_for
from runtime.cli import describe, run_script
from runtime.device import pick_device
from runtime.files import ROOT, read_json, write_json
from runtime.runs import environment

STOCHASTIC = ("ddpm",)


@dataclass(frozen=True)
class StepsConfig:
    """Which generator, and how long to let it sample."""

    vae: Path = ROOT / "runs/demo/vae/checkpoints/best.pt"
    """VAE checkpoint."""
    diffusion: Path = ROOT / "runs/demo/diffusion/checkpoints/best.pt"
    """Diffusion checkpoint."""
    real_train: Path = ROOT / "data_csvs/train.csv"
    """Scans that fix the principal axes."""
    real_test: Path = ROOT / "data_csvs/test.csv"
    """Held-out scans."""
    grid: str = "demo"
    """Grid of scans and volumes."""
    steps: tuple[int, ...] = (5, 10, 15, 25, 50, 100, 1000)
    """Numbers of steps."""
    samplers: tuple[str, ...] = ()
    """Samplers; by default all that suit the checkpoint's process."""
    per_class: int = 18
    """Volumes of each class at every setting."""
    repeats: int = 40
    """Draws of subjects for the intervals."""
    folder: Path = ROOT / "runs/demo/sampling_steps"
    """Volumes and evaluations of each setting."""
    out: Path = ROOT / "fid_results/demo_steps.json"
    """The result."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


def main(config: StepsConfig) -> None:
    """Generates, measures, writes and prints, setting by setting."""
    diffusion = load_diffusion(config.diffusion)
    rows = []
    for sampler in config.samplers or samplers_for(diffusion.process):
        for steps in sorted(config.steps, reverse=True):
            found = measure(config, sampler, steps)
            figures, process = found["results"]["overall"]["held_out"], diffusion.process_config
            seconds = [pd.read_csv(folder_of(config, sampler, steps, label) / "manifest.csv") for label in CLASS_NAMES]
            rows.append(
                {
                    "sampler": sampler, "steps": steps, "evaluations": evaluations(sampler, steps),
                    "seconds_per_volume": float(pd.concat(seconds)["seconds"].mean()),
                    "rms_to_most_steps": None if sampler in STOCHASTIC else gap(config, sampler, steps),
                    **{metric: figures["synthetic"][metric] for metric in ("fid", "kid")},
                }
            )  # fmt: skip
            result = {
                "checkpoints": found["checkpoints"], "schedule": process.schedule, "target": process.target,
                "per_class": config.per_class, "floor": figures["floor"], "environment": environment(pick_device()),
                "rows": rows,
            }  # fmt: skip
            write_json(config.out, result)
    print(table(result))


def measure(config: StepsConfig, sampler: str, steps: int) -> dict:
    """The evaluation of one setting, whose volumes are made first; what is done already is not done again."""
    folders = {label: folder_of(config, sampler, steps, label) for label in CLASS_NAMES}
    for label, folder in folders.items():
        time_command(
            "diffusion.save_synth", "--vae", config.vae, "--diffusion", config.diffusion, "--label", label,
            "--count", config.per_class, "--sampler", sampler, "--steps", steps, "--out", folder,
        )  # fmt: skip
    out = config.folder / f"{sampler}_{steps}.json"
    time_command(
        "evaluation.evaluate_synth", "--real-train", config.real_train, "--real-test", config.real_test,
        "--synth-hc", folders["HC"], "--synth-tle", folders["TLE"], "--grid", config.grid, "--parts",
        "--repeats", config.repeats, "--out", out,
    )  # fmt: skip
    return read_json(out)


def folder_of(config: StepsConfig, sampler: str, steps: int, label: str) -> Path:
    """Where the volumes of one setting and class lie."""
    return config.folder / f"{sampler}_{steps}" / label


def gap(config: StepsConfig, sampler: str, steps: int) -> float:
    """Root mean square difference to the volumes of the most steps, seed by seed."""
    own, most = (
        [
            read_volume(path).image
            for label in CLASS_NAMES
            for path in list_volumes(folder_of(config, sampler, count, label))
        ]
        for count in (steps, max(config.steps))
    )
    return float(np.sqrt(np.mean((np.stack(own) - np.stack(most)) ** 2)))


def table(result: dict) -> str:
    """The rows in Markdown, by sampler and steps."""
    floor = result["floor"]
    lines = [
        f"floor (real against real): FID {interval(floor['fid'])}, KID {interval(floor['kid'], 4)}\n",
        "| sampler | steps | network evaluations | FID | KID | s per volume | RMS to its most steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(result["rows"], key=lambda row: (row["sampler"], row["steps"])):
        difference = "-" if row["rms_to_most_steps"] is None else f"{row['rms_to_most_steps']:.4f}"
        lines.append(
            f"| {row['sampler']} | {row['steps']} | {row['evaluations']} | {interval(row['fid'])} | "
            f"{interval(row['kid'], 3)} | {row['seconds_per_volume']:.3f} | {difference} |"
        )
    return "\n".join(lines)


def interval(summary: dict[str, float], digits: int = 1) -> str:
    """Mean and 95 % range over draws of subjects."""
    return f"{summary['mean']:.{digits}f} [{summary['low']:.{digits}f}, {summary['high']:.{digits}f}]"


if __name__ == "__main__":
    run_script(main, StepsConfig, description=describe(__doc__))
