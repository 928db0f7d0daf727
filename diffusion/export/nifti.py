"""NIfTI files of the volumes of a folder: beside them, or in a BIDS derivative dataset."""

from pathlib import Path

from tqdm import tqdm

from cohort.grids import Grid
from cohort.volumes import read_volume, volume_name, write_nifti
from diffusion.export import bids_derivative
from diffusion.synthetic_folder import SyntheticFolder, Wanted
from runtime import distributed


def export(folder: SyntheticFolder, wanted: list[Wanted], grid: Grid, *, nifti: bool, bids: Path | None) -> None:
    """Writes those that are asked for and not there yet, from the volumes in the folder."""
    for item in tqdm(wanted, desc="exporting", unit="volume", delay=2, disable=not distributed.is_main()):
        path = folder.path / volume_name(item.label, item.seed)
        beside = path.with_suffix(".nii.gz")
        if nifti and not beside.exists():
            write_nifti(beside, read_volume(path).image, grid.affine)
        if bids is not None and not bids_derivative.sidecar_path(bids, item).exists():
            bids_derivative.add(bids, read_volume(path), item, folder.settings, grid)
