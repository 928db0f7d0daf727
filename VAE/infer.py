"""Reconstructs the scans of a table with a trained VAE and measures how close it comes.

    python -m VAE.infer --checkpoint runs/demo/vae/checkpoints/best.pt --csv data_csvs/test.csv --out runs/demo/infer

Writes metrics.csv (one row per scan), summary.json (mean, standard deviation and N of each measure),
worst_and_best.png, and with --nifti each reconstruction as .nii.gz on the grid's affine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from cohort.ledger import refuse_overlap
from cohort.pictures import gallery
from cohort.scans import load_scans
from cohort.tables import read_table
from cohort.volumes import write_nifti
from runtime import distributed
from runtime.checkpoints import git_commit
from runtime.cli import describe, run_script
from runtime.device import Device, Precision, pick_device
from runtime.files import ROOT, atomic_write, write_json
from VAE.checkpoint import LoadedVAE, load_vae
from VAE.dataset import Volumes
from VAE.metrics import reconstruction_metrics


@dataclass(frozen=True)
class InferConfig:
    """What to reconstruct, with what, and where to."""

    checkpoint: Path
    """A VAE checkpoint (best.pt or last.pt of a run)."""
    csv: Path = ROOT / "data_csvs/test.csv"
    """Table of scans."""
    out: Path = ROOT / "runs/infer"
    """Folder for the results."""
    nifti: bool = False
    """Also write each reconstruction as .nii.gz."""
    allow_leak: bool = False
    """Measure also subjects that the VAE was trained on; the summary then says so."""
    precision: Precision = "auto"
    """Matrix precision."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    cache_dir: Path | None = None
    """Folder of decoded scans; by default data/cache in the repository."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


def main(config: InferConfig) -> None:
    """Loads, reconstructs, measures, writes."""
    device = pick_device(config.precision, config.threads)
    vae = load_vae(config.checkpoint)
    frame = read_table(config.csv)
    leak = refuse_overlap(
        frame, vae.ledger, what=f"{config.csv} with {config.checkpoint}", allow_leak=config.allow_leak
    )
    volumes = Volumes(load_scans(frame, vae.grid, cache_dir=config.cache_dir), device)

    rows, cases = reconstruct(volumes, vae, device, config)
    if not distributed.is_main():
        return
    table = pd.DataFrame(rows).sort_values("subject", kind="stable")
    with atomic_write(config.out / "metrics.csv") as temporary:
        table.to_csv(temporary, index=False)
    numbers = table.select_dtypes("number").drop(columns="label")
    summary = {
        "scans": len(table), "csv": str(config.csv), "vae": vae.hash, "vae_step": vae.step, "commit": git_commit(),
        "subjects_seen_in_training": leak,
        "mean": numbers.mean().to_dict(), "std": numbers.std(ddof=0).to_dict(),
    }  # fmt: skip
    write_json(config.out / "summary.json", summary)
    draw(config.out / "worst_and_best.png", cases)
    print(f"{len(table)} scans: PSNR {numbers['psnr_head'].mean():.2f} dB, SSIM {numbers['ssim_head'].mean():.3f}, "
          f"NMSE {numbers['nmse_head'].mean():.4f} inside the head; {config.out / 'metrics.csv'}")  # fmt: skip


@torch.no_grad()
def reconstruct(
    volumes: Volumes, vae: LoadedVAE, device: Device, config: InferConfig
) -> tuple[list[dict], list[tuple[float, str, np.ndarray, np.ndarray]]]:
    """Measures every scan; keeps the two worst and two best by PSNR inside the head, for the picture.

    Returns:
        one dict per scan with its subject, label and measures; and (psnr_head, subject, x, x_hat) of four cases.
    """
    model = device.module(vae.model)
    rows, cases = [], []
    share = distributed.shard(range(len(volumes)))
    for row in tqdm(share, desc="reconstructing", unit="scan", disable=not distributed.is_main()):
        x = volumes.batch(torch.tensor([row]))
        with device.autocast():
            x_hat = model.decode(model.encode(x)[0])
        x_hat, x = (volume[0, 0].float().cpu().numpy() for volume in (x_hat, x))
        entry = volumes.frame.iloc[row]
        measures = reconstruction_metrics(x_hat, x)
        rows.append({"subject": entry.subject, "label": int(entry.label), **measures})
        cases.append((measures["psnr_head"], str(entry.subject), x, x_hat))
        cases = _extremes(cases)
        if config.nifti:
            write_nifti(config.out / f"{entry.subject}_reconstruction.nii.gz", x_hat, vae.grid.affine)
    gathered = distributed.gather((rows, cases))
    return [row for part, _ in gathered for row in part], _extremes([case for _, part in gathered for case in part])


def _extremes(cases: list) -> list:
    ordered = sorted(cases, key=lambda case: case[0])
    return ordered if len(ordered) <= 4 else ordered[:2] + ordered[-2:]


def draw(path: Path, cases: list[tuple[float, str, np.ndarray, np.ndarray]]) -> None:
    """The worst and best cases: scan, reconstruction, difference."""
    named = ", ".join(f"{subject} {value:.1f} dB" for value, subject, _, _ in cases)
    gallery(
        path,
        [
            ("scan", [x for _, _, x, _ in cases]),
            ("reconstruction", [x_hat for _, _, _, x_hat in cases]),
            ("difference", [x_hat - x for _, _, x, x_hat in cases]),
        ],
        title=f"worst to best: {named}",
        error_rows=(2,),
    )


if __name__ == "__main__":
    run_script(main, InferConfig, description=describe(__doc__))
