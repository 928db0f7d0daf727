"""EfficientNet-B0 (Tan and Le 2019, https://arxiv.org/abs/1905.11946) in 2D, with the coronal slices as its channels.

The first convolution mixes all slices; from there on the back-front axis is gone, and with it where along it something
was. MONAI's layers, not pretrained, with GroupNorm for BatchNorm (reasons in densenet.py) and without stochastic depth,
whose draws would come from torch's global generator. Depthwise convolutions are 2D here, where they are quick.
"""

from __future__ import annotations

import torch
from torch import nn

from classifier.config import ModelConfig
from classifier.model.classifier import Classifier, Shape


class CoronalEfficientNet(Classifier):
    """MONAI's layers up to the last level, average over the coronal plane, one linear layer.

    Args:
        config: `stem_stride`, `groups` and `outputs` count; widths and depth are the published ones.
        slices: H, the number of coronal slices.
        mean: subtracted from the input.
        std: the input is divided by it.
    """

    def __init__(self, config: ModelConfig, slices: int, mean: float = 0.0, std: float = 1.0) -> None:
        from monai.networks.nets.efficientnet import EfficientNetBN, MBConvBlock  # slow to import

        super().__init__(config, mean, std)
        published = EfficientNetBN(
            "efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=slices,
            norm=("group", {"num_groups": config.groups}),
        )  # fmt: skip
        for block in published.modules():
            if isinstance(block, MBConvBlock):
                block.drop_connect_rate = 0.0
        published._conv_stem.stride = (config.stem_stride,) * 2
        self.slices = slices
        self.layers = nn.Sequential(
            published._conv_stem_padding, published._conv_stem, published._bn0, nn.SiLU(), published._blocks,
            published._conv_head_padding, published._conv_head, published._bn1,
        )  # fmt: skip
        self.activation = nn.SiLU()
        self.add_head(published._fc.in_features, attention=False)

    @classmethod
    def build(cls, config: ModelConfig, shape: Shape, mean: float, std: float) -> CoronalEfficientNet:
        """The network for volumes of this shape."""
        return cls(config, shape[1], mean, std)

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        """Standardised volumes (B, 1, D, H, W) to the last level (B, 1280, d, 1, w), before its activation."""
        x = x[:, 0].transpose(1, 2)  # (B, H, D, W)
        return self.layers(x).unsqueeze(3)

    @staticmethod
    def feature_width(config: ModelConfig, shape: Shape) -> int:
        """Of the published network."""
        return 1280

    @staticmethod
    def levels(config: ModelConfig) -> int:
        """Of the published network."""
        return 5

    @staticmethod
    def last_level(config: ModelConfig, shape: Shape) -> tuple[int, ...]:
        """D and W are halved by four stages, rounding down; MONAI pads the stem by one voxel, not two."""
        D, _, W = shape
        return tuple(((side - 2) // config.stem_stride + 1) // 16 for side in (D, W))

    @staticmethod
    def width_divisor(config: ModelConfig) -> int:
        """Of the published widths: 16, 24, 40, 80, 112, 192, 320, their sixfold, 32 and 1280."""
        return 8
