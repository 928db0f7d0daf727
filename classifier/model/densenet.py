"""DenseNet121 (Huang et al. 2017, https://arxiv.org/abs/1608.06993) in 3D, as MONAI builds it, with GroupNorm.

Why not MONAI's default, BatchNorm: the averaged weights that validation and results use would come with running means
and variances of other weights (linear averages of statistics that themselves trail the steps), each of several
processes would keep its own, two processes would no longer equal one, and with 16 volumes of which the last level keeps
a few voxels the statistics of a batch are noise. GroupNorm has no statistics to keep.
"""

from __future__ import annotations

import torch
from torch import nn

from classifier.config import ModelConfig
from classifier.model.classifier import Classifier, Shape


class DenseNet121(Classifier):
    """MONAI's layers up to the last level, average over the volume, one linear layer.

    Args:
        config: `stem_stride`, `groups` and `outputs` count; widths and depth are the published ones.
        mean: subtracted from the input.
        std: the input is divided by it.
    """

    def __init__(self, config: ModelConfig, mean: float = 0.0, std: float = 1.0) -> None:
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

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        """Standardised volumes (B, 1, D, H, W) to the last level (B, 1024, d, h, w), before its activation."""
        return self.layers(x)

    @staticmethod
    def feature_width(config: ModelConfig, shape: Shape) -> int:
        """Of the published network."""
        return 1024

    @staticmethod
    def levels(config: ModelConfig) -> int:
        """Of the published network."""
        return 5

    @staticmethod
    def last_level(config: ModelConfig, shape: Shape) -> tuple[int, ...]:
        """The stem and the pooling behind it round up, the three transitions round down."""
        return tuple(-(-side // (2 * config.stem_stride)) // 8 for side in shape)

    @staticmethod
    def width_divisor(config: ModelConfig) -> int:
        """Every layer adds 32 channels to 64."""
        return 32
