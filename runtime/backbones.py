"""ResNets that were trained on medical images, from their published files of weights.

Three layouts are understood, all of which load into MONAI's ResNet:

    MedicalNet   (Chen et al. 2019, arXiv 1904.00625): names as in MONAI, prefixed ``module.``, in a ``state_dict``
    RadImageNet  (Mei et al. 2022, https://doi.org/10.1148/ryai.210315) as published for PyTorch: numbers for layers
    RadImageNet  as converted from Keras (Warvito/radimagenet-models, of which MONAI's perceptual loss and MAISI's FID
                 make use): convolutions with biases, and blocks that halve in their first convolution
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from runtime.checkpoints import load_tensors, load_weights

_NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_HEADS = ("fc.", "conv_seg.")
_STEM_CHANNELS = 64
_KERAS_EPSILON = 1.001e-5

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What the network saw in training: RGB mean and standard deviation of ImageNet, for images in [0, 1]."""


def read_backbone(path: Path) -> dict[str, torch.Tensor]:
    """Weights of a backbone under MONAI's names: containers, prefixes and heads are left out.

    Raises:
        InputError: the file cannot be read as tensors.
    """
    record = load_tensors(path)
    record = record.get("state_dict", record)
    named = {_plain(name): value for name, value in record.items()}
    return {name: value for name, value in named.items() if not name.startswith(_HEADS)}


def _plain(name: str) -> str:
    """``module.layer1.0.conv1.weight`` and ``backbone.4.0.conv1.weight`` to ``layer1.0.conv1.weight``."""
    name = name.removeprefix("module.")
    if not name.startswith("backbone."):
        return name
    number, _, rest = name.removeprefix("backbone.").partition(".")
    return f"{_NUMBERED.get(number, number)}.{rest}"


def resnet(depth: str, spatial_dims: int, channels: int, path: Path) -> nn.Module:
    """MONAI's ResNet without its head, in evaluation mode, with the weights of a file and the widths they have.

    Args:
        depth: ``resnet10`` or ``resnet50``.
        spatial_dims: 2 or 3.
        channels: of the input.
        path: of the weights.

    Raises:
        InputError: the file cannot be read, or its weights do not fit; names the tensors.
    """
    from monai.networks.nets import resnet as monai_resnet  # slow to import

    weights = read_backbone(path)
    from_keras = "conv1.bias" in weights
    stem = weights.get("conv1.weight")
    network = getattr(monai_resnet, depth)(
        spatial_dims=spatial_dims, n_input_channels=channels, conv1_t_stride=2, feed_forward=False, shortcut_type="B",
        bias_downsample=False, widen_factor=1.0 if stem is None else stem.shape[0] / _STEM_CHANNELS,
    )  # fmt: skip
    load_weights(network, without_biases(weights), path)
    if from_keras:
        _as_keras(network)
    return network.requires_grad_(False).eval()


def without_biases(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Takes the biases of convolutions off the means of the normalisations that follow them, which changes nothing."""
    out = dict(weights)
    for name in weights:
        owner, _, leaf = name.rpartition(".")
        kernel, mean = weights.get(f"{owner}.weight"), f"{_normalisation_after(owner)}.running_mean"
        if leaf == "bias" and kernel is not None and kernel.ndim > 2 and mean in weights:
            out[mean] = weights[mean] - out.pop(name)
    return out


def _normalisation_after(convolution: str) -> str:
    """``layer1.0.conv2`` to ``layer1.0.bn2``, ``layer1.0.downsample.0`` to ``layer1.0.downsample.1``."""
    before, _, last = convolution.rpartition(".")
    after = "1" if last == "0" else last.replace("conv", "bn")
    return f"{before}.{after}" if before else after


def _as_keras(network: nn.Module) -> None:
    """Blocks of Keras's ResNet halve in their first convolution (1 x 1) where those of PyTorch do in their second."""
    for layer in (network.layer2, network.layer3, network.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = layer[0].conv2.stride, layer[0].conv1.stride
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.eps = _KERAS_EPSILON


def medicalnet(depth: str, path: Path) -> nn.Module:
    """A 3D ResNet of MedicalNet: `resnet` for one channel, dilated in its last two layers instead of halving again.

    Source: Chen et al. 2019 (arXiv 1904.00625), section 3.2.
    """
    network = resnet(depth, 3, 1, path)
    for layer, dilation in ((network.layer3, 2), (network.layer4, 4)):
        for module in layer.modules():
            if isinstance(module, nn.Conv3d):
                module.stride = (1, 1, 1)
                if module.kernel_size == (3, 3, 3):
                    module.dilation = module.padding = (dilation,) * 3
    return network


def resnet_features(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The last feature map of MONAI's ResNet, before pooling; x is (B, C, ...)."""
    h = network.maxpool(network.act(network.bn1(network.conv1(x))))
    return network.layer4(network.layer3(network.layer2(network.layer1(h))))
