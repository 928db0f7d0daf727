"""Maps of real heads: the volume asked for, nothing else moved, no fold; and scans read through them."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from cohort.atlas import native_atlas
from cohort.simulation import planting, warps
from tests.support.labelled import AROUND, head

CODES = {name: code for name, code in native_atlas()[0].codes.items() if code > 0}
LOSS = -0.2


def stretched(labels, factors):
    """The same head in voxels of other edges."""
    return ndimage.zoom(labels, factors, order=0, grid_mode=True, mode="nearest")


@pytest.fixture(scope="module", params=[(1, 1, 1), (1.0, 0.8, 1.5)], ids=["2 mm", "oblong voxels"])
def case(request):
    labels = stretched(head()[1], request.param)
    edges = AROUND.spacing_mm * np.array(AROUND.shape) / np.array(labels.shape)
    return labels, edges, planting.find_map(labels, edges, CODES, "Right", LOSS)


def counted(found, labels, name):
    """Volume of a label in the new head, in voxels: shares of random points that are read inside it."""
    draw, near = np.random.default_rng(0), labels[found.box] == CODES[name]
    places = np.argwhere(ndimage.binary_dilation(near, iterations=3)).T.astype(np.float32)
    total = 0
    for _ in range(20):
        points = places + draw.uniform(-0.5, 0.5, places.shape).astype(np.float32)
        at = np.rint(points + found.shift(points)).astype(int)
        total += near[tuple(np.clip(axis, 0, size - 1) for axis, size in zip(at, near.shape, strict=True))].sum()
    return total / 20


def test_the_hippocampus_has_the_volume_asked_for(case):
    labels, edges, found = case
    name = "Right Hippocampus"
    before = (labels == CODES[name]).sum()
    assert counted(found, labels, name) / before == pytest.approx(1 + LOSS, abs=0.03)
    volume = found.volumes(labels, CODES)[name]
    assert volume / (before * np.prod(edges)) == pytest.approx(1 + LOSS, abs=0.01)


def test_the_horn_widens_and_the_rest_keeps_its_place(case):
    labels, edges, found = case
    before, after = planting.label_volumes(labels, CODES, edges), found.volumes(labels, CODES)
    assert 1.05 < after["Right Inf Lat Vent"] / before["Right Inf Lat Vent"] < 1.6
    for name in ("Left Hippocampus", "Left Inf Lat Vent", "Left Amygdala"):
        assert after[name] == pytest.approx(before[name], rel=1e-3)
    assert found.far_mm() < 0.2
    assert found.moved_mm().max() > 0.5
    assert found.min_jacobian > 0


def test_a_placebo_moves_as_far_and_changes_no_volume():
    labels, edges = head()[1], np.full(3, 2.0)
    found = planting.find_map(labels, edges, CODES, "Left", LOSS, placebo=True)
    assert found.moved_mm().max() > 0.4
    before = planting.label_volumes(labels, CODES, edges)["Left Hippocampus"]
    assert found.volumes(labels, CODES)["Left Hippocampus"] == pytest.approx(before, rel=0.01)
    assert counted(found, labels, "Left Hippocampus") * 8 == pytest.approx(before, rel=0.02)


def test_a_scan_is_read_where_the_map_says_and_kept_where_nothing_moves(case):
    labels, _, found = case
    ramp = (100 * warps.nodes(labels.shape)[1]).astype(np.float32)
    new = found.applied(ramp)
    shift = found.shift(warps.nodes(found.region.shape))[1]
    np.testing.assert_allclose((new - ramp)[found.box], 100 * shift, atol=2)
    still = found.moved_mm() <= planting.STILL_MM
    assert still.any()
    assert np.array_equal(new[found.box][still], ramp[found.box][still])
    outside = np.ones(labels.shape, bool)
    outside[found.box] = False
    assert np.array_equal(new[outside], ramp[outside])


def test_whole_numbers_stay_whole_and_in_their_range(case):
    labels, _, found = case
    image = np.where(labels > 0, 250, 3).astype(np.uint8)
    new = found.applied(image)
    assert new.dtype == np.uint8
    assert new.min() == 3
    assert new.max() == 250
    assert (new != image).any()


def test_no_map_is_found_for_a_hippocampus_without_volume():
    labels = head()[1]
    assert planting.find_map(labels, np.full(3, 2.0), CODES, "Left", -0.97) is None


def test_a_fold_is_seen(case):
    folded = case[2].push.copy()
    folded[0, 10:12] += np.float32(3)
    assert replace(case[2], push=folded).min_jacobian < 0
