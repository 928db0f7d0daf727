import numpy as np
import pandas as pd
import pytest

from classifier.selection import divide
from runtime.errors import InputError


def table(hc=30, left=12, right=9, groups=None):
    diagnoses = ["HC"] * hc + ["TLE-L"] * left + ["TLE-R"] * right
    subjects = [f"s{number:03d}" for number in range(len(diagnoses))]
    return pd.DataFrame(
        {
            "subject": subjects, "session": "", "file": [f"/scans/{name}.nii" for name in subjects],
            "diagnosis": diagnoses, "label": [int(name != "HC") for name in diagnoses],
            "side": [name[4:] for name in diagnoses], "age": 30.0, "sex": "F",
            "site": ["ab"[number % 2] for number in range(len(diagnoses))],
            "group": [(groups or {}).get(name, name) for name in subjects],
        }
    )  # fmt: skip


def test_every_subject_is_tested_once_and_validates_the_fold_before():
    frame = table()
    parts = [divide(frame, 5, fold, seed=0) for fold in range(5)]
    tested = [set(part.test["subject"]) for part in parts]
    assert sorted(name for names in tested for name in names) == frame["subject"].tolist()
    for fold, part in enumerate(parts):
        names = [set(rows["subject"]) for rows in part]
        assert set.union(*names) == set(frame["subject"])
        assert sum(map(len, names)) == len(frame)
        assert names[1] == tested[(fold + 1) % 5]


def test_class_side_and_site_are_spread_evenly():
    frame = table()
    for fold in range(3):
        test = divide(frame, 3, fold, seed=4).test
        assert test["diagnosis"].value_counts().to_dict() == {"HC": 10, "TLE-L": 4, "TLE-R": 3}
        for label, count in ((0, 5), (1, 3.5)):
            sites = test.loc[test["label"] == label, "site"].value_counts()
            assert np.abs(sites - count).max() <= 1


def test_groups_and_the_scans_of_a_subject_stay_together():
    frame = table(groups={"s001": "family", "s002": "family", "s040": "family"})
    second = frame.head(20).assign(session="2", file=[f"/scans/{name}_2.nii" for name in frame["subject"].head(20)])
    both = pd.concat([frame, second])
    for fold in range(4):
        for rows in divide(both, 4, fold, seed=0):
            assert rows["subject"].isin(["s001", "s002", "s040"]).sum() in (0, 5)
            assert (rows.loc[rows["subject"] < "s020", "subject"].value_counts() == 2).all()


def test_the_order_of_rows_changes_nothing_and_the_seed_does():
    frame = table()
    first = divide(frame, 5, 2, seed=0)
    again = divide(frame.sample(frac=1, random_state=1), 5, 2, seed=0)
    for before, after in zip(first, again, strict=True):
        pd.testing.assert_frame_equal(before, after)
    assert set(divide(frame, 5, 2, seed=1).test["subject"]) != set(first.test["subject"])


@pytest.mark.parametrize(
    ("folds", "fold", "message"),
    [
        (2, 0, "2 folds: expected at least 3"),
        (5, 5, "--fold 5: the 5 of --folds are numbered from 0 to 4"),
        (5, -1, "--fold -1"),
    ],
)
def test_impossible_numbers(folds, fold, message):
    with pytest.raises(InputError, match=message):
        divide(table(), folds, fold, seed=0)


def test_a_fold_without_a_class_is_refused():
    with pytest.raises(InputError, match="TLE"):
        divide(table(left=2, right=1), 5, 0, seed=0)
    together = {f"s{number:03d}": "clinic" for number in range(30, 51)}
    with pytest.raises(InputError, match="TLE"):
        divide(table(groups=together), 3, 0, seed=0)
