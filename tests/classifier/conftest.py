"""A small cohort at the smoke grid: smooth heads; in TLE the region of the left hippocampus is darker."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from classifier.config import PRESETS, TrainConfig
from cohort.grids import GRIDS
from cohort.ledger import ledger_of
from cohort.stacks import load_scans
from cohort.tables import CLASS_NAMES, read_table, write_table
from cohort.volumes import Volume, volume_name, write_volume
from runtime.files import write_json

GRID = GRIDS["smoke"]


def head(rng: np.random.Generator, label: int) -> np.ndarray:
    """A bright ellipsoid with smooth texture (D, H, W); label 1 has a dark place."""
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in GRID.shape), indexing="ij"))
    inside = (places**2).sum(0) < 0.7
    texture = ndimage.gaussian_filter(rng.standard_normal(GRID.shape), 1.2)
    # Strong and fine enough for two heads not to be taken for copies of one.
    image = np.where(inside, 0.6 + 0.08 * texture / texture.std(), 0.0)
    if label:
        image[5:9, 9:14, 6:10] *= 0.5
    return image.astype(np.float32)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.csv (24 scans), val.csv (12), test.csv (12), and synthetic volumes (8 of each class)."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    tables = {}
    for split, count in (("train", 24), ("val", 12), ("test", 12)):
        rows = []
        for number in range(count):
            label, subject = number % 2, f"{split}{number:02d}"
            path = folder / "scans" / f"{subject}.nii"
            path.parent.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(head(rng, label), GRID.affine), path)
            diagnosis = ("HC", ("TLE-L", "TLE-R")[number // 2 % 2])[label]
            demographics = {"age": 20.0 + rng.integers(40), "sex": "FM"[number // 3 % 2], "site": "ab"[number // 2 % 2]}
            rows.append({"subject": subject, "file": str(path), "diagnosis": diagnosis, **demographics})
        write_table(folder / f"{split}.csv", pd.DataFrame(rows))
        tables[split] = read_table(folder / f"{split}.csv")
    for label, name in enumerate(CLASS_NAMES):
        out = folder / f"synth_{name}"
        for seed in range(8):
            volume = Volume(head(rng, label), label, seed, GRID.affine, side="LR"[seed % 2] if label else "")
            write_volume(out / volume_name(label, seed), volume)
        write_json(out / "ledger.json", {"ledger": ledger_of(tables["train"])})
    return folder


@pytest.fixture
def config(cohort: Path, tmp_path: Path) -> TrainConfig:
    """The smoke preset on the small cohort, one thread, few steps."""
    return dataclasses.replace(
        PRESETS["smoke"], train_csv=cohort / "train.csv", val_csv=cohort / "val.csv", test_csv=cohort / "test.csv",
        synth_hc=cohort / "synth_HC", synth_tle=cohort / "synth_TLE", cache_dir=cohort / "cache",
        run_dir=tmp_path / "run", threads=1, steps=12, val_every_steps=4, save_every_steps=3, log_every_steps=2,
        resamples=200,
    )  # fmt: skip


@pytest.fixture(scope="session")
def scans(cohort: Path):
    """The training scans, with the column that tells synthetic ones apart."""
    frame = read_table(cohort / "train.csv").assign(synthetic=False)
    return load_scans(frame, GRID, cache_dir=cohort / "cache")


def pytest_collection_modifyitems(items):
    """Tests of every network run the two smaller ones in the fast suite: DenseNet-121 takes ten times as long."""
    for item in items:
        if "densenet121" in item.name and item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)
