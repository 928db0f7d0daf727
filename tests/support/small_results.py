"""What a finished run leaves behind, in its smallest form: checkpoints with random weights, scans of templates, tables.

Nothing is trained: what notebooks show of it is compared with what the scripts make of the same files.
"""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import nbformat
import nibabel as nib
import numpy as np
import pandas as pd
import torch
from scipy.ndimage import zoom

from classifier.checkpoint import save_classifier
from classifier.config import ModelConfig
from classifier.measures.resampling import evaluate
from classifier.measures.runs import read_run
from classifier.model import build_model
from cohort.atlas import load_template, resample
from cohort.grids import GRIDS
from runtime.files import read_json, write_json
from runtime.seeding import rng
from tests.support.arm_folders import write_run

GRID = GRIDS["smoke"]
SIDE = {"test": {"accuracy": {"value": 0.8, "low": 0.7, "high": 0.9}}}


def brains(folder: Path, splits: dict[str, int]) -> Path:
    """Scans of the template, each under a smooth field of its own, and train.csv and so on; HC and TLE-L in turn."""
    source = load_template("icbm2009a")
    template = resample(np.asarray(source.dataobj), source.affine, GRID)
    for number, (split, count) in enumerate(splits.items()):
        rows = []
        for k in range(count):
            draw = np.random.default_rng([number, k])
            field = np.exp(0.3 * zoom(draw.normal(size=(4, 4, 4)), np.array(GRID.shape) / 4, order=3))
            name = f"{split}{k:02d}"
            nib.save(nib.Nifti1Image((template * field).astype(np.float32), GRID.affine), folder / f"{name}.nii.gz")
            rows.append({"subject": name, "file": f"{name}.nii.gz", "diagnosis": ("HC", "TLE-L")[k % 2]})
        pd.DataFrame(rows).to_csv(folder / f"{split}.csv", index=False)
    return folder


def autoencoder(runs: Path, checkpoint: Path) -> Path:
    """The run folder of a VAE, as far as readers look into it."""
    (runs / "vae/checkpoints").mkdir(parents=True)
    write_json(runs / "vae/config.json", {"grid": GRID.name})
    return Path(shutil.copy(checkpoint, runs / "vae/checkpoints/best.pt"))


def network(folder: Path, seed: int, ledger: list[str]) -> Path:
    """The run folder of a classifier that also learned sides: random weights, and predictions with a known effect."""
    torch.manual_seed(seed)
    config = ModelConfig(widths=(8, 16), blocks=1, stem_stride=1, outputs=2)
    model = build_model(config, GRID, 0.4, 0.3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = {"ema": model.state_dict(), "temperature": 2.0, "threshold": 0.5, "mean_hc": torch.full(GRID.shape, 0.3)}
    save_classifier(folder / "checkpoints/best.pt", model, grid=GRID, ledger=ledger, step=1, **state)
    labels = np.arange(40) % 2
    scores = np.random.default_rng(seed).normal(size=40) + 2.0 * (labels - 0.5)
    write_run(folder, scores, labels, [f"other{k:02d}" for k in range(40)], seed=seed, side=SIDE)
    metrics = {"test": evaluate(read_run(folder).frame, 0.5, rng(seed, "small results"), resamples=20)}
    write_json(folder / "results.json", read_json(folder / "results.json") | {"metrics": metrics})
    return folder


def volumes_in(notebook: nbformat.NotebookNode) -> dict[str, np.ndarray]:
    """The volumes (D, H, W) that the widgets of an executed notebook hold, by column."""
    models = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
    found = {}
    for model in models:
        for part in model.get("buffers", []):
            if part["path"] == ["data"]:
                nifti = nib.Nifti1Image.from_bytes(base64.b64decode(part["data"]))
                found[model["state"]["name"].removesuffix(".nii")] = nifti.get_fdata()
    return found
