"""A 3D convolution that takes oneDNN's kernels for one small volume, too.

On a CPU PyTorch chooses them in float32 by a rule that was made for images: a single case whose channels, depth and
height multiply to 20,480 or less, whatever its width, goes to code that is six times slower (32 channels at 20x24x20).
"""

import torch
from torch import nn
from torch._guards import detect_fake_mode


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` to rounding, with the same weights under the same names."""

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if not (self.padding_mode == "zeros" and _is_passed_over(x, weight) and not isinstance(self.padding, str)):
            return super()._conv_forward(x, weight, bias)
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        return torch.ops.aten.mkldnn_convolution(x, weight, bias, *geometry)


def _is_passed_over(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether x (B, C, D, H, W) is one case in float32 on a CPU that has oneDNN, and stays in float32."""
    if torch.compiler.is_compiling() or detect_fake_mode((x, weight)) is not None:  # the second foresees memory
        return False
    return (
        x.device.type == "cpu" and len(x) == 1 and x.dtype == torch.float32 and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu")
    )  # fmt: skip
