import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from classifier.measures.side import part_of, weighted_part


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    side = np.array(["", "L", "R", "", "R", "L", "R", "L", ""] * 4)
    label = np.where(side == "", 0, 1)
    label[8::9] = 1  # a patient of unknown side
    negative = np.where(label == 1, rng.integers(0, 2, len(side)), 0.0)
    negative[1] = np.nan
    scores = {"probability": rng.random(len(side)), "side_probability": rng.random(len(side))}
    return pd.DataFrame({"side": side, "label": label, "mri_negative": negative, **scores}, index=np.arange(len(side)))


def test_sides_are_those_of_patients_who_have_one(frame):
    part = part_of(frame, "side")
    assert (frame["side"][part.index] != "").all()
    assert len(part) == (frame["side"] != "").sum()
    assert part["label"].tolist() == [int(side == "R") for side in frame["side"][part.index]]
    assert part["probability"].tolist() == frame["side_probability"][part.index].tolist()


def test_sclerosis_is_what_a_column_says(frame):
    part = part_of(frame, "sclerosis")
    assert (part["label"] == 0).sum() == (frame["label"] == 0).sum()
    sclerotic = frame[(frame["label"] == 1) & (frame["mri_negative"] == 0)]
    assert part.index[part["label"] == 1].tolist() == sclerotic.index.tolist()
    assert 1 not in part.index  # nothing is known of it
    sided = part_of(frame, "side_sclerosis")
    assert sided.index.tolist() == sclerotic.index[sclerotic["side"] != ""].tolist()
    assert part_of(frame.drop(columns="mri_negative"), "sclerosis") is None
    assert part_of(frame.assign(mri_negative=1.0), "side_sclerosis") is None


def test_without_a_learned_side_or_both_sides_there_is_no_part(frame):
    assert part_of(frame.drop(columns="side_probability"), "side") is None
    assert part_of(frame.assign(side_probability=np.nan), "side") is None
    assert part_of(frame[frame["side"] != "R"], "side") is None


def test_weights_are_repeated_subjects(frame):
    part = part_of(frame, "side")
    weights = np.random.default_rng(1).integers(0, 3, size=(5, len(part)))
    found = weighted_part(part, 0.5, weights)
    for row, accuracy, auc in zip(weights, found["accuracy"], found["auc"], strict=True):
        drawn = part.loc[part.index.repeat(row)]
        assert accuracy == pytest.approx(((drawn["probability"] >= 0.5) == (drawn["label"] == 1)).mean())
        assert auc == pytest.approx(roc_auc_score(drawn["label"], drawn["probability"]))
