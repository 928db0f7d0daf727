"""VAE.save_latent: latents of scans, their variants and mirror images, resumed and shared among processes."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cohort.stacks import load_scans
from cohort.tables import read_table
from evaluation.posteriors import Codec
from runtime.device import pick_device
from tests.support.processes import run_here, script
from VAE.checkpoint import load_vae
from VAE.latents import read_latent, read_split, read_statistics, write_latent


@pytest.mark.slow
def test_save_latent_is_resumable_and_sharded(cohort_dir: Path, tmp_path: Path, trained: Path) -> None:
    words = (
        "VAE.save_latent", "--checkpoint", trained / "checkpoints/best.pt", "--threads", 1, "--out", tmp_path,
        "--cache-dir", cohort_dir / "cache", "--csv", cohort_dir / "train.csv", cohort_dir / "val.csv",
    )  # fmt: skip
    script(*words, processes=2)
    latents = read_split(tmp_path, "train")
    assert (len(latents), len(read_split(tmp_path, "val"))) == (12, 4)
    statistics = read_statistics(tmp_path)
    assert (statistics.count, statistics.vae) == (12, latents[0].vae)
    sums = subprocess.run(
        ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "train", capture_output=True, check=False
    )
    assert sums.returncode == 0
    assert len((tmp_path / "train/SHA256SUMS").read_text().splitlines()) == 12
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pkl")}
    assert [latent.side for latent in latents[:4]] == ["", "L", "", "L"]
    missing, sideless = (tmp_path / "train" / name for name in ("train03.pkl", "train05.pkl"))
    contents = {path: path.read_bytes() for path in (missing, sideless)}
    missing.unlink()
    write_latent(sideless, replace(read_latent(sideless), side=""))  # as an older version wrote it
    run_here(*words)
    assert all(path.read_bytes() == content for path, content in contents.items())
    assert all(path.stat().st_mtime_ns == before[path] for path in before if path not in contents)
    other = run_here(*words[:2], trained / "checkpoints/last.pt", *words[3:], ok=False)
    assert other.returncode == 2
    assert "made by VAE" in other.stderr


@pytest.mark.slow
def test_an_evaluation_encodes_scans_as_they_were_saved(cohort_dir: Path, tmp_path: Path, trained: Path) -> None:
    checkpoint, tables = trained / "checkpoints/best.pt", [cohort_dir / f"{split}.csv" for split in ("train", "val")]
    words = ("VAE.save_latent", "--checkpoint", checkpoint, "--threads", 1, "--out", tmp_path, "--csv", *tables)
    run_here(*words)
    codec, table = Codec(load_vae(checkpoint), pick_device(threads=1)), read_table(tables[0])
    scans = load_scans(table, codec.vae.grid)
    found = dict(zip(table["subject"], zip(*codec.encode(scans.volumes), strict=True), strict=True))
    for latent in read_split(tmp_path, "train"):
        mu, logvar = found[latent.subject]
        assert np.array_equal(mu, latent.mu)
        assert np.array_equal(logvar, latent.logvar)


@pytest.mark.slow
def test_augmented_copies_join_the_training_split_only(cohort_dir: Path, tmp_path: Path, trained: Path) -> None:
    words = (
        "VAE.save_latent", "--checkpoint", trained / "checkpoints/best.pt", "--threads", 1, "--out", tmp_path,
        "--cache-dir", cohort_dir / "cache", "--csv", cohort_dir / "train.csv", cohort_dir / "val.csv",
        "--augmented-copies", 2,
    )  # fmt: skip
    run_here(*words)
    latents = {path.name: read_latent(path) for path in (tmp_path / "train").glob("*.pkl")}
    assert len(latents) == 36
    assert len(read_split(tmp_path, "val")) == 4
    plain, one, two = (latents[f"train00{end}.pkl"] for end in ("", "_variant1", "_variant2"))
    assert plain.subject == one.subject == two.subject == "train00"
    differences = [abs(a.mu - b.mu).mean() for a, b in ((plain, one), (plain, two), (one, two))]
    assert min(differences) > 0.01
    assert max(differences) < abs(plain.mu).mean() * 2
    content = (tmp_path / "train/train00_variant2.pkl").read_bytes()
    (tmp_path / "train/train00_variant2.pkl").unlink()
    run_here(*words)
    assert (tmp_path / "train/train00_variant2.pkl").read_bytes() == content
    refused = run_here(*words[:-2], ok=False)  # without copies, the folder holds files that would not be made
    assert refused.returncode == 2
    assert "train00_variant1.pkl" in refused.stderr


@pytest.mark.slow
def test_mirror_images_are_latents_of_mirrored_scans_with_the_other_side(
    cohort_dir: Path, tmp_path: Path, trained: Path
) -> None:
    run_here(
        "VAE.save_latent", "--checkpoint", trained / "checkpoints/best.pt", "--threads", 1, "--out", tmp_path,
        "--cache-dir", cohort_dir / "cache", "--csv", cohort_dir / "train.csv", cohort_dir / "val.csv", "--mirrored",
        "--precision", "float32",
    )  # fmt: skip
    latents = {path.name: read_latent(path) for path in (tmp_path / "train").glob("*.pkl")}
    assert (len(latents), len(read_split(tmp_path, "val"))) == (24, 4)
    plain, mirrored = (latents[f"train01{end}.pkl"] for end in ("", "_mirrored"))
    assert (plain.subject, mirrored.subject, plain.side, mirrored.side) == ("train01", "train01", "L", "R")
    assert (plain.mirrored, mirrored.mirrored) == (False, True)
    assert latents["train00_mirrored.pkl"].side == ""
    vae = load_vae(trained / "checkpoints/best.pt")
    scan = load_scans(read_table(cohort_dir / "train.csv"), vae.grid, cache_dir=cohort_dir / "cache").volumes[1]
    with torch.no_grad():
        mu, _ = vae.model.encode(torch.from_numpy(np.flip(scan, 0).copy())[None, None])
    np.testing.assert_allclose(mirrored.mu, mu[0].numpy(), atol=1e-4)
    assert abs(mirrored.mu - plain.mu).mean() > 0.01
