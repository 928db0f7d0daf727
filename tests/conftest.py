"""What all tests may use: a small cohort on the smoke grid, and checkpoints that nothing was trained for."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import pandas as pd
import pytest
import torch

from cohort.grids import GRIDS
from tests.support.scans import blob

pytest_plugins = ("tests.support.checkpoints",)
torch.set_num_threads(1)  # a test process per core: pytest --numprocesses


@pytest.fixture(scope="session")
def cohort_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.csv (12 scans), val.csv (4), test.csv (8) and their NIfTI files on the smoke grid."""
    folder = tmp_path_factory.mktemp("cohort")
    seed = 0
    for split, count in (("train", 12), ("val", 4), ("test", 8)):
        rows = []
        for k in range(count):
            subject, label = f"{split}{k:02d}", k % 2
            image = nib.Nifti1Image(blob(seed, label), GRIDS["smoke"].affine)
            nib.save(image, folder / f"{subject}.nii.gz")
            rows.append(
                {
                    "subject": subject, "file": f"{subject}.nii.gz", "diagnosis": "TLE-L" if label else "HC",
                    "age": 20 + k, "sex": "MF"[k % 2], "site": "AB"[k // 2 % 2],
                }
            )  # fmt: skip
            seed += 1
        pd.DataFrame(rows).to_csv(folder / f"{split}.csv", index=False)
    return folder
