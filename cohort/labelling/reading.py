"""Labels and volumes of scans by a trained network, and whether they can be believed."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from cohort.anatomy.regional_volumes import with_asymmetries
from cohort.anatomy.volume_readers import volume_column
from cohort.atlas import REGIONS, native_atlas
from cohort.grids import Grid, preset_of
from cohort.labelling.anatomies import Box, opposite, region_box
from cohort.labelling.network import LabelNetwork, LoadedLabels, load_labels
from cohort.stacks import ScanStack
from cohort.volumes import write_nifti
from runtime.device import Device, pick_device
from runtime.errors import InputError, InputWarning
from runtime.files import atomic_write

OPPOSITE = [0, *(1 + place for place in opposite(REGIONS))]
"""Where each output of the network is found after an exchange of left and right; the background is first."""
METHOD = (
    "ml of each atlas region by a network (cohort.labelling) that was trained on the simulation's anatomy in random "
    "contrasts: the sums of the share that it finds of each voxel, the mean of the scan and its mirrored self."
)
SHOWN = 10
"""Failed scans that a warning names; it counts the others."""


class Labels(NamedTuple):
    """What a network says of one scan."""

    shares: np.ndarray
    """float32 (1 + regions, D, H, W) in the box: part of each voxel in the background and in each of REGIONS; they sum
    to 1."""
    ml: np.ndarray
    """float64 (regions,): volumes, the sums of these parts."""
    displacement_mm: float
    """Largest distance of a region's middle from the atlas': a head that lies elsewhere, or the wrong way."""
    uncertainty: float
    """Entropy of the shares, summed over the box, per voxel of the regions found (nats): a scan that shows no anatomy.
    Borders have some in any scan."""

    def problems(self, limits: Mapping[str, float]) -> list[str]:
        """The figures of QUALITY that are above ROOM times a network's limits; of any, the volumes mean nothing."""
        return [name for name in QUALITY if not getattr(self, name) <= ROOM * limits[name]]


QUALITY = ("displacement_mm", "uncertainty")
"""Names of the figures that tell whether a scan has failed."""
MOST_REACH_MM = 20.0
"""Limit of displacement above which a network passes nearly any scan; one of 4,000 steps has 10 mm."""
ROOM = 1.25
"""Factor on limits, for people who differ from the held-out anatomies."""


@torch.no_grad()
def read_labels(x: torch.Tensor, model: LabelNetwork, box: Box, device: Device) -> Labels:
    """Labels the box (1, 1, D, H, W) of a scan, in [0, 1]: the mean of what is found in it and in its mirrored self."""
    with device.autocast():
        own, mirrored = (model(volume).float().softmax(dim=1)[0] for volume in (x, x.flip(2)))
    shares = ((own + mirrored[OPPOSITE].flip(1)) / 2).cpu().numpy()
    sums = shares[1:].sum(axis=(1, 2, 3), dtype=np.float64)
    away = middles_mm(shares[1:], box.grid) - atlas_middles_mm()
    entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(dtype=np.float64)
    return Labels(
        shares,
        sums * box.grid.spacing_mm**3 / 1000,
        float(np.linalg.norm(away, axis=1).max()),
        float(entropy / max(sums.sum(), 1.0)),
    )


def middles_mm(shares: np.ndarray, grid: Grid) -> np.ndarray:
    """Centres of mass (regions, 3) of shares (regions, D, H, W), in mm."""
    sums = np.maximum(shares.sum(axis=(1, 2, 3)), 1e-6)
    along = [
        shares.sum(axis=tuple({1, 2, 3} - {axis})) @ np.arange(shares.shape[axis], dtype=np.float64) / sums
        for axis in (1, 2, 3)
    ]
    return np.stack(along, axis=1) * grid.spacing_mm + grid.affine[:3, 3]


@cache
def atlas_middles_mm() -> np.ndarray:
    """Centres of mass (regions, 3) of REGIONS in the atlas, in mm."""
    labels, affine = native_atlas()
    found = ndimage.center_of_mass(np.ones_like(labels.labels), labels.labels, [labels.codes[name] for name in REGIONS])
    return np.array(found) @ affine[:3, :3].T + affine[:3, 3]


class Reader:
    """A network with its grid and device, to read scans with."""

    def __init__(self, loaded: LoadedLabels, device: Device) -> None:
        self.grid, self.hash, self.limits, self.device = loaded.grid, loaded.hash, loaded.limits, device
        self.box, self.model = region_box(loaded.grid), device.module(loaded.model)
        if (reach := ROOM * loaded.limits["displacement_mm"]) > MOST_REACH_MM:
            why = f"regions of its own held-out anatomies lie up to {reach:.0f} mm off"
            warnings.warn(
                f"a network that cannot tell failed scans: {why}; train it longer", InputWarning, stacklevel=2
            )

    def read(self, volume: np.ndarray) -> Labels:
        """Labels of a scan or synthetic volume (D, H, W) on the grid, background 0."""
        x = self.device.tensor(torch.from_numpy(self.box.cut(volume))[None, None])
        return read_labels(x, self.model, self.box, self.device)

    def volumes(self, volume: np.ndarray) -> np.ndarray:
        """float64 (regions,): ml of REGIONS, NaN where the scan has failed."""
        labels = self.read(volume)
        return np.full(len(REGIONS), np.nan) if labels.problems(self.limits) else labels.ml

    def row(self, labels: Labels) -> dict[str, object]:
        """Columns of a table of volumes that `--volumes` reads: mm^3 by region, empty of a scan that has failed; then
        QUALITY, whether it has failed (0, 1) and by which figures."""
        problems = labels.problems(self.limits)
        mm3 = np.full(len(REGIONS), np.nan) if problems else 1000 * labels.ml
        volumes = {volume_column(name): round(float(value), 1) for name, value in zip(REGIONS, mm3, strict=True)}
        figures = {name: round(getattr(labels, name), 3) for name in QUALITY}
        return {**volumes, **figures, "failed": int(bool(problems)), "failed_by": " ".join(problems)}

    def table(self, volumes: Sequence[np.ndarray]) -> tuple[tuple[str, ...], np.ndarray]:
        """Names and float64 (N, measures) of volumes and asymmetries, as of `cohort.anatomy.regional_volumes`; NaN in
        the rows of those that have failed."""
        ml = np.array([self.volumes(volume) for volume in volumes]).reshape(-1, len(REGIONS))
        names, values = with_asymmetries(REGIONS, ml)
        return names, np.where(np.isnan(ml).any(axis=1, keepdims=True), np.nan, values)

    def kept(self, scans: ScanStack) -> np.ndarray:
        """`volumes` of all scans, float64 (N, regions), kept beside them; warns of those that have failed."""
        found = scans.measured(f"labels-{self.hash}", self.volumes, what="labelled regions")
        if failed := scans.frame["subject"][np.isnan(found).any(axis=1)].tolist():
            told = f"nothing could be measured in {len(failed)} of {len(found)} scans: {', '.join(failed[:SHOWN])}"
            warnings.warn(f"{told}{', ...' if len(failed) > SHOWN else ''}", InputWarning, stacklevel=2)
        return found

    def label_map(self, labels: Labels) -> np.ndarray:
        """int16 (D, H, W) on the grid: the code, as in the packaged atlas, of what has most of a voxel; 0 is none."""
        codes = np.array([0, *(native_atlas()[0].codes[name] for name in REGIONS)], dtype=np.int16)
        found = np.zeros(self.grid.shape, np.int16)
        found[self.box.slices] = codes[labels.shares.argmax(axis=0)]
        return found


@dataclass(frozen=True, kw_only=True)
class LabelsFrom:
    """The flag of scripts that measure regional volumes."""

    labels_from: Path | None = None
    """Checkpoint of cohort.labelling.train: regional volumes are measured by this network, of real and synthetic
    volumes alike. Without it, as tissue inside fixed regions of the template, which follows true volumes far less."""

    def label_reader(self, grid: Grid) -> Reader | None:
        """The network of --labels-from, None where none was given."""
        return None if self.labels_from is None else open_reader(self.labels_from, grid, pick_device())


def open_reader(path: Path, grid: Grid, device: Device) -> Reader:
    """The network of a checkpoint; InputError for one of another grid."""
    loaded = load_labels(path)
    if loaded.grid != grid:
        other = f"{loaded.grid.name} {loaded.grid.shape}, not {grid.name} {grid.shape}"
        hint = f"train one with cohort.labelling.train {preset_of(grid)} --grid {grid.name}"
        raise InputError(f"{path}: labels scans on the grid {other}; {hint}")
    return Reader(loaded, device)


def write_label_map(path: Path, labels: np.ndarray, grid: Grid) -> None:
    """Writes a label map (D, H, W) as a NIfTI that overlays the scan."""
    write_nifti(path, labels, grid.affine, dtype=np.int16, description="region labels")


def write_label_names(path: Path) -> None:
    """Writes dseg.tsv: the code and the name of each region, as BIDS wants them beside label maps."""
    codes = native_atlas()[0].codes
    table = pd.DataFrame({"index": [codes[name] for name in REGIONS], "name": REGIONS}).sort_values("index")
    with atomic_write(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, lineterminator="\n")
