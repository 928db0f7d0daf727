import dataclasses

import numpy as np
import pandas as pd
import pytest

from classifier.selection import choose_real, choose_repeated, choose_synthetic, permuted, select, synthetic_counts
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
    drawn = choose_synthetic(config, {"HC": 2, "TLE": 4})
    assert drawn["label"].tolist() == [0, 0, 1, 1, 1, 1]
    seeds = drawn["subject"].str[-6:].astype(int)
    sides = ["" if label == 0 else "LR"[seed % 2] for label, seed in zip(drawn["label"], seeds, strict=True)]
    assert drawn["side"].tolist() == sides
    assert drawn["diagnosis"].tolist() == ["HC"] * 2 + [f"TLE-{side}" for side in sides[2:]]


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
    with pytest.raises(InputError, match="--real 0 leaves --synth-count"):
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


def test_repeated_scans_match_the_counts_of_synthetic_ones(config):
    """The control of an arm with synthetic volumes has as many scans of each class, and no new subject."""
    repeated = select(dataclasses.replace(config, real=14, duplicate_percent=50)).train
    both = select(dataclasses.replace(config, real=14, synth_percent=50)).train
    assert repeated["label"].value_counts().to_dict() == both["label"].value_counts().to_dict()
    again = repeated[repeated["repeated"]]
    assert set(again["subject"]) < set(repeated.loc[~repeated["repeated"], "subject"])
    assert again["subject"].is_unique
    assert not repeated["synthetic"].any()


def test_repeats_are_nested_seeded_and_go_round_beyond_all():
    frame = cohort_frame(hc=10, left=4, right=2).assign(session="", label=[0] * 10 + [1] * 6)
    half, most = (choose_repeated(frame, percent, seed=0)["subject"].tolist() for percent in (50, 80))
    assert set(half) < set(most)
    assert set(half) != set(choose_repeated(frame, 50, seed=1)["subject"])
    times = choose_repeated(frame, 250, seed=0)["subject"].value_counts()
    assert times.max() == 3
    assert times.min() == 2
    assert times.sum() == 25 + 15
    assert choose_repeated(frame, 0, seed=0).empty


def labels_of(frame):
    return frame.drop_duplicates("subject").set_index("subject")["label"]


def test_permuted_labels_are_dealt_by_subject_and_keep_their_numbers(config):
    frame = read_table(config.train_csv)
    both = pd.concat([frame, frame.assign(session="2")], ignore_index=True)
    dealt = permuted(both, config, "train")
    assert (dealt.groupby("subject")["label"].nunique() == 1).all()
    assert dealt["diagnosis"].value_counts().to_dict() == both["diagnosis"].value_counts().to_dict()
    assert ((dealt["label"] == 1) == (dealt["diagnosis"] != "HC")).all()
    assert dealt["subject"].tolist() == both["subject"].tolist()
    assert (dealt["label"] != both["label"]).any()
    shuffled = permuted(both.sample(frac=1, random_state=0), config, "train")
    assert labels_of(shuffled).to_dict() == labels_of(dealt).to_dict()


def test_permuting_all_leaves_test_labels_alone(config):
    plain = select(dataclasses.replace(config, synth_count=8))
    null = select(dataclasses.replace(config, synth_count=8, duplicate_percent=50, shuffle="all"))
    pd.testing.assert_frame_equal(null.test, plain.test)
    for permuted_frame, frame in ((null.train, plain.train), (null.val, plain.val)):
        assert (labels_of(permuted_frame) != labels_of(frame)).any()
    assert (null.train.groupby("subject")["label"].nunique() == 1).all()  # a repeated scan has its subject's label
    seeds = [labels_of(select(dataclasses.replace(config, shuffle="all", seed=seed)).train) for seed in (0, 1)]
    assert (seeds[0] != seeds[1]).any()
    assert null.fingerprint != plain.fingerprint


def test_permuting_synthetic_labels_leaves_real_ones_alone(config):
    plain = select(dataclasses.replace(config, synth_count=16)).train
    null = select(dataclasses.replace(config, synth_count=16, shuffle="synthetic")).train
    real = ~plain["synthetic"]
    pd.testing.assert_frame_equal(null[real], plain[real])
    made, before = null.loc[~real, "label"].to_numpy(), plain.loc[~real, "label"].to_numpy()
    assert sorted(made) == sorted(before)
    assert (made != before).any()
    with pytest.raises(InputError, match="no synthetic volumes"):
        select(dataclasses.replace(config, shuffle="synthetic"))


def test_folds_join_tables_and_hold_their_subjects_apart(config):
    crossed = dataclasses.replace(config, folds=4, index=(config.train_csv, config.val_csv, config.test_csv))
    tested = []
    for fold in range(4):
        selection = select(dataclasses.replace(crossed, fold=fold))
        parts = [set(frame["subject"]) for frame in (selection.train, selection.val, selection.test)]
        assert len(set.union(*parts)) == sum(map(len, parts)) == 48
        tested += sorted(parts[2])
    assert len(set(tested)) == len(tested) == 48
    alone = select(dataclasses.replace(config, folds=3))  # the training table only
    assert len(alone.train) + len(alone.val) + len(alone.test) == 24


def test_makers_that_saw_a_subject_of_this_fold_are_refused_in_this_fold_only(config, tmp_path):
    crossed = dataclasses.replace(config, folds=3, fold=1)
    known = select(crossed).test.head(2)
    leaky = dataclasses.replace(with_ledger(config, tmp_path, ledger_of(known)), folds=3, fold=1)
    with pytest.raises(InputError, match=r"fold 1 of 3 \(test\): a maker of the synthetic volumes") as refused:
        select(leaky)
    assert all(name in str(refused.value) for name in known["subject"])
    assert "maker" in select(dataclasses.replace(leaky, allow_leak=True)).leaks[0]
    assert not select(dataclasses.replace(leaky, fold=2)).leaks


def test_tables_that_cannot_be_joined(config, tmp_path):
    train = read_table(config.train_csv)
    other = train.head(2).assign(diagnosis=["TLE", "HC"], session="2", file=config.val_csv.parent / "scans/val00.nii")
    write_table(tmp_path / "again.csv", train.head(1))
    write_table(tmp_path / "other.csv", other.head(1))
    joined = dataclasses.replace(
        config, folds=3, index=(config.train_csv, tmp_path / "again.csv", tmp_path / "other.csv")
    )
    with pytest.raises(InputError, match=r"cannot be joined \(2\)") as refused:
        select(joined)
    assert "again.csv: subject train00" in str(refused.value)
    assert "train00 is HC in one table and TLE in another" in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"duplicate_percent": -1.0}, "cannot be negative"),
        ({"real": 0, "synth_count": 4, "duplicate_percent": 50.0}, "--real 0 leaves"),
        ({"fold": 1}, "divide nothing without --folds"),
        ({"folds": 3, "fold": 3}, "numbered from 0 to 2"),
        ({"side_weight": -0.5}, "cannot be negative"),
    ],
)
def test_contradictions_of_the_new_arms(config, fields, message):
    with pytest.raises(InputError, match=message):
        select(dataclasses.replace(config, **fields))
