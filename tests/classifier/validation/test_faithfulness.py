import itertools

import numpy as np
import pytest
import torch
from torch import nn

from classifier.config import PRESETS
from classifier.model import build_model
from classifier.saliency.attribution import Context, attribute
from classifier.validation.faithfulness import (
    areas,
    curve,
    fading,
    forgotten,
    random_areas,
    rank_correlation,
    relevance_order,
)
from tests.support.scans import grid_of

SHAPE = (20, 20, 12)
EFFECTS = {2: 3.0, 5: -1.0, 6: 0.5, 9: 0.1}
"""Logits per unit of mean intensity of each region."""


def regions() -> np.ndarray:
    """Four cubes, far enough from each other that their fading edges do not meet."""
    labels = np.zeros(SHAPE, np.int64)
    for code, corner in zip(EFFECTS, ((1, 1), (1, 12), (12, 1), (12, 12)), strict=True):
        labels[corner[0] : corner[0] + 5, corner[1] : corner[1] + 5, 3:8] = code
    return labels


class Linear(nn.Module):
    """The sum over regions of effect times mean intensity."""

    def __init__(self) -> None:
        super().__init__()
        labels = regions()
        weight = sum(effect * (labels == code) / (labels == code).sum() for code, effect in EFFECTS.items())
        self.register_buffer("weight", torch.from_numpy(np.asarray(weight, np.float32)))

    def forward(self, x):
        return (x[:, 0] * self.weight).sum((1, 2, 3))


def setting() -> tuple[nn.Module, torch.Tensor, Context]:
    x = torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    mean = 0.2 * torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(1))
    return Linear(), x, Context(mean, torch.from_numpy(regions())[None, None], batch=3, ig_steps=4)


def expected(x: torch.Tensor, mean: torch.Tensor, order) -> np.ndarray:
    """The logits of the linear model in closed form, regions in `order` going from x to the mean."""
    labels, here, there = regions(), x[0, 0].numpy(), mean[0, 0].numpy()
    parts = {code: effect * np.array([here[labels == code].mean(), there[labels == code].mean()])
             for code, effect in EFFECTS.items()}  # fmt: skip
    return np.array([sum(part[int(code in order[:k])] for code, part in parts.items()) for k in range(len(order) + 1)])


def area(logits: np.ndarray) -> float:
    return float((logits[1:] + logits[:-1]).mean() / 2)


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_curves_of_a_linear_model_are_known(batch):
    model, x, context = setting()
    faded = fading(regions())
    order, codes = (2, 0, 3, 1), (6, 2, 9, 5)
    assert faded.codes[list(order)].tolist() == list(codes)
    deletion = curve(model, x, context.mean_hc, faded, order, batch)
    insertion = curve(model, context.mean_hc, x, faded, order, batch)
    assert deletion.shape == (5,)
    np.testing.assert_allclose(deletion, expected(x, context.mean_hc, codes), atol=1e-5)
    np.testing.assert_allclose(insertion, expected(context.mean_hc, x, codes), atol=1e-5)
    assert deletion[0] == pytest.approx(float(model(x)), abs=1e-5)
    found = areas(model, x, context.mean_hc, faded, order, batch)
    np.testing.assert_allclose(found, [area(deletion), area(insertion)])


def test_the_order_of_complete_relevance_is_the_best_of_all_orders():
    model, x, context = setting()
    faded, mean = fading(regions()), context.mean_hc
    map_ = attribute(model, x, "integrated_gradients_hc", context)[0]
    deletion, insertion = areas(model, x, mean, faded, relevance_order(map_, faded), 3)
    orders = list(itertools.permutations(EFFECTS))
    assert deletion == pytest.approx(min(area(expected(x, mean, order)) for order in orders), abs=1e-5)
    assert insertion == pytest.approx(max(area(expected(mean, x, order)) for order in orders), abs=1e-5)
    random = random_areas(model, x, mean, faded, 3, draws=30, seed=0)
    assert random.shape == (30, 2)
    assert random[:, 0].min() >= deletion - 1e-6
    assert random[:, 0].mean() - deletion > 0.2
    assert insertion - random[:, 1].mean() > 0.2
    backwards = areas(model, x, mean, faded, relevance_order(-map_, faded), 3)
    assert backwards[0] >= random[:, 0].max() - 1e-6


def test_random_orders_are_those_of_the_seed():
    model, x, context = setting()
    first, again, other = (random_areas(model, x, context.mean_hc, fading(regions()), 3, 6, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_edges_fade_outside_the_region():
    class Voxel(nn.Module):
        def forward(self, x):
            return x[:, 0, 6, 3, 5]  # one voxel beyond the cube of region 2, which ends at 5

    _, x, _ = setting()
    found = curve(Voxel(), torch.ones_like(x), torch.zeros_like(x), fading(regions()), (0,), 8)
    np.testing.assert_allclose(found, [1, 1 - np.exp(-0.5)], atol=1e-6)


def test_a_network_that_forgot_has_random_weights_of_the_same_sizes():
    model = build_model(PRESETS["smoke"].model, grid_of(SHAPE), 0.0, 1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.3, 2.0)
    trained = {name: value.detach().clone() for name, value in model.named_parameters()}
    copy = forgotten(model, seed=0)
    assert not copy.training
    for name, value in copy.named_parameters():
        assert value.numel() == 1 or not torch.equal(value, trained[name])
        if value.numel() > 500:
            assert float(value.std() / trained[name].std()) == pytest.approx(1, abs=0.15)
            assert float(value.mean() - trained[name].mean()) == pytest.approx(0, abs=0.5)
    assert all(torch.equal(value, trained[name]) for name, value in model.named_parameters())
    again, other = forgotten(model, seed=0), forgotten(model, seed=1)
    assert torch.equal(again.head.weight, copy.head.weight)
    assert not torch.equal(other.head.weight, copy.head.weight)


def test_rank_correlation_is_of_magnitudes():
    rng = np.random.default_rng(0)
    brain = np.zeros(SHAPE, bool)
    brain[3:-3, 3:-3, 3:-3] = True
    a = rng.standard_normal(SHAPE)
    assert rank_correlation(a, -3 * a, brain) == pytest.approx(1)
    assert abs(rank_correlation(a, rng.standard_normal(SHAPE), brain)) < 0.1
    assert rank_correlation(a, np.zeros(SHAPE), brain) == 0
