import json
import shutil
import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from cohort.atlas import REGIONS
from cohort.grids import GRIDS, parse_grid
from cohort.make_demo import DemoConfig, main, settings_in
from cohort.scans import load_scan
from cohort.tables import read_table
from runtime.errors import InputError
from runtime.files import ROOT

GRID = GRIDS["smoke"]
SIDE = {"L": "left", "R": "right"}
PUBLISHED = [
    [587, 554, 483, 434, 486, 587, 372, 397, 486, 517, 388, 329, 437, 692, 612, 583],
    [655, 652, 607, 645, 724, 679, 490, 580, 641, 624, 464, 378, 627, 756, 631, 562],
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    chosen = DemoConfig(
        out=folder / "demo", index=folder / "tables" / "demo.csv", subjects=4, seed=7, grid="smoke", workers=1
    )
    main(chosen)
    return chosen


def scans_of(config):
    return {path.name: path.read_bytes() for path in sorted((config.out / "scans").glob("*.nii.gz"))}


def test_index_and_scans_read_as_any_others(config):
    frame = read_table(config.index)
    assert list(frame.columns[:3]) == ["subject", "file", "diagnosis"]
    assert len(frame) == 4
    assert set(frame.site) <= {"site-A", "site-B", "site-C"}
    volume = load_scan(frame.file[0], GRID)
    assert volume.shape == (20, 24, 20)
    assert volume.max() == 1
    first_line = config.index.read_text().splitlines()[1]
    assert "../demo/scans/sim7-0000.nii.gz" in first_line  # relative to the table's folder


def test_scans_say_where_they_are_in_mni_space(config):
    image = nib.load(config.out / "scans" / "sim7-0001.nii.gz")
    np.testing.assert_allclose(image.affine, GRID.affine)
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 4
    assert image.header.get_xyzt_units()[0] == "mm"


def test_truth_has_every_region_of_every_subject(config):
    truth = pd.read_csv(config.out / "truth.csv", keep_default_na=False)
    assert list(truth.subject) == [f"sim7-{k:04d}" for k in range(4)]
    for region in REGIONS:
        name = region.lower().replace(" ", "_")
        assert (truth[f"volume_{name}_mm3"] > 100).all()
        assert (truth.loc[truth.diagnosis == "HC", f"change_{name}"] == 0).all()
    assert (truth.min_jacobian > 0).all()
    assert "simulation" in (config.out / "truth.json").read_text()


def test_second_run_keeps_what_is_there_and_replaces_what_is_missing(config):
    before = scans_of(config)
    kept, lost = (config.out / "scans" / f"sim7-000{k}.nii.gz" for k in (0, 1))
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    main(config)
    assert kept.stat().st_mtime_ns == stamp
    assert scans_of(config) == before


@pytest.mark.slow
def test_bytes_depend_neither_on_processes_nor_on_the_number_of_subjects(config, tmp_path):
    main(replace(config, out=tmp_path, index=tmp_path / "index.csv", subjects=2, workers=2))
    few = scans_of(replace(config, out=tmp_path))
    assert len(few) == 2
    assert few.items() <= scans_of(config).items()


def test_folder_with_other_settings_is_refused(config):
    before = scans_of(config)
    with pytest.raises(InputError, match=r"choose another --out \(1\):\n.*seed: the folder has 7, this command 8$"):
        main(replace(config, seed=8))
    assert scans_of(config) == before


def test_bad_settings_are_all_named_and_end_with_status_2(tmp_path):
    command = [sys.executable, "-m", "cohort.make_demo", "--out", str(tmp_path / "no"), "--subjects", "0"]
    command += ["--grid", "20", "--workers", "-1"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert all(
        flag in ended.stderr
        for flag in ("--subjects 0", "--grid 20@180x220x180: voxels of 20 mm, expected 1 to 16", "--workers -1")
    )
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "no").exists()


def test_a_cohort_of_an_older_version_goes_on(config, tmp_path, capsys):
    """Its settings named a spacing, of the demo's field of view."""
    shutil.copytree(config.out, tmp_path / "old")
    older = {"simulation": 2, "seed": 7, "spacing_mm": 8.0, "effect": "sclerosis"}
    (tmp_path / "old/settings.json").write_text(json.dumps(older))
    main(replace(config, out=tmp_path / "old", index=tmp_path / "old.csv"))
    assert "4 simulated scans (0 new)" in capsys.readouterr().out


def test_older_scans_whose_box_was_rounded_are_of_that_grid_and_not_of_its_spacing(config, tmp_path):
    """160 mm were 53 voxels of 3 mm, and are 54 for --grid 3@160x192x160."""
    (tmp_path / "settings.json").write_text(
        json.dumps({"simulation": 2, "seed": 7, "spacing_mm": 3.0, "effect": "sclerosis"})
    )
    assert settings_in(tmp_path)["grid"] == parse_grid("3@159x192x159").to_dict()
    with pytest.raises(InputError, match=r"grid: the folder has .*3@159x192x159.*, this command .*3@162x192x162"):
        main(replace(config, out=tmp_path, grid="3@160x192x160"))


def planted(tmp_path, name, size, **changes):
    return DemoConfig(
        out=tmp_path / name, index=tmp_path / f"{name}.csv", effect="hippocampus", effect_size=size, subjects=6,
        seed=1, grid="smoke", workers=1, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def doses(tmp_path_factory):
    """Two cohorts of the same people: without effect, and with a large one."""
    folder = tmp_path_factory.mktemp("planted")
    configs = [planted(folder, "none", 0.0)]
    main(configs[0])
    configs.append(planted(folder, "large", 1.9, controls_from=configs[0].out))
    main(configs[1])
    return configs


def test_the_published_cohort_is_what_it_has_always_been(config):
    """A line of voxels through the first two scans; a change of the simulation has to raise its version and these.

    Whole numbers within 1: processors differ in the last bit of what is rounded to them, so that hashes do not hold.
    """
    arrays = [np.asarray(nib.load(config.out / "scans" / f"sim7-000{k}.nii.gz").dataobj) for k in (0, 1)]
    np.testing.assert_allclose([array[10, 4:20, 10] for array in arrays], PUBLISHED, rtol=0, atol=1)
    settings = {"simulation": 2, "seed": 7, "grid": GRID.to_dict(), "effect": "sclerosis"}
    assert json.loads((config.out / "settings.json").read_text()) == settings
    truth = pd.read_csv(config.out / "truth.csv")
    assert set(truth.effect) == {"sclerosis"}
    assert "effect_size" not in truth.columns
    assert not (config.out / "regions").exists()


def test_a_planted_effect_is_recorded_and_changes_one_hippocampus(doses):
    truths = [pd.read_csv(config.out / "truth.csv", keep_default_na=False) for config in doses]
    assert [set(truth.effect_size) for truth in truths] == [{0.0}, {1.9}]
    assert json.loads((doses[1].out / "settings.json").read_text())["effect_size"] == 1.9
    patients = truths[1][truths[1].side != ""]
    assert set(patients.group) == {"HS"}
    assert set(patients.side) == {"L", "R"}
    for before, (_, after) in zip(truths[0].loc[patients.index].itertuples(), patients.iterrows(), strict=True):
        own, other = ("left", "right") if after.side == "L" else ("right", "left")
        assert after[f"volume_{own}_hippocampus_mm3"] < 0.97 * getattr(before, f"volume_{own}_hippocampus_mm3")
        for region in (f"{other}_hippocampus", f"{own}_thalamus"):
            assert after[f"volume_{region}_mm3"] == pytest.approx(getattr(before, f"volume_{region}_mm3"), rel=0.01)


def test_controls_are_the_same_people_whatever_the_dose(doses, tmp_path):
    alone = planted(tmp_path, "alone", 1.9)
    main(alone)  # simulates what the fixture copied
    assert scans_of(alone) == scans_of(doses[1])
    none, large = map(scans_of, doses)
    truth = pd.read_csv(doses[0].out / "truth.csv", keep_default_na=False)
    for row in truth.itertuples():
        assert (none[f"{row.subject}.nii.gz"] == large[f"{row.subject}.nii.gz"]) == (row.side == "")


def test_the_changed_region_lies_where_the_scan_changes(doses):
    truth = pd.read_csv(doses[1].out / "truth.csv", keep_default_na=False)
    assert {path.name for path in (doses[1].out / "regions").glob("*.nii.gz")} == {
        f"{row.subject}.nii.gz" for row in truth.itertuples() if row.side
    }
    for row in truth[truth.side != ""].itertuples():
        share = nib.load(doses[1].out / "regions" / f"{row.subject}.nii.gz").get_fdata()
        volume = share.sum() * GRID.spacing_mm**3
        # The labels are low-passed to 8 mm before they are deformed, which moves their edge outwards.
        assert volume == pytest.approx(getattr(row, f"volume_{SIDE[row.side]}_hippocampus_mm3"), rel=0.2)
        scans = [nib.load(config.out / "scans" / f"{row.subject}.nii.gz") for config in doses]
        none, large = (np.asarray(scan.dataobj, dtype=float) for scan in scans)
        change = np.abs(none - large)
        assert np.average(change, weights=share) > 5 * change.mean()
        middle = np.average(np.argwhere(share > 0.2)[:, 0])
        assert (middle < (share.shape[0] - 1) / 2) == (row.side == "L")


def test_a_darker_hippocampus_is_darker_where_it_lies_and_nowhere_else(doses, tmp_path):
    config = planted(tmp_path, "dark", 0.0, controls_from=doses[0].out, darker=0.4)
    main(config)
    truth = pd.read_csv(config.out / "truth.csv", keep_default_na=False)
    assert set(truth.darker) == {0.4}
    assert scans_of(config).keys() == scans_of(doses[0]).keys()
    for row in truth.itertuples():
        name = f"{row.subject}.nii.gz"
        before, after = (np.asarray(nib.load(made.out / "scans" / name).dataobj) for made in (doses[0], config))
        if row.side:
            share = nib.load(config.out / "regions" / name).get_fdata()
            assert (before[share > 0.5] > after[share > 0.5]).all()
            np.testing.assert_allclose(after, before * (1 - 0.4 * share), atol=0.51)
        else:
            np.testing.assert_array_equal(after, before)


def test_controls_of_another_cohort_are_refused(config, doses, tmp_path):
    with pytest.raises(InputError, match=r"--controls-from .*'seed': 1.*not .*'seed': 8"):
        main(replace(planted(tmp_path, "other", 1.9, controls_from=doses[0].out), seed=8))
    with pytest.raises(InputError, match="--controls-from"):
        main(planted(tmp_path, "other2", 1.9, controls_from=config.out))


@pytest.mark.parametrize(
    ("effect", "name", "value"),
    [("sclerosis", "effect_size", 1), ("sclerosis", "darker", 0.5), ("hippocampus", "effect_size", 6.5),
     ("hippocampus", "darker", 1.5)],
)  # fmt: skip
def test_planted_changes_that_mean_nothing_are_refused(tmp_path, effect, name, value):
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} {value:g}"):
        main(DemoConfig(out=tmp_path / "no", effect=effect, **{name: value}))
    assert not (tmp_path / "no").exists()
