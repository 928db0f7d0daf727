import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from classifier.compare import CompareConfig, main
from classifier.measures.paired_tests import delong_test
from runtime.errors import InputError
from runtime.files import read_json, write_json
from tests.support.arm_folders import write_arms, write_run


def made_run(folder, scores, labels, drop=0):
    return write_run(folder, scores[drop:], labels[drop:], [f"s{k:02d}" for k in range(drop, len(labels))])


@pytest.fixture
def runs(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    scores = rng.normal(size=(3, 60)) + np.array([[0.2], [1.0], [3.0]]) * labels
    return [made_run(tmp_path / name, row, labels) for name, row in zip("abc", scores, strict=True)], labels, scores


@pytest.mark.slow
def test_table_and_tests(runs, tmp_path, capsys):
    folders, labels, scores = runs
    main(CompareConfig(tuple(folders), resamples=100, out=tmp_path / "out" / "comparison.json"))
    written = read_json(tmp_path / "out" / "comparison.json")
    assert [row["run"] for row in written["runs"]] == ["a", "b", "c"]
    assert [(test["a"], test["b"]) for test in written["tests"]] == [("a", "b"), ("a", "c")]
    test = delong_test([labels], *([expit(row)] for row in scores[[0, 2]]))
    assert written["tests"][1]["delong_p"] == pytest.approx(test["p"])
    p = np.array([test["delong_p"] for test in written["tests"]])
    np.testing.assert_allclose([test["delong_p_holm"] for test in written["tests"]], multipletests(p, method="holm")[1])
    assert len(pd.read_csv(tmp_path / "out" / "comparison.csv")) == 3
    assert len(pd.read_csv(tmp_path / "out" / "comparison_tests.csv")) == 2
    printed = capsys.readouterr().out
    assert "c minus a: AUC +" in printed
    assert "they say nothing about another training seed" in printed
    assert "site                    0.500" in printed


def test_sides_and_sclerosis_beside_the_rest(tmp_path, capsys):
    """In the printed rows and the tables, with the asymmetry index; an arm that says no side has none."""
    rng, labels = np.random.default_rng(0), np.arange(60) % 2
    side = np.where(labels == 1, np.where(np.arange(60) % 4 == 1, "L", "R"), "")
    right = expit(rng.normal(size=60) + 2.0 * (side == "R") - 1)
    cell = {name: {"value": value, "low": 0, "high": 1} for name, value in (("accuracy", 0.8), ("auc", 0.85))}
    known = {"side": side, "side_probability": right, "mri_negative": (np.arange(60) % 3 == 0).astype(float)}
    names, index = [f"s{k:02d}" for k in range(60)], {"baselines": {"asymmetry_index": {"test": cell}}}
    scores = rng.normal(size=60) + labels
    told = write_run(tmp_path / "told", scores, labels, names, columns=known, side=index)
    plain = write_run(tmp_path / "plain", rng.normal(size=60), labels, names)
    main(CompareConfig((told, plain), resamples=50, out=tmp_path / "c.json"))
    ours, other = read_json(tmp_path / "c.json")["runs"]
    patients = labels == 1
    assert ours["parts"]["side_accuracy"]["value"] == pytest.approx(((right >= 0.5) == (side == "R"))[patients].mean())
    sclerotic = patients & (np.arange(60) % 3 != 0)
    expected = roc_auc_score((side == "R")[sclerotic], right[sclerotic])
    assert ours["parts"]["side_sclerosis_auc"]["value"] == pytest.approx(expected)
    cell = ours["parts"]["sclerosis_auc"]
    assert cell["low"] < cell["value"] < cell["high"]
    assert ours["asymmetry_index"] == {"side_accuracy": 0.8, "side_auc": 0.85}
    assert (other["parts"], other["asymmetry_index"]) == ({}, {})
    table = pd.read_csv(tmp_path / "c.csv").set_index("run")
    assert table.loc["told", "side_auc_value"] == ours["parts"]["side_auc"]["value"]
    assert table.loc["told", "baseline_asymmetry_index_side_accuracy"] == 0.8
    printed = capsys.readouterr().out
    assert "side sclerosis accuracy" in printed
    assert "asymmetry index of the hippocampi beside told" in printed


def test_runs_on_other_subjects_or_labels_are_refused(runs, tmp_path):
    folders, labels, scores = runs
    fewer = made_run(tmp_path / "fewer", scores[0], labels, drop=2)
    flipped = made_run(tmp_path / "flipped", scores[0], np.where(np.arange(60) == 5, 0, labels))
    with pytest.raises(InputError) as refused:
        main(CompareConfig((folders[0], fewer, flipped)))
    assert "fewer, seed 0, fold 0: 2 scans that only one has: s00 (label 0), s01 (label 1)" in str(refused.value)
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


@pytest.mark.slow
def test_arms_over_seeds_and_folds(tmp_path, capsys):
    root = write_arms(tmp_path / "arms", {"base": (1.0, {}), "both": (2.5, {"synth_percent": 100.0})}, seeds=2, folds=2)
    results = read_json(root / "both/seed1_fold0/results.json")
    write_json(root / "both/seed1_fold0/results.json", {**results, "leak": True})
    main(CompareConfig(arms=root, reference="base", resamples=100, out=tmp_path / "c.json", figures=tmp_path / "png"))
    written = read_json(tmp_path / "c.json")
    assert (written["reference"], written["seeds"], written["folds"], written["subjects"]) == (
        "base",
        [0, 1],
        [0, 1],
        60,
    )
    assert [(row["run"], row["leak"]) for row in written["runs"]] == [("base", False), ("both", True)]
    (test,) = written["tests"]
    assert test["auc_difference_low"] < test["auc_difference"] < test["auc_difference_high"]
    assert test["verdict"] in ("not inferior", "equivalent", "undecided", "inferior")
    table = pd.read_csv(tmp_path / "c.csv").set_index("run")
    assert table.loc["both", ["auc_seed0", "auc_seed1"]].mean() == pytest.approx(table.loc["both", "auc_value"])
    pictures = sorted(path.stem for path in (tmp_path / "png").iterdir())
    assert pictures == ["confusion", "differences", "reliability", "roc"]
    printed = capsys.readouterr().out
    head = "2 runs: 60 test subjects, folds 2, training seeds 2; 95 % intervals over subjects and training seeds"
    assert head in printed
    assert "both  (trained on 10 real HC, 10 real TLE)  LEAK ALLOWED" in printed
    assert "auc by training seed" in printed


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers(tmp_path):
    root = write_arms(tmp_path / "arms", {"real": (1.0, {}), "both": (1.2, {})})
    for name in ("x", "y"):
        main(CompareConfig(arms=root, resamples=50, out=tmp_path / f"{name}.json"))
    assert (tmp_path / "x.json").read_bytes() == (tmp_path / "y.json").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"runs": ("a", "b"), "arms": "c"}, "not both"),
        ({"margin": 0.0}, "--margin 0.0"),
        ({"resamples": 5}, "--resamples 5"),
        ({"volumes": "truth.csv"}, "--volumes and --train-csv go together"),
        ({"train_csv": ("train.csv",)}, "--volumes and --train-csv go together"),
    ],
)
def test_flags_that_contradict_each_other(flags, message):
    with pytest.raises(InputError, match=message):
        main(CompareConfig(**flags))
