"""Made-up scans on the smoke grid, templates as scans of people, and damage to files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from cohort.atlas import load_template
from cohort.grids import GRIDS, Grid
from cohort.scans import load_scan
from runtime.errors import InputError

GRID = GRIDS["smoke"]


def grid_of(shape: tuple[int, int, int], spacing_mm: float = 5.0) -> Grid:
    """A grid of any shape, in the place of the others."""
    return Grid("small", shape, spacing_mm, GRID.centre_mm)


def blob(seed: int, label: int) -> np.ndarray:
    """A head-like ellipsoid with soft random structure; class 1 is darker in one corner of it."""
    shape = GRID.shape
    random = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    head = (place**2).sum(0) < 0.7
    image = 100 + 30 * ndimage.gaussian_filter(random.standard_normal(shape), 2.0) * 8
    if label:
        image[4:9, 8:14, 6:10] -= 40
    return np.where(head, np.clip(image, 5, 250), 0).astype(np.float32)


def brain(shape=GRID.shape, seed=0):
    """A smooth random blob inside, exact zeros outside."""
    axes = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij")
    noise = np.random.default_rng(seed).random(shape)
    return np.where(sum(axis**2 for axis in axes) < 0.8, 100 + 50 * noise + 30 * axes[0], 0).astype(np.float32)


def brains(seed, n, shape=(20, 24, 20)):
    """Ellipsoids (n, D, H, W) with a pattern that all share and one of their own, in [0, 1]."""
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    head = (place**2).sum(0) < 0.6
    shared = ndimage.gaussian_filter(np.random.default_rng(99).normal(size=shape), 2.0)
    draw = np.random.default_rng(seed)
    own = np.stack([ndimage.gaussian_filter(draw.normal(size=shape), 2.0) for _ in range(n)])
    return np.where(head, np.clip(0.5 + 3.0 * (shared + own), 0.05, 1), 0).astype(np.float32)


def save(path, image, affine=None, kind=nib.Nifti1Image):
    nib.save(kind(image, GRID.affine if affine is None else affine), path)
    return path


def edit(path, change):
    """Rewrites the header of a plain NIfTI in place, whatever it then says."""
    data = path.read_bytes()
    header = nib.Nifti1Header(data[:348], check=False)
    change(header)
    path.write_bytes(header.binaryblock + data[348:])


def refusal(path, grid=GRID):
    """The message with which a scan is refused, which must name the file."""
    with pytest.raises(InputError) as error:
        load_scan(path, grid)
    assert str(path) in str(error.value)
    return str(error.value)


def template_scan(path: Path, seed: int = 0, spacing_mm: float = 6.0, noise: float = 3.0) -> Path:
    """The template at another voxel size, with noise of its own."""
    source = load_template("icbm2009a")
    step = round(spacing_mm)
    values = np.asarray(source.dataobj)[::step, ::step, ::step]
    added = np.random.default_rng(seed).normal(0, noise, values.shape)
    affine = source.affine @ np.diag([step, step, step, 1.0])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.where(values > 0, values + added, 0).astype(np.float32), affine), path)
    return path


def template_table(folder: Path) -> Path:
    """Four scans in template space and their table."""
    rows = [
        {
            "subject": f"P{k}",
            "file": f"raw/P{k}.nii.gz",
            "diagnosis": ("HC", "TLE-L")[k % 2],
            "age": 30 + k,
            "note": "x",
        }
        for k in range(4)
    ]
    for k in range(4):
        template_scan(folder / f"raw/P{k}.nii.gz", k)
    pd.DataFrame(rows).to_csv(folder / "participants.csv", index=False)
    return folder / "participants.csv"


def template_bids(folder: Path) -> Path:
    """A BIDS dataset of two people without a table, with brain masks."""
    for name in ("sub-1", "sub-2"):
        template_scan(folder / name / "ses-a/anat" / f"{name}_ses-a_T1w.nii.gz")
        mask = folder / "derivatives/first" / name / "ses-a/anat" / f"{name}_ses-a_desc-brain_mask.nii.gz"
        template_scan(mask)
        template_scan(mask.with_name(f"{name}_ses-a_space-MNI_desc-brain_mask.nii.gz"))
    return folder
