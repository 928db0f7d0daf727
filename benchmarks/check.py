"""Times listing, checking and splitting a large cohort of small scans, with copies planted among them.

Scans are random brains on the smoke grid, so that decoding them costs little and what grows with the cohort is seen:
the table, the cache, the search for copies (whose time grows with the square), the split.

    python -m benchmarks.check --scans 10000 --out benchmarks/check.json
"""

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage
from tqdm import tqdm

from benchmarks.timing import expect, print_table, time_command
from cohort.grids import GRIDS
from cohort.tables import write_table
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.errors import InputError
from runtime.files import ROOT, read_json, write_json
from runtime.seeding import rng

GRID = GRIDS["smoke"]
KINDS, COPIES = ("renamed", "mirrored", "noise", "scaled"), 20


@dataclass(frozen=True)
class BenchmarkConfig(ScriptConfig):
    folder: Path | None = None
    """Folder for the scans and all outputs, where scans of an earlier run are used; by default one that goes at the
    end."""
    scans: int = 10_000
    """Size of the cohort, the copies besides."""
    out: Path = ROOT / "benchmarks" / "check.json"
    """The JSON file of the figures."""


def main(config: BenchmarkConfig) -> None:
    if config.scans < COPIES:
        raise InputError(f"--scans {config.scans}: expected {COPIES} or more, of which copies are made")
    expect(minutes=1 + 9 * config.scans / 10_000)
    if config.folder is None:
        with tempfile.TemporaryDirectory() as folder:
            measure(replace(config, folder=Path(folder)))
    else:
        measure(config)


def measure(config: BenchmarkConfig) -> None:
    """Makes the cohort, times the commands on it, counts the copies that were found."""
    index = make_cohort(config)
    shutil.rmtree(config.folder / "cache", ignore_errors=True)  # of an earlier run
    check = ("cohort.check", "--csv", index, "--out", config.folder / "report", "--cache-dir", config.folder / "cache")
    split = ("cohort.split", "--index", index, "--out", config.folder / "splits", "--overwrite")
    rows = {name: time_command(*check, expected=(1,)) for name in ("check, nothing cached", "check, everything cached")}
    for entry in (config.folder / "cache" / "searches").iterdir():
        entry.unlink()
    rows |= {"search alone": time_command(*check, expected=(1,)), "split": time_command(*split)}
    found, false = copies_found(config)
    write_json(config.out, {"scans": config.scans, "found": found, "false": false, "commands": rows})
    print(f"{config.scans} scans; {found} of {COPIES} copies found, {false} others called")
    print_table([{"command": name, **row} for name, row in rows.items()])
    if found < COPIES or false:
        raise InputError(f"{found} of {COPIES} copies were found, and {false} pairs that are none")


def make_cohort(config: BenchmarkConfig) -> Path:
    """Writes the scans that are missing, and the table; returns its path."""
    folder = config.folder / "scans"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in tqdm(range(config.scans + COPIES), desc="scans", unit="scan", delay=1):
        copy = number - config.scans
        path = folder / (f"p{number:06d}.nii" if copy < 0 else f"{copy_name(config, copy)}.nii")
        source = number if copy < 0 else source_of(config, copy)
        if not path.exists():
            kind = "" if copy < 0 else KINDS[copy % len(KINDS)]
            nib.save(nib.Nifti1Image(copy_of(brain(source), kind, number), GRID.affine), path)
        draw = rng(0, "bench row", source)
        rows.append(
            {
                "subject": path.stem, "file": str(path),
                "diagnosis": ("HC", "TLE-L", "TLE-R")[draw.choice(3, p=(0.5, 0.3, 0.2))],
                "age": round(float(draw.uniform(15, 70)), 1), "sex": "FM"[draw.integers(2)],
                "site": f"site-{draw.integers(8)}",
            }
        )  # fmt: skip
    index = config.folder / "index.csv"
    write_table(index, pd.DataFrame(rows))
    return index


def source_of(config: BenchmarkConfig, copy: int) -> int:
    """The number of the scan that a copy was made of."""
    return copy * (config.scans // COPIES)


def copy_name(config: BenchmarkConfig, copy: int) -> str:
    """The name of a copy, which says of what: runs of other sizes may use the same folder."""
    return f"copy{copy}_of_p{source_of(config, copy):06d}"


def brain(seed: int) -> np.ndarray:
    """A random brain on the smoke grid, float32: one ellipsoid for all, structure of its own."""
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in GRID.shape), indexing="ij"))
    texture = ndimage.gaussian_filter(rng(0, "bench scan", seed).standard_normal(GRID.shape), 1.0)
    return np.where((place**2).sum(axis=0) < 0.75, 100 + 120 * texture, 0).astype(np.float32)


def copy_of(image: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """The image itself, or one of KINDS of copies of it."""
    if kind == "mirrored":
        return np.ascontiguousarray(image[::-1])
    if kind == "noise":
        noise = rng(0, "bench noise", seed).normal(0, 5, image.shape)
        return np.where(image != 0, image + noise, 0).astype(np.float32)
    return 3.7 * image if kind == "scaled" else image


def copies_found(config: BenchmarkConfig) -> tuple[int, int]:
    """Planted copies that the report names with their source, and pairs it calls that were not planted."""
    findings = read_json(config.folder / "report" / "findings.json")["findings"]
    called = {
        frozenset(row["message"].split()[:3:2]) for row in findings if row["kind"] in ("duplicate", "near-duplicate")
    }
    planted = {frozenset((copy_name(config, k), f"p{source_of(config, k):06d}")) for k in range(COPIES)}
    return len(called & planted), len(called - planted)


if __name__ == "__main__":
    run_script(main, BenchmarkConfig, description=describe(__doc__))
