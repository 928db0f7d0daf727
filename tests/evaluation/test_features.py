"""The packaged network against its package, its slices, region intensities, and the cache."""

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet

from cohort.atlas import atlas
from cohort.grids import GRIDS
from evaluation import features
from evaluation.features import EfficientNetLite, RegionIntensities, SliceNetwork, SliceProtocol, features_of
from runtime.device import pick_device
from runtime.errors import InputError

SMALL = SliceProtocol(per_axis=2, size=64)
DEMO = GRIDS["demo"]
CPU = pick_device("float32", threads=1)


@pytest.fixture(scope="module")
def network():
    return EfficientNetLite()


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
    assert got.shape == (2, 1280)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_other_weights_are_refused(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"something else")
    with pytest.raises(InputError, match="SHA-256"):
        EfficientNetLite(tmp_path / "weights.pth")


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
    slices = protocol.cut(volume)
    assert slices.shape == (1, 3, 3, 24, 24)
    np.testing.assert_allclose(slices[0, 0, 1, :, 2:-2], volume[0, 10])
    np.testing.assert_allclose(slices[0, 1, 1, 2:-2, 2:-2], volume[0, :, 12])
    np.testing.assert_allclose(slices[0, 2, 1, 2:-2], volume[0, :, :, 10])
    assert slices[0, 1, 1, :2].max() == 0


@pytest.mark.parametrize(("shape", "size"), [((20, 24, 20), 64), ((40, 48, 40), 96), ((112, 136, 112), 224)])
def test_slice_size_follows_the_grid(shape, size):
    assert SliceProtocol.for_grid(shape).size == size


def test_a_vector_per_axis_is_the_mean_of_its_slices_whatever_the_batch(network, volumes, monkeypatch):
    slices = SliceNetwork("numbers", "0" * 64, network, SMALL)
    together = slices.features(volumes, CPU)
    assert together.shape == (3, 3, 1280)
    assert together.dtype == np.float32
    monkeypatch.setattr(features, "_BATCH_SLICES", 6)
    np.testing.assert_allclose(together, slices.features(volumes, CPU), rtol=1e-3, atol=1e-4)
    by_slice = network(SMALL.cut(volumes[2:])[0, 1].unsqueeze(1))
    np.testing.assert_allclose(together[2, 1], by_slice.mean(dim=0), rtol=1e-3, atol=1e-4)


def test_region_intensities_are_means_and_deviations_inside_the_atlas():
    network, labels = RegionIntensities(DEMO), atlas(DEMO)
    assert "Left Hippocampus" in network.regions
    volume = np.random.default_rng(1).uniform(size=(1, *DEMO.shape)).astype(np.float32)
    measured = network.features(volume, CPU)[0, 0]
    half = len(network.regions)
    for name in ("Left Hippocampus", "Right Thalamus", network.regions[-1]):
        inside, place = volume[0][labels.mask(name)], network.regions.index(name)
        assert len(inside) >= features.MIN_VOXELS
        assert measured[place] == pytest.approx(inside.mean(), rel=1e-5)
        assert measured[half + place] == pytest.approx(inside.std(), rel=1e-4)
    planted = volume + 0.25 * labels.mask("Left Hippocampus")
    difference = network.features(planted, CPU)[0, 0] - measured
    assert difference[network.regions.index("Left Hippocampus")] == pytest.approx(0.25, abs=1e-5)
    assert np.sum(np.abs(difference) > 1e-5) == 1


class CountedStack:
    """Volumes that are read by slices or one by one, and never more than a few at once."""

    def __init__(self, volumes, most):
        self.volumes, self.most = volumes, most

    def __len__(self):
        return len(self.volumes)

    def __getitem__(self, index):
        out = self.volumes[index]
        assert not isinstance(index, slice) or len(out) <= self.most
        return out


def test_features_are_kept_by_content_and_network_and_made_in_blocks(network, volumes, tmp_path, monkeypatch):
    regions, slices = RegionIntensities(GRIDS["smoke"]), SliceNetwork("numbers", "0" * 64, network, SMALL)
    monkeypatch.setattr(features, "_BLOCK_VOXELS", 2 * volumes[0].size)
    first = features_of(CountedStack(volumes, 2), regions, CPU, tmp_path)
    np.testing.assert_array_equal(first, regions.features(volumes, CPU))
    features_of(volumes[:1], slices, CPU, tmp_path)
    features_of(volumes[:2], regions, CPU, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(RegionIntensities, "features", lambda *_: pytest.fail("made again"))
    np.testing.assert_array_equal(features_of(volumes.copy(), regions, CPU, tmp_path), first)
    with pytest.raises(pytest.fail.Exception):
        features_of(0.5 * volumes, regions, CPU, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_key_of_the_cache_follows_content_settings_and_precision(volumes):
    key = features.content_key(volumes, ("network", 1))
    assert key == features.content_key(list(volumes.astype(np.float64)), ("network", 1))
    others = [(volumes, ("network", 2)), (volumes[:2], ("network", 1)), (volumes[::-1], ("network", 1))]
    assert key not in [features.content_key(*entry) for entry in others]
