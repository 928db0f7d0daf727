"""Optional networks: small files of weights in their published layouts, checksums, and what is skipped."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from monai.losses.perceptual import medicalnet_intensity_normalisation, subtract_mean
from monai.networks.nets import resnet as monai_resnet
from torch import nn

from cohort.grids import GRIDS
from evaluation import networks
from evaluation.features import SliceProtocol, describe
from evaluation.networks import OPTIONAL, Weights, open_networks, read_weights
from runtime.backbones import resnet_features
from runtime.device import pick_device
from runtime.errors import InputError
from runtime.files import sha256

GRID = GRIDS["smoke"]
CPU = pick_device("float32", threads=2)


def small_resnet(depth, spatial_dims, channels):
    """Weights under which a signal keeps its size, and running statistics as after a training."""
    torch.manual_seed(0)
    network = getattr(monai_resnet, depth)(
        spatial_dims=spatial_dims,
        n_input_channels=channels,
        conv1_t_stride=2,
        feed_forward=False,
        bias_downsample=False,
        widen_factor=1 / 16,
    )
    draw = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if value.ndim > 2:
            nn.init.kaiming_normal_(value, nonlinearity="relu", generator=draw)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2.0, generator=draw)
        elif name.endswith(("running_mean", "bn.bias")):
            value.normal_(0.0, 0.2, generator=draw)
    return network.eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.save({"fc.weight": torch.zeros(1008, 4)}, folder / "inception_v3")
    torch.save(small_resnet("resnet50", 2, 3).state_dict(), folder / "radimagenet_resnet50")
    for depth in ("resnet10", "resnet50"):
        weights = {f"module.{name}": value for name, value in small_resnet(depth, 3, 1).state_dict().items()}
        torch.save({"state_dict": weights}, folder / f"medicalnet_{depth}")
    return {path.name: Weights(path, sha256(path)) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def volumes():
    return np.random.default_rng(0).uniform(size=(3, *GRID.shape)).astype(np.float32)


class Extractor(nn.Module):
    """In the place of torch-fidelity's: checks what it is shown, and says how bright each image is."""

    def __init__(self, name, features_list, feature_extractor_weights_path):
        super().__init__()
        assert features_list == ["2048"]
        self.weights = torch.load(feature_extractor_weights_path, weights_only=True)

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1:] == (3, 64, 64)
        return (x.float().mean(dim=(2, 3)),)


@pytest.fixture
def fidelity(monkeypatch):
    """torch-fidelity, which needs torchvision, is no dependency of this project."""
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)


def test_every_network_gives_one_vector_per_volume_and_view(files, fidelity, volumes):
    opened, skipped = open_networks(GRID, files, per_axis=2)
    assert skipped == {}
    assert list(opened) == ["efficientnet_lite0", "region_intensities", *OPTIONAL]
    for name, network in opened.items():
        features = network.features(volumes, CPU)
        assert features.shape[:2] == (3, len(network.views))
        assert features.dtype == np.float32
        assert np.isfinite(features).all()
        assert features.std(axis=0).max() > 0
        np.testing.assert_allclose(features[1:2], network.features(volumes[1:2], CPU), rtol=1e-3, atol=1e-4)
        described = describe(network)
        assert described["name"] == name
        assert described["views"] == dict.fromkeys(network.views, 1)
        assert len(described["checksum"]) >= 32


def test_inception_sees_256_levels_of_each_slice(files, fidelity, volumes):
    network = open_networks(GRID, {"inception_v3": files["inception_v3"]}, per_axis=1)[0]["inception_v3"]
    expected = SliceProtocol.for_grid(GRID.shape, 1).cut(volumes).mul(255).round().mean(dim=(2, 3, 4))
    np.testing.assert_allclose(network.features(volumes, CPU)[..., 0], expected, rtol=1e-4)


def test_without_weights_or_package_a_network_is_skipped_with_the_reason(files, monkeypatch):
    opened, skipped = open_networks(GRID, {})
    assert list(opened) == ["efficientnet_lite0", "region_intensities"]
    assert set(skipped) == set(OPTIONAL)
    assert all(reason.startswith("skipped: no weights were given") for reason in skipped.values())
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    opened, skipped = open_networks(GRID, {"inception_v3": files["inception_v3"]})
    assert "inception_v3" not in opened
    assert skipped["inception_v3"].startswith("skipped: a package is missing")
    assert "torch_fidelity" in skipped["inception_v3"]


def test_weights_are_taken_only_with_their_checksum(files, tmp_path):
    path, digest = files["medicalnet_resnet10"].path, files["medicalnet_resnet10"].sha256
    assert read_weights((f"medicalnet_resnet10={path}={digest[:8].upper()}",)) == {
        "medicalnet_resnet10": files["medicalnet_resnet10"]
    }
    for text, match in (
        ("inception_v3=nowhere.pt", "expected NAME=FILE=SHA256"),
        (f"vgg16={path}={digest}", "weights for vgg16"),
        (f"inception_v3={tmp_path / 'none'}={digest}", "no such file of weights"),
        (f"inception_v3={path}={digest[:4]}", "8 digits or more"),
        (f"inception_v3={path}={'0' * 64}", "stated 0000"),
    ):
        with pytest.raises(InputError, match=match):
            read_weights((text,))
    with pytest.raises(InputError, match="medicalnet_resnet10"):
        networks.RadImageNet(path)


@torch.no_grad()
def test_radimagenet_sees_bgr_less_its_mean(files):
    slices = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    # MONAI's `subtract_mean` takes ImageNet's mean off channels in the order BGR
    shown = subtract_mean(slices.expand(-1, 3, -1, -1).clone())
    expected = resnet_features(small_resnet("resnet50", 2, 3), shown).mean(dim=(2, 3))
    found = networks.RadImageNet(files["radimagenet_resnet50"].path)(slices)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_medicalnet_sees_z_scored_volumes_and_no_scale(files, volumes):
    network = networks.MedicalNet("medicalnet_resnet10", files["medicalnet_resnet10"])
    x = medicalnet_intensity_normalisation(torch.from_numpy(volumes[1]))[None, None]
    expected = resnet_features(network._network, x).mean(dim=(2, 3, 4))
    found = network.features(volumes, CPU)
    np.testing.assert_allclose(found[1], expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(network.features(0.1 + 0.3 * volumes, CPU), found, rtol=1e-2, atol=1e-3)
    assert np.isfinite(network.features(np.zeros((1, *GRID.shape), dtype=np.float32), CPU)).all()
