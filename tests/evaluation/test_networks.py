"""Feature networks from files of weights in their published layouts, made small; regions; the cache; the controls."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses.perceptual import medicalnet_intensity_normalisation, subtract_mean
from monai.networks.nets import resnet as monai_resnet
from scipy import ndimage
from torch import nn

from cohort.atlas import atlas, load_template, resample
from cohort.scans import GRIDS, normalise
from evaluation import controls, fid, networks
from evaluation.fid import FeatureSet
from evaluation.inception import InceptionV3, Mixed, load_inception
from evaluation.networks import RegionIntensities, WeightsFile, describe, features_of, open_networks
from runtime.backbones import resnet_features
from runtime.device import pick_device
from runtime.errors import InputError
from runtime.files import sha256

GRID, DEMO = GRIDS["smoke"], GRIDS["demo"]
CPU = pick_device("float32", threads=2)
STEM = 2  # channels of the first convolution of the small Inception: all widths are a sixteenth


def randomised(network):
    """Weights under which a signal keeps its size, and running statistics as after a training."""
    draw = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if value.ndim > 2:
            nn.init.kaiming_normal_(value, nonlinearity="relu", generator=draw)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2.0, generator=draw)
        elif name.endswith(("running_mean", "bn.bias")):
            value.normal_(0.0, 0.2, generator=draw)
    return network.eval()


def small_resnet(depth, spatial_dims, channels):
    torch.manual_seed(0)
    return randomised(
        getattr(monai_resnet, depth)(
            spatial_dims=spatial_dims,
            n_input_channels=channels,
            conv1_t_stride=2,
            feed_forward=False,
            bias_downsample=False,
            widen_factor=1 / 16,
        )
    )


def write_inception(path, classes):
    """A file as torchvision (1,000 classes, with the auxiliary head) or pytorch-fid (1,008) publish them."""
    torch.manual_seed(0)
    network = randomised(InceptionV3(tensorflow=classes == 1008, stem=STEM))
    head = {"fc.weight": torch.zeros(classes, 4), "fc.bias": torch.zeros(classes)}
    auxiliary = {"AuxLogits.conv0.conv.weight": torch.zeros(2, 2, 1, 1)} if classes == 1000 else {}
    torch.save({**network.state_dict(), **head, **auxiliary}, path)
    return network


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    write_inception(folder / "inception_v3", 1000)
    torch.save(small_resnet("resnet50", 2, 3).state_dict(), folder / "radimagenet_resnet50")
    for depth in ("resnet10", "resnet50"):
        named = {f"module.{name}": value for name, value in small_resnet(depth, 3, 1).state_dict().items()}
        torch.save({"state_dict": named}, folder / f"medicalnet_{depth}")
    return {path.name: WeightsFile(path, sha256(path)[:8]) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def opened(files):
    found, skipped = open_networks(GRID, files, per_axis=2, every=4)
    assert skipped == {}
    return found


@pytest.fixture(scope="module")
def volumes():
    return np.random.default_rng(0).uniform(size=(3, *GRID.shape)).astype(np.float32)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_gives_one_vector_per_volume_and_view(opened, volumes, name):
    network = opened[name]
    features = network.features(volumes, CPU)
    assert features.shape[:2] == (3, len(network.views))
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert features.std(axis=0).max() > 0
    alone = np.concatenate([network.features(volumes[i : i + 1], CPU) for i in range(3)])
    np.testing.assert_allclose(features, alone, rtol=1e-3, atol=1e-4)
    described = describe(network)
    assert described["name"] == name
    assert sum(described["views"].values()) == len(network.views)
    assert len(described["checksum"]) >= 32


def test_without_weights_a_network_is_skipped_with_the_reason():
    found, skipped = open_networks(GRID, {})
    assert list(found) == ["efficientnet_lite0", "region_intensities"]
    assert set(skipped) == set(networks.NETWORKS) - set(found)
    assert all(reason.startswith("skipped: no weights were given") for reason in skipped.values())


def test_weights_are_taken_only_with_their_checksum(files, tmp_path):
    def refused(name, file, match):
        with pytest.raises(InputError, match=match):
            open_networks(GRID, {name: file})

    given = files["inception_v3"]
    refused("inception_v3", dataclasses.replace(given, sha256="0" * 64), "stated 0000")
    refused("inception_v3", dataclasses.replace(given, sha256=given.checked()[:4]), "8 digits or more")
    refused("inception_v3", dataclasses.replace(given, path=tmp_path / "none"), "no such file of weights")
    refused("vgg16", given, "vgg16")
    refused("radimagenet_resnet50", given, "not part of this network")
    refused("inception_v3", files["radimagenet_resnet50"], "a classifier of None classes")


def test_inception_has_the_published_size_and_the_published_maps():
    """torchvision's 27,161,264 parameters, less 3,326,696 of the auxiliary head and 2,049,000 of the classifier."""
    with torch.device("meta"):
        network = InceptionV3().eval()
        assert sum(value.numel() for value in network.parameters()) == 27_161_264 - 3_326_696 - 2_049_000
        assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 94
        shapes = {}
        for name in ("Conv2d_4a_3x3", "Mixed_5b", "Mixed_5d", "Mixed_6a", "Mixed_6e", "Mixed_7a", "Mixed_7c"):
            network[name].register_forward_hook(
                lambda _m, _i, out, name=name: shapes.update({name: tuple(out.shape[1:])})
            )
        assert network(torch.empty(1, 3, 299, 299)).shape == (1, 2048)
    assert shapes == {
        "Conv2d_4a_3x3": (192, 71, 71), "Mixed_5b": (256, 35, 35), "Mixed_5d": (288, 35, 35),
        "Mixed_6a": (768, 17, 17), "Mixed_6e": (768, 17, 17), "Mixed_7a": (1280, 8, 8), "Mixed_7c": (2048, 8, 8),
    }  # fmt: skip
    names = network.state_dict()
    assert names["Mixed_6c.branch7x7dbl_4.conv.weight"].shape == (160, 160, 7, 1)
    assert names["Mixed_7b.branch3x3dbl_3a.conv.weight"].shape == (384, 384, 1, 3)
    assert "Mixed_6a.branch_pool.conv.weight" not in names


@pytest.mark.parametrize(("pooling", "corner"), [("average", 4 / 9), ("inner", 1.0), ("max", 1.0)])
def test_pooling_with_and_without_the_padding(pooling, corner):
    block = Mixed(32, [], 32, pooling, 32)
    block["branch_pool"] = nn.Identity()
    pooled = block(torch.ones(1, 32, 5, 5))
    assert pooled[0, 0, 0, 0] == pytest.approx(corner)
    assert pooled[0, 0, 2, 2] == 1


@pytest.mark.parametrize("classes", [1000, 1008])
@torch.no_grad()
def test_inception_is_read_with_the_pooling_of_its_weights(tmp_path, classes):
    expected = write_inception(tmp_path / "weights.pth", classes)
    loaded, tensorflow = load_inception(tmp_path / "weights.pth")
    assert tensorflow == (classes == 1008)
    x = torch.rand(2, 3, 107, 91, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded(x), expected(x), rtol=1e-3, atol=1e-5)
    other = InceptionV3(tensorflow=classes == 1000, stem=STEM).eval()
    other.load_state_dict(expected.state_dict())
    assert (other(x) - expected(x)).abs().max() > 1e-4


@torch.no_grad()
def test_inception_sees_each_position_by_itself(files, volumes):
    network = networks.InceptionPositions(files["inception_v3"], GRID, every=10)
    assert network.settings["positions"] == [[5, 15], [5, 15], [5, 15]]
    assert network.views == ("sagittal",) * 2 + ("coronal",) * 2 + ("axial",) * 2
    changed = volumes.copy()
    changed[0, :, 15] = 0.5  # one coronal slice: a row in the other axes' slices, too
    before, after = network.features(volumes, CPU), network.features(changed, CPU)
    assert np.abs(after - before)[0, 3].max() > 1e-3
    np.testing.assert_array_equal(after[0, 2], before[0, 2])
    np.testing.assert_array_equal(after[1:], before[1:])
    grey = torch.from_numpy(volumes[1, :, 15])[None, None]
    image = F.interpolate(grey, (299, 299), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = load_inception(files["inception_v3"].path)[0]((image - mean) / std)
    np.testing.assert_allclose(before[1, 3], expected[0], rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_radimagenet_sees_what_maisis_script_shows_it(files, volumes):
    network = networks.RadImageNetAxes(files["radimagenet_resnet50"], GRID, every=1)
    assert network.settings["positions"][1] == list(range(7, 16))  # the central 40 % of 24
    reference = small_resnet("resnet50", 2, 3)
    slices = torch.from_numpy(0.2 + 0.5 * volumes[2, :, :, 6:14]).movedim(2, 0)  # axial, 40 % of 20
    colour = ((slices - slices.min()) / (slices.max() - slices.min())).unsqueeze(1).expand(-1, 3, -1, -1)
    # MONAI's `subtract_mean` takes ImageNet's mean off channels in the order BGR
    expected = resnet_features(reference, subtract_mean(colour.clone())).mean(dim=(2, 3)).mean(dim=0)
    np.testing.assert_allclose(network.features(volumes, CPU)[2, 2], expected, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_medicalnet_sees_z_scored_volumes_and_no_scale(files, volumes, opened):
    network = opened["medicalnet_resnet10"]
    x = medicalnet_intensity_normalisation(torch.from_numpy(volumes[1]))[None, None]
    expected = resnet_features(network._network, x).mean(dim=(2, 3, 4))
    got = network.features(volumes, CPU)
    np.testing.assert_allclose(got[1], expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(network.features(0.1 + 0.3 * volumes, CPU), got, rtol=1e-2, atol=1e-3)
    assert np.isfinite(network.features(np.zeros((1, *GRID.shape), dtype=np.float32), CPU)).all()


def test_region_intensities_are_means_and_deviations_inside_the_atlas(volumes):
    network, labels = RegionIntensities(DEMO), atlas(DEMO)
    assert "Left Hippocampus" in network.regions
    volume = np.random.default_rng(1).uniform(size=(1, *DEMO.shape)).astype(np.float32)
    features = network.features(volume, CPU)[0, 0]
    half = len(network.regions)
    for name in ("Left Hippocampus", "Right Thalamus", network.regions[-1]):
        inside, place = volume[0][labels.mask(name)], network.regions.index(name)
        assert len(inside) >= networks.MIN_VOXELS
        assert features[place] == pytest.approx(inside.mean(), rel=1e-5)
        assert features[half + place] == pytest.approx(inside.std(), rel=1e-4)
    planted = volume + 0.25 * labels.mask("Left Hippocampus")
    difference = network.features(planted, CPU)[0, 0] - features
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


def test_features_are_kept_by_content_and_network_and_made_in_blocks(opened, volumes, tmp_path, monkeypatch):
    network = opened["region_intensities"]
    monkeypatch.setattr(networks, "_BLOCK_VOXELS", 2 * volumes[0].size)
    first = features_of(CountedStack(volumes, 2), network, CPU, tmp_path)
    assert isinstance(first, np.memmap)
    np.testing.assert_array_equal(first, network.features(volumes, CPU))
    features_of(volumes, opened["medicalnet_resnet10"], CPU, tmp_path)
    features_of(volumes[:2], network, CPU, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(RegionIntensities, "features", lambda *_: pytest.fail("made again"))
    np.testing.assert_array_equal(features_of(volumes.copy(), network, CPU, tmp_path), first)
    with pytest.raises(pytest.fail.Exception):
        features_of(0.5 * volumes, network, CPU, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@cache
def template():
    image = load_template("icbm2009a")
    return resample(np.asarray(image.dataobj), image.affine, DEMO)


def head(seed, label):
    """The template with a random size, contrast and shading, and some noise; class 1 is darker in its lower half."""
    draw = np.random.default_rng(seed)
    middle = (np.array(DEMO.shape) - 1) / 2
    scales = draw.normal(1.0, 0.03, 3)
    volume = ndimage.affine_transform(template(), scales, middle - scales * middle, order=1)
    places = np.meshgrid(*[np.linspace(-1, 1, size) for size in DEMO.shape], indexing="ij")
    shading = 1 + sum(draw.normal(0, 0.05) * place for place in places)
    volume = (volume / volume.max()) ** draw.normal(1.0, 0.05) * shading
    volume = np.where(volume > 0.05, volume + draw.normal(0, 0.01, DEMO.shape), 0)
    if label:
        volume[:, :, :16] *= 0.8
    return normalise(volume)


@pytest.fixture(scope="module")
def simulated():
    """Volumes of a training, a held-out and a fresh set, and the held-out ones spoiled; with their labels."""
    sizes = {"train": 32, "test": 32, "synthetic": 24}
    labels = {name: np.arange(size) % 2 for name, size in sizes.items()}
    stacks = {
        name: np.stack([head(1000 * part + i, labels[name][i]) for i in range(size)])
        for part, (name, size) in enumerate(sizes.items())
    }
    spoiled = controls.make_controls(stacks["test"], seed=0)
    return stacks | spoiled, labels | dict.fromkeys(spoiled, labels["test"])


@pytest.mark.parametrize("name", ["efficientnet_lite0", "region_intensities"])
def test_controls_rank_as_they_must_in_both_distances(simulated, tmp_path, name):
    volumes, labels = simulated
    network = open_networks(DEMO, {}, per_axis=1)[0][name]
    sets = {
        one: FeatureSet.of(features_of(stack, network, CPU, tmp_path), labels[one], network.views)
        for one, stack in volumes.items()
    }
    n = fid.per_draw(*(labels[one] for one in fid.ROLES))
    arguments = {"dimensions": 6, "n": n, "repeats": 8, "seed": 0}
    results = fid.compare(sets, **arguments)
    for metric in ("fid", "kid"):
        overall = results["overall"]["held_out"]
        floor = overall["floor"][metric]
        assert overall["synthetic"][metric]["mean"] < floor["high"]  # fresh volumes of the same distribution
        for control in ("blurred", "noisy", "shuffled", "repeated"):
            assert overall[control][f"{metric}_minus_floor"]["low"] > 0, (metric, control)
            assert overall[control][metric]["mean"] > overall["synthetic"][metric]["mean"], (metric, control)
        assert overall["relabelled"][metric]["mean"] == pytest.approx(floor["mean"], rel=1e-6)
        for group in ("HC", "TLE"):
            assert results[group]["held_out"]["relabelled"][f"{metric}_minus_floor"]["low"] > 0
    copies = {**sets, "synthetic": sets["train"]}
    for made, warned in ((sets, False), (copies, True)):
        everything = fid.compare_all(made, dimensions=6, permutations=199, seed=0)
        assert bool(fid.warnings_of(fid.compare(made, **arguments), everything, name)) == warned
    assert everything["overall"]["to_training"]["fid"] < 1e-6 < everything["overall"]["to_held_out"]["fid"]
