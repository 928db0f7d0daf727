import numpy as np
import pytest
import torch

from classifier.config import PRESETS
from classifier.model import build_model
from classifier.validation.weight_randomisation import forgotten, rank_correlation

SHAPE = (20, 24, 20)


def test_a_network_that_forgot_has_random_weights_of_the_same_sizes():
    model = build_model(PRESETS["smoke"].model, SHAPE, 0.0, 1.0)
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
