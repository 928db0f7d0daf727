import numpy as np
import pandas as pd

from classifier import baselines, metrics
from cohort.atlas import tissue
from cohort.scans import GRIDS

GRID = GRIDS["smoke"]


def test_soft_grey_matter_is_highest_at_the_scans_own_grey_level():
    tissues = tissue(GRID)
    for gain in (0.5, 1.0):
        volume = gain * (0.2 * tissues["csf"] + 0.5 * tissues["gm"] + 0.9 * tissues["wm"])
        grey = baselines.soft_grey_matter(volume, tissues)
        assert grey.min() >= 0
        assert grey.max() <= 1
        assert grey[tissues["gm"] > 0.7].mean() > 2 * grey[tissues["wm"] > 0.7].mean()


def test_masks_lie_on_their_sides():
    masks = baselines.hippocampal_masks(GRID)
    middle = GRID.shape[0] / 2
    assert np.argwhere(masks["Left"])[:, 0].mean() < middle < np.argwhere(masks["Right"])[:, 0].mean()


def test_features_or_the_reason_for_none(scans):
    found = baselines.features(scans, {"val": scans})
    assert found["hippocampus"]["val"].shape == (24, 3)
    assert found["age_sex"]["train"].shape == (24, 4)
    assert found["site"]["train"].sum() == 24
    bare = scans.frame.assign(age=np.nan, sex="", site="")
    stack = type(scans)(bare, scans.volumes, scans.grid, scans.hashes)
    found = baselines.features(stack, {"val": stack})
    assert "neither age nor sex" in found["age_sex"]
    assert "fewer than two sites" in found["site"]


def test_absent_ages_take_the_median_of_the_reference():
    reference = pd.DataFrame({"age": [20.0, 30.0, 40.0], "sex": ["F", "M", ""]})
    got = baselines.age_sex_features(pd.DataFrame({"age": [np.nan, 50.0], "sex": ["M", "F"]}), reference)
    np.testing.assert_allclose(got, [[30, 1, 0, 1], [50, 0, 1, 0]])


def test_logistic_regression_finds_a_plain_effect():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    inputs = rng.normal(size=(200, 3)) + np.array([1.5, 0, 0]) * labels[:, None]
    model = baselines.fit(inputs[:100], labels[:100])
    assert metrics.auc(labels[100:], model.predict_proba(inputs[100:])[:, 1]) > 0.8
