"""ResNets trained on medical images: MONAI's networks with the published files of weights, which are given by path.

MedicalNet   (Chen et al. 2019, arXiv 1904.00625): names as in MONAI, prefixed ``module.``, in a ``state_dict``
RadImageNet  (Mei et al. 2022, https://doi.org/10.1148/ryai.210315) as published for PyTorch: numbers for layers
"""

from pathlib import Path

import torch
from torch import nn

from runtime.checkpoints import load_tensors, load_weights

_NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_HEADS = ("fc.", "conv_seg.")
_STEM_CHANNELS = 64

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What the network saw in training: RGB mean and standard deviation of ImageNet, for images in [0, 1]."""


def resnet(depth: str, spatial_dims: int, channels: int, path: Path) -> nn.Module:
    """MONAI's ResNet (``resnet10``, ``resnet50``) without its head, in evaluation mode, with the weights of a file.

    Its widths are those of the file's; InputError names tensors that do not fit.
    """
    from monai.networks.nets import resnet as monai_resnet  # slow to import

    record = load_tensors(path)
    weights = {_plain(name): value for name, value in record.get("state_dict", record).items()}
    weights = {name: value for name, value in weights.items() if not name.startswith(_HEADS)}
    stem = weights.get("conv1.weight")
    network = getattr(monai_resnet, depth)(
        spatial_dims=spatial_dims, n_input_channels=channels, conv1_t_stride=2, feed_forward=False, shortcut_type="B",
        bias_downsample=False, widen_factor=1.0 if stem is None else stem.shape[0] / _STEM_CHANNELS,
    )  # fmt: skip
    load_weights(network, weights, path)
    return network.requires_grad_(False).eval()


def _plain(name: str) -> str:
    """``module.layer1.0.conv1.weight`` and ``backbone.4.0.conv1.weight`` to ``layer1.0.conv1.weight``."""
    name = name.removeprefix("module.")
    if not name.startswith("backbone."):
        return name
    number, _, rest = name.removeprefix("backbone.").partition(".")
    return f"{_NUMBERED.get(number, number)}.{rest}"


def medicalnet(depth: str, path: Path) -> nn.Module:
    """A 3D ResNet of MedicalNet: `resnet` for one channel, dilated in its last two layers instead of halving again.

    Source: Chen et al. 2019 (arXiv 1904.00625), section 3.2. MONAI's own loader leaves the dilation out.
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
