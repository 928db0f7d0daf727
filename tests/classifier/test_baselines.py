import dataclasses
from functools import cache

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from classifier import baselines, train
from classifier.measures import metrics
from cohort.anatomy.regional_volumes import dilated_mask, region_volumes
from cohort.anatomy.volume_tables import read_volumes
from cohort.atlas import REGIONS, atlas, tissue
from cohort.grids import GRIDS
from cohort.labelling.reading import open_reader
from cohort.stacks import ScanStack, VolumeStack, load_scans
from cohort.tables import read_table
from runtime.device import pick_device
from runtime.errors import InputError, InputWarning
from runtime.files import read_json
from tests.support.volumes import volumes_ml, write_synthseg

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


def test_a_network_measures_our_volumes_and_those_that_it_cannot_are_unknown(scans, random_labels, tmp_path):
    own = stack(tmp_path, *scans.volumes)
    own = type(scans)(scans.frame, own.volumes, scans.grid, scans.hashes)
    reader = open_reader(random_labels(0), GRID, pick_device("float32", 1))
    found = baselines.features(own, {"val": own}, reader=reader)
    ml = np.array([reader.read(volume).ml for volume in own.volumes])
    np.testing.assert_allclose(found["regional"]["train"][:, :16], ml)
    left = REGIONS.index("Left Hippocampus")
    np.testing.assert_allclose(found["hippocampus"]["val"][:, :2], ml[:, left : left + 2])
    blind = open_reader(random_labels(1), GRID, pick_device("float32", 1))
    blind.limits = {"displacement_mm": 0.0, "uncertainty": 0.0}
    with pytest.warns(InputWarning, match="nothing could be measured in 24 of 24 scans"):
        assert np.isnan(baselines.hippocampal_features(own, blind)).all()


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
    assert {name: len(inputs["train"]) for name, inputs in found.items() if not isinstance(inputs, str)} == {
        "hippocampus": 24, "regional": 20, "brain_volume": 20, "age_sex": 20, "site": 20, "permuted": 20,
    }  # fmt: skip
    regional, permuted = found["regional"]["train"], found["permuted"]["train"]
    np.testing.assert_allclose(regional, found["regional"]["val"][:20])
    assert (regional != permuted).any()
    np.testing.assert_allclose(np.sort(regional, axis=0), np.sort(permuted, axis=0))
    none = type(scans)(scans.frame.assign(synthetic=True), scans.volumes, scans.grid, scans.hashes)
    reasons = [inputs for inputs in baselines.features(none, {"val": scans}).values() if isinstance(inputs, str)]
    assert len(reasons) == 7


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


@pytest.fixture
def known(scans, tmp_path):
    """Volumes of a tool for all but the last two scans: the left hippocampus tells the classes apart."""
    ml = volumes_ml(24)
    ml[:, 0] *= np.where(scans.labels == 1, 0.7, 1)
    return read_volumes(write_synthseg(tmp_path, ml[:22], scans.frame["subject"][:22])), ml


def test_known_features_are_the_tables_volumes_and_asymmetries_and_unknown_where_it_has_none(scans, known):
    table, ml = known
    with pytest.warns(InputWarning, match=f"2 of 24 scans .*\n  - {scans.frame['subject'][22]}: no row"):
        found = baselines.features(scans.take(np.arange(20)), {"val": scans.take(np.arange(20, 24))}, table)
    hippocampus, regional = found["known_hippocampus"], found["known_regional"]
    np.testing.assert_allclose(hippocampus["train"][:, :2], ml[:20, :2], rtol=1e-4)
    left, right = ml[:20, :2].T
    np.testing.assert_allclose(hippocampus["train"][:, 2], np.abs(left - right) / (left + right), rtol=1e-3)
    assert regional["train"].shape == (20, 24)
    assert np.isnan(regional["val"]).all(axis=1).tolist() == [False, False, True, True]
    assert baselines.features(scans, {"val": scans})["known_regional"] == "no --volumes"


def test_what_a_table_has_on_one_side_alone_is_left_out(scans, known, tmp_path):
    _, ml = known
    table = read_volumes(write_synthseg(tmp_path / "one", ml, scans.frame["subject"], drop="left hippocampus"))
    found = baselines.features(scans, {"val": scans}, table)
    assert "has none of these volumes on both sides" in found["known_hippocampus"]
    assert found["known_regional"]["val"].shape == (24, 21)


def test_the_side_by_the_tables_asymmetry_is_unknown_where_the_table_is():
    draw = np.random.default_rng(0)
    sides = np.arange(60) % 2
    volumes = 4 + 0.1 * draw.normal(size=(60, 2)) - 0.8 * np.eye(2)[sides]
    hidden = np.where(np.arange(60)[:, None] % 10 == 0, np.nan, volumes)
    inputs = {"regional": "none", "known_hippocampus": {"train": hidden, "test": hidden}}
    (score,) = baselines.side_scores(inputs, np.where(np.arange(60) < 50, sides, -1)).values()
    assert np.isnan(score).tolist() == [k % 10 == 0 for k in range(60)]
    assert ((score > 0.5) == sides)[~np.isnan(score)].all()
    assert baselines.side_scores(inputs, np.zeros(60, dtype=int)) == {}


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


@pytest.mark.slow
def test_training_measures_known_volumes_where_they_are_known_and_says_what_is_wrong_with_them(
    cohort, config, tmp_path
):
    """Our own measure, written as a tool's with left and right exchanged, for all but one test subject."""
    frames = [read_table(cohort / f"{name}.csv") for name in ("train", "val", "test")]
    everybody = pd.concat(frames, ignore_index=True)
    ml = region_volumes(load_scans(everybody, GRID, cache_dir=config.cache_dir).volumes, GRID, REGIONS)
    ml += 0.01 * ml.mean(axis=0)  # none is 0
    names = list(everybody["subject"])
    config = dataclasses.replace(config, volumes=write_synthseg(tmp_path, ml[:-1, np.arange(16) ^ 1], names[:-1]))
    with pytest.warns(InputWarning) as said:
        train.main(config)
    messages = [str(warning.message) for warning in said]
    assert any("left and right look exchanged" in message for message in messages)
    assert any(message.endswith(f"\n  - {names[-1]}: no row") for message in messages)
    found = read_json(config.run_dir / "results.json")["baselines"]
    assert (found["known_regional"]["test_scans"], found["regional"]["test_scans"]) == (11, 12)
    assert found["known_hippocampus"]["test_scans"] == 11
