"""A small cohort on the smoke grid: blobs with a class effect, as NIfTI files and split tables."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from cohort.scans import GRIDS

torch.set_num_threads(1)  # a test process per core: pytest --numprocesses


def blob(seed: int, label: int) -> np.ndarray:
    """A head-like ellipsoid with soft random structure; class 1 is darker in one corner of it."""
    shape = GRIDS["smoke"].shape
    random = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    head = (place**2).sum(0) < 0.7
    image = 100 + 30 * ndimage.gaussian_filter(random.standard_normal(shape), 2.0) * 8
    if label:
        image[4:9, 8:14, 6:10] -= 40
    return np.where(head, np.clip(image, 5, 250), 0).astype(np.float32)


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
