"""From healthy people to a power curve, by the command."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from classifier.power import POWER_PRESETS, main, measure, say, write
from cohort.tables import read_table
from runtime.errors import InputError
from runtime.files import ROOT
from tests.support.arm_folders import write_run
from tests.support.labelled import as_prepared, people


@pytest.mark.slow
def test_the_command_plants_trains_and_measures_at_every_effect(tmp_path):
    table = people(tmp_path, count=24)
    prepared = as_prepared(table, tmp_path / "prepared")
    words = ["smoke", "--participants", table, "--prepared", prepared, "--out", tmp_path / "power", "--folds", "3"]
    words += ["--effect-sizes", "3", "--subjects", "4", "--steps", "4", "--resamples", "50"]
    command = [sys.executable, "-m", "classifier.power", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "power" / "power.csv")
    assert list(rows["effect_size"]) == [3, 3]
    assert list(rows["trained"]) == [8, 4]
    assert (rows["tested"] == 24).all()
    assert rows["auc"].between(0, 1).all()
    assert rows["side_accuracy"].between(0, 1).all()
    assert (tmp_path / "power" / "power.png").stat().st_size > 5_000
    truth = pd.read_csv(tmp_path / "power" / "d3" / "cohort" / "truth.csv")
    assert (truth[truth["diagnosis"] != "HC"]["change"] < 0).all()
    for row in read_table(tmp_path / "power" / "d3" / "index.csv").itertuples():
        home = prepared if row.diagnosis == "HC" else tmp_path / "power" / "d3" / "cohort"
        assert row.file == str(home / "scans" / f"{row.subject}.nii.gz")
        healthy, shown = (
            np.asarray(nib.load(path).dataobj) for path in (prepared / "scans" / Path(row.file).name, row.file)
        )
        assert (healthy == shown).all() == (row.diagnosis == "HC")
        assert ((healthy == 0) == (shown == 0)).all()  # the same brain


def runs_of(folder, effect, counts, folds=3):
    """Finished runs of every arm: 16 subjects a fold, scores and sides with a known effect."""
    labels = np.arange(16) % 2
    sides = np.where(labels == 1, np.where(np.arange(16) % 4 == 1, "L", "R"), "")
    for arm, strength in zip(["all", *(f"n{count}" for count in counts)], (effect, effect / 2), strict=True):
        for fold in range(folds):
            draw = np.random.default_rng(fold)
            scores = draw.normal(size=16) + strength * labels
            right = 1 / (1 + np.exp(-draw.normal(size=16) - strength * ((sides == "R") * 2.0 - 1)))
            names = [f"s{fold}-{k:02d}" for k in range(16)]
            columns = {"side": sides, "side_probability": right}
            write_run(folder / "arms" / arm / f"seed0_fold{fold}", scores, labels, names, fold=fold, columns=columns)


def test_curves_follow_the_effect(tmp_path, capsys):
    config = replace(POWER_PRESETS["smoke"], out=tmp_path, folds=3, subjects=(8,), resamples=100)
    rows = []
    for size in (0.0, 6.0):
        runs_of(tmp_path / f"d{size:g}", size, config.subjects)
        rows += [{"effect_size": size, "placebo": 0, **row} for row in measure(config, tmp_path / f"d{size:g}")]
        write(config, rows)
    say(rows[-2:])
    found = pd.read_csv(tmp_path / "power.csv").set_index(["effect_size", "arm"])
    assert (found["tested"] == 48).all()
    assert (found["trained"] == 20).all()
    assert found["auc"][0.0, "all"] == pytest.approx(0.5, abs=0.2)
    assert found["auc"][6.0, "all"] >= found["auc"][6.0, "n8"] > 0.9
    assert found["side_accuracy"][6.0, "all"] > 0.9
    assert (found["auc_low"].fillna(0) < found["auc"]).all()  # a perfect area has no bound
    assert "d 6, 20 trained, 48 tested: AUC, patients against controls: " in capsys.readouterr().out
    assert (tmp_path / "power.png").stat().st_size > 5_000


def test_what_would_fail_later_is_refused_at_once(tmp_path):
    table = tmp_path / "people.csv"
    table.write_text("subject,file,diagnosis,labels\n")
    config = replace(POWER_PRESETS["smoke"], participants=table, prepared=tmp_path, out=tmp_path / "out")
    with pytest.raises(InputError, match=r"no folder records in it; cohort.prepare --out makes it"):
        main(config)
    with pytest.raises(InputError, match="--folds 2: expected 3 or more"):
        main(replace(config, folds=2))
    with pytest.raises(InputError, match=r"--participants .*: no such table"):
        main(replace(config, participants=tmp_path / "none.csv"))
    assert not (tmp_path / "out").exists()
