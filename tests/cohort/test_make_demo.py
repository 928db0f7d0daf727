import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from cohort.atlas import REGIONS
from cohort.make_demo import DemoConfig, main
from cohort.scans import load_scan
from cohort.simulation import demo_grid
from cohort.tables import read_table
from runtime.errors import InputError
from runtime.files import ROOT

SPACING = 8.0


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    chosen = DemoConfig(
        out=folder / "demo", index=folder / "tables" / "demo.csv", subjects=4, seed=7, spacing_mm=SPACING, workers=1
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
    volume = load_scan(frame.file[0], demo_grid(SPACING))
    assert volume.shape == (20, 24, 20)
    assert volume.max() == 1
    first_line = config.index.read_text().splitlines()[1]
    assert "../demo/scans/sim7-0000.nii.gz" in first_line  # relative to the table's folder


def test_scans_say_where_they_are_in_mni_space(config):
    image = nib.load(config.out / "scans" / "sim7-0001.nii.gz")
    np.testing.assert_allclose(image.affine, demo_grid(SPACING).affine)
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


def test_bytes_depend_neither_on_processes_nor_on_the_number_of_subjects(config, tmp_path):
    main(replace(config, out=tmp_path, index=tmp_path / "index.csv", subjects=2, workers=2))
    few = scans_of(replace(config, out=tmp_path))
    assert len(few) == 2
    assert few.items() <= scans_of(config).items()


def test_folder_with_other_settings_is_refused(config):
    before = scans_of(config)
    with pytest.raises(InputError, match=r"'seed': 7.*'seed': 8.*choose another --out"):
        main(replace(config, seed=8))
    assert scans_of(config) == before


def test_bad_settings_are_all_named_and_end_with_status_2(tmp_path):
    command = [sys.executable, "-m", "cohort.make_demo", "--out", str(tmp_path / "no"), "--subjects", "0"]
    command += ["--spacing-mm", "40", "--workers", "-1"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert all(flag in ended.stderr for flag in ("--subjects 0", "--spacing-mm 40", "--workers -1"))
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "no").exists()
