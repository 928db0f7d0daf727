import numpy as np
import pandas as pd
import pytest

from classifier.measures.predictions import by_subject, read_predictions, write_predictions
from runtime.errors import InputError


@pytest.fixture
def frame():
    scans = pd.DataFrame({"subject": ["b", "a", "a"], "session": ["", "1", "2"], "group": ["b", "a", "a"],
                          "label": [0, 1, 1], "side": ["", "L", "L"]})  # fmt: skip
    return scans.assign(probability=[0.1 + 0.2, 0.9, 0.7], logit=[-0.1, 2.0, 3.0], split="test")


def test_what_is_written_is_read(frame, tmp_path):
    write_predictions(tmp_path / "p.csv", frame.assign(age=30.0))
    got = read_predictions(tmp_path / "p.csv")
    pd.testing.assert_frame_equal(got, frame, check_dtype=False)
    assert "seed" not in got


def test_optional_columns(frame, tmp_path):
    write_predictions(tmp_path / "p.csv", frame.assign(seed=3, fold=1, side_probability=[np.nan, 0.25, 1.0]))
    got = read_predictions(tmp_path / "p.csv")
    assert got["seed"].tolist() == [3, 3, 3]
    assert got["fold"].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(got["side_probability"], [np.nan, 0.25, 1.0])
    write_predictions(tmp_path / "p.csv", frame.assign(fold="", side_probability=""))
    assert read_predictions(tmp_path / "p.csv")[["fold", "side_probability"]].isna().all().all()


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("label", [0, 2, 1]),
        ("probability", [0.1, 1.5, 0.2]),
        ("probability", [0.1, "", 0.2]),
        ("side_probability", [0.1, -0.5, ""]),
        ("side_probability", ["", "left", ""]),
        ("seed", [0, 0.5, 0]),
        ("fold", [0, "first", 0]),
    ],
)
def test_what_cannot_be_is_refused(frame, tmp_path, column, values):
    write_predictions(tmp_path / "p.csv", frame.assign(**{column: pd.Series(values, dtype=object)}))
    with pytest.raises(InputError, match=r"\(1\):\n  - line 3: subject a"):
        read_predictions(tmp_path / "p.csv")


def test_a_missing_file_or_column_is_named(frame, tmp_path):
    with pytest.raises(InputError, match="has the run finished"):
        read_predictions(tmp_path / "p.csv")
    frame.drop(columns="logit").to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(InputError, match="no column logit"):
        read_predictions(tmp_path / "p.csv")


def test_one_row_per_subject(frame):
    got = by_subject(frame)
    assert got["subject"].tolist() == ["a", "b"]
    assert got["probability"].tolist() == pytest.approx([0.8, 0.3])
