"""The counterfactual command: files that other commands read, null interventions, resume, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from cohort.tables import read_table
from diffusion.intervention import measures
from runtime.checkpoints import load_checkpoint
from runtime.files import read_json, write_json
from tests.support.checkpoints import LATENT
from tests.support.processes import run_here
from tests.support.scans import GRID, brains

PLANTED = (slice(3, 5), slice(4, 7), slice(3, 6))
"""Latent positions where the means of the two classes differ."""


@pytest.fixture(scope="module")
def table(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans of three controls and three patients of both sides."""
    frame = pd.read_csv(cohort_dir / "test.csv").head(6)
    frame["file"] = [str(cohort_dir / name) for name in frame["file"]]
    frame["diagnosis"] = ["HC", "TLE-L", "HC", "TLE-R", "HC", "TLE-L"]
    path = tmp_path_factory.mktemp("table") / "test.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def linear(random_diffusion: Callable[..., Path]) -> Path:
    """A checkpoint whose network is the denoiser of a white Gaussian: a TLE differs from HC at PLANTED alone."""
    path = random_diffusion(sides=True)
    record = load_checkpoint(path, "diffusion")
    size = int(np.prod(LATENT))
    means = torch.zeros(5, *LATENT)  # HC, TLE, null, L, R
    means[[1, 3, 4], 0, *PLANTED] = 1.0
    start = {
        "start.axes": torch.eye(1, size), "start.variances": torch.ones(1),
        "start.spectrum": torch.ones(LATENT), "start.means": means.flatten(1),
    }  # fmt: skip
    record["model_config"]["linear_rank"] = 1
    for weights in (record["weights"], record["ema"]["0.05"]):
        weights |= start
        for name in ("out.weight", "out.bias"):
            weights[name] = torch.zeros_like(weights[name])
    torch.save(record, path)
    return path


def run(vae: Path, checkpoint: Path, table: Path, out: Path, *words: object, ok: bool = True):
    return run_here(
        "diffusion.counterfactual", "--vae", vae, "--checkpoint", checkpoint, "--csv", table, "--out", out,
        "--steps", 4, "--threads", 1, "--cache-dir", table.parent / "cache", "--allow-leak", *words, ok=ok,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(random_vae: Path, linear: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("counterfactuals")
    return out, run(random_vae, linear, table, out, "--to", "TLE-L").stdout


def image(path: Path) -> np.ndarray:
    return nib.load(path).get_fdata(dtype=np.float32)


def test_the_manifest_is_a_table_of_scans_with_the_label_asked_for(made: tuple[Path, str]) -> None:
    out, _ = made
    frame = read_table(out / "manifest.csv")
    assert frame["diagnosis"].tolist() == ["TLE-L"] * 6
    assert frame["own"].tolist() == ["HC", "TLE-L", "HC", "TLE-R", "HC", "TLE-L"]
    for row in frame.itertuples():
        difference = image(row.file) - image(out / row.reconstruction)
        np.testing.assert_array_equal(difference, image(out / row.difference))
        np.testing.assert_allclose(nib.load(row.file).affine, GRID.affine)
        assert (out / f"{row.subject}.png").stat().st_size > 10_000


def test_what_has_the_label_stays_and_others_change_where_the_classes_differ(made: tuple[Path, str]) -> None:
    """The random VAE's decoder is local: positions of the latent are voxels of their place, and two beside."""
    out, _ = made
    frame = read_table(out / "manifest.csv")
    near = np.zeros(GRID.shape, bool)
    near[tuple(slice(2 * part.start - 4, 2 * part.stop + 4) for part in PLANTED)] = True
    for row in frame.itertuples():
        change = np.abs(image(out / row.difference))
        if row.own == "TLE-L":
            assert change.max() < 1e-4
        elif row.own == "HC":
            assert change[near].max() > 0.01
            assert change[near].sum() > 20 * change[~near].sum()
    assert frame["round_trip"].astype(float).max() < 1e-4


def test_measures_say_how_exact_and_how_local(made: tuple[Path, str]) -> None:
    out, said = made
    found = read_json(out / "measures.json")
    assert found["errors"]["composition"]["over_vae"] == pytest.approx(1, abs=1e-3)
    assert found["errors"]["reversibility"]["over_vae"] == pytest.approx(1, abs=1e-3)
    assert found["errors"]["reversibility"]["met"]
    assert {(row["from"], row["to"]) for row in found["effectiveness"]} == {("HC", "TLE-L")}  # one TLE-R is no group
    assert found["scans"] == {"HC": 3, "TLE-L": 2, "TLE-R": 1}
    assert "reversibility_volume" in said
    assert "goal: at most 0.2" in said


def test_the_same_command_makes_what_is_missing_only(
    made: tuple[Path, str], random_vae: Path, linear: Path, table: Path
) -> None:
    out, _ = made
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    first, second = sorted(out.glob("test*.json"))[:2]
    content = image(out / f"{first.stem}_counterfactual.nii.gz")
    first.unlink()
    write_json(second, read_json(second) | {"sha256": "of another scan"})
    run(random_vae, linear, table, out, "--to", "TLE-L")
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {name for name in before if name.startswith((first.stem, second.stem))}
    np.testing.assert_array_equal(image(out / f"{first.stem}_counterfactual.nii.gz"), content)
    failed = run(random_vae, linear, table, out, "--to", "HC", ok=False)
    assert "counterfactuals of another request" in failed.stderr
    assert "to" in failed.stderr


def test_refusals_name_the_cause(
    random_vae: Path, linear: Path, random_diffusion: Callable[..., Path], table: Path, tmp_path: Path
) -> None:
    def refused(checkpoint: Path, csv: Path, *words: object) -> str:
        return run(random_vae, checkpoint, csv, tmp_path / "out", *words, ok=False).stderr

    frame = pd.read_csv(table)
    sideless, unknown = tmp_path / "sideless.csv", tmp_path / "unknown.csv"
    frame.assign(diagnosis=["HC", "TLE"] * 3).to_csv(sideless, index=False)
    frame.assign(diagnosis=["HC", "TLE-L", "HC", "maybe", "HC", "HC"]).to_csv(unknown, index=False)
    assert "these patients have none; write TLE-L or TLE-R" in refused(linear, sideless, "--to", "TLE-R")
    assert "unknown diagnosis 'maybe'" in refused(linear, unknown, "--to", "HC")
    plain = random_diffusion()
    assert "was trained without sides; ask for --to TLE" in refused(plain, table, "--to", "TLE-L")
    assert "knows sides; ask for --to TLE-L or TLE-R" in refused(linear, table, "--to", "TLE")
    undropped = random_diffusion(label_dropout=0.0, sides=True)
    assert "it has no null class" in refused(undropped, table, "--to", "HC", "--guidance", 2)
    assert "no Left Thing" in refused(linear, table, "--to", "HC", "--regions", "Left Thing")
    assert "no scan is TLE" in refused(linear, table, "--to", "HC", "--own", "TLE")
    record = load_checkpoint(plain, "diffusion")
    record["model_config"]["classes"] = 1
    for weights in (record["weights"], record["ema"]["0.05"]):
        weights["label.weight"] = weights["label.weight"][:2]
    classless = tmp_path / "classless.pt"
    torch.save(record, classless)
    assert "trained on 1 class" in refused(classless, table, "--to", "HC")


def test_a_network_without_sides_knows_patients_as_such(
    random_vae: Path, random_diffusion: Callable[..., Path], table: Path, tmp_path: Path
) -> None:
    """Patients of a named side are TLE to it, and stay as they are; controls change."""
    run(random_vae, random_diffusion(), table, tmp_path, "--to", "TLE")
    manifest = pd.read_csv(tmp_path / "manifest.csv")
    assert set(manifest["own"]) == {"HC", "TLE"}
    found = read_json(tmp_path / "measures.json")
    assert found["scans"] == {"HC": 3, "TLE": 3}
    assert found["effectiveness"]


def test_an_inversion_that_does_not_converge_ends_the_command(
    random_vae: Path, linear: Path, table: Path, tmp_path: Path
) -> None:
    """People who differ by a thousand deviations along one axis, in two steps."""
    record, size = load_checkpoint(linear, "diffusion"), int(np.prod(LATENT))
    for weights in (record["weights"], record["ema"]["0.05"]):
        weights["start.axes"] = torch.ones(1, size) / size**0.5
        weights["start.variances"] = torch.tensor([1e6])
        weights["out.weight"] = 0.3 * torch.randn(
            weights["out.weight"].shape, generator=torch.Generator().manual_seed(0)
        )
    torch.save(record, tmp_path / "wide.pt")
    words = ("--to", "TLE-L", "--steps", 2)
    failed = run(random_vae, tmp_path / "wide.pt", table, tmp_path / "out", *words, ok=False)
    assert "the inversion did not converge" in failed.stderr
    assert not (tmp_path / "out/manifest.csv").exists()


def test_minimality_counts_what_changes_outside_of_the_regions() -> None:
    inside = measures.dilated_mask("Left Hippocampus", GRID)
    head = np.ones(GRID.shape, bool)
    change = np.where(inside, -0.5, 0.05)
    found = measures.minimality([change, change], [head, head], ["Left Hippocampus"], GRID)
    each = found["regions"]["each_scan"]
    assert each["inside"] == pytest.approx(0.5)
    assert each["outside_over_inside"] == pytest.approx(0.1)
    assert found["met"]
    opposite = measures.minimality([change, -change], [head, head], ["Left Hippocampus"], GRID)["regions"]
    assert opposite["each_scan"]["inside"] == pytest.approx(0.5)
    assert opposite["mean_change"]["inside"] == 0


def test_scans_that_become_the_other_group_move_by_the_cohorts_own_effect() -> None:
    volumes = list(brains(0, 10, GRID.shape))
    diagnoses = ["HC"] * 5 + ["TLE-R"] * 5
    table = pd.DataFrame({"own": "HC", "diagnosis": "TLE-R"}, index=range(5))
    found = measures.effectiveness(table, volumes[:5], volumes[5:], (volumes, diagnoses), GRID)
    assert [row["region"] for row in found] == ["Left Hippocampus", "Right Hippocampus"]
    for row in found:
        assert row["moved_d"] == pytest.approx(row["cohort_d"], rel=1e-6)
        assert abs(row["moved_d"]) > 0.01
