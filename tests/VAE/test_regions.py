"""Error by atlas region: a planted error is found where it is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cohort.atlas import atlas
from cohort.scans import GRIDS
from VAE.regions import region_errors, summarise


def test_a_planted_error_is_ranked_worst_with_its_sign() -> None:
    regions = atlas(GRIDS["demo"])
    x = np.full(GRIDS["demo"].shape, 0.5, dtype=np.float32)
    name = region_errors(x, x, regions).sort_values("voxels").region.iloc[-1]
    frames = []
    for subject, size in (("a", 0.1), ("b", 0.3)):
        x_hat = np.where(regions.mask(name), x - size, x + 0.01).astype(np.float32)
        frames.append(region_errors(x_hat, x, regions).assign(subject=subject))
    table = summarise(pd.concat(frames))
    worst = table.iloc[0]
    assert worst.region == name
    assert worst.voxels == regions.mask(name).sum()
    assert (worst.mae, worst.bias) == pytest.approx((0.2, -0.2), rel=1e-4)
    assert worst.nmse == pytest.approx((0.1**2 + 0.3**2) / 2 / 0.25, rel=1e-4)
    assert worst.subjects == 2
    assert table.mae.iloc[1:].to_numpy() == pytest.approx(0.01, rel=1e-3)
