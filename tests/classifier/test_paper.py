"""The preset paper on its own grid, comparing hemispheres: by the commands that a user types."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from cohort.atlas import atlas, load_template, resample
from cohort.grids import GRIDS
from cohort.tables import write_table
from runtime.files import read_json
from tests.support.processes import run_here

GRID = GRIDS["paper"]
BRIEF = ("--steps", 2, "--warmup-steps", 1, "--batch-size", 2, "--val-every-steps", 2, "--save-every-steps", 2)
DIAGNOSES = ("HC", "TLE-L", "HC", "TLE-R")


def write_people(folder: Path) -> dict[str, Path]:
    """Tables of 4 people each, train, val and test: the template with texture of their own, a hippocampus darker."""
    template = load_template("icbm2009a")
    brain, labels = resample(np.asarray(template.dataobj), template.affine, GRID), atlas(GRID)
    draw, tables = np.random.default_rng(0), {}
    for split in ("train", "val", "test"):
        rows = []
        for number, diagnosis in enumerate(DIAGNOSES):
            coarse = ndimage.zoom(draw.normal(0, 0.1, (14, 17, 14)), 8, order=1)
            image = brain * (1 + coarse)
            if diagnosis != "HC":
                image[labels.mask(f"{'Left' if diagnosis == 'TLE-L' else 'Right'} Hippocampus")] *= 0.5
            path = folder / f"{split}{number}.nii"
            nib.save(nib.Nifti1Image(image.round().astype(np.int16), GRID.affine), path)
            rows.append({"subject": path.stem, "file": str(path), "diagnosis": diagnosis})
        tables[split] = folder / f"{split}.csv"
        write_table(tables[split], pd.DataFrame(rows))
    return tables


@pytest.mark.slow
def test_hemispheres_in_a_box_learn_and_are_explained_on_the_whole_grid(tmp_path: Path) -> None:
    tables = write_people(tmp_path)
    given = [word for split, path in tables.items() for word in (f"--{split}-csv", path)]
    network = ("--model.name", "hemispheres", "--model.region", "temporal", "--cache-dir", tmp_path / "cache")
    run_here("classifier.train", "paper", *given, *network, *BRIEF, "--run-dir", tmp_path / "run", "--resamples", 50)
    settings, results = (read_json(tmp_path / "run" / name) for name in ("config.json", "results.json"))
    assert (settings["grid"], settings["model"]["region"], settings["model"]["widths"][-1]) == (
        "paper",
        "temporal",
        256,
    )
    assert (results["side"]["left"], results["side"]["right"]) == (1, 1)

    words = ("--checkpoint", tmp_path / "run/checkpoints/best.pt", "--csv", tables["test"], "--methods", "saliency")
    run_here("classifier.generate_saliency_maps", *words, "--limit", 2, "--out", tmp_path / "maps", "--pictures", 0)
    image = nib.load(next((tmp_path / "maps").rglob("*.nii.gz")))
    assert image.shape == GRID.shape
    assert np.allclose(image.affine, GRID.affine)
    seen = image.get_fdata() != 0
    labels = atlas(GRID)
    for side in ("Left", "Right"):
        assert seen[labels.mask(f"{side} Hippocampus")].mean() > 0.9
    assert not seen[:, :20].any()  # the cerebellum's back, outside of both boxes
