"""What save_synth writes beside volumes: NIfTI, a BIDS derivative, region labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from cohort.grids import GRIDS
from cohort.scans import load_scan
from cohort.tables import read_table
from cohort.volumes import read_volume
from diffusion import save_synth
from diffusion.save_synth import SaveSynthConfig
from runtime.errors import InputError
from runtime.files import read_json


def test_nifti_overlays_the_template_also_for_volumes_made_before(config: SaveSynthConfig) -> None:
    save_synth.main(config)
    save_synth.main(replace(config, nifti=True))
    volume, image = read_volume(config.out / "HC_000001.pkl"), nib.load(config.out / "HC_000001.nii.gz")
    np.testing.assert_allclose(image.affine, GRIDS["smoke"].affine)
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), volume.image)
    assert (image.get_sform(coded=True)[1], image.get_qform(coded=True)[1]) == (4, 4)


def test_bids_holds_both_classes_and_is_read_as_a_cohort(
    config: SaveSynthConfig, knowing: Path, tmp_path: Path
) -> None:
    wanted = tmp_path / "wanted.csv"
    wanted.write_text("label,seed,age,sex\nHC,0,25.5,F\nHC,11,,M\nTLE,0,,\n")
    places = {"out": tmp_path / "{label}", "bids": tmp_path / "bids"}
    config = replace(config, diffusion=knowing, label=None, count=None, table=wanted, **places)
    save_synth.main(config)
    frame = read_table(tmp_path / "bids/participants.tsv")
    assert frame["subject"].tolist() == ["sub-synHC0001", "sub-synHC0012", "sub-synTLE0001"]
    assert frame["label"].tolist() == [0, 0, 1]
    assert frame["sex"].tolist() == ["F", "M", ""]
    assert frame["seed"].tolist() == ["0", "11", "0"]
    assert frame["age"].fillna(-1).tolist() == [25.5, -1, -1]
    image = Path(frame["file"][1])
    assert image == (
        tmp_path / "bids/sub-synHC0012/anat/sub-synHC0012_space-MNI152NLin2009aSym_desc-synthetic_T1w.nii.gz"
    )
    np.testing.assert_array_equal(
        load_scan(image, GRIDS["smoke"]), load_scan(tmp_path / "HC/HC_000011.pkl", GRIDS["smoke"])
    )

    sidecar = json.loads(image.with_name(image.name.replace(".nii.gz", ".json")).read_text())
    volume = read_volume(tmp_path / "HC/HC_000011.pkl")
    assert sidecar["Synthetic"] is True
    assert (sidecar["VAE"], sidecar["Diffusion"], sidecar["Sampler"]) == (volume.vae, volume.diffusion, "dpmpp")
    assert (sidecar["Seed"], sidecar["Age"], sidecar["Sex"], sidecar["Diagnosis"]) == (11, None, "M", "HC")
    described = read_json(tmp_path / "bids/dataset_description.json")
    assert (described["BIDSVersion"], described["DatasetType"]) == ("1.10.0", "derivative")
    columns = (tmp_path / "bids/participants.tsv").read_text().splitlines()[0].split("\t")
    assert list(read_json(tmp_path / "bids/participants.json")) == columns

    others = replace(config, out=tmp_path / "other_{label}", steps=4)
    with pytest.raises(InputError, match=r"sub-synHC0001_space(.|\n)*Steps: the dataset has 3, this command 4"):
        save_synth.main(others)
    assert not (tmp_path / "other_HC").exists()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/dataset_description.json").write_text('{"Name": "scans of people", "BIDSVersion": "1.10.0"}')
    with pytest.raises(InputError, match=r"dataset_description\.json"):
        save_synth.main(replace(config, bids=tmp_path / "raw"))


def test_labels_and_volumes_lie_beside_the_volumes_and_in_the_dataset(
    config: SaveSynthConfig, random_labels: Callable[[int], Path], tmp_path: Path
) -> None:
    config = replace(config, labels=random_labels(0), bids=tmp_path / "bids")
    save_synth.main(config)
    written = {path.name for path in config.out.glob("*dseg*")}
    assert written == {"HC_000000_dseg.nii.gz", "HC_000001_dseg.nii.gz", "dseg.tsv"}
    labels = nib.load(config.out / "HC_000000_dseg.nii.gz")
    np.testing.assert_array_equal(labels.affine, GRIDS["smoke"].affine)
    assert labels.shape == GRIDS["smoke"].shape
    names = pd.read_csv(config.out / "dseg.tsv", sep="\t")
    assert set(np.unique(labels.dataobj)) <= {0, *names["index"]}
    assert names.set_index("name")["index"]["Left Hippocampus"] == 48
    name = "sub-synHC0002/anat/sub-synHC0002_space-MNI152NLin2009aSym_desc-regions_dseg.nii.gz"
    again = nib.load(tmp_path / "bids" / name)
    np.testing.assert_array_equal(again.dataobj, nib.load(config.out / "HC_000001_dseg.nii.gz").dataobj)
    assert (tmp_path / "bids/desc-regions_dseg.tsv").exists()
    rows = pd.read_csv(config.out / "volumes.csv")
    assert rows["subject"].tolist() == ["HC_000000", "HC_000001"]
    assert {"volume_left_hippocampus_mm3", "uncertainty", "failed"} <= set(rows)

    before = (config.out / "HC_000000_dseg.nii.gz").stat().st_mtime_ns
    save_synth.main(replace(config, count=3))
    assert (config.out / "HC_000000_dseg.nii.gz").stat().st_mtime_ns == before
    assert len(pd.read_csv(config.out / "volumes.csv")) == 3
    for told, other in (("by the network", random_labels(1)), ("no table of volumes", config.labels)):
        with pytest.raises(InputError, match=f"volumes.csv: .*{told}"):
            save_synth.main(replace(config, labels=other, count=4))
        assert not (config.out / "HC_000003.pkl").exists()
        (config.out / "volumes.csv").write_text("")
