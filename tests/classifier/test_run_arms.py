import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from classifier.arms import read_arms
from classifier.config import PRESETS
from classifier.run_arms import ARMS_PRESETS, ArmsConfig, arm_runs, is_finished, main, shared_words
from runtime.config import plain_config
from runtime.errors import InputError
from runtime.files import ROOT, locked, read_json
from tests.support.processes import run_here

TABLE = """arm,real,synth_percent,synth_count,augmentation,model
real,,,,,
both,12,50,,,
made,0,,16,none,
deep,,,,,densenet121
"""


def write(path: Path, text: str = TABLE) -> Path:
    path.write_text(text)
    return path


def test_rows_become_configurations(tmp_path):
    arms = read_arms(write(tmp_path / "arms.csv"))
    base = dataclasses.replace(PRESETS["smoke"], lr=1e-5, temperature=False, index=(Path("a.csv"), Path("b c.csv")))
    shared = ["smoke", "--lr", "1e-5", "--no-temperature", "--index", "a.csv", "b c.csv"]
    runs = arm_runs(arms, shared, tmp_path / "out", seeds=(0, 7), folds=3)
    assert len(runs) == 4 * 2 * 3
    assert len({run.config.run_dir for run in runs}) == len(runs)
    chosen = next(run for run in runs if (run.arm, run.seed, run.fold) == ("both", 7, 2))
    assert chosen.config == dataclasses.replace(
        base, real=12, synth_percent=50.0, seed=7, folds=3, fold=2, run_dir=tmp_path / "out/both/seed7_fold2"
    )
    deep = next(run for run in runs if run.arm == "deep")
    assert deep.config.model == dataclasses.replace(base.model, name="densenet121")
    only = {"real": arms["real"]}
    assert [run.fold for run in arm_runs(only, ["smoke"], tmp_path, seeds=(0,), folds=0)] == [0]


def test_folders_of_synthetic_volumes_may_differ_between_folds(tmp_path):
    arms = read_arms(write(tmp_path / "arms.csv", "arm,synth_count,synth_hc\nx,4,made/fold{fold}_seed{seed}\n"))
    runs = arm_runs(arms, ["smoke"], tmp_path, seeds=(5,), folds=3)
    assert [run.config.synth_hc for run in runs] == [tmp_path / f"made/fold{fold}_seed5" for fold in range(3)]


def test_what_all_runs_have_in_common_is_passed_on():
    words = ["demo", "arms.csv", "--train.index", "a.csv", "b c.csv", "--out", "x", "--train.no-temperature", "--seeds",
             "0", "1", "--train.model.pool=mean", "--folds", "2"]  # fmt: skip
    assert shared_words(words) == ["demo", "--index", "a.csv", "b c.csv", "--no-temperature", "--model.pool=mean"]
    assert shared_words([]) == []


def test_faults_of_a_table_are_listed_together(tmp_path):
    text = "arm,real,augmentation\n../x,1,\nreal,1,none\nreal,2,\nshort\n"
    with pytest.raises(InputError, match=r"refused \(3\)") as refused:
        read_arms(write(tmp_path / "arms.csv", text))
    for part in ("line 2, column arm: '../x'", "line 4, column arm: 'real'", "line 5"):
        assert part in str(refused.value)
    for text, message in (
        ("name,real\na,1\n", "has a column arm"),
        ("arm,colour\na,1\n", "has a column arm"),
        ("arm\n", "no rows"),
        ("", "empty"),
    ):
        with pytest.raises(InputError, match=message):
            read_arms(write(tmp_path / "arms.csv", text))
    with pytest.raises(InputError, match="no such table"):
        read_arms(tmp_path / "absent.csv")


@pytest.mark.parametrize("cell", [{"real": "many"}, {"augmentation": "wild"}])
def test_a_cell_is_refused_as_its_flag_would_be(tmp_path, capsys, cell):
    with pytest.raises(SystemExit) as ended:
        arm_runs({"x": cell}, ["smoke"], tmp_path, seeds=(0,), folds=0)
    assert ended.value.code == 2
    assert all(f"--{name}" in capsys.readouterr().err for name in cell)


@pytest.mark.parametrize("name", ["smoke", "demo"])
def test_shipped_tables_hold_the_controls(name):
    arms = read_arms(ROOT / f"classifier/arms/{name}.csv")
    assert arms["real"] == {}
    groups = [real for real in ("real", "real_200", "real_100") if real in arms]
    for real in groups:
        count = float(arms[real].get("real", 1003))  # of the demo cohort; a count is matched by a share of them
        more = arms[f"{real}_synthetic"]
        added = float(more.get("synth_percent", 0)) * count / 100 or float(more["synth_count"])
        assert float(arms[f"{real}_repeated"]["duplicate_percent"]) * count / 100 == pytest.approx(added, abs=0.5)
    if name == "demo":
        assert len(groups) == 3
        shuffled = (arms["synthetic_shuffled"], *(arms[f"{real}_shuffled"] for real in groups[1:]))
        assert all(arm["shuffle"] == "synthetic" for arm in shuffled)
    assert arms["permuted"] == {"shuffle": "all"}
    assert arms["synthetic"]["real"] == "0"


def command(config, arms: Path, out: Path) -> list[str]:
    """run_arms on the test cohort."""
    names = (
        "train_csv", "val_csv", "test_csv", "synth_hc", "synth_tle", "cache_dir", "threads", "steps", "warmup_steps",
        "val_every_steps", "save_every_steps", "log_every_steps", "resamples",
    )  # fmt: skip
    shared = [str(word) for name in names for word in (f"--train.{name.replace('_', '-')}", getattr(config, name))]
    return [sys.executable, "-m", "classifier.run_arms", "smoke", str(arms), "--out", str(out), *shared]


@pytest.mark.slow
def test_one_failed_run_does_not_stop_the_others_and_finished_ones_are_kept(config, tmp_path):
    config = dataclasses.replace(config, steps=4, warmup_steps=1)
    arms = write(tmp_path / "arms.csv", "arm,synth_percent\ngreedy,400\nreal,\n")
    out = tmp_path / "arms"
    done = run_here(*command(config, arms, out)[2:], ok=False)
    assert done.returncode == 1, done.stderr
    assert "1 of 2 runs" in done.stdout
    table = pd.read_csv(out / "runs.csv", keep_default_na=False, dtype=str).set_index("arm")
    assert table.index.tolist() == ["greedy", "real"]
    assert table.loc["greedy", "error"] == "python -m classifier.train ended with status 2; the reason stands above"
    assert table.loc["greedy", "auc"] == ""
    results = read_json(out / "real/seed0_fold0/results.json")
    assert float(table.loc["real", "auc"]) == results["metrics"]["test"]["auc"]["value"]
    assert table.loc["real", ["checkpoint", "error"]].tolist() == [results["checkpoint"], ""]
    assert table.loc["real", ["real_HC", "synthetic_TLE", "steps"]].tolist() == ["12", "0", "4"]

    # The failed arm is mended: the same command makes it, and leaves the finished run alone.
    write(arms, "arm,synth_percent\ngreedy,60\nreal,\n")
    kept = (out / "real/seed0_fold0/results.json").stat().st_mtime_ns
    again = run_here(*command(config, arms, out)[2:], ok=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 of 2 runs (1 new)" in again.stdout
    assert (out / "real/seed0_fold0/results.json").stat().st_mtime_ns == kept
    table = pd.read_csv(out / "runs.csv", keep_default_na=False, dtype=str).set_index("arm")
    assert table["synthetic_TLE"].to_dict() == {"greedy": "7", "real": "0"}


def test_another_configuration_is_not_taken_for_a_finished_run(tmp_path):
    run = arm_runs({"real": {}}, ["smoke"], tmp_path, seeds=(0,), folds=0)[0]
    run.config.run_dir.mkdir(parents=True)
    (run.config.run_dir / "results.json").write_text("{}")
    (run.config.run_dir / "config.json").write_text(json.dumps(plain_config(run.config)))
    assert is_finished(run)
    (run.config.run_dir / "config.json").write_text('{"steps": 999}')
    assert not is_finished(run)


def test_folds_too_small_to_compare_are_refused_before_training(config, tmp_path):
    scans = pd.read_csv(config.train_csv)
    scans["file"] = [str(config.train_csv.parent / name) for name in scans["file"]]
    patients = scans[scans.diagnosis.str.startswith("TLE")].head(4)
    few = tmp_path / "few.csv"
    pd.concat([scans[scans.diagnosis == "HC"], patients]).to_csv(few, index=False)
    words = ["smoke", "--index", str(few)]
    arms = ArmsConfig(write(tmp_path / "arms.csv"), tmp_path / "out", config, folds=4)
    with pytest.raises(InputError, match=r"fold 0 of 4 \(test\): fewer than two subjects \(or groups\) of class TLE"):
        main(arms, words)
    assert not (tmp_path / "out").exists()


def test_what_run_arms_sets_itself_is_refused(tmp_path):
    preset = ARMS_PRESETS["smoke"]
    for words in (["--seed", "3"], ["--seed=3"], ["--run_dir", "x"]):
        with pytest.raises(InputError, match=r"run_arms sets --(seed|run-dir) itself"):
            main(dataclasses.replace(preset, out=tmp_path / "out"), shared=["smoke", *words])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_stopping_run_arms_stops_its_runs_which_save_first(config, tmp_path):
    config = dataclasses.replace(config, steps=5000, save_every_steps=5000, val_every_steps=1000)
    arms, out = write(tmp_path / "arms.csv", "arm\nreal\n"), tmp_path / "arms"
    process = subprocess.Popen(command(config, arms, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = out / "real/seed0_fold0"
    deadline = time.monotonic() + 120
    while not (folder / "log.jsonl").exists():
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    saved = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    assert 0 < saved["step"] < 5000
    with locked(folder):  # nobody works in it any more
        assert not (folder / "results.json").exists()
