"""What is planted in one hippocampus is measured there, on the right side and in the right unit."""

import numpy as np
import pytest

from cohort.atlas import atlas
from cohort.grids import GRIDS
from evaluation.references.planted import HIPPOCAMPI, brightness, ipsilateral_change

GRID = GRIDS["smoke"]


def test_a_darker_hippocampus_is_seen_on_its_side_alone():
    scans = np.random.default_rng(0).uniform(0.4, 0.6, size=(3, *GRID.shape))
    darker = scans.copy()
    for volume, side in zip(darker, "LRR", strict=True):
        volume[atlas(GRID).mask(HIPPOCAMPI[side])] *= 0.7
    before, after = brightness(scans, GRID), brightness(darker, GRID)
    share = after / before
    np.testing.assert_allclose(share, [[0.7, 1.0], [1.0, 0.7], [1.0, 0.7]])
    spread = np.array([0.1, 0.2])
    expected = -0.3 * np.mean([before[0, 0] / 0.1, before[1, 1] / 0.2, before[2, 1] / 0.2])
    assert ipsilateral_change(before, after, "LRR", spread) == pytest.approx(expected)
    assert ipsilateral_change(before, after, "RLL", spread) == pytest.approx(0.0)
