"""Published layouts of weights, made small, against networks written down here in their own conventions."""

import pytest
import torch
import torch.nn.functional as F
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


class KerasBlock(nn.Module):
    """The bottleneck of keras.applications: biases everywhere, halving in the first convolution."""

    def __init__(self, inputs: int, inner: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, stride), nn.BatchNorm2d(inner, eps=1.001e-5)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1), nn.BatchNorm2d(inner, eps=1.001e-5)
        self.conv3, self.bn3 = nn.Conv2d(inner, 4 * inner, 1), nn.BatchNorm2d(4 * inner, eps=1.001e-5)
        if first:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * inner, 1, stride), nn.BatchNorm2d(4 * inner, eps=1.001e-5)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(h)) + (self.downsample(x) if hasattr(self, "downsample") else x))


class KerasResNet50(nn.Module):
    def __init__(self, stem: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, stem, 7, 2, 3), nn.BatchNorm2d(stem, eps=1.001e-5)
        inputs = stem
        for index, (blocks, stride) in enumerate(((3, 1), (4, 2), (6, 2), (3, 2))):
            inner, row = stem * 2**index, []
            for block in range(blocks):
                row.append(KerasBlock(inputs, inner, stride if block == 0 else 1, first=block == 0))
                inputs = 4 * inner
            setattr(self, f"layer{index + 1}", nn.Sequential(*row))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(h))))


@torch.no_grad()
def test_weights_converted_from_keras_give_the_features_of_kerass_network(tmp_path):
    torch.manual_seed(0)
    theirs = randomised(KerasResNet50(4))
    torch.save(theirs.state_dict(), tmp_path / "keras.pth")
    ours = backbones.resnet("resnet50", 2, 3, tmp_path / "keras.pth")
    x = torch.randn(2, 3, 70, 64)
    expected = theirs(x)
    assert expected.abs().mean() > 1e-3
    torch.testing.assert_close(backbones.resnet_features(ours, x), expected, rtol=1e-3, atol=1e-4)


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
