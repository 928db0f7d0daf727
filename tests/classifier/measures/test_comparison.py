import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from classifier import baselines, compare
from classifier.measures.comparison import against_volumes, compare_arms
from classifier.measures.metrics import auc
from classifier.measures.paired_tests import delong_test
from classifier.measures.resampling import draws_of, evaluate
from classifier.measures.runs import arms_of, single_runs
from cohort.anatomy.volume_readers import volume_column
from cohort.anatomy.volume_tables import read_volumes
from cohort.atlas import REGIONS
from runtime.errors import InputError, InputWarning
from runtime.files import read_json
from tests.support.arm_folders import write_arms, write_run


def compared(runs):
    return compare_arms(runs, draws_of(runs, 300, seed=0), margin=0.05)


def test_an_arm_beside_its_copy_does_not_differ(tmp_path):
    write_arms(tmp_path, {"real": (1.0, {})})
    for path in sorted((tmp_path / "real").iterdir()):
        (tmp_path / "copy" / path.name).mkdir(parents=True)
        for file in path.iterdir():
            (tmp_path / "copy" / path.name / file.name).write_bytes(file.read_bytes())
    (test,) = compared(arms_of(tmp_path, "real")).tests
    assert [test[f"auc_difference{end}"] for end in ("", "_low", "_high")] == [0.0, 0.0, 0.0]
    assert (test["bootstrap_p"], test["delong_p"], test["mcnemar_p"]) == (1.0, 1.0, 1.0)
    assert (test["verdict"], test["delong_degenerate"]) == ("equivalent", True)


def test_a_single_run_has_one_interval_wherever_it_is_shown(tmp_path):
    write_arms(tmp_path, {"real": (1.0, {}), "perfect": (60.0, {})}, seeds=1, folds=1)
    runs = arms_of(tmp_path, "real")
    for row in compared(runs).rows:
        (run,) = runs.cells(row["run"], 0)
        own = evaluate(run.frame, run.results["threshold"], np.random.default_rng(0), 50)
        for name in ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auc"):
            assert row["metrics"][name] == own[name]
            assert own[name]["low"] < own[name]["high"]


@pytest.mark.parametrize("folds", [1, 2])
def test_perfect_arms_have_intervals_with_a_width(tmp_path, folds):
    """All draws of perfect answers are perfect, which does not make them certain of others."""
    write_arms(tmp_path, {"real": (60.0, {}), "perfect": (80.0, {})}, seeds=3, folds=folds)
    found = compared(arms_of(tmp_path, "real"))
    for row in found.rows:
        for name in ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auc"):
            measured = row["metrics"][name]
            assert (measured["value"], measured["high"]) == (1.0, 1.0)
            assert 0.75 < measured["low"] < 0.95
    (test,) = found.tests
    for kind in ("auc_difference", "delong"):
        assert -0.2 < test[f"{kind}_low"] < -0.05
        assert test[f"{kind}_high"] == pytest.approx(-test[f"{kind}_low"])
    assert test["auc_difference_low"] < test["auc_difference_low90"] < 0
    assert test["verdict"] == "undecided"


@pytest.mark.slow
def test_arms_that_differ(tmp_path):
    write_arms(tmp_path, {"real": (1.0, {}), "better": (3.5, {}), "null": (0.0, {})}, seeds=3, folds=2)
    found = compared(arms_of(tmp_path, "real"))
    by_name = {test["b"]: test for test in found.tests}
    assert by_name["better"]["auc_difference_low"] > 0
    assert by_name["better"]["verdict"] == "not inferior"
    assert by_name["null"]["auc_difference_high"] < -0.05
    assert by_name["null"]["verdict"] == "inferior"
    for kind in ("bootstrap", "delong", "mcnemar"):
        expected = multipletests([test[f"{kind}_p"] for test in found.tests], method="holm")[1]
        np.testing.assert_allclose([test[f"{kind}_p_holm"] for test in found.tests], expected)
    for row in found.rows:
        assert sum(row["confusion"].values()) == pytest.approx(60)
        assert np.mean(list(row["auc_by_seed"].values())) == pytest.approx(row["metrics"]["auc"]["value"])
        assert row["baselines"] == {"site": 0.5}


def test_delong_is_of_seed_averaged_probabilities(tmp_path):
    write_arms(tmp_path, {"real": (1.0, {}), "b": (1.5, {})}, seeds=3, folds=1)
    runs = arms_of(tmp_path, "real")
    (test,) = compared(runs).tests
    means = [np.mean([run.frame["probability"] for run in runs.cells(arm, 0)], axis=0) for arm in ("real", "b")]
    expected = delong_test([runs.labels(0)], *([mean] for mean in means))
    assert (test["delong_p"], test["delong_low"]) == pytest.approx((expected["p"], expected["low"]))


@pytest.mark.slow
def test_more_variable_training_widens_the_interval(tmp_path):
    """The same subjects and the same mean; seeds that differ more."""
    rng, labels = np.random.default_rng(0), np.arange(80) % 2
    names, noise = [f"s{k}" for k in range(80)], np.random.default_rng(1).normal(size=80)
    for arm, effects in (("real", (1, 1, 1)), ("stable", (1, 1, 1)), ("wild", (0, 1, 2))):
        for seed, effect in enumerate(effects):
            scores = noise + 0.1 * rng.normal(size=80) + effect * (labels - 0.5)
            write_run(tmp_path / arm / f"seed{seed}_fold0", scores, labels, names)
    rows = {row["run"]: row["metrics"]["auc"] for row in compared(arms_of(tmp_path, "real")).rows}
    width = {arm: cell["high"] - cell["low"] for arm, cell in rows.items()}
    assert width["wild"] > 1.3 * width["stable"]


def known_files(tmp_path, subjects, labels, effect):
    """A table of volumes in which the left hippocampus tells the classes apart, and the table of scans."""
    rng = np.random.default_rng(5)
    volumes = rng.normal(5000, 300, size=(len(subjects), len(REGIONS)))
    volumes[:, 0] -= 300 * effect * labels
    pd.DataFrame(volumes, columns=map(volume_column, REGIONS)).assign(subject=subjects).to_csv(
        tmp_path / "truth.csv", index=False
    )
    files = [f"{name}.nii.gz" for name in subjects]
    for name in files:
        (tmp_path / name).touch()
    rows = {"subject": subjects, "file": files, "diagnosis": np.where(labels == 1, "TLE-L", "HC")}
    pd.DataFrame(rows).to_csv(tmp_path / "all.csv", index=False)
    return read_volumes(tmp_path / "truth.csv"), tmp_path / "all.csv", volumes


@pytest.mark.slow
def test_a_shortcut_is_above_the_volumes_and_they_are_not(tmp_path):
    subjects, labels = [f"s{k:03d}" for k in range(200)], np.arange(200) % 2
    known, table, volumes = known_files(tmp_path, subjects, labels, effect=1.0)
    held = np.arange(120, 200)
    names = [subjects[k] for k in held]
    learned = baselines.with_asymmetry(volumes / 1000)
    model = baselines.fit_closely(learned[:120], labels[:120])
    anatomy = model.decision_function(learned[held])
    mark = labels[held] * 6.0 + np.random.default_rng(0).normal(size=80)
    runs = single_runs(
        (
            write_run(tmp_path / "anatomy", anatomy, labels[held], names),
            write_run(tmp_path / "shortcut", mark - 3, labels[held], names),
        )
    )
    draws = draws_of(runs, 300, seed=0)
    found = compare_arms(runs, draws, margin=0.05)
    got = against_volumes(runs, draws, found.areas, known, (table,))
    assert got["training_subjects"] == [120]
    assert 0.65 < got["auc"]["value"] < 0.9
    by_name = {row["run"]: row for row in got["arms"]}
    assert [by_name["anatomy"][key] for key in ("difference", "low", "high")] == pytest.approx([0, 0, 0], abs=1e-12)
    above = {row["run"]: row["above"] for row in got["arms"]}
    assert above == {"anatomy": False, "shortcut": True}


def test_the_command_names_the_tool_and_writes_what_it_found(tmp_path, capsys):
    subjects, labels = [f"s{k:03d}" for k in range(60)], np.arange(60) % 2
    _, table, _ = known_files(tmp_path, subjects, labels, effect=2.0)
    scores, held = np.random.default_rng(0).normal(size=30), slice(30, 60)
    arms = tuple(write_run(tmp_path / arm, scores, labels[held], subjects[held]) for arm in "ab")
    files = {"volumes": tmp_path / "truth.csv", "train_csv": (table,), "out": tmp_path / "out.json"}
    compare.main(compare.CompareConfig(runs=arms, resamples=20, **files))
    assert "regression on 16 volumes (our own columns): AUC 0." in capsys.readouterr().out
    written = read_json(tmp_path / "out.json")["volumes"]
    assert (written["training_subjects"], len(written["arms"])) == ([30], 2)
    assert len(pd.read_csv(tmp_path / "out_volumes.csv")) == 2
    with pytest.raises(InputError, match="does not say how large heads are; add a column head_mm3"):
        compare.main(compare.CompareConfig(runs=arms, per_head=True, **files))


def test_scans_of_unknown_volume_are_left_out_of_both_areas(tmp_path):
    """The arm is right about those alone, and no better than chance about the others."""
    subjects, labels = [f"s{k:03d}" for k in range(120)], np.arange(120) % 2
    _, table, _ = known_files(tmp_path, subjects, labels, effect=2.0)
    held = np.arange(60, 120)
    unknown = held >= 100
    truth = pd.read_csv(tmp_path / "truth.csv")
    truth.loc[held[unknown], volume_column("Left Hippocampus")] = 0
    truth.to_csv(tmp_path / "truth.csv", index=False)
    scores = np.where(unknown, 9.0 * labels[held] - 4.5, np.random.default_rng(0).normal(size=60))
    names = [subjects[k] for k in held]
    runs = single_runs(tuple(write_run(tmp_path / arm, scores, labels[held], names) for arm in "ab"))
    draws = draws_of(runs, 100, seed=0)
    with pytest.warns(
        InputWarning, match=r"20 of 120 scans .*\n  - s100: no volume of Left Hippocampus \(0 or empty\)"
    ):
        got = against_volumes(runs, draws, compared(runs).areas, read_volumes(tmp_path / "truth.csv"), (table,))
    alone = auc(labels[held][~unknown], scores[~unknown])
    assert got["arms"][0]["difference"] == pytest.approx(alone - got["auc"]["value"])
    assert got["auc"]["value"] > 0.85


def test_the_regression_is_fitted_without_held_out_subjects(tmp_path):
    """With all subjects held out in the fold, there is nothing to fit to."""
    subjects, labels = [f"s{k:03d}" for k in range(40)], np.arange(40) % 2
    known, table, _ = known_files(tmp_path, subjects, labels, effect=1.0)
    scores = np.linspace(-1, 1, 40)
    runs = single_runs(tuple(write_run(tmp_path / arm, scores, labels, subjects) for arm in "ab"))
    draws = draws_of(runs, 20, seed=0)
    with pytest.raises(InputError, match="too few training subjects"):
        against_volumes(runs, draws, compared(runs).areas, known, (table,))
