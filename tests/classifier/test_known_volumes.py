import numpy as np
import pandas as pd
import pytest

from classifier.known_volumes import mri_negative, volume_targets
from cohort.anatomy.volume_tables import read_volumes
from runtime.errors import InputError, InputWarning

STRUCTURES = ("Amygdala", "Hippocampus")
NAMES = [f"volume_{side}_{structure}_mm3" for structure in ("amygdala", "hippocampus") for side in ("left", "right")]


@pytest.fixture
def known():
    """Volumes (5, 2, 2) as a table of text, as read_table gives further columns; some are unknown."""
    values = np.random.default_rng(0).normal(size=(5, 4)) * [90, 90, 300, 300] + [1300, 1200, 4500, 4400]
    values[0, 1] = values[3] = np.nan
    texts = pd.DataFrame(values, columns=NAMES).map(lambda value: "n/a" if np.isnan(value) else repr(float(value)))
    frame = pd.DataFrame({"subject": list("abcde"), "session": "", "label": [0, 1, 1, 0, 1], "synthetic": False})
    return frame, texts, values.reshape(5, 2, 2)


def test_targets_are_standardised_over_both_sides_and_unknown_where_empty(known):
    frame, texts, values = known
    found = volume_targets(pd.concat([frame, texts], axis=1), None, STRUCTURES)
    assert found.dtype == np.float32
    middle, spread = (statistic(values, axis=(0, 2))[None, :, None] for statistic in (np.nanmean, np.nanstd))
    np.testing.assert_allclose(found, (values - middle) / spread, rtol=1e-5)
    assert np.isnan(found[3]).all()


def test_a_file_of_volumes_goes_before_the_table_and_need_not_know_everyone(known, tmp_path):
    frame, texts, values = known
    others = pd.concat([frame[["subject"]], texts], axis=1).iloc[[4, 2, 1]]
    others.to_csv(tmp_path / "volumes.csv", index=False)
    table = read_volumes(tmp_path / "volumes.csv")
    with pytest.warns(InputWarning, match=r"2 of 5 scans lack some of these volumes.*\n  - a: no row\n  - d: no row"):
        found = volume_targets(frame.join(texts.assign(**dict.fromkeys(NAMES, "1"))), table, STRUCTURES)
    assert np.isnan(found[[0, 3]]).all()
    kept = values[[1, 2, 4]]
    middle, spread = (statistic(kept, axis=(0, 2))[None, :, None] for statistic in (np.mean, np.std))
    np.testing.assert_allclose(found[[1, 2, 4]], (kept - middle) / spread, rtol=1e-5)


def test_sessions_are_told_apart_where_the_file_has_them(known, tmp_path):
    frame, texts, _ = known
    frame = frame.assign(subject=list("aabbc"), session=list("12121"))
    table = pd.concat([frame[["subject", "session"]], texts], axis=1)
    table.iloc[::-1].to_csv(tmp_path / "volumes.csv", index=False)
    found = volume_targets(frame, read_volumes(tmp_path / "volumes.csv"), STRUCTURES)
    np.testing.assert_allclose(found, volume_targets(table.assign(synthetic=False), None, STRUCTURES))
    table.drop(columns="session").to_csv(tmp_path / "volumes.csv", index=False)
    with pytest.raises(InputError, match=r"volumes.csv: scans that are there twice \(2\):\n  - a\n  - b"):
        read_volumes(tmp_path / "volumes.csv")


def test_synthetic_scans_have_no_volumes(known):
    frame, texts, _ = known
    some = frame.assign(synthetic=[False, True, False, False, False]).join(texts)
    some.loc[1, NAMES] = np.nan
    found = volume_targets(some, None, STRUCTURES)
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[2, 4]]).all()
    assert np.isnan(volume_targets(frame.assign(synthetic=True), None, STRUCTURES)).all()


def test_what_cannot_be_learned_is_refused(known, tmp_path):
    frame, texts, _ = known
    whole = pd.concat([frame, texts], axis=1)
    with pytest.raises(InputError, match=r"no volumes of these regions.*\(1\):\n  - Right Amygdala"):
        volume_targets(whole.drop(columns=NAMES[1]), None, STRUCTURES)
    with pytest.raises(InputError, match="column volume_left_hippocampus_mm3, a: 'large' is not a number"):
        volume_targets(whole.assign(**{NAMES[2]: "large"}), None, STRUCTURES)
    with pytest.raises(InputError, match="no two volumes of Amygdala"):
        volume_targets(whole.assign(**dict.fromkeys(NAMES[:2], "")), None, STRUCTURES)


def test_a_repeated_scan_has_the_volumes_of_its_row(known):
    frame, texts, _ = known
    whole = frame.join(texts)
    found = volume_targets(pd.concat([whole, whole.iloc[[1, 2]]], ignore_index=True), None, STRUCTURES)
    np.testing.assert_array_equal(found[5:], found[1:3])


def test_who_has_no_sclerosis_is_in_either_table_or_unknown(known, tmp_path):
    frame, texts, _ = known
    assert np.isnan(mri_negative(frame, None)).all()
    own = frame.assign(mri_negative=["0", "1", "", "n/a", "0"])
    np.testing.assert_equal(mri_negative(own, None), [0, 1, np.nan, np.nan, 0])
    others = texts.assign(subject=frame["subject"], mri_negative=["", "0", "", "", "1"]).iloc[[4, 1]]
    others.to_csv(tmp_path / "truth.csv", index=False)
    found = mri_negative(own, read_volumes(tmp_path / "truth.csv"))
    np.testing.assert_equal(found, [np.nan, 0, np.nan, np.nan, 1])
    others.drop(columns="mri_negative").to_csv(tmp_path / "volumes.csv", index=False)
    np.testing.assert_equal(mri_negative(own, read_volumes(tmp_path / "volumes.csv")), [0, 1, np.nan, np.nan, 0])
