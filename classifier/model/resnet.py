"""A dense 3D residual network for one question about a volume; one page, in the order the data flow.

Shapes: x (B, 1, D, H, W) in [0, 1], axes (left-right, back-front, foot-head); output (B,), the logit of TLE.

Pre-activation residual blocks (He et al. 2016, https://arxiv.org/abs/1603.05027, figure 4e), average-pooled shortcuts
where the resolution changes (He et al. 2019, https://arxiv.org/abs/1812.01187, figure 2c). Convolutions are dense:
depthwise ones cost about as much time as dense ones in 3D and their backward pass much more. Norms are GroupNorm, whose
result for a volume depends on that volume alone: batches here are small, runs resume exactly without running averages,
and an attribution method may put baselines and noisy copies in one batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from classifier.config import ModelConfig


class Block(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input (averaged and projected where size or width change)."""

    def __init__(self, in_width: int, width: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride = stride
        self.norm1 = nn.GroupNorm(groups, in_width)
        self.conv1 = nn.Conv3d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, width)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Conv3d(in_width, width, 1, bias=False) if in_width != width else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # each block starts as its shortcut, which makes the first steps safe

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, width, ceil(D / stride), ...)
        h = self.conv2(F.silu(self.norm2(h)))
        if self.stride > 1:
            x = F.avg_pool3d(x, self.stride, ceil_mode=True)
        return self.shortcut(x) + h


class ResNet3D(nn.Module):
    """The classifier: stem, levels of blocks, average over the volume, one linear layer.

    Args:
        config: widths, blocks and strides.
        mean: subtracted from the input; a constant of the training data that travels with the weights.
        std: the input is divided by it.
    """

    def __init__(self, config: ModelConfig, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        widths = config.widths
        self.stem = nn.Conv3d(1, widths[0], 3, stride=config.stem_stride, padding=1, bias=False)
        self.blocks = nn.Sequential()
        for level, width in enumerate(widths):
            for index in range(config.blocks):
                halve = index == 0 and level > 0
                in_width, stride = (widths[level - 1], 2) if halve else (width, 1)
                self.blocks.append(Block(in_width, width, stride, config.groups))
        self.norm = nn.GroupNorm(config.groups, widths[-1])
        self.head = nn.Linear(widths[-1], 1)
        nn.init.zeros_(self.head.weight)  # an untrained network answers "no idea", logit 0
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B,) of volumes (B, 1, D, H, W); `keep` (B, C) is the dropout mask of a training step, scaled."""
        x = (x - self.mean) / self.std
        h = self.blocks(self.stem(x))  # (B, C, d, h, w)
        h = F.silu(self.norm(h)).mean((2, 3, 4))  # (B, C)
        if keep is not None:
            h = h * keep
        return self.head(h)[:, 0]  # (B,)


def smallest_side(config: ModelConfig, shape: tuple[int, int, int]) -> int:
    """Voxels along the shortest axis at the last level."""
    side = -(-min(shape) // config.stem_stride)
    for _ in config.widths[1:]:
        side = -(-side // 2)
    return side
