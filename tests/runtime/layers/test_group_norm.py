"""The fast group normalisation against PyTorch's."""

import pytest
import torch
from torch import nn

from runtime.layers.group_norm import GroupNorm


def both(x: torch.Tensor, groups: int) -> list[list[torch.Tensor]]:
    """Output, gradient of the input, of weight and of bias: by this project's norm, and by PyTorch's in float64."""
    draw, found = torch.Generator().manual_seed(1), []
    weight, bias, upstream = (torch.randn(shape, generator=draw) for shape in (x.shape[1], x.shape[1], x.shape))
    for norm, own in ((GroupNorm(groups, x.shape[1]), x), (nn.GroupNorm(groups, x.shape[1]).double(), x.double())):
        with torch.no_grad():
            norm.weight.copy_(weight)
            norm.bias.copy_(bias)
        own = own.detach().requires_grad_()
        y = norm(own)
        y.backward(upstream.to(y).to(memory_format=torch.channels_last_3d))
        found.append([y.detach(), own.grad, norm.weight.grad, norm.bias.grad])
    return found


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("groups", [1, 4, 12])
def test_gradients_are_those_of_pytorch(groups: int, precision: torch.dtype, tolerance: float) -> None:
    x = 3 + 2 * torch.randn((2, 12, 5, 7, 6), generator=torch.Generator().manual_seed(0))
    own, wanted = both(x.to(precision, memory_format=torch.channels_last_3d), groups)
    for value, reference in zip(own, wanted, strict=True):
        assert (value - reference).norm() <= tolerance * reference.norm()
    assert own[0].dtype == own[1].dtype == precision
    assert all(part.is_contiguous(memory_format=torch.channels_last_3d) for part in own[:2])  # nothing is reordered


def test_the_backward_pass_does_not_walk_by_channels() -> None:
    """PyTorch's own takes place for channels_last_3d nowhere, and everywhere else."""
    for layout, own in ((torch.channels_last_3d, False), (torch.contiguous_format, True)):
        x = torch.randn(1, 4, 3, 4, 5).to(memory_format=layout).requires_grad_()
        assert (GroupNorm(2, 4)(x).grad_fn.name() == "NativeGroupNormBackward0") is own
