from functools import cache

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from classifier import baselines
from classifier.measures import metrics
from cohort.anatomy.regional_volumes import dilated_mask, region_volumes, volume_column
from cohort.atlas import REGIONS, atlas, tissue
from cohort.scans import GRIDS
from cohort.stacks import ScanStack, VolumeStack
from runtime.errors import InputError

GRID = GRIDS["smoke"]


def stack(folder, *volumes):
    """Volumes on the grid as a table's scans, decoded."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{number}.npy" for number in range(len(volumes))]
    for file, volume in zip(files, volumes, strict=True):
        np.save(file, volume)
    frame = pd.DataFrame({"subject": [file.stem for file in files]})
    return ScanStack(frame, VolumeStack(files, GRID.shape), GRID, tuple(frame["subject"]))


def test_the_hippocampus_is_measured_on_its_side(tmp_path):
    left, right = baselines.hippocampal_features(stack(tmp_path, brain(), brain("Left Hippocampus")))
    assert left[2] < 0.2
    assert right[0] < 0.8 * left[0]
    assert right[1] == pytest.approx(left[1], rel=1e-2)
    assert right[2] > left[2]


def test_features_or_the_reason_for_none(scans):
    found = baselines.features(scans, {"val": scans})
    assert found["hippocampus"]["val"].shape == (24, 3)
    assert found["age_sex"]["train"].shape == (24, 4)
    assert found["site"]["train"].sum() == 24
    assert found["regional"]["val"].shape == (24, 24)
    assert found["brain_volume"]["train"].shape == (24, 1)
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


def test_only_real_scans_train_what_is_not_the_hippocampus(scans):
    """So that train.py's real labels fit; permuted rows are the regional ones in another order."""
    mixed = type(scans)(scans.frame.assign(synthetic=np.arange(24) >= 20), scans.volumes, scans.grid, scans.hashes)
    found = baselines.features(mixed, {"val": scans})
    assert {name: len(inputs["train"]) for name, inputs in found.items()} == {
        "hippocampus": 24, "regional": 20, "brain_volume": 20, "age_sex": 20, "site": 20, "permuted": 20,
    }  # fmt: skip
    regional, permuted = found["regional"]["train"], found["permuted"]["train"]
    np.testing.assert_allclose(regional, found["regional"]["val"][:20])
    assert (regional != permuted).any()
    np.testing.assert_allclose(np.sort(regional, axis=0), np.sort(permuted, axis=0))
    none = type(scans)(scans.frame.assign(synthetic=True), scans.volumes, scans.grid, scans.hashes)
    reasons = [inputs for inputs in baselines.features(none, {"val": scans}).values() if isinstance(inputs, str)]
    assert len(reasons) == 5


template = cache(tissue)


def brain(darker=None):
    """The template's tissues as a scan; one region's grey matter replaced by fluid."""
    tissues = template(GRID)
    volume = 0.2 * tissues["csf"] + 0.5 * tissues["gm"] + 0.9 * tissues["wm"]
    if darker is not None:
        volume = np.where(atlas(GRID).mask(darker), 0.2, volume)
    return volume.astype(np.float32)


def test_regional_features_follow_the_region():
    """A thalamus that turns to fluid: less of it on that side, and an asymmetry."""
    plain, changed = baselines.with_asymmetry(region_volumes([brain(), brain("Left Thalamus")], GRID, REGIONS))
    places = [REGIONS.index("Left Thalamus"), REGIONS.index("Right Thalamus")]
    left, right = changed[places] / plain[places]
    assert left < 0.8
    assert left < right - 0.2
    structure = 16 + places[0] // 2
    assert changed[structure] > plain[structure] + 0.05
    room = dilated_mask("Left Thalamus", GRID).sum() * GRID.spacing_mm**3 / 1000
    assert 0 < plain[places[0]] <= room


def test_scans_are_measured_once_whatever_tables_they_are_in(scans):
    first = baselines.features(scans, {"val": scans})
    regional = region_volumes(scans.volumes, scans.grid, REGIONS)
    np.testing.assert_array_equal(first["regional"]["val"], baselines.with_asymmetry(regional))
    # Only what belongs to these: other tests measure other scans in the same folder.
    files = [path for file in scans.volumes.files for path in file.parent.glob(f"{file.stem}.*.npy")]
    kept = {path: path.stat().st_mtime_ns for path in files}
    assert len(kept) == 3 * len(scans)
    rows = np.array([3, 1])
    again = baselines.features(scans, {"val": scans.take(rows)})
    np.testing.assert_array_equal(again["regional"]["val"], first["regional"]["val"][rows])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_mixture_of_maps_and_scans_is_refused_also_where_some_were_measured_before(tmp_path):
    tissues = template(GRID)
    scan, map_ = brain(), tissues["gm"].astype(np.float32)
    baselines.hippocampal_features(stack(tmp_path, scan))
    with pytest.raises(InputError, match="1 of 2 volumes are grey-matter maps"):
        baselines.hippocampal_features(stack(tmp_path, scan, map_))


def test_brain_volume_is_that_of_the_mask(tmp_path):
    small = brain()
    small[: GRID.shape[0] // 2] = 0
    whole, half = baselines.brain_features(stack(tmp_path, brain(), small))[:, 0]
    assert 1000 < whole < 2500
    assert 0.3 < half / whole < 0.7


def test_truth_features_are_volumes_and_asymmetries(tmp_path):
    frame = pd.DataFrame(np.arange(1, 33).reshape(2, 16) * 100.0, columns=map(volume_column, REGIONS), index=["b", "a"])
    frame.rename_axis("subject").to_csv(tmp_path / "truth.csv")
    got = baselines.truth_features(pd.DataFrame({"subject": ["a", "b", "a"]}), tmp_path / "truth.csv")
    assert got.shape == (3, 24)
    np.testing.assert_allclose(got[1, :3], [0.1, 0.2, 0.3])
    np.testing.assert_allclose(got[1, 16:18], [1 / 3, 1 / 7])
    np.testing.assert_allclose(got[0], got[2])


def test_the_close_fit_leaves_noise_out():
    """One feature of 40 tells the classes apart; with 60 subjects the fixed penalty trusts the others too."""
    rng = np.random.default_rng(1)
    labels = np.arange(1060) % 2
    inputs = rng.normal(size=(1060, 40)) + np.eye(40)[0] * labels[:, None]
    losses = [
        log_loss(labels[60:], fit(inputs[:60], labels[:60]).predict_proba(inputs[60:])[:, 1])
        for fit in (baselines.fit, baselines.fit_closely)
    ]
    assert losses[1] < losses[0] - 0.1
    assert losses[1] < np.log(2) + 0.01


def test_permuted_labels_find_nothing_though_the_features_could():
    rng = np.random.default_rng(0)
    labels = np.arange(160) % 2
    inputs = rng.normal(size=(160, 3)) + np.array([1.5, 0, 0]) * labels[:, None]
    parts = {"train": inputs[:80], "test": inputs[80:]}
    null = baselines.permutation_null(parts, labels[:80], labels[80:], permutations=200, seed=0)
    assert null["low"] < 0.5 < null["high"]
    assert abs(null["value"] - 0.5) < 0.06
    fitted = baselines.fit(parts["train"], labels[:80]).predict_proba(parts["test"])[:, 1]
    assert metrics.auc(labels[80:], fitted) > null["high"]
