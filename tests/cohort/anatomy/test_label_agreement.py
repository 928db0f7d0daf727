"""Labels against a preparation: a place that is right, one that is not, and a brain of which a part is missing."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cohort.anatomy.label_agreement import cut_off, label_affine, placing_error
from cohort.atlas import atlas
from cohort.grids import GRIDS
from runtime.errors import InputError


@pytest.fixture(scope="module")
def head():
    """The atlas as the labels of somebody who lies elsewhere; the affine of the voxels, and from template to scan."""
    grid, matrix = GRIDS["demo"], np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (8, -5, 12), degrees=True).as_matrix() @ np.diag([0.9, 0.95, 0.85])
    matrix[:3, 3] = (10, -20, 5)
    return atlas(grid).labels, matrix @ grid.affine, matrix


def test_labels_say_where_the_scan_lies(head):
    labels, affine, matrix = head
    np.testing.assert_allclose(label_affine(labels, affine)[:3, :3], matrix[:3, :3], atol=0.01)
    distance, ratio = placing_error(matrix, labels, affine)
    assert distance < 0.2
    assert ratio == pytest.approx(1, abs=0.01)


def test_a_wrong_place_is_as_wrong_as_it_is(head):
    labels, affine, matrix = head
    moved, blown = matrix.copy(), matrix.copy()
    moved[:3, 3] += (3, 0, -4)
    assert placing_error(moved, labels, affine) == pytest.approx((5, 1), abs=0.2)
    blown[:3, :3] *= 1.05
    assert placing_error(blown, labels, affine)[1] == pytest.approx(1.05**3, abs=0.01)


def test_labels_of_another_coding_are_refused(head):
    labels, affine, _ = head
    with pytest.raises(InputError, match="2 regions of the atlas are in the labels, expected 12 or more"):
        label_affine(np.where(np.isin(labels, (47, 48)), labels, 0), affine)


def test_what_lies_beyond_a_mask_counts_as_cut_off_and_what_is_near_its_edge_does_not():
    grid = GRIDS["2mm"]
    labelled = atlas(grid)
    pole = labelled.mask("Left temporal pole")
    front = np.argwhere(pole)[:, 1].max() - 5
    brain = np.ones(grid.shape, bool)
    brain[:, front:] = False
    expected = pole[:, front + 1 :].sum() / pole.sum()  # its first plane is 2 mm outside, the next 4
    assert 0.05 < expected < 0.95
    assert cut_off(brain, labelled.labels, grid.affine, ["Left temporal pole"]) == pytest.approx(expected)
    assert cut_off(np.ones_like(brain), labelled.labels, grid.affine, ["Left temporal pole"]) == 0
    assert np.isnan(cut_off(brain, np.zeros_like(labelled.labels), grid.affine, ["Left temporal pole"]))
