"""Sampling of fields, on which all of the simulation rests."""

import numpy as np
import pytest
from scipy import ndimage

from cohort.simulation import warps


def test_sampling_is_that_of_scipy_however_many_points_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    field = draw.standard_normal((3, 7, 9, 8)).astype(np.float32)
    points = draw.uniform(-2, 10, (3, 5, 6, 4)).astype(np.float32)  # outside, too
    points[:, 0, 0] = [[0, 6, 6, 3], [0, 8, 8, 2], [0, 7, 6, 7]]  # corners and nodes
    whole = warps.sample(field, points)
    expected = [ndimage.map_coordinates(part.astype(float), points, order=1, mode="nearest") for part in field]
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    monkeypatch.setattr(warps, "AT_ONCE", 7)
    assert np.array_equal(warps.sample(field, points), whole)
    assert warps.sample(field, points[:, :0]).shape == (len(field), 0, *points.shape[2:])
