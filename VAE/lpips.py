"""The three networks of LPIPS, from one file of weights: feature maps, and what each channel of them counts.

Zhang et al. 2018 (https://arxiv.org/abs/1801.03924) compare images by the features of classifiers trained on ImageNet,
and learn from human judgements a weight, not negative, for each channel. The file is what their package saves:

    torch.save(lpips.LPIPS(net="squeeze").state_dict(), "lpips_squeeze.pt")

Modules here are named and numbered as in that file, so that a refusal names what it holds: convolutions keep their
places in torchvision's ``features`` (``net.slice2.3.weight``), channel weights are ``lin0.model.1.weight``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from runtime.checkpoints import load_tensors, load_weights
from runtime.errors import InputError


@dataclass(frozen=True)
class Stack:
    """One classifier's feature layers and where they are cut: a feature map is taken at the end of each slice."""

    layers: Callable[[], list[nn.Module]]
    ends: tuple[int, ...]
    """Index after the last layer of each slice."""
    channels: tuple[int, ...]
    """Of each slice's feature map."""
    smallest: int
    """Side in pixels of the smallest image that reaches the last layer."""


class LpipsNetwork(nn.Module):
    """A fixed network that gives the feature maps LPIPS compares.

    Args:
        name: a key of STACKS.
        weights: file with the state dict of the package's LPIPS module (version 0.1, the one that scales its input).

    Raises:
        InputError: the file cannot be read, or its weights do not fit; names the tensors.
    """

    def __init__(self, name: str, weights: Path) -> None:
        super().__init__()
        self.name, self.stack = name, STACKS[name]
        self.scaling_layer = Scaling()
        layers = self.stack.layers()
        self.net = nn.Sequential()
        for number, (start, end) in enumerate(pairwise((0, *self.stack.ends)), 1):
            self.net.add_module(f"slice{number}", numbered(layers, start, end))
        for index, channels in enumerate(self.stack.channels):
            self.add_module(f"lin{index}", ChannelWeights(channels))
        load_weights(self, without_aliases(load_tensors(weights), len(self.stack.ends)), weights)
        self.requires_grad_(False).eval()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Colour images (n, 3, rows, columns) in [-1, 1] -> feature maps (n, C, r, c), finest first, not normalised.

        Raises:
            InputError: images too small for the network's strides.
        """
        rows, columns = x.shape[-2:]
        if min(rows, columns) < self.stack.smallest:
            raise InputError(
                f"lpips_{self.name}: slices of {rows} x {columns} voxels; the network needs at least "
                f"{self.stack.smallest} x {self.stack.smallest}"
            )
        h, maps = self.scaling_layer(x), []
        for layers in self.net:
            h = layers(h)
            maps.append(h)
        return maps

    def channel_weights(self) -> list[torch.Tensor]:
        """What each channel's squared difference counts, (1, C, 1, 1) for each feature map."""
        return [self.get_parameter(f"lin{index}.model.1.weight") for index in range(len(self.stack.channels))]


def without_aliases(weights: dict[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """Leaves out ``lins.0.model.1.weight`` and so on, by which newer releases save the channel weights again."""
    aliases = {f"lins.{index}.model.1.weight" for index in range(count)}
    return {name: value for name, value in weights.items() if name not in aliases}


class Scaling(nn.Module):
    """From [-1, 1] to the colour statistics the classifiers were trained with; shift and scale come from the file."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, rows, columns), same shape out."""
        return (x - self.shift) / self.scale


class ChannelWeights(nn.Module):
    """Holds one map's channel weights (1, C, 1, 1) under their name in the file, ``model.1``: after a dropout there."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(OrderedDict({"1": nn.Conv2d(channels, 1, 1, bias=False)}))


def numbered(layers: list[nn.Module], start: int, end: int) -> nn.Sequential:
    """Layers start to end - 1 as a sequence in which each is named by its place in the whole list."""
    return nn.Sequential(OrderedDict((str(index), layers[index]) for index in range(start, end)))


def convolution(channels: int, width: int, size: int, *, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    """A convolution and its ReLU, two places in the list of layers."""
    return [nn.Conv2d(channels, width, size, stride, padding), nn.ReLU(inplace=True)]


def alex_layers() -> list[nn.Module]:
    """AlexNet, the variant of Krizhevsky 2014 (https://arxiv.org/abs/1404.5997), to its fifth convolution."""
    return [
        *convolution(3, 64, 11, stride=4, padding=2), nn.MaxPool2d(3, 2),
        *convolution(64, 192, 5, padding=2), nn.MaxPool2d(3, 2),
        *convolution(192, 384, 3, padding=1),
        *convolution(384, 256, 3, padding=1),
        *convolution(256, 256, 3, padding=1),
    ]  # fmt: skip


def vgg_layers() -> list[nn.Module]:
    """VGG-16 to its thirteenth convolution: configuration D of Simonyan and Zisserman 2015 (arXiv 1409.1556)."""
    layers, channels = [], 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        if layers:
            layers.append(nn.MaxPool2d(2))
        for _ in range(count):
            layers += convolution(channels, width, 3, padding=1)
            channels = width
    return layers


def squeeze_layers() -> list[nn.Module]:
    """SqueezeNet 1.1 to its eighth fire module (Iandola et al. 2016, https://arxiv.org/abs/1602.07360)."""
    return [
        *convolution(3, 64, 3, stride=2), nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(64, 16, 64), Fire(128, 16, 64), nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(128, 32, 128), Fire(256, 32, 128), nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
    ]  # fmt: skip


class Fire(nn.Module):
    """SqueezeNet's block: few channels, from which 1 x 1 and 3 x 3 convolutions make `width` channels each."""

    def __init__(self, channels: int, squeezed: int, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, width, 1)
        self.expand3x3 = nn.Conv2d(squeezed, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, channels, r, c) -> (n, 2 * width, r, c)."""
        h = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(h), self.expand3x3(h)], dim=1).relu()


STACKS = {
    "alex": Stack(alex_layers, ends=(2, 5, 8, 10, 12), channels=(64, 192, 384, 256, 256), smallest=31),
    "vgg": Stack(vgg_layers, ends=(4, 9, 16, 23, 30), channels=(64, 128, 256, 512, 512), smallest=16),
    "squeeze": Stack(
        squeeze_layers, ends=(2, 5, 8, 10, 11, 12, 13), channels=(64, 128, 256, 384, 384, 512, 512), smallest=17
    ),
}
"""The networks on offer, by the package's name for them."""
