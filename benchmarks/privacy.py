"""Holds the privacy audit's two rules against what is known of simulated scans: people whom nobody copied, and copies.

    python -m benchmarks.privacy

Other people's scans stand for the volumes of a generator that cannot leak: of the training subjects no more than the
stated 5 % may be found exposed. Each training scan, blurred, noisy or both, stands for a single copy: 95 % are to be
called one, at 1 % false alarms among the others.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.timing import expect, print_table
from cohort.grids import GridName, parse_grid
from cohort.scans import normalise
from cohort.stacks import load_scans
from cohort.tables import read_table
from evaluation.privacy.canary_plan import read_canaries
from evaluation.privacy.copying import count_copies
from evaluation.privacy.embedding import VoxelSpace, embed, fit_encoder, mirrored
from evaluation.privacy.nearest import Pool, Reals, exposure, neighbours
from runtime import seeding
from runtime.cli import describe, run_module, run_script
from runtime.config import ScriptConfig
from runtime.device import pick_device
from runtime.files import ROOT, write_json

DEMO_SPLIT = ("--val-percent", 8, "--test-percent", 16)
BLUR_VOXELS, NOISE = 0.75, 0.05
"""Standard deviations: of the blur, and of the noise where intensities span 0 to 1."""


@dataclass(frozen=True)
class BenchmarkConfig(ScriptConfig):
    tables: Path = ROOT / "data/demo"
    """Folder with train.csv (whose scans are copied), test.csv (people held out, who say what is usual) and val.csv
    (people in neither). By default the demo's, or where there is none, one simulated like it and deleted at the end."""
    grid: GridName = "demo"
    """Voxel grid."""
    copies: int = 100
    """Training scans that are copied."""
    encoder: bool = True
    """Also in the learned embedding, which is trained first (minutes)."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    out: Path = ROOT / "benchmarks" / "privacy.json"
    """The JSON file of the figures."""


def main(config: BenchmarkConfig) -> None:
    expect(minutes=10 if config.encoder else 4)
    if (config.tables / "train.csv").exists() or config.tables != BenchmarkConfig.tables:
        measure(config)
        return
    with tempfile.TemporaryDirectory() as name:
        simulated = replace(config, tables=Path(name))
        run_module("cohort.make_demo", "--out", name, "--index", simulated.tables / "index.csv")
        run_module("cohort.split", "--index", simulated.tables / "index.csv", "--out", name, *DEMO_SPLIT)
        measure(simulated)


def measure(config: BenchmarkConfig) -> None:
    """Embeds all, copies some, counts what is found."""
    grid, device = parse_grid(config.grid), pick_device("float32", config.threads)
    files = {"train": "train.csv", "held_out": "test.csv", "others": "val.csv"}
    tables = {name: read_table(config.tables / file) for name, file in files.items()}
    cache = config.tables / "cache"
    scans = {name: np.stack(list(load_scans(table, grid, cache_dir=cache).volumes)) for name, table in tables.items()}
    both = np.concatenate([scans["train"], scans["held_out"]])
    spaces = {"voxels": VoxelSpace.fit(both, grid.spacing_mm)}
    if config.encoder:
        encoder = fit_encoder(both, grid.spacing_mm, device, seed=0)
        spaces["encoder"] = lambda stack: embed(encoder, stack, grid.spacing_mm, device)
    made = copies(scans["train"][: config.copies])
    rows = []
    for name, place in spaces.items():
        sides = (
            Reals(place(scans[side]), tables[side]["subject"].to_numpy(str), place(mirrored(scans[side])))
            for side in ("train", "held_out")
        )
        rows += measured(name, Pool.of(*sides), place(scans["others"]), {key: place(x) for key, x in made.items()})
    write_json(config.out, {"rows": rows})
    print_table(rows)


def copies(scans: np.ndarray) -> dict[str, np.ndarray]:
    """Copies of scans (N, D, H, W), as a generator might remember them."""
    noise = NOISE * seeding.rng(0, "copies").standard_normal(scans.shape, dtype=np.float32) * (scans > 0)
    blurred = ndimage.gaussian_filter(scans, (0, *(BLUR_VOXELS,) * 3)) * (scans > 0)
    made = {"blurred": blurred, "noisy": scans + noise, "blurred and noisy": blurred + noise}
    return {name: np.stack([normalise(volume.clip(0)) for volume in stack]) for name, stack in made.items()}


def measured(space: str, pool: Pool, others: np.ndarray, made: dict[str, np.ndarray]) -> list[dict[str, object]]:
    """A row for people whom nobody copied (Q, F), and one for each kind of copy (N, F) beside them."""

    def called_copies(queries: np.ndarray) -> int:
        return count_copies(queries, neighbours(queries, pool.reals), pool, pool.trained[None])["copies"]

    alarms = read_canaries({}, exposure(neighbours(others, pool.reals), pool))["alarms"]
    sizes = f"{int(pool.trained.sum())} training, {int((~pool.trained).sum())} held-out subjects"
    rows: list[dict[str, object]] = [
        {"space": space, "volumes": f"{len(others)} other people", "found": f"exposed subjects {alarms['share']:.1%}",
         "to be": f"{alarms['expected']:.1%} [{alarms['low']:.1%}, {alarms['high']:.1%}], {sizes}"},
        {"space": space, "volumes": f"{len(others)} other people", "found": f"called copies {called_copies(others)}",
         "to be": "1 % of them"},
    ]  # fmt: skip
    return rows + [
        {"space": space, "volumes": f"{len(stack)} copies, {name}", "found": f"called copies {called_copies(stack)}",
         "to be": "95 % of them"}
        for name, stack in made.items()
    ]  # fmt: skip


if __name__ == "__main__":
    run_script(main, BenchmarkConfig, description=describe(__doc__))
