import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from classifier.config import ModelConfig
from classifier.model import build_model
from classifier.saliency import attribution
from classifier.saliency.regions import region_means
from cohort.atlas import atlas
from cohort.grids import GRIDS
from runtime.errors import InputError

GRID = GRIDS["smoke"]
ACTIVATIONS = ("grad_cam", "attention")
"""Methods that need a network's own activations."""
ON_VOXELS = tuple(name for name in attribution.METHODS if name not in ACTIVATIONS)


class Planted(nn.Module):
    """A logit that depends on one region alone: the squared mean of its intensities, times 10."""

    def __init__(self, mask: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("mask", torch.from_numpy(mask.astype(np.float32)))

    def forward(self, x):
        return 10 * ((x[:, 0] * self.mask).sum((1, 2, 3)) / self.mask.sum()) ** 2


class Cubic(nn.Module):
    """f(x) = sum of w x^3 / 3, whose gradient is w x^2: closed forms for every gradient method."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(shape, generator=torch.Generator().manual_seed(5)))

    def forward(self, x):
        return (self.w * x[:, 0] ** 3).sum((1, 2, 3)) / 3


def network(pool: str = "attention") -> nn.Module:
    """A small ResNet, no weight of which is at its (partly zero) start."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(widths=(8, 16), blocks=1, stem_stride=2, pool=pool), GRID, 0.4, 0.2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def context(shape=GRID.shape, **changes) -> attribution.Context:
    labels = atlas(GRID).labels if shape == GRID.shape else np.ones(shape)
    mean = 0.2 * torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(1))
    return attribution.Context(mean, torch.from_numpy(labels.astype(np.int64))[None, None], **changes)


def volumes(count: int = 1, shape=GRID.shape) -> torch.Tensor:
    return 0.3 + 0.7 * torch.rand(count, 1, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ON_VOXELS)
def test_planted_region_is_ranked_first(method):
    labels = atlas(GRID)
    code = labels.codes["Left Hippocampus"]
    map_ = attribution.attribute(Planted(labels.labels == code), volumes(), method, context())[0]
    assert map_.shape == GRID.shape
    assert map_.dtype == np.float32
    means = region_means(np.abs(map_), labels)
    assert list(labels.names)[int(np.nanargmax(means))] == code
    assert map_[labels.labels == code].mean() > 0


@pytest.mark.parametrize("method", attribution.COMPLETE)
@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_complete_maps_sum_to_the_difference_of_logits(method, pool):
    model, x, setting = network(pool), volumes(2), context(ig_steps=32)
    maps = attribution.attribute(model, x, method, setting, (0, 1))
    baseline = setting.mean_hc if method == "integrated_gradients_hc" else torch.zeros_like(setting.mean_hc)
    with torch.no_grad():
        gaps = (model(x) - model(baseline)).numpy()
    assert (np.abs(gaps) > 0.01).all()
    sums = maps.sum((1, 2, 3), dtype=np.float64)
    np.testing.assert_allclose(sums, gaps, rtol=0.02)
    errors = attribution.completeness_errors(model, x, method, setting, maps)
    np.testing.assert_allclose(errors, sums - gaps, atol=1e-5)


@pytest.mark.parametrize("method", attribution.METHODS)
def test_a_batch_gives_what_each_volume_gives_alone(method):
    model, x, indices = network(), volumes(3), (4, 9, 2)
    setting = context(batch=7, ig_steps=6, noise_samples=3)
    setting = dataclasses.replace(setting, regions=setting.regions % 8)  # few regions, for speed
    together = attribution.attribute(model, x, method, setting, indices)
    alone = [attribution.attribute(model, x[[row]], method, setting, indices[row : row + 1])[0] for row in range(3)]
    scale = np.abs(alone).max()
    np.testing.assert_allclose(together, alone, atol=1e-4 * scale)
    assert np.abs(together[0] - together[1]).max() > 0.01 * scale


def test_gradients_have_their_closed_forms():
    shape = (4, 5, 3)
    model, x, setting = Cubic(shape), volumes(1, shape), context(shape, noise_samples=4000, batch=500)
    w, v, mean = model.w.numpy(), x[0, 0].numpy(), setting.mean_hc[0, 0].numpy()

    def made(method):
        return attribution.attribute(model, x, method, setting)[0]

    np.testing.assert_allclose(made("saliency"), w * v**2, rtol=1e-5)
    np.testing.assert_allclose(made("input_x_gradient"), w * v**3, rtol=1e-5)
    np.testing.assert_allclose(made("integrated_gradients"), w * v**3 / 3, rtol=1e-5)
    np.testing.assert_allclose(made("integrated_gradients_hc"), w * (v**3 - mean**3) / 3, rtol=1e-3, atol=1e-5)
    # SmoothGrad: E (v + noise)^2 = v^2 + sigma^2; the mean of 4000 has a standard error of 2 v sigma / 63
    np.testing.assert_allclose(made("smoothgrad"), w * (v**2 + 0.1**2), atol=5 * np.abs(w).max() * 2 * 0.1 / 63)


def test_smoothgrad_without_noise_is_the_gradient():
    model, x, setting = network(), volumes(), context(noise=0.0, noise_samples=2)
    np.testing.assert_allclose(
        attribution.attribute(model, x, "smoothgrad", setting), attribution.attribute(model, x, "saliency", setting),
        atol=1e-7,
    )  # fmt: skip


def test_occlusion_is_the_fall_of_the_logit():
    labels = atlas(GRID)
    code = labels.codes["Left Hippocampus"]
    model, x, setting = Planted(labels.labels == code), volumes(), context()
    replaced = torch.where(setting.regions == code, setting.mean_hc, x)
    map_ = attribution.attribute(model, x, "occlusion", setting)[0]
    assert map_.sum() == pytest.approx(float(model(x) - model(replaced)), rel=1e-4)
    assert (map_[labels.labels != code] == 0).all()


def test_grad_cam_with_averaging_is_class_activation_mapping():
    """Its coarse map is the head's weights on the features, which sum to the logit (Zhou et al. 2016)."""
    model, x = network("mean"), volumes()
    kept = {}
    handle = model.last_convolution.register_forward_hook(lambda module, inputs, output: kept.update(h=output))
    logit = model(x)
    handle.remove()
    h = kept["h"]
    coarse = torch.einsum("c,bcdhw->bdhw", model.head.weight[0], h) / h[0, 0].numel()
    assert float(coarse.sum() + model.head.bias) == pytest.approx(float(logit), abs=1e-5)
    fine = nn.functional.interpolate(coarse[:, None], size=GRID.shape, mode="trilinear")
    found = attribution.attribute(model, x, "grad_cam", context())[0]
    # captum averages gradients over places, CAM sums them: one factor
    ratio = found / fine[0, 0].numpy()
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-2)


def test_attention_is_where_the_features_come_from():
    model, x = network(), volumes()
    model.score[-1].weight.mul_(50)  # sharp: the peak of the upsampled map is then that of the coarse one
    map_ = attribution.attribute(model, x, "attention", context())[0]
    assert map_.sum() == pytest.approx(1, abs=1e-5)
    assert map_.min() >= 0
    weights = model.attention(x)[0]
    coarse = np.array(np.unravel_index(int(weights.argmax()), weights.shape))
    fine = np.array(np.unravel_index(int(map_.argmax()), GRID.shape))
    assert (np.abs((fine + 0.5) / GRID.shape - (coarse + 0.5) / weights.shape) < 1 / np.array(weights.shape)).all()
    with pytest.raises(InputError, match="has no attention head"):
        attribution.attribute(network("mean"), x, "attention", context())


def test_noise_is_addressed_by_seed_and_index():
    model, x = network(), volumes()
    settings = [context(noise_samples=2, seed=seed) for seed in (0, 1)]
    maps = [attribution.attribute(model, x, "smoothgrad", settings[0], (index,)) for index in (0, 0, 1)]
    maps.append(attribution.attribute(model, x, "smoothgrad", settings[1], (0,)))
    assert np.array_equal(maps[0], maps[1])
    for a, b in itertools.combinations(maps[1:], 2):
        assert not np.array_equal(a, b)


def test_settings_name_what_a_map_depends_on():
    assert attribution.settings_of("saliency", context()) == {}
    assert attribution.settings_of("integrated_gradients", context(ig_steps=5)) == {"ig_steps": 5}
    whole, half = context(), context()
    half.regions[..., :10] = 0
    assert attribution.settings_of("occlusion", whole) == attribution.settings_of("occlusion", context())
    assert attribution.settings_of("occlusion", whole) != attribution.settings_of("occlusion", half)


def test_unknown_methods_are_listed_with_the_known_ones():
    with pytest.raises(InputError, match=r"unknown: magic, gradcam; there are: smoothgrad, "):
        attribution.check_methods(("saliency", "magic", "gradcam"))
    with pytest.raises(InputError, match="none given"):
        attribution.check_methods(())


def test_volumes_of_another_shape_are_refused_with_both_shapes():
    with pytest.raises(InputError, match=r"\(1, 1, 40, 48, 40\) cannot be .* trained on \(B, 1, 20, 24, 20\)"):
        attribution.attribute(network(), volumes(1, GRIDS["demo"].shape), "saliency", context())
    with pytest.raises(InputError, match="cannot be explained"):
        attribution.attribute(network(), volumes()[0], "saliency", context())
