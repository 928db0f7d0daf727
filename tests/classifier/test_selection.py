import dataclasses

import numpy as np
import pandas as pd
import pytest

from classifier.selection import choose_real, choose_synthetic, select, synthetic_counts
from cohort.ledger import ledger_of
from cohort.tables import read_table, write_table
from runtime.errors import InputError
from runtime.files import write_json


def cohort_frame(hc=60, left=25, right=15):
    diagnoses = ["HC"] * hc + ["TLE-L"] * left + ["TLE-R"] * right
    return pd.DataFrame({"subject": [f"s{k:03d}" for k in range(len(diagnoses))], "diagnosis": diagnoses})


def test_real_subsets_are_nested_and_stratified():
    frame = cohort_frame()
    previous = set()
    for count in range(1, 101):
        chosen = choose_real(frame, count, seed=3)
        subjects = set(chosen["subject"])
        assert len(subjects) == count
        assert previous < subjects
        for diagnosis, share in (("HC", 0.6), ("TLE-L", 0.25), ("TLE-R", 0.15)):
            assert abs((chosen["diagnosis"] == diagnosis).sum() - share * count) <= 1
        previous = subjects


def test_real_subset_ignores_the_order_of_the_table_and_depends_on_the_seed():
    frame = cohort_frame()
    shuffled = frame.sample(frac=1, random_state=0)
    first = set(choose_real(frame, 30, seed=0)["subject"])
    assert set(choose_real(shuffled, 30, seed=0)["subject"]) == first
    assert set(choose_real(frame, 30, seed=1)["subject"]) != first
    assert len(choose_real(frame, None, seed=0)) == 100


def test_all_scans_of_a_chosen_subject_are_used():
    frame = pd.concat([cohort_frame(), cohort_frame()], ignore_index=True)
    chosen = choose_real(frame, 10, seed=0)
    assert len(chosen) == 20
    assert (chosen["subject"].value_counts() == 2).all()


def test_too_many_real_subjects_are_refused():
    with pytest.raises(InputError, match=r"--real 101: the training table has 100 subjects"):
        choose_real(cohort_frame(), 101, seed=0)


def test_percent_is_by_class_and_count_is_absolute(config):
    labels = np.array([0] * 30 + [1] * 10)
    assert synthetic_counts(labels, dataclasses.replace(config, synth_percent=50)) == {"HC": 15, "TLE": 5}
    assert synthetic_counts(labels, dataclasses.replace(config, synth_count=9)) == {"HC": 5, "TLE": 4}
    assert synthetic_counts(labels, config) == {"HC": 0, "TLE": 0}


def test_synthetic_subsets_are_nested_and_seeded(config):
    def names(count, seed=0):
        drawn = choose_synthetic(dataclasses.replace(config, sample_seed=seed), {"HC": count, "TLE": count})
        return set(drawn["subject"])

    assert names(3) < names(4) < names(8)
    assert names(3) != names(3, seed=1)
    drawn = choose_synthetic(config, {"HC": 2, "TLE": 1})
    assert drawn["label"].tolist() == [0, 0, 1]


def test_more_synthetic_volumes_than_exist(config):
    with pytest.raises(InputError) as refused:
        select(dataclasses.replace(config, synth_percent=100))
    message = str(refused.value)
    assert "12 synthetic HC volumes are asked for, 8 are there" in message
    assert "12 synthetic TLE volumes are asked for, 8 are there" in message


def test_synthetic_folders_in_the_wrong_place(config):
    swapped = dataclasses.replace(config, synth_hc=config.synth_tle, synth_tle=config.synth_hc, synth_count=4)
    with pytest.raises(InputError, match="another class than HC") as refused:
        select(swapped)
    assert "another class than TLE" in str(refused.value)


def test_contradictory_numbers_are_listed_together(config):
    wrong = dataclasses.replace(config, synth_percent=50, synth_count=3, batch_size=7)
    with pytest.raises(InputError, match=r"\(2\)") as refused:
        select(wrong)
    assert "exclude each other" in str(refused.value)
    with pytest.raises(InputError, match="nothing to learn from"):
        select(dataclasses.replace(config, real=0, synth_percent=100))


def test_synthetic_only(config):
    selection = select(dataclasses.replace(config, real=0, synth_count=10))
    assert selection.train["synthetic"].all()
    assert selection.train["label"].value_counts().to_dict() == {0: 5, 1: 5}
    assert set(ledger_of(read_table(config.train_csv))) < set(selection.ledger)


def test_a_table_with_one_class_is_refused(config, tmp_path):
    frame = read_table(config.val_csv)
    write_table(tmp_path / "val.csv", frame[frame["label"] == 0])
    with pytest.raises(InputError, match="none of class TLE"):
        select(dataclasses.replace(config, val_csv=tmp_path / "val.csv"))


@pytest.mark.parametrize("split", ["val", "test"])
def test_held_out_subjects_in_the_training_table_are_refused(config, tmp_path, split):
    train, held_out = read_table(config.train_csv), read_table(getattr(config, f"{split}_csv"))
    write_table(tmp_path / "mixed.csv", pd.concat([held_out, train.head(2)]))
    leaky = dataclasses.replace(config, **{f"{split}_csv": tmp_path / "mixed.csv"})
    with pytest.raises(InputError) as refused:
        select(leaky)
    assert "train00" in str(refused.value)
    assert "train01" in str(refused.value)
    allowed = select(dataclasses.replace(leaky, allow_leak=True))
    assert len(allowed.leaks) == 1
    assert "training table" in allowed.leaks[0]


def test_subjects_outside_the_chosen_subset_count_too(config, tmp_path):
    train = read_table(config.train_csv)
    chosen = set(choose_real(train, 6, config.sample_seed)["subject"])
    other = train[~train["subject"].isin(chosen)].head(1)
    write_table(tmp_path / "mixed.csv", pd.concat([read_table(config.test_csv), other]))
    with pytest.raises(InputError, match=other["subject"].iloc[0]):
        select(dataclasses.replace(config, real=6, test_csv=tmp_path / "mixed.csv"))


def with_ledger(config, tmp_path, ledger):
    """The configuration with copies of the synthetic folders that tell another origin."""
    moved = {}
    for field in ("synth_hc", "synth_tle"):
        folder = tmp_path / field
        folder.mkdir()
        for path in getattr(config, field).glob("*.pkl"):
            (folder / path.name).symlink_to(path)
        if ledger is not None:
            write_json(folder / "ledger.json", {"ledger": ledger})
        moved[field] = folder
    return dataclasses.replace(config, synth_count=4, **moved)


def test_test_subjects_behind_the_synthetic_volumes_are_refused(config, tmp_path):
    leaky = with_ledger(config, tmp_path, ledger_of(read_table(config.test_csv).head(3)))
    with pytest.raises(InputError, match="maker of the synthetic volumes"):
        select(leaky)
    assert select(dataclasses.replace(leaky, allow_leak=True)).leaks
    assert not select(dataclasses.replace(leaky, synth_count=0)).leaks  # volumes that are not used do not matter


def test_validation_subjects_behind_the_synthetic_volumes_are_noted(config, tmp_path):
    selection = select(with_ledger(config, tmp_path, ledger_of(read_table(config.val_csv))))
    assert not selection.leaks
    assert "optimistic" in selection.notes[0]


def test_synthetic_volumes_of_unknown_origin_are_refused(config, tmp_path):
    unknown = with_ledger(config, tmp_path, None)
    with pytest.raises(InputError, match=r"unknown origin.*\(2\)"):
        select(unknown)
    assert len(select(dataclasses.replace(unknown, allow_leak=True)).leaks) == 2
