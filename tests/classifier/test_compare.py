import numpy as np
import pandas as pd
import pytest

from classifier import metrics
from classifier.compare import CompareConfig, main
from classifier.predictions import write_predictions
from runtime.errors import InputError
from runtime.files import read_json, write_json


def made_run(folder, scores, labels, drop=0):
    frame = pd.DataFrame(
        {"subject": [f"s{k:02d}" for k in range(len(labels))], "session": "", "label": labels, "side": "",
         "probability": metrics.sigmoid(scores), "logit": scores, "split": "test"}
    )  # fmt: skip
    write_predictions(folder / "predictions.csv", frame.assign(group=frame["subject"]).iloc[drop:])
    counts = {"real_HC": 10, "real_TLE": 10, "synthetic_HC": 0, "synthetic_TLE": 0}
    write_json(folder / "results.json", {"threshold": 0.5, "leak": False, "counts": {"train": counts}})
    return folder


@pytest.fixture
def runs(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    scores = rng.normal(size=(3, 60)) + np.array([[0.2], [1.0], [3.0]]) * labels
    return [made_run(tmp_path / name, row, labels) for name, row in zip("abc", scores, strict=True)], labels, scores


def test_table_and_tests(runs, tmp_path, capsys):
    folders, labels, scores = runs
    main(CompareConfig(tuple(folders), resamples=100, out=tmp_path / "out" / "comparison.json"))
    written = read_json(tmp_path / "out" / "comparison.json")
    assert [row["run"] for row in written["runs"]] == ["a", "b", "c"]
    assert [(test["a"], test["b"]) for test in written["tests"]] == [("a", "b"), ("a", "c")]
    test = metrics.delong_test(labels, *(metrics.sigmoid(row) for row in scores[[0, 2]]))
    assert written["tests"][1]["delong_p"] == pytest.approx(test.p)
    p = np.array([test["delong_p"] for test in written["tests"]])
    np.testing.assert_allclose([test["delong_p_holm"] for test in written["tests"]], metrics.holm(p))
    assert len(pd.read_csv(tmp_path / "out" / "comparison.csv")) == 3
    assert len(pd.read_csv(tmp_path / "out" / "comparison_tests.csv")) == 2
    assert "c minus a: AUC +" in capsys.readouterr().out


def test_all_pairs(runs, tmp_path):
    main(CompareConfig(tuple(runs[0]), pairs="all", resamples=20, out=tmp_path / "c.json"))
    assert len(read_json(tmp_path / "c.json")["tests"]) == 3


def test_runs_on_other_subjects_or_labels_are_refused(runs, tmp_path):
    folders, labels, scores = runs
    fewer = made_run(tmp_path / "fewer", scores[0], labels, drop=2)
    flipped = made_run(tmp_path / "flipped", scores[0], np.where(np.arange(60) == 5, 0, labels))
    with pytest.raises(InputError) as refused:
        main(CompareConfig((folders[0], fewer, flipped)))
    assert "fewer: 0 scans that a has not, 2 that it lacks: s00 (label 0), s01 (label 1)" in str(refused.value)
    assert "s05 (label 0)" in str(refused.value)


def test_one_run_or_an_unfinished_one_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match="two different runs"):
        main(CompareConfig((runs[0][0], runs[0][0])))
    with pytest.raises(InputError, match="has the run finished"):
        main(CompareConfig((runs[0][0], tmp_path)))


def test_two_runs_of_one_name_are_told_apart(runs, tmp_path, capsys):
    _, labels, scores = runs
    folders = tuple(made_run(tmp_path / arm / "classifier", scores[k], labels) for k, arm in enumerate(("x", "y")))
    main(CompareConfig(folders, resamples=20))
    assert "y/classifier minus x/classifier" in capsys.readouterr().out
