"""Convolutions that are faster on a CPU, against PyTorch's."""

import pytest
import torch
from torch import nn

from runtime.layers.convolution import Conv3d, FewOutputs, sum_of_taps


@pytest.mark.parametrize("cases", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_output_and_gradients_are_those_of_pytorch(stride: int, cases: int) -> None:
    draw, found = torch.Generator().manual_seed(0), []
    x = torch.randn((cases, 6, 8, 7, 9), generator=draw).to(memory_format=torch.channels_last_3d)
    own, reference = Conv3d(6, 4, 3, stride=stride, padding=1), nn.Conv3d(6, 4, 3, stride=stride, padding=1)
    reference.load_state_dict(own.state_dict())
    for layer in (own, reference):
        volume = x.clone().requires_grad_()
        y = layer(volume)
        y.square().sum().backward()
        found.append([y, volume.grad, layer.weight.grad, layer.bias.grad])
    for value, wanted in zip(*found, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-4)
    assert found[0][0].is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch is built without oneDNN")
def test_one_small_volume_is_convolved_by_onednn_and_nothing_else_is_touched() -> None:
    layer, x = Conv3d(4, 4, 3, padding=1), torch.randn(1, 4, 6, 6, 6)
    assert layer(x).grad_fn.name() == "MkldnnConvolutionBackward0"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer(torch.randn(2, 4, 6, 6, 6)).grad_fn.name() == "ConvolutionBackward0"


@pytest.mark.parametrize("most", [1, 3000, 2**21])
@pytest.mark.parametrize("outputs", [1, 2])
@torch.no_grad()
def test_the_sum_of_taps_is_a_convolution(outputs: int, most: int) -> None:
    """In slabs of one plane, of several with a thinner last one, and of all."""
    layer = nn.Conv3d(5, outputs, 3, padding=1)
    x = torch.randn((2, 5, 7, 6, 4), generator=torch.Generator().manual_seed(0))
    for volume in (x, x.to(memory_format=torch.channels_last_3d)):
        found = sum_of_taps(volume, layer.weight, layer.bias, most)
        torch.testing.assert_close(found, layer(volume), rtol=1e-5, atol=1e-5)


def test_few_outputs_take_it_without_gradients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, x = [], torch.randn(1, 3, 6, 6, 6)
    monkeypatch.setattr("runtime.layers.convolution.sum_of_taps", lambda *given: taken.append(1) or sum_of_taps(*given))
    few, many = FewOutputs(3, 2), FewOutputs(3, 3)
    few(x).sum().backward()
    with torch.no_grad():
        many(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            few(x)
        assert not taken
        few(x)
    assert taken == [1]
