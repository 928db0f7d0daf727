"""Do generated scans have the hippocampal volumes that were asked for? Asked against measured, on the demo.

    python -m benchmarks.wanted_volumes

Trains the demo's generator with both hippocampi as conditions (true volumes of the simulation), asks for volumes of HC
whose left and right hippocampus are drawn independently over the range of the training subjects and beyond it, and
measures them as real scans are measured. A measure that follows the truth with r 0.5 can follow a perfect generator
no better: its figures on the held-out scans, against their true volumes, stand in the same table. --measured adds those
of a tool: a table of --volumes that knows the generated scans (by the names of their files) and the real ones. Writes
fid_results/demo_wanted_volumes.json and prints it; ten minutes on two cores.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.timing import print_table
from cohort.anatomy.regional_volumes import region_volumes
from cohort.anatomy.volume_tables import VolumeTable, read_volumes
from cohort.atlas import HIPPOCAMPI
from cohort.scans import normalise
from cohort.stacks import load_scans
from cohort.tables import read_table, write_csv
from cohort.volumes import read_volume, volume_name
from runtime import seeding
from runtime.cli import describe, run_module, run_script
from runtime.config import ScriptConfig
from runtime.device import pick_device
from runtime.files import ROOT, write_json
from runtime.runs import environment
from VAE.checkpoint import load_vae

NAMES = ("hippocampus_left", "hippocampus_right")


@dataclass(frozen=True)
class WantedVolumesConfig(ScriptConfig):
    runs: Path = ROOT / "runs/demo"
    """Folder of vae and latents; the generator and its volumes go to wanted_volumes in it."""
    tables: Path = ROOT / "data/demo"
    """Folder of train.csv, test.csv and truth.csv."""
    preset: str = "demo"
    """Of diffusion.train."""
    diffusion: Path | None = None
    """A finished generator with these conditions, in place of one that is trained here."""
    count: int = 96
    """Volumes asked for."""
    beyond: float = 0.3
    """How far beyond the training subjects' volumes, as a share of their range, at either end."""
    steps: int = 15
    """Sampling steps."""
    measured: Path | None = None
    """Table of volumes that a tool measured in the generated and in the real scans."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    folder: str = "wanted_volumes"
    """Name of the folder, for generators side by side."""
    out: Path = ROOT / "fid_results/demo_wanted_volumes.json"
    """The result."""


def main(config: WantedVolumesConfig) -> None:
    folder, truth = config.runs / config.folder, read_volumes(config.tables / "truth.csv")
    threads = () if config.threads is None else ("--threads", config.threads)
    checkpoint = config.diffusion or folder / "diffusion/checkpoints/best.pt"
    if config.diffusion is None:
        run_module(
            "diffusion.train", config.preset, "--latents", config.runs / "latents", "--run-dir", folder / "diffusion",
            "--model.covariates", *NAMES, "--volumes", config.tables / "truth.csv", *threads,
        )  # fmt: skip
    wanted, known = ask(config, truth)
    write_csv(folder / "wanted.csv", wanted)
    run_module(
        "diffusion.save_synth", "--vae", config.runs / "vae/checkpoints/best.pt", "--diffusion", checkpoint,
        "--table", folder / "wanted.csv", "--steps", config.steps, "--out", folder / "{label}", *threads,
    )  # fmt: skip
    rows = measure(config, folder / "HC", wanted, known, truth)
    device = pick_device("float32", config.threads)
    ranges = dict(zip(NAMES, known.T.tolist(), strict=True))
    write_json(config.out, {"environment": environment(device), "training_range_ml": ranges, "rows": rows})
    print_table(rows)


def ask(config: WantedVolumesConfig, truth: VolumeTable) -> tuple[pd.DataFrame, np.ndarray]:
    """The table of wanted volumes, left and right independent of one another; and least and largest (2, regions) of
    the training subjects."""
    people = truth.of(read_table(config.tables / "train.csv"), HIPPOCAMPI)
    known = np.stack([people.min(axis=0), people.max(axis=0)])
    margin = config.beyond * (known[1] - known[0])
    share = seeding.rng(0, "wanted volumes").random((config.count, len(HIPPOCAMPI)))
    ml = known[0] - margin + share * (known[1] - known[0] + 2 * margin)
    wanted = pd.DataFrame(np.maximum(ml, 0.1).round(3), columns=list(NAMES))
    return wanted.assign(label="HC", seed=range(config.count)), known


def measure(
    config: WantedVolumesConfig, folder: Path, wanted: pd.DataFrame, known: np.ndarray, truth: VolumeTable
) -> list[dict]:
    """Rows by measure, scans and side: r and slope of measured on asked (of real scans, on true) volumes; the error."""
    grid, test = load_vae(config.runs / "vae/checkpoints/best.pt").grid, read_table(config.tables / "test.csv")
    names = [volume_name(0, seed) for seed in wanted["seed"]]
    generated = [normalise(read_volume(folder / name).image) for name in names]
    found = {
        "regional_volumes": (region_volumes(load_scans(test, grid).volumes, grid, HIPPOCAMPI),
                             region_volumes(generated, grid, HIPPOCAMPI)),
    }  # fmt: skip
    if config.measured is not None:
        tool = read_volumes(config.measured)
        asked = pd.DataFrame({"subject": [Path(name).stem for name in names], "file": names})
        found[tool.tool] = tool.of(test, HIPPOCAMPI), tool.of(asked, HIPPOCAMPI)
    rows = []
    for name, (real, made) in found.items():
        rows += compared(name, "real, true volume", truth.of(test, HIPPOCAMPI), real)
        asked = wanted[list(NAMES)].to_numpy()
        within = (asked >= known[0]) & (asked <= known[1])
        rows += compared(name, "generated, within", np.where(within, asked, np.nan), made)
        rows += compared(name, "generated, beyond", np.where(within, np.nan, asked), made)
        rows += compared(name, "generated, asked of the other side", asked[:, ::-1], made)
    return rows


def compared(measure: str, scans: str, asked: np.ndarray, measured: np.ndarray) -> list[dict]:
    """One row per region, of the scans that have both."""
    rows = []
    for place, region in enumerate(HIPPOCAMPI):
        there = np.isfinite(asked[:, place]) & np.isfinite(measured[:, place])
        x, y = asked[there, place], measured[there, place]
        row = {"measure": measure, "scans": scans, "region": region, "count": len(x)}
        if len(x) > 2 and y.std() > 0:
            slope, start = np.polyfit(x, y, 1)
            figures = {"r": np.corrcoef(x, y)[0, 1], "slope": slope, "mean_error_ml": np.abs(y - x).mean(),
                       "bias_ml": (y - x).mean(), "residual_ml": np.std(y - slope * x - start)}  # fmt: skip
            row |= {key: round(float(value), 3) for key, value in figures.items()}
        rows.append(row)
    return rows


if __name__ == "__main__":
    run_script(main, WantedVolumesConfig, description=describe(__doc__))
