import shutil

import numpy as np
import pandas as pd
import pytest

from classifier.measures.runs import arms_of
from runtime.errors import InputError
from tests.support.arm_folders import write_arms, write_run

ARMS = {"a": (1.0, {}), "real": (1.0, {}), "z": (1.0, {})}


def test_all_arms_with_the_reference_first(tmp_path):
    runs = arms_of(write_arms(tmp_path, ARMS, folds=3), "real")
    assert list(runs.arms) == ["real", "a", "z"]
    assert (runs.seeds, runs.folds, runs.subjects, runs.left_out) == ((0, 1), (0, 1, 2), 90, ())
    assert len(runs.cells("a", 2)) == 2
    assert len(runs.arms["a"][0, 0].held_out) == 60


def test_order_of_the_list_of_runs(tmp_path):
    write_arms(tmp_path, ARMS)
    pd.DataFrame({"arm": ["z", "real", "a"]}).to_csv(tmp_path / "runs.csv")
    assert list(arms_of(tmp_path, "real").arms) == ["real", "z", "a"]


def test_unfinished_runs_are_left_out_and_said(tmp_path):
    write_arms(tmp_path, ARMS, seeds=3)
    (tmp_path / "a/seed1_fold0/results.json").unlink()
    for seed in range(3):
        (tmp_path / f"z/seed{seed}_fold1/results.json").unlink()
    runs = arms_of(tmp_path, "real")
    assert list(runs.arms) == ["real", "a"]
    assert runs.seeds == (0, 2)
    assert runs.left_out == (
        "arm z: no seed is finished in all 2 folds",
        "arm real: seed 1, which not all arms have",
    )


def test_no_reference_no_arms_no_common_seed(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match=r"classifier.run_arms makes them.*\n  - there are no runs"):
            arms_of(folder, "real")
    write_arms(tmp_path, ARMS)
    with pytest.raises(InputError, match=r"needs the arm 'best'.*\n  - a: seeds finished in all folds: \[0, 1\]"):
        arms_of(tmp_path, "best")
    shutil.rmtree(tmp_path / "z")
    (tmp_path / "a/seed0_fold1/results.json").unlink()
    (tmp_path / "real/seed1_fold0/results.json").unlink()
    with pytest.raises(InputError, match=r"all have finished.*\n.*a: .*\[1\]\n.*real: .*\[0\]"):
        arms_of(tmp_path, "real")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(InputError, match="another one"):
        arms_of(tmp_path, "real")


def test_runs_of_a_fold_have_the_same_scans(tmp_path):
    write_arms(tmp_path, ARMS)
    labels = np.arange(30) % 2
    names = [f"sim0-{k:04d}" for k in range(1, 31)]
    write_run(tmp_path / "z/seed1_fold0", labels + 0.5, 1 - labels, names)
    with pytest.raises(InputError) as refused:
        arms_of(tmp_path, "real")
    assert "compared with real on the same held-out scans" in str(refused.value)
    scans = "sim0-0000 (label 0), sim0-0030 (label 0)"
    assert f"z, seed 1, fold 0: 2 scans that only one has: {scans}" in str(refused.value)


def test_a_subject_in_two_folds_and_a_class_of_one(tmp_path):
    labels = np.array([0, 0, 0, 1])
    for arm in ("real", "a"):
        for fold in (0, 1):
            names = ["x", f"{fold}b", f"{fold}c", f"{fold}d"]
            write_run(tmp_path / arm / f"seed0_fold{fold}", labels + 0.5, labels, names, fold=fold)
    with pytest.raises(InputError) as refused:
        arms_of(tmp_path, "real")
    assert "fold 1: subject x is also in fold 0" in str(refused.value)
    assert "fold 0: two subjects of each class are needed" in str(refused.value)
