"""Small heads with region labels: the template around both hippocampi, in the labels of the atlas."""

import nibabel as nib
import numpy as np
import pandas as pd

from cohort.atlas import atlas, load_template, resample
from cohort.scans import Grid

AROUND = Grid("temporal", (44, 36, 30), 2.0, (0.0, -20.0, -16.0))
"""88 x 72 x 60 mm: both hippocampi and 10 mm around them."""


def head(grid=AROUND, tail=0, seed=0):
    """A scan, int16, and its labels, (D, H, W); the hindmost `tail` planes of the left hippocampus are white matter."""
    template, regions = load_template("icbm2009a"), atlas(grid)
    image = resample(np.asarray(template.dataobj), template.affine, grid)
    image = np.rint(4 * image + np.random.default_rng(seed).normal(0, 8, grid.shape)).clip(0).astype(np.int16)
    labels = regions.labels.copy()
    behind = np.argwhere(regions.mask("Left Hippocampus"))[:, 1].min() + tail
    labels[:, :behind][labels[:, :behind] == regions.codes["Left Hippocampus"]] = regions.codes[
        "Left Cerebral White Matter"
    ]
    return image, labels


def write_head(folder, name, image, labels, affine=AROUND.affine):
    """Both as NIfTI, the axes turned to posterior-superior-right, the scan with a scale; their names."""
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple("PSR"))
    )
    for kind, voxels in (("T1w", image), ("dseg", labels.astype(np.uint8))):
        turned = nib.Nifti1Image(voxels, affine).as_reoriented(turn)
        if kind == "T1w":
            turned.header.set_slope_inter(0.5, 3.0)
        nib.save(turned, folder / f"{name}_{kind}.nii.gz")
    return f"{name}_T1w.nii.gz", f"{name}_dseg.nii.gz"


def people(folder, count=8):
    """A table of as many healthy people, whose left hippocampi differ in length."""
    rows = []
    for number in range(count):
        name = f"P{number:02d}"
        file, labels = write_head(folder, name, *head(tail=number % 4, seed=number))
        rows.append(
            {"subject": name, "file": file, "diagnosis": "HC", "age": 20 + number, "sex": "F", "labels": labels}
        )
    table = folder / "people.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    return table
