"""Published networks as MONAI builds them, not pretrained, with GroupNorm for BatchNorm.

Why not BatchNorm: the EMA weights would come with running means and variances of other weights, two processes would no
longer equal one, and with 16 volumes, of which the last level keeps a few voxels, the statistics of a batch are noise.

`stem_stride`, `groups` and `outputs` of a configuration count here; widths and depth are the published ones.
"""

import torch
from torch import nn

from classifier.config import ModelConfig
from classifier.model.classifier import Classifier
from cohort.grids import Grid


class DenseNet121(Classifier):
    """DenseNet121 in 3D. Source: Huang et al. 2017, https://arxiv.org/abs/1608.06993."""

    def __init__(self, config: ModelConfig, grid: Grid, mean: float, std: float) -> None:
        from monai.networks.nets.densenet import DenseNet121 as Published  # slow to import

        super().__init__(config, mean, std)
        published = Published(
            spatial_dims=3, in_channels=1, out_channels=1,
            norm=("group", {"num_groups": config.groups}), act=("relu", {"inplace": False}),
        )  # fmt: skip
        self.layers = published.features
        self.layers.conv0.stride = (config.stem_stride,) * 3
        self.activation = nn.ReLU()
        self.add_head(published.class_layers.out.in_features, attention=False)

    @staticmethod
    def last_level(config: ModelConfig, grid: Grid) -> tuple[int, ...]:
        """The stem and the pooling behind it round up, the three transitions round down."""
        return tuple(-(-side // (2 * config.stem_stride)) // 8 for side in grid.shape)

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # (B, 1024, d, h, w)


class CoronalEfficientNet(Classifier):
    """EfficientNet-B0 in 2D, with the coronal slices as its channels. Source: Tan and Le 2019, arXiv 1905.11946.

    The first convolution mixes all slices. Stochastic depth would draw from torch's global generator, and is left out.
    """

    def __init__(self, config: ModelConfig, grid: Grid, mean: float, std: float) -> None:
        from monai.networks.nets.efficientnet import EfficientNetBN, MBConvBlock  # slow to import

        super().__init__(config, mean, std)
        published = EfficientNetBN(
            "efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=grid.shape[1],
            norm=("group", {"num_groups": config.groups}),
        )  # fmt: skip
        for block in published.modules():
            if isinstance(block, MBConvBlock):
                block.drop_connect_rate = 0.0
        published._conv_stem.stride = (config.stem_stride,) * 2
        self.layers = nn.Sequential(
            published._conv_stem_padding, published._conv_stem, published._bn0, nn.SiLU(), published._blocks,
            published._conv_head_padding, published._conv_head, published._bn1,
        )  # fmt: skip
        self.activation = nn.SiLU()
        self.add_head(published._fc.in_features, attention=False)

    @staticmethod
    def last_level(config: ModelConfig, grid: Grid) -> tuple[int, ...]:
        """D and W are halved by four stages, rounding down; MONAI pads the stem by one voxel, not two."""
        return tuple(((side - 2) // config.stem_stride + 1) // 16 for side in grid.shape[::2])

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x[:, 0].transpose(1, 2)).unsqueeze(3)  # (B, H, D, W) to (B, 1280, d, 1, w)
