"""Measures the volumes of atlas regions in scans and synthetic volumes, by the network of `cohort.labelling.train`.

    python -m cohort.labelling.measure --checkpoint runs/demo/labels/checkpoints/best.pt --csv data/demo/test.csv \\
        --folders runs/demo/synthetic_data_pkls_HC runs/demo/synthetic_data_pkls_TLE --out runs/demo/labelled

Writes volumes.csv, which `--volumes` of all scripts reads: a row per scan with mm^3 by region, how far regions lie from
the atlas' (displacement_mm), and how unsure the network is (uncertainty). Scans that are far beyond what held-out
anatomies had of either have failed: they are marked and named, and have no volumes. With --nifti also the labels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from cohort.atlas import LICENCE_NOTE
from cohort.grids import Grid
from cohort.labelling.network import load_labels
from cohort.labelling.reading import Reader, write_label_map, write_label_names
from cohort.scans import normalise
from cohort.stacks import load_scans
from cohort.tables import read_table, write_csv
from cohort.volumes import list_volumes, read_volume
from runtime.cli import describe, run_script
from runtime.config import DeviceConfig
from runtime.device import pick_device
from runtime.errors import InputError
from runtime.files import ROOT

SHOWN = 10
"""Failed scans that are named; the table marks them all."""


@dataclass(frozen=True)
class LabelConfig(DeviceConfig):
    """What to label, with what, and where to."""

    checkpoint: Path
    """Checkpoint of cohort.labelling.train (best.pt of a run)."""
    csv: Path | None = None
    """Table of scans."""
    folders: tuple[Path, ...] = ()
    """Folders of synthetic volumes; their rows are called as the files, such as HC_000012."""
    out: Path = ROOT / "runs/labelled"
    """Folder for the results."""
    nifti: bool = False
    """Also write <scan>_dseg.nii.gz, the region that has most of each voxel, by the atlas' codes (dseg.tsv)."""
    cache_dir: Path | None = None
    """Folder of decoded scans; by default data/cache in the repository."""


class Scan(NamedTuple):
    """Something to label."""

    subject: str
    session: str
    volume: np.ndarray
    """(D, H, W) on the grid, in [0, 1]."""

    @property
    def name(self) -> str:
        """Subject and session."""
        return "_".join(filter(None, (self.subject, self.session)))


def main(config: LabelConfig) -> None:
    """Loads, labels, writes, names what has failed."""
    if config.csv is None and not config.folders:
        raise InputError("nothing to label: give --csv, --folders or both")
    reader = Reader(load_labels(config.checkpoint), pick_device(config.precision, config.threads))
    rows, failed = [], []
    for scan in tqdm([*listed(config, reader.grid), *synthetic(config.folders, reader.grid)], desc="labelling"):
        labels = reader.read(scan.volume)
        rows.append({"subject": scan.subject, "session": scan.session, **reader.row(labels)})
        failed += [scan.name] if rows[-1]["failed"] else []
        if config.nifti:
            write_label_map(config.out / f"{scan.name}_dseg.nii.gz", reader.label_map(labels), reader.grid)
    write_csv(config.out / "volumes.csv", pd.DataFrame(rows))
    if config.nifti:
        write_label_names(config.out / "dseg.tsv")
    print(f"{len(rows)} scans labelled, {len(failed)} failed; {config.out / 'volumes.csv'}\n{LICENCE_NOTE}")
    if failed:
        more = f" and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
        print(f"warning: no volumes of {', '.join(failed[:SHOWN])}{more}: do they lie on the grid, upright, in T1?")


def listed(config: LabelConfig, grid: Grid) -> Iterator[Scan]:
    """The scans of the table, if there is one."""
    if config.csv is not None:
        scans = load_scans(read_table(config.csv), grid, cache_dir=config.cache_dir)
        for row, volume in zip(scans.frame.itertuples(), scans.volumes, strict=True):
            yield Scan(row.subject, row.session, volume)


def synthetic(folders: tuple[Path, ...], grid: Grid) -> Iterator[Scan]:
    """The volumes of the folders, scaled as scans are."""
    for folder in dict.fromkeys(folders):
        paths = list_volumes(folder)
        if not paths:
            raise InputError(f"{folder}: no volumes in it")
        for path in paths:
            volume = read_volume(path)
            placed = volume.affine is None or np.allclose(volume.affine, grid.affine, atol=1e-3)
            if volume.image.shape != grid.shape or not placed:
                raise InputError(f"{path}: not on the network's grid {grid.name}, {grid.shape} voxels")
            yield Scan(path.stem, "", normalise(volume.image))


if __name__ == "__main__":
    run_script(main, LabelConfig, description=describe(__doc__))
