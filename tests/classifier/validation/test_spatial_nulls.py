import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import kstest

from classifier.validation.evidence import localise
from classifier.validation.spatial_nulls import cube_symmetries, moves, p_value
from runtime.errors import InputError

SHAPE = (20, 24, 20)


def ball(radius=0.9):
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    return (at**2).sum(0) < radius**2


def region():
    mask = np.zeros(SHAPE, bool)
    mask[5:8, 9:14, 8:10] = True
    mask[5, 9, 9] = False  # no symmetry of its own
    return mask


@pytest.fixture(scope="module")
def found():
    return moves(region(), ball(), 200, np.random.default_rng(0))


def test_the_symmetries_are_48_distinct_isometries():
    turns = cube_symmetries()
    assert len({turn.tobytes() for turn in turns}) == 48
    np.testing.assert_array_equal(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (48, 3, 3)))
    np.testing.assert_array_equal(turns[0], np.eye(3))


def test_moved_regions_keep_size_stay_in_the_brain_and_leave_their_place(found):
    places = found.places(region())
    assert places.shape == (201, region().sum())
    np.testing.assert_array_equal(np.sort(places[0]), np.flatnonzero(region()))
    for place in places[1:]:
        assert len(set(place)) == region().sum()
        assert ball().ravel()[place].all()
        assert not region().ravel()[place].any()
    assert len({tuple(np.sort(place)) for place in places}) > 190


def test_one_move_is_the_same_for_every_subject(found):
    shifted = np.roll(region(), 1, axis=0)
    a, b = (np.stack(np.unravel_index(found.places(mask), SHAPE), -1) for mask in (region(), shifted))
    step = b - a
    np.testing.assert_array_equal(step, np.broadcast_to(found.turns[:, :, 0][:, None], step.shape))


def test_parts_that_leave_the_grid_are_marked(found):
    edge = np.zeros(SHAPE, bool)
    edge[0, 0, 0] = edge[10, 12, 10] = True
    places = found.places(edge)
    assert (places == -1).any()
    assert places.max() < np.prod(SHAPE)


def measured(map_, places):
    return localise(map_, ball(), places, places)


def test_noise_gives_uniform_p_and_a_planted_signal_small_p(found):
    rng = np.random.default_rng(1)
    ps = []
    for trial in range(300):
        places = moves(region(), ball(), 50, np.random.default_rng(1000 + trial)).places(region())
        smooth = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.0, mode="wrap")
        ps.append(p_value(measured(smooth, places)["enrichment"]))
    assert kstest(ps, "uniform").pvalue > 0.01
    planted = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.0)
    planted = planted / planted.std() + 3 * region()
    strong = measured(planted, found.places(region()))
    assert p_value(strong["enrichment"]) == p_value(strong["average_precision"]) == pytest.approx(1 / 201)


def test_a_map_that_is_strong_elsewhere_is_not_called_true(found):
    elsewhere = np.roll(region(), 8, axis=0)
    assert p_value(measured(1.0 * elsewhere + 0.01, found.places(region()))["enrichment"]) > 0.2


def test_p_counts_the_true_place_and_ties():
    assert p_value(np.array([2.0, 1, 1, 1])) == 0.25
    assert p_value(np.array([1.0, 1, 1, 1])) == 1


def test_a_region_that_fits_nowhere_is_refused():
    with pytest.raises(InputError, match="too coarse or the region too large"):
        moves(ball(0.8), ball(), 2, np.random.default_rng(0))
    with pytest.raises(InputError, match="no voxel"):
        moves(np.zeros(SHAPE, bool), ball(), 5, np.random.default_rng(0))
