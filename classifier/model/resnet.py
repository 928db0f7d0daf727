"""A dense 3D residual network; one page, in the order the data flow.

Pre-activation residual blocks (He et al. 2016, https://arxiv.org/abs/1603.05027, figure 4e), average-pooled shortcuts
where the resolution changes (He et al. 2019, https://arxiv.org/abs/1812.01187, figure 2c). Convolutions are dense:
depthwise ones cost about as much time in 3D, and their backward pass much more. Norms are GroupNorm, whose result for a
volume depends on that volume alone.
"""

import torch
import torch.nn.functional as F
from torch import nn

from classifier.config import ModelConfig
from classifier.model.classifier import Classifier
from cohort.grids import Grid
from runtime.layers.group_norm import GroupNorm


class Block(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input (averaged and projected where size or width change)."""

    def __init__(self, in_width: int, width: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride = stride
        self.norm1 = GroupNorm(groups, in_width)
        self.conv1 = nn.Conv3d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = GroupNorm(groups, width)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Conv3d(in_width, width, 1, bias=False) if in_width != width else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # each block starts as its shortcut, which makes the first steps safe

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, width, ceil(D / stride), ...)
        h = self.conv2(F.silu(self.norm2(h)))
        if self.stride > 1:
            x = F.avg_pool3d(x, self.stride, ceil_mode=True)
        return self.shortcut(x) + h


def levels(config: ModelConfig) -> nn.Sequential:
    """The blocks of all levels; every level after the first halves each axis."""
    blocks = nn.Sequential()
    for level, width in enumerate(config.widths):
        for index in range(config.blocks):
            halve = index == 0 and level > 0
            in_width, stride = (config.widths[level - 1], 2) if halve else (width, 1)
            blocks.append(Block(in_width, width, stride, config.groups))
    return blocks


def shrunk(config: ModelConfig, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Voxels of the last level for an input of a shape: stem and levels round up."""
    shrink = config.stem_stride * 2 ** (len(config.widths) - 1)
    return tuple(-(-side // shrink) for side in shape)


class ResNet3D(Classifier):
    """Stem, levels of blocks, pooling over the volume by attention (or its mean), one linear layer."""

    def __init__(self, config: ModelConfig, grid: Grid, mean: float, std: float) -> None:
        super().__init__(config, mean, std)
        widths = config.widths
        self.stem = nn.Conv3d(1, widths[0], 3, stride=config.stem_stride, padding=1, bias=False)
        self.blocks = levels(config)
        self.norm = GroupNorm(config.groups, widths[-1])
        self.activation = nn.SiLU()
        self.add_head(widths[-1], attention=config.pool == "attention")

    @staticmethod
    def last_level(config: ModelConfig, grid: Grid) -> tuple[int, ...]:
        return shrunk(config, grid.shape)

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.blocks(self.stem(x)))
