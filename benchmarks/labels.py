"""How far measured volumes follow the true ones: our network, tissue in fixed regions, and a deformable registration.

    python -m benchmarks.labels --checkpoint runs/demo/labels/checkpoints/best.pt --csv data/demo/test.csv \\
        --truth data/demo/truth.csv --vae runs/demo/vae/checkpoints/best.pt \\
        --participants heads.csv --prepared runs/prepared

On simulated scans with their true volumes; on real heads with region labels (a column `labels`, as for `cohort.plant`)
and what `cohort.prepare` made of them; on the VAE's reconstructions beside the scans they are of. And whether scans in
which nothing can be measured are told from others. Only figures over scans are kept: the result names nobody.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813, its documentation's own short name
import torch
from scipy import ndimage

from benchmarks.timing import print_table
from cohort.anatomy.regional_volumes import region_volumes
from cohort.anatomy.volume_readers import volume_column
from cohort.anatomy.volume_tables import read_volumes
from cohort.atlas import REGIONS, STRUCTURES, load_template, native_atlas, resample
from cohort.grids import Grid
from cohort.labelling.anatomies import finer, region_box
from cohort.labelling.network import load_labels
from cohort.labelling.reading import QUALITY, ROOM, Labels, Reader
from cohort.preparation.participants import list_scans
from cohort.preparation.placing import read_place
from cohort.preparation.registration import itk_image
from cohort.scans import load_scan, normalise
from cohort.simulation.volunteers import usable, with_volumes
from cohort.tables import read_table
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.device import pick_device
from runtime.files import ROOT, write_json
from runtime.runs import environment
from runtime.seeding import rng
from VAE.checkpoint import load_vae

REGISTRATION_MM = 2.0
"""Voxels in which the template is registered to a scan."""
DEMONS = {"iterations": 100, "smoothing_voxels": 1.5}
CODES = {name: code for name, code in native_atlas()[0].codes.items() if code > 0}


@dataclass(frozen=True)
class LabelsConfig(ScriptConfig):
    checkpoint: Path
    """Checkpoint of cohort.labelling.train."""
    csv: Path | None = None
    """Table of simulated scans of another seed than the network's."""
    truth: Path | None = None
    """Their true volumes."""
    participants: Path | None = None
    """Table of real heads with region labels."""
    prepared: Path | None = None
    """Folder of cohort.prepare with these heads."""
    vae: Path | None = None
    """A VAE whose reconstructions of the simulated scans are measured too."""
    registered: int = 20
    """Scans of each kind to which the template is registered: it takes seconds for each."""
    faulty: int = 20
    """Scans of each kind in which faults are planted."""
    out: Path = ROOT / "benchmarks/labels.json"
    """The JSON file of the figures."""


def main(config: LabelsConfig) -> None:
    """Table by table; the JSON holds what is there so far."""
    reader = Reader(load_labels(config.checkpoint), pick_device())
    result: dict[str, Any] = {"environment": environment(pick_device()), "network": reader.hash}
    for name, rows in tables(config, reader):
        result[name] = rows
        write_json(config.out, result)
        print(f"\n{name}")
        print_table(rows)


def tables(config: LabelsConfig, reader: Reader) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """Each kind of scans: volumes against true ones, and planted faults; then reconstructions."""
    kinds: dict[str, tuple[list[np.ndarray], np.ndarray]] = {}
    if config.csv is not None and config.truth is not None:
        frame = read_table(config.csv)
        kinds["simulated scans"] = (
            [load_scan(path, reader.grid) for path in frame["file"]],
            read_volumes(config.truth).of(frame, REGIONS),
        )
    if config.participants is not None and config.prepared is not None:
        kinds["real heads"] = real_heads(config.participants, config.prepared, reader.grid)
    for name, (scans, true) in kinds.items():
        found = [reader.read(scan) for scan in scans]
        yield name, compared(scans, found, true, reader.grid, config.registered)
        yield f"{name}, planted faults", faults(scans[: config.faulty], found, reader)
        if config.vae is not None and name == "simulated scans":
            yield "reconstructions", reconstructions(scans, found, config.vae, reader)


def real_heads(participants: Path, prepared: Path, grid: Grid) -> tuple[list[np.ndarray], np.ndarray]:
    """Prepared scans whose labels can be right, and the labels' volumes (ml, in the template's space)."""
    people = with_volumes(list_scans(participants).there(), participants.parent, CODES, prepared)
    scans, true = [], []
    for person in usable(people)[0].itertuples():
        place = read_place(prepared, person.name)
        scans.append(load_scan(place.scan, grid))
        shrunk = 1000 * np.linalg.det(place.matrix[:3, :3])
        true.append([getattr(person, volume_column(name)) / shrunk for name in REGIONS])
    return scans, np.array(true)


def compared(
    scans: list[np.ndarray], found: list[Labels], true: np.ndarray, grid: Grid, registered: int
) -> list[dict[str, object]]:
    """A row per structure: correlation, slope of measured on true volumes, and bias of the mean, by method."""
    measured = {
        "network": np.array([labels.ml for labels in found]),
        "fixed regions": region_volumes(scans, grid, REGIONS),
        "registration": np.array([registered_volumes(scan, grid) for scan in scans[:registered]]),
    }
    rows = []
    for place, structure in enumerate(STRUCTURES):
        row: dict[str, object] = {"structure": structure}
        for method, ml in measured.items():
            each = [follows(ml[:, k], true[: len(ml), k]) for k in (2 * place, 2 * place + 1)]
            row |= {f"{method}, N": len(ml)}
            row |= {
                f"{method}, {name}": " ".join(f"{value:.2f}" if name != "bias, %" else f"{value:.0f}" for value in pair)
                for name, pair in zip(("r", "slope", "bias, %"), zip(*each, strict=True), strict=True)
            }
        rows.append(row)
    last: dict[str, object] = {"structure": "median of 16"}
    for method, ml in measured.items():
        r = [follows(ml[:, k], true[: len(ml), k])[0] for k in range(len(REGIONS))]
        last[f"{method}, r"] = f"{np.median(r):.2f}"
    return [*rows, last]


def follows(measured: np.ndarray, true: np.ndarray) -> tuple[float, float, float]:
    """Correlation, least-squares slope, and bias of the mean in percent."""
    there = np.isfinite(true) & (true > 0)
    measured, true = measured[there], true[there]
    slope = np.polyfit(true, measured, 1)[0]
    return float(np.corrcoef(measured, true)[0, 1]), float(slope), float(100 * (measured.mean() / true.mean() - 1))


def registered_volumes(scan: np.ndarray, grid: Grid) -> np.ndarray:
    """Volumes (ml) of the atlas' regions after diffeomorphic demons from the template to a scan."""
    fine = finer(region_box(grid).grid, REGISTRATION_MM)
    template = load_template("icbm2009a")
    moving = itk_image(normalise(resample(np.asarray(template.dataobj), template.affine, fine)), fine.affine)
    fixed = itk_image(normalise(resample(scan, grid.affine, fine)), fine.affine)
    moving = sitk.HistogramMatching(moving, fixed, 256, 16)
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(DEMONS["iterations"])
    demons.SetStandardDeviations(DEMONS["smoothing_voxels"])
    way = sitk.DisplacementFieldTransform(demons.Execute(fixed, moving))
    labels, affine = native_atlas()
    placed = sitk.Resample(itk_image(labels.labels, affine), fixed, way, sitk.sitkNearestNeighbor)
    counts = np.bincount(sitk.GetArrayFromImage(placed).ravel(), minlength=max(labels.names) + 1)
    return np.array([counts[labels.codes[name]] for name in REGIONS]) * REGISTRATION_MM**3 / 1000


def faults(scans: list[np.ndarray], found: list[Labels], reader: Reader) -> list[dict[str, object]]:
    """How many scans fail as they are, and with each fault; the range of each figure of quality."""
    rows = [told("none", found, reader)]
    voxels = round(20 / reader.grid.spacing_mm)
    draw = rng(0, "planted faults")
    planted: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "shifted by 20 mm, forward": lambda scan: np.roll(scan, voxels, axis=1),
        "shifted by 20 mm, up": lambda scan: np.roll(scan, voxels, axis=2),
        "shifted by 20 mm, to the right": lambda scan: np.roll(scan, voxels, axis=0),
        "upside down": lambda scan: scan[:, :, ::-1],
        "back to front": lambda scan: scan[:, ::-1],
        "noise in the shape of the brain": lambda scan: draw.random(scan.shape) * (scan > 0),
        "noise of 0.3 added": lambda scan: np.clip(scan + 0.3 * draw.standard_normal(scan.shape), 0.01, 1) * (scan > 0),
        "blurred to 20 mm": lambda scan: ndimage.gaussian_filter(scan, 20 / 2.355 / reader.grid.spacing_mm),
        "inverted contrast": lambda scan: (1.01 - scan) * (scan > 0),
    }
    return rows + [
        told(name, [reader.read(normalise(plant(scan))) for scan in scans], reader) for name, plant in planted.items()
    ]


def told(name: str, found: list[Labels], reader: Reader) -> dict[str, object]:
    """One row of `faults`."""
    row: dict[str, object] = {"fault": name, "N": len(found)}
    for figure in QUALITY:
        values = np.array([getattr(labels, figure) for labels in found])
        spread = f"{np.median(values):.2f} [{values.min():.2f}, {values.max():.2f}]"
        row[f"{figure}, at most {ROOM * reader.limits[figure]:.2f}"] = spread
    return {**row, "failed": sum(bool(labels.problems(reader.limits)) for labels in found)}


@torch.no_grad()
def reconstructions(
    scans: list[np.ndarray], found: list[Labels], path: Path, reader: Reader
) -> list[dict[str, object]]:
    """Volumes in what a VAE makes of scans against those in the scans, by structure, both by the network."""
    vae, device = load_vae(path), reader.device
    model = device.module(vae.model)
    again = []
    for scan in scans:
        with device.autocast():
            x_hat = model.decode(model.encode(device.tensor(torch.from_numpy(scan.copy())[None, None]))[0], scan.shape)
        again.append(reader.read(normalise(x_hat[0, 0].float().cpu().numpy())))
    ours, theirs = (np.array([labels.ml for labels in each]) for each in (found, again))
    rows = []
    for place, structure in enumerate(STRUCTURES):
        each = [follows(theirs[:, k], ours[:, k]) for k in (2 * place, 2 * place + 1)]
        r, slope, bias = (" ".join(f"{value:.2f}" for value in pair) for pair in zip(*each, strict=True))
        rows.append({"structure": structure, "N": len(scans), "r": r, "slope": slope, "bias, %": bias})
    return [*rows, {"structure": "failed", "N": sum(bool(labels.problems(reader.limits)) for labels in again)}]


if __name__ == "__main__":
    run_script(main, LabelsConfig, description=describe(__doc__))
