"""Small heads with region labels: the template around both hippocampi, in the labels of the atlas."""

import nibabel as nib
import numpy as np
import pandas as pd
from scipy.ndimage import zoom

from cohort.atlas import atlas, load_template, resample
from cohort.grids import GRIDS, Grid
from cohort.scans import onto_grid, to_ras
from cohort.tables import read_table
from cohort.volumes import write_nifti
from runtime.files import write_json

GOOD = {
    "template_correlation": 0.9, "brain_ml": 1500.0, "brain_seen": 1.0, "affine_jacobian": 1.0,
    "warp_jacobian_min": 0.3, "warp_jacobian_max": 2.0, "snr": 15.0, "contrast": 1.5,
}  # fmt: skip
"""Measures of a scan that came out well."""
AROUND = Grid("temporal", (44, 36, 30), 2.0, (0.0, -20.0, -16.0))
"""88 x 72 x 60 mm: both hippocampi and 10 mm around them."""


def head(grid=AROUND, tail=0, seed=0):
    """A scan, int16, and its labels, (D, H, W); the hindmost `tail` planes of the left hippocampus are white matter."""
    template, regions = load_template("icbm2009a"), atlas(grid)
    image = resample(np.asarray(template.dataobj), template.affine, grid)
    draw = np.random.default_rng(seed)
    field = np.exp(0.4 * zoom(draw.normal(size=(4, 4, 4)), np.array(grid.shape) / 4, order=3))  # nobody is a copy
    image = np.rint(4 * image * field + draw.normal(0, 8, grid.shape)).clip(0).astype(np.int16)
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


def as_prepared(table, out, grid=GRIDS["smoke"]):
    """A folder such as cohort.prepare makes of people: scans on the grid, where they lie already, and records."""
    for row in read_table(table).itertuples():
        image = nib.load(row.file)
        voxels = onto_grid(*to_ras(np.asarray(image.dataobj, np.float32), image.affine), grid.affine, grid)
        write_nifti(out / "scans" / f"{row.subject}.nii.gz", np.rint(voxels), grid.affine)
        record = {"matrix": np.eye(4).tolist(), "recipe": {"grid": grid.to_dict()}, "measures": GOOD}
        write_json(out / "records" / f"{row.subject}.json", record)
    return out
