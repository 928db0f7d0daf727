import dataclasses

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from classifier import attribution, train
from classifier.config import ModelConfig
from classifier.generate_saliency_maps import SaliencyConfig, main
from classifier.model import ResNet3D
from classifier.regions import rank_regions, region_means
from cohort.atlas import Atlas, atlas
from cohort.scans import GRIDS
from runtime.errors import InputError
from runtime.files import read_json

GRID = GRIDS["smoke"]
METHODS = tuple(attribution.METHODS)


class Planted(torch.nn.Module):
    """A logit that depends on one region alone: the squared mean of its intensities, times 10."""

    def __init__(self, mask: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("mask", torch.from_numpy(mask.astype(np.float32)))

    def forward(self, x):
        return 10 * ((x[:, 0] * self.mask).sum((1, 2, 3)) / self.mask.sum()) ** 2


def context(**changes) -> attribution.Context:
    regions = torch.from_numpy(atlas(GRID).labels.astype(np.int64))[None, None]
    mean = 0.2 * torch.rand(1, 1, *GRID.shape, generator=torch.Generator().manual_seed(1))
    return attribution.Context(mean_hc=mean, regions=regions, **changes)


def volume() -> torch.Tensor:
    return 0.3 + 0.7 * torch.rand(1, 1, *GRID.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", METHODS)
def test_planted_region_is_ranked_first(method):
    labels = atlas(GRID)
    code = labels.codes["Left Hippocampus"]
    map_ = attribution.attribute(Planted(labels.labels == code), volume(), method, context())
    assert map_.shape == GRID.shape
    assert map_.dtype == np.float32
    means = region_means(np.abs(map_), labels)
    assert list(labels.names)[int(np.nanargmax(means))] == code
    assert map_[labels.labels == code].mean() > 0


@pytest.mark.parametrize("method", attribution.COMPLETE)
def test_integrated_gradients_are_complete(method):
    """Axiom of completeness: the map sums to f(x) - f(baseline)."""
    torch.manual_seed(0)
    model = ResNet3D(ModelConfig(widths=(8, 16), blocks=1, stem_stride=2), 0.4, 0.2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, setting = volume(), context(ig_steps=64)
    map_ = attribution.attribute(model, x, method, setting)
    with torch.no_grad():
        baseline = torch.zeros_like(x) if method == "integrated_gradients" else setting.mean_hc
        gap = float(model(x) - model(baseline))
    assert abs(gap) > 0.01
    assert map_.sum(dtype=np.float64) == pytest.approx(gap, abs=0.02 * abs(gap))
    assert attribution.completeness_error(model, x, method, setting, map_) == pytest.approx(
        map_.sum(dtype=np.float64) - gap, abs=1e-5
    )


def test_occlusion_is_the_fall_of_the_logit():
    labels = atlas(GRID)
    code = labels.codes["Left Hippocampus"]
    model, x, setting = Planted(labels.labels == code), volume(), context()
    replaced = torch.where(setting.regions == code, setting.mean_hc, x)
    map_ = attribution.attribute(model, x, "occlusion", setting)
    assert map_.sum() == pytest.approx(float(model(x) - model(replaced)), rel=1e-4)
    assert (map_[labels.labels != code] == 0).all()


def test_smoothgrad_is_addressed_by_seed_and_index():
    model = Planted(atlas(GRID).labels > 0)
    maps = [attribution.attribute(model, volume(), "smoothgrad", context(), index) for index in (0, 0, 1)]
    assert np.array_equal(maps[0], maps[1])
    assert not np.array_equal(maps[0], maps[2])


def test_unknown_methods_are_listed_with_the_known_ones():
    with pytest.raises(InputError, match=r"unknown: magic, gradcam; there are: integrated_gradients, .*occlusion"):
        attribution.check_methods(("saliency", "magic", "gradcam"))
    with pytest.raises(InputError, match="none given"):
        attribution.check_methods(())


def test_ranking_has_intervals_and_the_difference_of_the_classes():
    labels3d = np.zeros((4, 4, 4), np.int16)
    labels3d[0], labels3d[1, 0] = 3, 7
    small = Atlas(labels3d, {3: "big", 7: "small", 9: "absent"})
    np.testing.assert_allclose(region_means((labels3d == 3) * 2.0, small), [2, 0, np.nan])
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    magnitudes = np.stack([np.full(40, 1.0), 2 + labels + rng.normal(size=40) * 0.1, np.full(40, np.nan)], axis=1)
    table = rank_regions(magnitudes, labels, np.arange(40), small, rng, resamples=300)
    assert table["region"].tolist() == ["small", "big"]
    assert table["voxels"].tolist() == [4, 16]
    first = table.iloc[0]
    assert first["low"] < first["mean_abs"] < first["high"]
    assert first["TLE_minus_HC"] == pytest.approx(1.0, abs=0.1)
    assert first["difference_low"] > 0.8
    assert table.iloc[1]["TLE_minus_HC"] == pytest.approx(0.0, abs=1e-12)


def test_script_writes_maps_pictures_and_ranking(config, tmp_path):
    train.main(dataclasses.replace(config, steps=4, warmup_steps=1))
    out = tmp_path / "maps"
    saliency = SaliencyConfig(
        checkpoint=config.run_dir / "checkpoints" / "best.pt", csv=config.test_csv, methods=METHODS, out=out, limit=4,
        pictures=1, ig_steps=8, noise_samples=2, resamples=20, threads=1, cache_dir=config.cache_dir,
    )  # fmt: skip
    main(saliency)
    for method in METHODS:
        maps = sorted(path.name for path in (out / method).glob("*.nii.gz"))
        assert maps == ["mean_HC.nii.gz", "mean_TLE.nii.gz", "mean_TLE_minus_HC.nii.gz"] + [
            f"test{number:02d}.nii.gz" for number in range(4)
        ]
        assert (out / method / "test00.png").stat().st_size > 3000
        assert not (out / method / "test01.png").exists()
    image = nib.load(out / METHODS[0] / "test00.nii.gz")
    np.testing.assert_allclose(image.affine, GRID.affine)
    mean = np.mean([nib.load(out / METHODS[0] / f"test{k:02d}.nii.gz").get_fdata() for k in (0, 2)], axis=0)
    np.testing.assert_allclose(nib.load(out / METHODS[0] / "mean_HC.nii.gz").get_fdata(), mean, atol=1e-7)
    table = pd.read_csv(out / "region_ranking.csv")
    assert set(table["method"]) == set(METHODS)
    assert (table.groupby("method")["mean_abs"].apply(lambda part: part.is_monotonic_decreasing)).all()
    written = read_json(out / "maps.json")
    assert written["volumes"] == {"HC": 2, "TLE": 2}
    assert written["leak"] is False
    with pytest.raises(InputError, match="train00"):
        main(dataclasses.replace(saliency, csv=config.train_csv))
    synthetic = {"csv": None, "volumes": config.synth_tle, "out": tmp_path / "synthetic", "methods": ("saliency",)}
    main(dataclasses.replace(saliency, **synthetic))
    assert read_json(tmp_path / "synthetic" / "maps.json")["volumes"] == {"HC": 0, "TLE": 4}
