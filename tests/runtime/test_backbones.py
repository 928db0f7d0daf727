"""Published layouts of weights, made small, against the networks they were saved from."""

import pytest
import torch
from monai.networks.nets import resnet as monai_resnet
from torch import nn

from runtime import backbones
from runtime.errors import InputError

WIDTH = 1 / 16


def randomised(network: nn.Module) -> nn.Module:
    """Weights and running statistics as after a training: none of them trivial."""
    draw = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0, generator=draw)
        elif value.is_floating_point() and value.ndim == 1:
            value.normal_(0.5 if name.endswith("weight") else 0.0, 0.2, generator=draw)
    return network.eval()


def small(depth: str, spatial_dims: int, channels: int) -> nn.Module:
    torch.manual_seed(0)
    return randomised(
        getattr(monai_resnet, depth)(
            spatial_dims=spatial_dims,
            n_input_channels=channels,
            conv1_t_stride=2,
            feed_forward=False,
            bias_downsample=False,
            widen_factor=WIDTH,
        )
    )


@torch.no_grad()
def test_numbered_layers_are_those_of_the_named_network(tmp_path):
    network = small("resnet50", 2, 3)
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    weights = {}
    for name, value in network.state_dict().items():
        head, _, rest = name.partition(".")
        weights[f"backbone.{numbers[head]}.{rest}"] = value
    torch.save(weights, tmp_path / "numbered.pt")
    loaded = backbones.resnet("resnet50", 2, 3, tmp_path / "numbered.pt")
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(backbones.resnet_features(loaded, x), backbones.resnet_features(network, x))


@pytest.mark.parametrize("depth", ["resnet10", "resnet50"])
@torch.no_grad()
def test_medicalnet_is_read_from_its_container_and_dilated(tmp_path, depth):
    weights = {f"module.{name}": value for name, value in small(depth, 3, 1).state_dict().items()}
    weights["module.conv_seg.0.weight"] = torch.zeros(2, 2)
    torch.save({"state_dict": weights}, tmp_path / "medicalnet.pth")
    network = backbones.medicalnet(depth, tmp_path / "medicalnet.pth")
    x = torch.randn(1, 1, 32, 40, 32)
    assert backbones.resnet_features(network, x).shape == (1, 32 if depth == "resnet10" else 128, 4, 5, 4)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    torch.save(small("resnet10", 3, 1).state_dict(), tmp_path / "small.pth")
    with pytest.raises(InputError, match=r"layer1\.0\.conv3\.weight: missing"):
        backbones.medicalnet("resnet50", tmp_path / "small.pth")
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="other: not part of this network"):
        backbones.resnet("resnet50", 2, 3, tmp_path / "other.pth")
