"""cohort.labelling.measure as a script: --volumes reads the table that it writes, and failed scans are named."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from cohort.anatomy.volume_tables import read_volumes
from cohort.atlas import REGIONS
from cohort.grids import GRIDS
from cohort.labelling.measure import LabelConfig, main
from cohort.tables import read_table
from cohort.volumes import Volume, write_volume
from runtime.checkpoints import load_checkpoint
from runtime.errors import InputError
from tests.support.scans import blob

GRID = GRIDS["smoke"]


@pytest.fixture
def config(cohort_dir, random_labels, tmp_path):
    folder = tmp_path / "synthetic"
    write_volume(folder / "HC_000012.pkl", Volume(blob(3, 0), 0, seed=12, affine=GRID.affine))
    return LabelConfig(
        checkpoint=random_labels(0), csv=cohort_dir / "test.csv", folders=(folder,), out=tmp_path / "out", threads=1,
        cache_dir=tmp_path / "cache", nifti=True,
    )  # fmt: skip


def test_the_table_is_read_as_volumes_of_scans_and_synthetic_volumes(config):
    main(replace(config, folders=config.folders * 2))
    table = read_volumes(config.out / "volumes.csv")
    frame = read_table(config.csv)
    found = table.of(frame, REGIONS)
    assert np.isfinite(found).all()
    assert np.isfinite(table.of(pd.DataFrame({"subject": ["HC_000012"]}), REGIONS)).all()
    rows = pd.read_csv(config.out / "volumes.csv")
    assert len(rows) == len(frame) + 1
    name = f"{frame['subject'][0]}_dseg.nii.gz"
    assert nib.load(config.out / name).shape == GRID.shape


def test_failed_scans_are_named_and_have_no_volumes(config, capsys, tmp_path):
    record = load_checkpoint(config.checkpoint, "labels")
    torch.save({**record, "limits": {"displacement_mm": 0.0, "uncertainty": 100.0}}, tmp_path / "strict.pt")
    main(replace(config, checkpoint=tmp_path / "strict.pt"))
    said = capsys.readouterr().out
    assert "9 failed" in said
    assert "test00, test01" in said
    rows = pd.read_csv(config.out / "volumes.csv")
    assert (rows["failed"] == 1).all()
    assert (rows["failed_by"] == "displacement_mm").all()
    assert rows["volume_left_hippocampus_mm3"].isna().all()
    assert (rows["displacement_mm"] > 0).all()


def test_what_cannot_be_labelled_is_refused(config, tmp_path):
    with pytest.raises(InputError, match="nothing to label"):
        main(LabelConfig(checkpoint=config.checkpoint, out=tmp_path))
    folder = tmp_path / "other"
    write_volume(folder / "HC_000001.pkl", Volume(np.ones((4, 4, 4), np.float32), 0, seed=1))
    with pytest.raises(InputError, match=r"HC_000001.pkl: not on the network's grid smoke"):
        main(LabelConfig(checkpoint=config.checkpoint, folders=(folder,), out=tmp_path))
    away = GRID.affine + np.array([[0, 0, 0, 10]] + [[0, 0, 0, 0]] * 3)
    write_volume(folder / "HC_000001.pkl", Volume(blob(3, 0), 0, seed=1, affine=away))
    with pytest.raises(InputError, match=r"HC_000001.pkl: not on the network's grid smoke"):
        main(LabelConfig(checkpoint=config.checkpoint, folders=(folder,), out=tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no volumes in it"):
        main(LabelConfig(checkpoint=config.checkpoint, folders=(tmp_path / "empty",), out=tmp_path))
