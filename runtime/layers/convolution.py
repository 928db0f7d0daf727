"""3D convolutions where PyTorch's are slow on a CPU: of one small volume, and with one or two channels of output.

In float32 PyTorch chooses oneDNN's kernels by a rule that was made for images: a single case whose channels, depth and
height multiply to 20,480 or less, whatever its width, goes to code that is six times slower (32 channels at 20x24x20).
And kernels compute 16 channels of output at once, of which one of voxels uses one.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn
from torch._guards import detect_fake_mode


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` to rounding, with the same weights under the same names."""

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if not (self.padding_mode == "zeros" and _is_passed_over(x, weight) and not isinstance(self.padding, str)):
            return super()._conv_forward(x, weight, bias)
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        return torch.ops.aten.mkldnn_convolution(x, weight, bias, *geometry)


class FewOutputs(Conv3d):
    """A 3x3x3 `Conv3d` with zeros around, for few channels of output."""

    MOST = 2
    """Outputs up to which products of each voxel with all taps, and their sum at the right places, are faster."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.out_channels > self.MOST or torch.is_grad_enabled() or not _is_plain(x, self.weight):
            return super().forward(x)
        return sum_of_taps(x, self.weight, self.bias)


def sum_of_taps(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, most: int = 2**21) -> torch.Tensor:
    """A 3x3x3 convolution of x (B, C, D, H, W) with zeros around, by one matrix product: (B, O, D, H, W).

    Each voxel is multiplied with all 27 taps; what it gives to each of its neighbours is then added there. In slabs of
    up to `most` products, which stay in the cache.
    """
    (B, C, D, H, W), O = x.shape, len(weight)  # noqa: E741
    taps = weight.permute(2, 3, 4, 0, 1).reshape(27 * O, C)
    total = x.new_zeros(B, O, D + 2, H + 2, W + 2)
    thickness = max(1, most // (27 * O * H * W))
    for case, first in itertools.product(range(B), range(0, D, thickness)):
        slab = x[case, :, first : first + thickness].permute(1, 2, 3, 0)  # in channels_last_3d a view
        depth = len(slab)
        given = (taps @ slab.reshape(-1, C).T).view(3, 3, 3, O, depth, H, W)
        for p, q, r in itertools.product(range(3), repeat=3):
            at = first + 2 - p
            total[case, :, at : at + depth, 2 - q : 2 - q + H, 2 - r : 2 - r + W] += given[p, q, r]
    return F.pad(total, (-1,) * 6) + bias.view(-1, 1, 1, 1)


def _is_plain(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether x is in float32 on a CPU, and stays so; nothing that is compiled or only imitated."""
    if torch.compiler.is_compiling() or detect_fake_mode((x, weight)) is not None:  # the second foresees memory
        return False
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def _is_passed_over(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether x is one such case on a CPU that has oneDNN."""
    if not _is_plain(x, weight):  # first: a compiler can follow that, and nothing of the other questions
        return False
    return len(x) == 1 and torch.backends.mkldnn.enabled and torch.backends.mkldnn.is_available()
