"""A changed raw scan as its preparation would have brought it out."""

import numpy as np
import pytest
from scipy import ndimage

from cohort.grids import GRIDS
from cohort.preparation.placing import Place, read_place
from cohort.scans import onto_grid
from cohort.volumes import write_nifti
from runtime.errors import InputError
from runtime.files import write_json
from tests.support.labelled import GOOD

GRID = GRIDS["smoke"]
MATRIX = np.array([[0.95, 0.05, 0, 3.0], [-0.05, 1.02, 0.03, -4.0], [0, 0.02, 0.98, 5.0], [0, 0, 0, 1]])


def prepared_by_hand(image, affine):
    """What prepare does to intensities: resampled, divided by a field, scaled to whole numbers, and cut out."""
    field = 0.7 + 0.6 * np.indices(GRID.shape)[2] / GRID.shape[2]
    inside = np.zeros(GRID.shape, bool)
    inside[4:-4, 4:-4, 4:-4] = True
    scaled = np.rint(onto_grid(image, affine, MATRIX @ GRID.affine, GRID) * field)
    return np.where(inside, np.maximum(scaled, 1), 0).astype(np.float32)


def test_a_changed_scan_comes_out_as_if_it_had_been_prepared_the_same_way(tmp_path):
    draw = np.random.default_rng(0)
    before = (200 + 100 * ndimage.gaussian_filter(draw.normal(size=(48, 56, 48)), 1)).astype(np.float32)
    now = before.copy()
    now[20:30, 20:30, 20:30] *= 0.6
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = GRID.affine[:3, 3] - 10
    path = tmp_path / "scan.nii.gz"
    write_nifti(path, prepared_by_hand(before, affine), GRID.affine)
    found = Place(path, GRID, MATRIX).after(affine, before, now)
    expected = prepared_by_hand(now, affine)
    assert np.abs(expected - prepared_by_hand(before, affine)).max() > 50
    np.testing.assert_allclose(found, expected, atol=1)


def test_places_are_those_that_came_out_well(tmp_path):
    recipe = {"grid": GRID.to_dict()}
    for name, measures in (("good", GOOD), ("elsewhere", GOOD | {"template_correlation": 0.1})):
        write_json(
            tmp_path / "records" / f"{name}.json",
            {"matrix": MATRIX.tolist(), "recipe": recipe, "measures": measures},
        )
    place = read_place(tmp_path, "good")
    assert place.grid == GRID
    np.testing.assert_array_equal(place.matrix, MATRIX)
    with pytest.raises(InputError, match=r"elsewhere.nii.gz: flagged: correlation with the template"):
        read_place(tmp_path, "elsewhere")
    with pytest.raises(InputError, match="has not prepared this scan"):
        read_place(tmp_path, "absent")
