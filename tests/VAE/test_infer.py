"""VAE.infer: what it writes, tiles against the whole, several processes, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from cohort.grids import GRIDS
from cohort.scans import load_scan
from tests.support.processes import run_here, script
from VAE.checkpoint import save_vae
from VAE.config import PRESETS
from VAE.model import Autoencoder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained codec: a linear path for the low frequencies, convolutions that add a little, one dead channel."""
    torch.manual_seed(0)
    model = Autoencoder(PRESETS["smoke"].model)
    torch.nn.init.normal_(model.to_mu.weight, std=0.002)
    torch.nn.init.normal_(model.decoder.conv_out.weight, std=0.001)
    with torch.no_grad():
        model.linear.analysis.weight[3] = 0
        model.to_mu.weight[3] = 0
    path = tmp_path_factory.mktemp("codec") / "vae.pt"
    save_vae(path, model, grid=GRIDS["smoke"], ledger=[], step=0, ema=model.state_dict())
    return path


def infer(cohort_dir: Path, checkpoint: Path, out: Path, *words: object, run: Callable = run_here, **options: object):
    return run(
        "VAE.infer", "--checkpoint", checkpoint, "--csv", cohort_dir / "test.csv", "--out", out, "--threads", 1,
        "--precision", "float32", "--cache-dir", cohort_dir / "cache", *words, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(cohort_dir: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Results of a run with NIfTI files, and what it printed."""
    out = tmp_path_factory.mktemp("whole")
    return out, infer(cohort_dir, checkpoint, out, "--nifti").stdout


def test_tables_and_summary(whole: tuple[Path, str]) -> None:
    out, said = whole
    table, by_region = pd.read_csv(out / "metrics.csv"), pd.read_csv(out / "regions.csv")
    summary = json.loads((out / "summary.json").read_text())
    assert len(table) == summary["scans"] == 8
    assert summary["mean"]["psnr_head"] == pytest.approx(table.psnr_head.mean())
    assert by_region.columns.drop("session").tolist() == [
        "subject", "label", "region", "voxels", "mae", "bias", "nmse",
    ]  # fmt: skip
    assert len(by_region) == 8 * summary["regions"]["regions"]
    assert by_region.voxels.min() >= summary["regions"]["min_voxels"]
    means = by_region.groupby("region").mae.mean().sort_values(ascending=False)
    worst = summary["regions"]["worst"]
    assert [row["region"] for row in worst] == means.index[:10].tolist()
    assert worst[0]["mae"] == pytest.approx(means.iloc[0])
    assert worst[0]["subjects"] == 8
    for name in ("worst_and_best.png", "regions.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert worst[0]["region"] in said
    assert "CC BY-NC" in said
    assert "CC BY-NC" in summary["regions"]["licence"]


def test_a_dead_channel_is_reported(whole: tuple[Path, str]) -> None:
    out, said = whole
    posterior = json.loads((out / "summary.json").read_text())["posterior"]
    assert posterior["dead"] == [3]
    assert posterior["channels"][3]["noise_share"] == pytest.approx(1)
    assert posterior["channels"][0]["noise_share"] < 0.1
    assert "warning: of 4 latent channels" in said


def test_volumes_lie_where_the_scan_lies(whole: tuple[Path, str], cohort_dir: Path) -> None:
    out, _ = whole
    pairs = [nib.load(out / f"test00_{name}.nii.gz") for name in ("scan", "reconstruction")]
    scan, reconstruction = (np.asarray(image.dataobj) for image in pairs)
    for image in pairs:
        np.testing.assert_array_equal(image.affine, GRIDS["smoke"].affine)
        assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 4
    np.testing.assert_array_equal(scan, load_scan(cohort_dir / "test00.nii.gz", GRIDS["smoke"]))
    row = pd.read_csv(out / "metrics.csv").set_index("subject").loc["test00"]
    mse = np.mean((np.clip(reconstruction, 0, 1) - scan) ** 2)
    assert -10 * np.log10(mse) == pytest.approx(row.psnr, rel=1e-4)


@pytest.mark.slow
def test_the_command_in_two_processes_finds_the_same(
    whole: tuple[Path, str], cohort_dir: Path, checkpoint: Path, tmp_path: Path
) -> None:
    infer(cohort_dir, checkpoint, tmp_path, run=script, processes=2)
    for name in ("metrics.csv", "regions.csv"):
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / name), pd.read_csv(whole[0] / name))
    expected, actual = (json.loads((out / "summary.json").read_text()) for out in (whole[0], tmp_path))
    for one, other in zip(actual["posterior"]["channels"], expected["posterior"]["channels"], strict=True):
        assert one == pytest.approx(other)


def test_tiles_do_not_change_the_measures(
    whole: tuple[Path, str], cohort_dir: Path, checkpoint: Path, tmp_path: Path
) -> None:
    infer(cohort_dir, checkpoint, tmp_path, "--tile", 16)
    expected, actual = (json.loads((out / "summary.json").read_text()) for out in (whole[0], tmp_path))
    assert (expected["tile"], actual["tile"]) == (0, 16)
    assert actual["mean"]["psnr_head"] == pytest.approx(expected["mean"]["psnr_head"], abs=1e-3)


def test_a_tile_that_does_not_divide_is_refused_at_once(cohort_dir: Path, checkpoint: Path, tmp_path: Path) -> None:
    refused = infer(cohort_dir, checkpoint, tmp_path, "--tile", 7, ok=False)
    assert refused.returncode == 2
    assert "--tile 7: this VAE needs a multiple of 4" in refused.stderr
    assert not list(tmp_path.iterdir())
