"""Inception-v3 up to its last pooling, under the names of its published weights.

Source: Szegedy et al. 2016 (arXiv 1512.00567), figures 5 to 7 and table 1, as released with TensorFlow; names and the
differences between the two sets of weights from torchvision (models/inception.py) and mseitzer/pytorch-fid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from runtime.checkpoints import load_tensors, load_weights
from runtime.errors import InputError

FULL_STEM = 32
"""Channels of the first convolution in the published networks; all widths are in proportion."""
FULL_FEATURES = 2048
_TENSORFLOW_CLASSES, _TORCHVISION_CLASSES = 1008, 1000


@dataclass(frozen=True)
class Layer:
    """A convolution with batch normalisation and ReLU."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Branch = Sequence[Layer | tuple[Layer, ...]]
"""Layers in turn; those of a tuple see the same input, and their outputs are joined."""


def _block_a(pool: int) -> tuple[list[Branch], int]:
    double = [Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, (3, 3)), Layer("branch3x3dbl_3", 96, (3, 3))]
    five = [Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5))]
    return [[Layer("branch1x1", 64)], five, double], pool


def _block_b() -> tuple[list[Branch], None]:
    double = [Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, (3, 3)), Layer("branch3x3dbl_3", 96, (3, 3), 2)]
    return [[Layer("branch3x3", 384, (3, 3), 2)], double], None


def _block_c(inner: int) -> tuple[list[Branch], int]:
    row, column = (1, 7), (7, 1)
    single = [Layer("branch7x7_1", inner), Layer("branch7x7_2", inner, row), Layer("branch7x7_3", 192, column)]
    kernels = ((1, 1), column, row, column, row)
    double = [Layer(f"branch7x7dbl_{i}", 192 if i == 5 else inner, k) for i, k in enumerate(kernels, start=1)]
    return [[Layer("branch1x1", 192)], single, double], 192


def _block_d() -> tuple[list[Branch], None]:
    kernels = (((1, 1), 1), ((1, 7), 1), ((7, 1), 1), ((3, 3), 2))
    seven = [Layer(f"branch7x7x3_{i}", 192, *shape) for i, shape in enumerate(kernels, start=1)]
    return [[Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, (3, 3), 2)], seven], None


def _block_e() -> tuple[list[Branch], int]:
    def fork(name: str) -> tuple[Layer, Layer]:
        return Layer(f"{name}a", 384, (1, 3)), Layer(f"{name}b", 384, (3, 1))

    double = [Layer("branch3x3dbl_1", 448), Layer("branch3x3dbl_2", 384, (3, 3)), fork("branch3x3dbl_3")]
    return [[Layer("branch1x1", 320)], [Layer("branch3x3_1", 384), fork("branch3x3_2")], double], 192


# Name, input channels, and branches with the channels after pooling (None: the pooled input itself, halved).
_BLOCKS = (
    ("Mixed_5b", 192, _block_a(32)), ("Mixed_5c", 256, _block_a(64)), ("Mixed_5d", 288, _block_a(64)),
    ("Mixed_6a", 288, _block_b()),
    ("Mixed_6b", 768, _block_c(128)), ("Mixed_6c", 768, _block_c(160)), ("Mixed_6d", 768, _block_c(160)),
    ("Mixed_6e", 768, _block_c(192)),
    ("Mixed_7a", 768, _block_d()),
    ("Mixed_7b", 1280, _block_e()), ("Mixed_7c", 2048, _block_e()),
)  # fmt: skip


class Unit(nn.Module):
    """Convolution, batch normalisation, ReLU: (B, C, H, W) to (B, C', H', W')."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int, *, padded: bool) -> None:
        super().__init__()
        padding = tuple(k // 2 for k in kernel) if padded else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the three."""
        return F.relu(self.bn(self.conv(x)), inplace=True)

    def fold(self) -> None:
        """Multiplies the normalisation into the convolution; only for evaluation."""
        self.conv, self.bn = fuse_conv_bn_eval(self.conv.eval(), self.bn.eval()), nn.Identity()


class Mixed(nn.ModuleDict):
    """Branches side by side, and a pooled branch; their channels are joined.

    Args:
        inputs: channels of the input, at full width.
        branches: of the block.
        pooled: channels after pooling, or None where the block halves its input.
        pooling: ``average``, ``inner`` (an average that leaves the padding out) or ``max``.
        stem: channels of the network's first convolution, by which all widths are scaled.
    """

    def __init__(self, inputs: int, branches: list[Branch], pooled: int | None, pooling: str, stem: int) -> None:
        super().__init__()
        self.pooled, self.pooling, self.paths = pooled, pooling, []
        for branch in branches:
            width, path = inputs, []
            for step in branch:
                layers = step if isinstance(step, tuple) else (step,)
                for one in layers:
                    sizes = (n * stem // FULL_STEM for n in (width, one.channels))
                    self[one.name] = Unit(*sizes, one.kernel, one.stride, padded=one.stride == 1)
                width = sum(one.channels for one in layers)
                path.append([one.name for one in layers])
            self.paths.append(path)
        if pooled is not None:
            self["branch_pool"] = Unit(*(n * stem // FULL_STEM for n in (inputs, pooled)), (1, 1), 1, padded=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        outputs = []
        for path in self.paths:
            h = x
            for names in path:
                h = torch.cat([self[name](h) for name in names], dim=1)
            outputs.append(h)
        return torch.cat([*outputs, self._pool(x)], dim=1)

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        if self.pooled is None:
            return F.max_pool2d(x, 3, stride=2)
        if self.pooling == "max":
            return self["branch_pool"](F.max_pool2d(x, 3, stride=1, padding=1))
        average = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=self.pooling == "average")
        return self["branch_pool"](average)


class InceptionV3(nn.ModuleDict):
    """Images (B, 3, H, W), at least 75 x 75, to features (B, 2048): the last feature map, averaged.

    Args:
        tensorflow: pool as the network of the original FID does, whose averages leave the padding out and whose last
            block takes a maximum; otherwise as torchvision does.
        stem: channels of the first convolution; all widths follow.
    """

    def __init__(self, *, tensorflow: bool = False, stem: int = FULL_STEM) -> None:
        super().__init__()
        entry = (  # name, channels before and after, kernel, stride, padded
            ("Conv2d_1a_3x3", 3, 32, 3, 2, False), ("Conv2d_2a_3x3", 32, 32, 3, 1, False),
            ("Conv2d_2b_3x3", 32, 64, 3, 1, True), ("Conv2d_3b_1x1", 64, 80, 1, 1, True),
            ("Conv2d_4a_3x3", 80, 192, 3, 1, False),
        )  # fmt: skip
        for index, (name, inputs, outputs, kernel, stride, padded) in enumerate(entry):
            width = inputs * stem // FULL_STEM if index else inputs
            self[name] = Unit(width, outputs * stem // FULL_STEM, (kernel, kernel), stride, padded=padded)
        for name, inputs, (branches, pooled) in _BLOCKS:
            pooling = "average" if not tensorflow else "max" if name == "Mixed_7c" else "inner"
            self[name] = Mixed(inputs, branches, pooled, pooling, stem)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sizes at the margin are those of 299 x 299 images."""
        h = self["Conv2d_2b_3x3"](self["Conv2d_2a_3x3"](self["Conv2d_1a_3x3"](x)))  # (B, 64, 147, 147)
        h = self["Conv2d_4a_3x3"](self["Conv2d_3b_1x1"](F.max_pool2d(h, 3, stride=2)))  # (B, 192, 71, 71)
        h = F.max_pool2d(h, 3, stride=2)  # (B, 192, 35, 35)
        for name, _, _ in _BLOCKS:
            h = self[name](h)  # 35 x 35 to 5d, 17 x 17 to 6e, 8 x 8 to 7c
        return h.float().mean(dim=(2, 3))


def load_inception(path: Path) -> tuple[InceptionV3, bool]:
    """The network of a file of weights, in evaluation mode, and whether they are those of the original FID.

    The two are told apart by their classifier, 1,008 classes for the FID's and 1,000 for torchvision's.

    Raises:
        InputError: the file cannot be read, its weights do not fit (names the tensors), or it has no such classifier.
    """
    weights = load_tensors(path)
    classes = weights["fc.weight"].shape[0] if "fc.weight" in weights else None
    if classes not in (_TENSORFLOW_CLASSES, _TORCHVISION_CLASSES):
        raise InputError(
            f"{path}: a classifier of {classes} classes; expected {_TENSORFLOW_CLASSES} (pt_inception-2015-12-05) or "
            f"{_TORCHVISION_CLASSES} (torchvision's inception_v3)"
        )
    weights = {name: value for name, value in weights.items() if not name.startswith(("fc.", "AuxLogits."))}
    stem = weights.get("Conv2d_1a_3x3.conv.weight")
    tensorflow = classes == _TENSORFLOW_CLASSES
    network = InceptionV3(tensorflow=tensorflow, stem=FULL_STEM if stem is None else stem.shape[0])
    load_weights(network, weights, path)
    for module in network.modules():
        if isinstance(module, Unit):
            module.fold()
    return network.requires_grad_(False).eval().to(memory_format=torch.channels_last), tensorflow
