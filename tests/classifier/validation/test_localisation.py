import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score

from classifier.validation.evidence import localise, widen

SHAPE = (10, 12, 9)


@pytest.fixture
def brain():
    mask = np.zeros(SHAPE, bool)
    mask[1:-1, 1:-1, 1:-1] = True
    return mask


def region(low=(2, 3, 2), size=(3, 2, 2)):
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))] = True
    return mask


def places(*masks):
    return np.stack([np.flatnonzero(mask) for mask in masks])


@pytest.mark.parametrize("levels", [None, 5])
def test_average_precision_is_scikit_learns_also_with_ties(brain, levels):
    rng = np.random.default_rng(0)
    map_ = rng.standard_normal(SHAPE) + 1.5 * region()
    if levels:
        map_ = np.round(map_ * levels / 4)  # many voxels share a value
    here, there = region(), region((5, 7, 4))
    found = localise(map_, brain, places(here, there), places(here, there))["average_precision"]
    wanted = [average_precision_score(mask[brain], np.abs(map_)[brain]) for mask in (here, there)]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_enrichment_is_share_of_magnitude_over_share_of_volume(brain):
    map_ = np.where(region(), -3.0, 1.0)  # the sign does not matter, nor what is outside the brain
    map_[~brain] = 1e6
    found = localise(map_, brain, places(region(), region((5, 7, 4))), places(region(), region((5, 7, 4))))
    size, total = region().sum(), brain.sum()
    expected = (3 * size / (3 * size + total - size)) / (size / total)
    np.testing.assert_allclose(found["enrichment"], [expected, expected / 3])
    even = localise(np.ones(SHAPE), brain, places(region()), places(region()))
    assert even["enrichment"][0] == pytest.approx(1)
    assert even["average_precision"][0] == pytest.approx(size / total)


def test_pointing_counts_the_peak_in_the_widened_region_and_shares_ties(brain):
    wide = widen(region(), spacing_mm=1.0, reach_mm=1.0)
    map_ = np.zeros(SHAPE)
    map_[5, 3, 2] = -2.0  # one voxel beyond the region's end
    assert localise(map_, brain, places(region()), places(wide))["pointing"].tolist() == [1.0]
    assert localise(map_, brain, places(region()), places(region()))["pointing"].tolist() == [0.0]
    map_[8, 10, 7] = 2.0
    assert localise(map_, brain, places(region()), places(wide))["pointing"].tolist() == [0.5]


def test_widening_reaches_as_many_millimetres_whatever_the_spacing():
    fine = np.zeros((41, 41, 41), bool)
    fine[20, 20, 20] = True
    assert widen(fine, 0.5).sum() == (ndimage.distance_transform_edt(~fine, sampling=0.5) <= 3.25).sum()
    coarse = np.zeros((9, 9, 9), bool)
    coarse[4, 4, 4] = True
    assert widen(coarse, 4.0).sum() == 7  # 3 mm reach the faces of the six neighbours, not those across an edge


def test_voxels_off_the_brain_and_off_the_grid_do_not_count(brain):
    map_ = np.ones(SHAPE)
    whole = places(region())
    part = np.where(np.arange(whole.shape[1])[None] < 4, whole, -1)
    outside = np.full_like(whole, 0)  # voxel 0 is a corner, outside the brain
    found = localise(map_, brain, np.concatenate([whole, part, outside]), whole.repeat(3, axis=0))
    np.testing.assert_allclose(found["enrichment"][:2], 1)
    assert np.isnan(found["enrichment"][2])
    assert np.isnan(found["average_precision"][2])
    assert np.isnan(localise(0 * map_, brain, whole, whole)["enrichment"][0])
