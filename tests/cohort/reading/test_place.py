"""Scans that lie elsewhere are refused by everything that reads them, with a way on."""

import itertools

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from cohort.atlas import load_template
from cohort.checking.checked import find_copies
from cohort.checking.faults import examine
from cohort.grids import GRIDS, Grid
from cohort.reading.place import BETTER_TURNED, LEAST_CORRELATION, place_of, refuse_misplaced
from cohort.scans import load_scan, resample
from cohort.stacks import load_scans
from runtime.errors import InputError

GRID = GRIDS["demo"]
FINE = Grid("fine", (56, 68, 56), 3.0, GRID.centre_mm)
"""Not the grid of any stage: a prepared scan that has to be resampled."""


@pytest.fixture(scope="module")
def template():
    source = load_template("icbm2009a")
    return np.round(resample(np.asarray(source.dataobj), source.affine, FINE.affine, FINE.shape)[0])


def write(path, image, affine):
    nib.save(nib.Nifti1Image(image.astype(np.int16), affine), path)
    return path


def frame_of(*files):
    rows = [{"subject": str(k), "file": str(file), "label": 0, "group": str(k)} for k, file in enumerate(files)]
    return pd.DataFrame(rows)


def test_a_prepared_scan_lies_where_it_should(tmp_path, template):
    path = write(tmp_path / "right.nii", template, FINE.affine)
    assert load_scan(path, GRID).shape == GRID.shape
    assert examine(path)[0].warnings == []
    assert len(load_scans(frame_of(path), GRID, cache_dir=tmp_path / "cache")) == 1
    found = place_of(template, FINE.affine)
    assert found.correlation > 0.95
    assert found.turned < found.correlation
    assert found.away_mm < 8


def test_an_affine_that_was_lost_is_refused_by_every_reader(tmp_path, template):
    path = write(tmp_path / "identity.nii", template, np.diag([3.0, 3, 3, 1]))
    readers = {
        "training": lambda: load_scan(path, GRID),
        "check": lambda: examine(path),
        "split": lambda: find_copies(frame_of(path), tmp_path / "checked"),
        "stack": lambda: load_scans(frame_of(path), GRID, cache_dir=tmp_path / "cache"),
    }
    for reader in readers.values():
        with pytest.raises(
            InputError, match=r"identity\.nii: it does not lie on the grid .*covers 1\d\.\d%.*"
        ) as refusal:
            reader()
        assert "--assume-mni" in str(refusal.value)
        assert "--reset-affine" in str(refusal.value)


def turned_affine(order, flips):
    """The affine of a file whose axes were exchanged and reversed without a word, its middle where it was."""
    affine = FINE.affine.copy()
    shape = np.array(FINE.shape)[list(order)]
    affine[:3, 3] = np.array(FINE.centre_mm) - 3.0 * (shape - 1) / 2
    return affine


@pytest.mark.parametrize(
    ("order", "flips"),
    [
        (order, flips)
        for order in itertools.permutations(range(3))
        for flips in itertools.product((1, -1), repeat=2)
        if (order, flips) != ((0, 1, 2), (1, 1))
    ],
)
def test_axes_that_were_exchanged_or_reversed_are_seen(template, order, flips):
    turned = template.transpose(order)[:, :: flips[0], :: flips[1]]
    found = place_of(turned.astype(np.float32), turned_affine(order, flips))
    assert found.turned > found.correlation + BETTER_TURNED
    with pytest.raises(Exception, match="agrees with the template better when they are exchanged or reversed"):
        refuse_misplaced(found)


def test_check_and_training_refuse_a_scan_upside_down(tmp_path, template):
    path = write(tmp_path / "down.nii", template[:, :, ::-1], FINE.affine)
    for reader in (examine, lambda file: load_scans(frame_of(file), GRID, cache_dir=tmp_path / "cache")):
        with pytest.raises(InputError, match=r"down\.nii: its axes are not what its header says"):
            reader(path)


def test_a_head_beside_the_middle_of_its_field_of_view(tmp_path, template):
    """It covers the whole grid, and shows no brain there."""
    wide = np.zeros((160, 160, 160), np.float32)
    wide[:56, :68, :56] = template
    affine = FINE.affine.copy()
    affine[:3, 3] = np.array(FINE.centre_mm) - 3.0 * 159.5 / 2
    path = write(tmp_path / "away.nii", wide, affine)
    with pytest.raises(InputError, match=r"constant within the grid|shows no brain where the template has one"):
        load_scans(frame_of(path), GRID, cache_dir=tmp_path / "cache")
    moved = FINE.affine.copy()
    moved[1, 3] += 70
    assert place_of(template, moved).correlation < LEAST_CORRELATION
    moved[1, 3] -= 40
    assert any(
        "mm from the template's" in text for _, text in examine(write(tmp_path / "b.nii", template, moved))[0].warnings
    )


def test_voxels_in_other_units_are_no_head(tmp_path, template):
    path = write(tmp_path / "micron.nii", template, np.diag([1000.0, 1000, 1000, 1]) @ FINE.affine)
    for reader in (lambda file: load_scan(file, GRID), examine):
        with pytest.raises(InputError, match=r"no head; are its voxel sizes in mm\?"):
            reader(path)
