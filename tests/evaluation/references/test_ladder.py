"""What a generator has to beat: Gaussians with the latents' moments, and numbers that see no anatomy."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cohort.grids import GRIDS
from evaluation.fid import FeatureSet, compare
from evaluation.posteriors import Codec
from evaluation.references import ladder
from runtime.device import Device
from VAE.checkpoint import load_vae

CPU = Device(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("rank", [None, 3])
def test_gaussians_have_the_covariance_of_the_latents_or_of_its_first_axes(rank: int | None) -> None:
    draw = torch.Generator().manual_seed(0)
    centred = torch.randn(40, 12, generator=draw) * torch.arange(12.0, 0, -1)
    centred -= centred.mean(0)
    expected = centred.T @ centred / (40 - 2)  # two classes have a mean each
    if rank:
        values, axes = torch.linalg.eigh(expected)
        expected = axes[:, -rank:] @ values[-rank:].diag() @ axes[:, -rank:].T
    z = ladder.gaussian_weights(centred, 20_000, rank, draw) @ centred
    assert (z.T @ z / 20_000 - expected).norm() < 0.03 * expected.norm()


def test_every_rung_is_on_the_grid_with_its_class_mean(random_vae, tmp_path) -> None:
    codec, draw = Codec(load_vae(random_vae), CPU), np.random.default_rng(0)
    shape = GRIDS["smoke"].shape
    labels, posteriors = {}, {}
    for name, count in (("train", 8), ("test", 4)):
        labels[name] = np.arange(count) % 2
        volumes = draw.random((count, *shape), dtype=np.float32) * 0.1 + 0.5 * labels[name][:, None, None, None]
        posteriors[name] = codec.encode(volumes.astype(np.float32))
    made = ladder.build(labels, posteriors, codec, tmp_path, per_class=3, seed=0)
    assert set(made) == {"reconstructed", "gaussian_64", "gaussian"}
    assert len(made["reconstructed"][0]) == 4
    for name in ("gaussian", "gaussian_64"):
        volumes, codes = made[name]
        assert codes.tolist() == [0, 0, 0, 1, 1, 1]
        assert volumes.shape == (6, *shape)
    again = ladder.build(labels, posteriors, codec, tmp_path, per_class=3, seed=0)
    assert again["gaussian"][0].files == made["gaussian"][0].files  # named by their content


def test_surroundings_are_areas_under_the_curve() -> None:
    draw = np.random.default_rng(0)

    def volumes(count: int, air: float, dark: float) -> np.ndarray:
        values = dark + (1 - dark) * draw.random((count, 10, 10, 10))
        return np.where(draw.random(values.shape) < air, 0, values)

    real, hazy = volumes(30, 0.6, 0.1), volumes(20, 0.59, 0.12)
    found = ladder.surroundings({"test": real, "synthetic": hazy})
    labels = np.r_[np.zeros(30), np.ones(20)]
    zeros = [np.mean(volume == 0) for volume in (*real, *hazy)]
    dark = [np.percentile(volume[volume > 0], 5) for volume in (*real, *hazy)]
    assert found["synthetic"]["zeros"]["auc"] == pytest.approx(roc_auc_score(labels, zeros))
    assert found["synthetic"]["dark"]["auc"] == pytest.approx(roc_auc_score(labels, dark))
    assert found["test"]["zeros"]["mean"] == pytest.approx(np.mean(zeros[:30]))
    assert "auc" not in found["test"]["zeros"]
    (zeros, dark) = ladder.warnings_of(found)
    assert f"{found['synthetic']['zeros']['auc']:.2f}" in zeros
    assert f"{found['synthetic']['dark']['auc']:.2f}" in dark
    assert ladder.warnings_of(ladder.surroundings({"test": real, "synthetic": real})) == []


def test_baselines_are_drawn_like_synthetic_volumes_and_change_no_other_figure() -> None:
    draw = np.random.default_rng(0)

    def features(count: int, shift: float) -> FeatureSet:
        return FeatureSet.of(draw.normal(shift, 1, (count, 3, 6)), np.arange(count) % 2, ("a", "b", "c"))

    sets = {"train": features(24, 0), "test": features(24, 0), "synthetic": features(20, 1)}
    settings = {"dimensions": 4, "n": 6, "repeats": 5, "seed": 0}
    alone = compare(sets, **settings)
    beside = compare({**sets, "gaussian": sets["synthetic"], "gaussian_64": features(20, 3)}, **settings)
    for group, found in alone.items():
        for name, sample in found["held_out"].items():
            assert beside[group]["held_out"][name] == sample
    figures = beside["overall"]["held_out"]
    assert figures["gaussian_64"]["fid"]["mean"] > figures["gaussian"]["fid"]["mean"] > figures["floor"]["fid"]["mean"]
