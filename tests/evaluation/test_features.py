"""The feature network against its package, the slices, and the cache."""

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet

from evaluation import features
from evaluation.features import FeatureNetwork, SliceProtocol, cut_slices, extract, extract_cached, pool
from runtime.device import pick_device
from runtime.errors import InputError

SMALL = SliceProtocol(per_axis=2, size=64)


@pytest.fixture(scope="module")
def network():
    return FeatureNetwork()


@pytest.fixture(scope="module")
def volumes():
    return np.random.default_rng(0).uniform(size=(3, 20, 24, 20)).astype(np.float32)


def test_folded_network_equals_the_packaged_one(network):
    packaged = EfficientNet.from_name("efficientnet-lite0").eval()
    packaged.load_state_dict(torch.load(features.packaged_weights(), weights_only=True))
    slices = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        colour = (slices.expand(-1, 3, -1, -1) - network.mean) / network.std
        expected = packaged.extract_features(colour).mean(dim=(2, 3))
        got = network(slices)
    assert got.shape == (2, features.FEATURES)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_other_weights_are_refused(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"something else")
    with pytest.raises(InputError, match="SHA-256"):
        FeatureNetwork(tmp_path / "weights.pth")


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(features, "WEIGHTS_PACKAGE", "no_such_package")
    with pytest.raises(InputError, match=r"requirements\.txt"):
        features.packaged_weights()


def test_slices_are_the_stated_planes_in_a_padded_cube():
    volume = np.zeros((1, 20, 24, 20), dtype=np.float32)
    protocol = SliceProtocol(per_axis=3, size=24)  # as large as the cube: resizing changes nothing
    assert protocol.positions(20) == [5, 10, 14]
    volume[0, 10] = 0.25
    volume[0, :, 12] = 0.5
    volume[0, :, :, 10] = 1.0
    slices = cut_slices(volume, protocol)
    assert slices.shape == (1, 3, 3, 24, 24)
    np.testing.assert_allclose(slices[0, 0, 1, :, 2:-2], volume[0, 10])
    np.testing.assert_allclose(slices[0, 1, 1, 2:-2, 2:-2], volume[0, :, 12])
    np.testing.assert_allclose(slices[0, 2, 1, 2:-2], volume[0, :, :, 10])
    assert slices[0, 1, 1, :2].max() == 0


@pytest.mark.parametrize(("shape", "size"), [((20, 24, 20), 64), ((40, 48, 40), 96), ((112, 136, 112), 224)])
def test_slice_size_follows_the_grid(shape, size):
    assert SliceProtocol.for_grid(shape).size == size


def test_features_do_not_depend_on_the_batch(network, volumes, monkeypatch):
    device = pick_device("float32", threads=1)
    together = extract(volumes, network, SMALL, device)
    monkeypatch.setattr(features, "_BATCH_SLICES", 6)
    alone = extract(volumes, network, SMALL, device)
    assert together.shape == (3, 3, 2, features.FEATURES)
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)
    pooled = pool(together)
    assert pooled.shape == (3, 3, features.FEATURES)
    np.testing.assert_allclose(pooled[1, 2], together[2, 1].mean(axis=0), rtol=1e-5, atol=1e-6)


def test_cache_is_used_and_follows_the_content(network, volumes, tmp_path, monkeypatch):
    device = pick_device("float32", threads=1)
    first = extract_cached(volumes[:1], network, SMALL, device, tmp_path)
    extract_cached(volumes[:1], network, SliceProtocol(per_axis=1, size=64), device, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(features, "extract", lambda *_: pytest.fail("extracted again"))
    np.testing.assert_array_equal(extract_cached(volumes[:1].copy(), network, SMALL, device, tmp_path), first)
    with pytest.raises(pytest.fail.Exception):
        extract_cached(volumes[:1] * 0.5, network, SMALL, device, tmp_path)


def test_key_of_the_cache_follows_content_settings_and_precision(volumes):
    key = features.content_key(volumes, ("network", 1))
    assert key == features.content_key(list(volumes.astype(np.float64)), ("network", 1))
    others = [(volumes, ("network", 2)), (volumes[:2], ("network", 1)), (volumes[::-1], ("network", 1))]
    assert key not in [features.content_key(*one) for one in others]
