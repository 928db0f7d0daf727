import itertools

import numpy as np
import pytest
import torch
from torch import nn

from classifier.saliency.attribution import Context, attribute
from classifier.validation.faithfulness import (
    area,
    deletion_curve,
    faithfulness,
    insertion_curve,
    random_orders,
    region_codes,
)
from runtime.errors import InputError

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


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_curves_of_a_linear_model_are_known(batch):
    model, x, context = setting()
    order = (6, 2, 9, 5)
    deletion = deletion_curve(model, x, context.mean_hc, context.regions, order, batch)
    insertion = insertion_curve(model, x, context.mean_hc, context.regions, order, batch)
    assert deletion.shape == (5,)
    np.testing.assert_allclose(deletion, expected(x, context.mean_hc, order), atol=1e-5)
    np.testing.assert_allclose(insertion, expected(context.mean_hc, x, order), atol=1e-5)
    assert deletion[0] == pytest.approx(float(model(x)), abs=1e-5)
    assert insertion[0] == pytest.approx(float(model(context.mean_hc)), abs=1e-5)


def test_the_order_of_complete_relevance_is_the_best_of_all_orders():
    model, x, context = setting()
    found = faithfulness(model, x, attribute(model, x, "integrated_gradients_hc", context), context, 30, seed=0)
    every = [area(expected(x, context.mean_hc, order)) for order in itertools.permutations(EFFECTS)]
    assert found["deletion"] == pytest.approx(min(every), abs=1e-5)
    assert found["insertion"] == pytest.approx(
        max(area(expected(context.mean_hc, x, order)) for order in itertools.permutations(EFFECTS)), abs=1e-5
    )
    assert found["deletion_gain"] > 0.2
    assert found["insertion_gain"] > 0.2
    assert 1 / 31 <= found["deletion_p"] < 0.25  # one order in 24 is as good
    assert len(found["deletion_random"]) == len(found["insertion_random"]) == 30
    assert min(found["deletion_random"]) >= found["deletion"] - 1e-6


def test_a_map_turned_round_is_the_worst():
    model, x, context = setting()
    found = faithfulness(model, x, -attribute(model, x, "integrated_gradients_hc", context), context, 30, seed=0)
    assert found["deletion_p"] > 0.9
    assert found["insertion_gain"] < -0.2


def test_random_orders_are_made_once_for_all_maps_of_a_volume():
    model, x, context = setting()
    map_ = attribute(model, x, "saliency", context)
    reference = random_orders(model, x, context, 6, seed=3)
    assert faithfulness(model, x, map_, context, 6, 3, reference) == faithfulness(model, x, map_, context, 6, seed=3)
    assert faithfulness(model, x, map_, context, 6, seed=4) != faithfulness(model, x, map_, context, 6, seed=3)


def test_edges_fade_outside_the_region():
    class Voxel(nn.Module):
        def forward(self, x):
            return x[:, 0, 6, 3, 5]  # one voxel beyond the cube of region 2, which ends at 5

    _, x, context = setting()
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    curve = deletion_curve(Voxel(), one, zero, context.regions, (2,), 8)
    np.testing.assert_allclose(curve, [1, 1 - np.exp(-0.5)], atol=1e-6)


def test_regions_that_are_not_there_are_named():
    model, x, context = setting()
    assert region_codes(context.regions).tolist() == list(EFFECTS)
    with pytest.raises(InputError, match="no voxel has the label 7, 40"):
        deletion_curve(model, x, context.mean_hc, context.regions, (2, 7, 40), 8)
    with pytest.raises(InputError, match="twice"):
        insertion_curve(model, x, context.mean_hc, context.regions, (2, 2), 8)
