import dataclasses

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from monai.networks.nets.densenet import DenseNet121 as MonaiDenseNet121
from monai.networks.nets.efficientnet import EfficientNetBN
from torch import nn

from classifier.config import PRESETS, ModelConfig
from classifier.model import MODELS, Classifier, Everything, build_model
from classifier.model.classifier import FeatureNorm
from cohort.grids import GRIDS
from runtime.errors import InputError
from runtime.training import average
from tests.support.scans import grid_of

SMALL = ModelConfig(widths=(8, 16, 24), blocks=2, stem_stride=1)
SHAPES = {"resnet": (10, 12, 11), "hemispheres": (11, 12, 10), "densenet121": (32, 33, 32), "efficientnet": (34, 7, 33)}
"""A small shape that each network takes."""
POOLED = [name for name in MODELS if name != "hemispheres"]
"""Networks with one linear layer on features pooled over the volume."""


def scrambled(config: ModelConfig, shape: tuple[int, int, int] = (10, 12, 10)) -> Classifier:
    """A network without the zeros of its initialisation."""
    torch.manual_seed(0)
    model = build_model(config, grid_of(shape), 0.3, 0.2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.std(correction=0).clamp(min=0.3) * torch.randn_like(parameter))
    return model.eval()


def with_volumes(name: str) -> tuple[Classifier, torch.Tensor]:
    """A network, its weights random throughout, and two volumes for it."""
    shape = SHAPES[name]
    config = dataclasses.replace(SMALL, name=name, outputs=2)
    return scrambled(config, shape), torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=MODELS)
def network(request: pytest.FixtureRequest) -> tuple[Classifier, torch.Tensor]:
    return with_volumes(request.param)


@pytest.fixture(scope="module", params=POOLED)
def pooled(request: pytest.FixtureRequest) -> tuple[Classifier, torch.Tensor]:
    return with_volumes(request.param)


@pytest.mark.parametrize("shape", [(20, 24, 20), (19, 23, 21), (9, 10, 11)])
@pytest.mark.parametrize("stem_stride", [1, 2])
@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_one_logit_per_volume_on_any_size(shape, stem_stride, pool):
    model = scrambled(dataclasses.replace(SMALL, stem_stride=stem_stride, pool=pool), shape)
    x = torch.rand(3, 1, *shape)
    assert model(x).shape == (3,)
    shrink = 4 * stem_stride
    assert model.features(x).shape == (3, 24, *(-(-side // shrink) for side in shape))


@pytest.mark.parametrize(
    ("name", "stem_stride", "shape", "features"),
    [("densenet121", 1, (40, 33, 47), (1024, 2, 2, 3)), ("efficientnet", 2, (64, 6, 99), (1280, 2, 1, 3))],
)
def test_features_are_those_of_the_published_networks(name, stem_stride, shape, features):
    config = ModelConfig(name=name, stem_stride=stem_stride)
    with torch.no_grad():
        assert build_model(config, grid_of(shape), 0.0, 1.0).features(torch.rand(1, 1, *shape)).shape == (1, *features)
    sides = features[1:] if name == "densenet121" else features[1::2]
    assert MODELS[name].last_level(config, grid_of(shape)) == sides


def test_no_volume_depends_on_its_batch(network):
    model, x = network
    together = model.both(x)
    torch.testing.assert_close(torch.cat([model.both(volume) for volume in x.split(1)]), together)
    assert together.std(0).min() > 1e-3


def test_features_in_training_do_not_depend_on_the_batch_but_by_their_norm(pooled):
    model, x = pooled
    before = model.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    model.train()
    pooled = model.pool(model.features(x))
    torch.testing.assert_close(pooled, torch.cat([model.pool(model.features(volume)) for volume in x.split(1)]))
    expected = F.linear(F.batch_norm(pooled, None, None, training=True, eps=1e-6), model.head.weight, model.head.bias)
    torch.testing.assert_close(model.both(x), expected)
    model.load_state_dict(before)
    model.eval()


def test_running_statistics_become_those_of_the_features():
    norm, features = FeatureNorm(4), 3 + 0.02 * torch.randn(32, 4, generator=torch.Generator().manual_seed(2))
    for _ in range(200):
        norm.train()(features)
    seen = norm.eval()(features)
    torch.testing.assert_close(seen.mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen.var(0, correction=0), torch.ones(4), atol=0.01, rtol=0)
    assert not norm.running_mean.requires_grad


def test_every_parameter_learns_and_can_be_averaged(network):
    """What DistributedDataParallel and `runtime.training.average` ask of a network."""
    model, x = network
    model.zero_grad()
    model.both(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    state = model.state_dict()
    ema = {name: torch.zeros_like(value) for name, value in state.items()}
    average(ema, model, rate=0.25)
    for name, value in state.items():
        torch.testing.assert_close(ema[name], 0.25 * value, msg=name)


def test_convolutions_in_3d_are_dense(network):
    model, _ = network
    assert all(layer.groups == 1 for layer in model.modules() if isinstance(layer, nn.Conv3d))
    assert any(isinstance(layer, nn.Conv2d | nn.Conv3d) for layer in model.modules())


def test_untrained_network_is_undecided(network):
    model, x = network
    fresh = build_model(dataclasses.replace(model.config, outputs=1), grid_of(x.shape[2:]), 0.0, 1.0)
    torch.testing.assert_close(fresh(x[:2]), torch.zeros(2))


def test_constants_standardise_the_input(network):
    model, x = network
    plain = build_model(model.config, grid_of(x.shape[2:]), 0.0, 1.0)
    plain.load_state_dict({**model.state_dict(), "mean": torch.tensor(0.0), "std": torch.tensor(1.0)})
    torch.testing.assert_close(model(x), plain.eval()((x - 0.3) / 0.2))


def test_first_logit_is_tle_and_predicted_volumes_are_no_logits(network):
    """Masked or not, with volumes or without."""
    model, x = network
    keep = torch.rand(2, model.width)
    both = model.both(x, keep)
    assert both.shape == (2, 2)
    assert torch.equal(model(x, keep), both[:, 0])
    assert torch.equal(Everything(model)(x, keep), both)
    more = scrambled(dataclasses.replace(model.config, volumes=3), tuple(x.shape[2:]))
    everything = Everything(more)(x, keep)
    assert everything.shape == (2, 2 + 6)
    assert torch.equal(more.both(x, keep), everything[:, :2])
    assert everything[:, 2:].std(0).min() > 1e-4


def test_the_second_logit_moves_only_its_own(pooled):
    model, x = pooled
    keep = torch.rand(2, model.width)
    both = model.both(x, keep)
    single = build_model(dataclasses.replace(model.config, outputs=1), grid_of(x.shape[2:]), 0.0, 1.0).eval()
    head = {name: value[:1] for name, value in model.state_dict().items() if name.startswith("head.")}
    single.load_state_dict({**model.state_dict(), **head})
    torch.testing.assert_close(single(x, keep), both[:, 0])
    model.zero_grad()
    model.both(x)[:, 1].sum().backward()
    assert not model.head.weight.grad[0].any()
    assert model.head.weight.grad[1].any()
    torch.testing.assert_close(model(x, torch.zeros_like(keep)), model.head.bias[0].expand(2))


@pytest.mark.slow
def test_densenet_is_monais():
    shape = SHAPES["densenet121"]
    model = scrambled(ModelConfig(name="densenet121", stem_stride=2), (64, 64, 64))
    theirs = MonaiDenseNet121(spatial_dims=3, in_channels=1, out_channels=1, norm=("group", {"num_groups": 8})).eval()
    theirs.features.load_state_dict(model.layers.state_dict())
    theirs.class_layers.out.load_state_dict(model.head.state_dict())
    x = torch.rand(2, 1, *shape)
    torch.testing.assert_close(model(x), theirs((x - 0.3) / 0.2)[:, 0])


def test_efficientnet_is_monais_on_coronal_slices():
    D, H, W = shape = (66, 9, 70)
    model = scrambled(ModelConfig(name="efficientnet"), shape)
    theirs = EfficientNetBN(
        "efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=H, num_classes=1,
        norm=("group", {"num_groups": 8}),
    ).eval()  # fmt: skip
    ours = model.state_dict()
    layers = [value for name, value in ours.items() if name.startswith("layers.")]
    values = dict(zip([name for name in theirs.state_dict() if not name.startswith("_fc")], layers, strict=True))
    theirs.load_state_dict({**values, "_fc.weight": ours["head.weight"], "_fc.bias": ours["head.bias"]})
    x = torch.rand(2, 1, *shape)
    slices = torch.stack([x[:, 0, :, k] for k in range(H)], dim=1)  # (B, H, D, W)
    assert slices.shape == (2, H, D, W)
    torch.testing.assert_close(model(x), theirs((slices - 0.3) / 0.2)[:, 0])


def test_attention_starts_as_the_mean():
    shape = (20, 22, 18)
    torch.manual_seed(0)
    attentive = build_model(SMALL, grid_of(shape), 0.3, 0.2).eval()
    plain = build_model(dataclasses.replace(SMALL, pool="mean"), grid_of(shape), 0.3, 0.2).eval()
    nn.init.normal_(plain.head.weight)
    missing, unexpected = attentive.load_state_dict(plain.state_dict(), strict=False)
    assert set(missing) == {"score.0.weight", "score.0.bias", "score.2.weight"}  # the attention's own, and no others
    assert not unexpected
    x = torch.rand(2, 1, *shape)
    assert torch.equal(attentive.attention(x), torch.full((2, 5, 6, 5), 1 / 150))
    torch.testing.assert_close(attentive(x), plain(x), rtol=1e-5, atol=1e-6)
    assert plain(x).abs().min() > 0.01
    assert plain.attention(x) is None


def test_attention_is_a_weighted_mean_of_places():
    """Against equations 7 and 8 of Ilse et al. 2018, place by place."""
    shape = (12, 9, 10)
    model = scrambled(SMALL, shape)
    with torch.no_grad():
        model.score[2].weight *= 30
    x = torch.rand(2, 1, *shape)
    weights = model.attention(x)
    assert weights.shape == (2, 3, 3, 3)
    torch.testing.assert_close(weights.sum((1, 2, 3)), torch.ones(2))
    assert weights.std() > 5e-3
    (V, b), w = (model.score[0].weight, model.score[0].bias), model.score[2].weight[0]
    for h, logit, map_ in zip(model.features(x), model(x), weights, strict=True):
        places = [h[:, i, j, k] for i in range(3) for j in range(3) for k in range(3)]
        powers = torch.stack([torch.exp(w @ torch.tanh(V @ place + b)) for place in places])
        a = powers / powers.sum()
        torch.testing.assert_close(map_.flatten(), a)
        z = sum(weight * place for weight, place in zip(a, places, strict=True))
        torch.testing.assert_close(logit, model.head.weight[0] @ z + model.head.bias[0])


@pytest.mark.slow
def test_attention_learns_where_to_look():
    """Only the score is trained; what tells the classes apart is in one corner, and the rest is as loud."""
    torch.manual_seed(0)
    model = build_model(dataclasses.replace(SMALL, widths=(8, 8), blocks=1), grid_of((8, 8, 8)), 0.0, 1.0).eval()
    model.requires_grad_(False).score.requires_grad_(True)
    y = torch.arange(16) % 2
    x = torch.randn(16, 1, 8, 8, 8)
    x[:, :, :4, :4, :4] = 4.0 * (2 * y.view(-1, 1, 1, 1, 1) - 1)
    h = model.features(x).mean((2, 3, 4))
    model.head.weight.copy_((h[y == 1].mean(0) - h[y == 0].mean(0))[None])
    before = F.binary_cross_entropy_with_logits(model(x), y.float())
    optimiser = torch.optim.Adam(model.score.parameters(), lr=0.03)
    for _ in range(40):
        optimiser.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(x), y.float())
        loss.backward()
        optimiser.step()
    assert loss < before
    corner = model.attention(x)[y == 1][:, :2, :2, :2].sum((1, 2, 3))
    assert corner.min() > 0.25  # of the mass, on an eighth of the places


@pytest.mark.slow
def test_grad_cam_of_a_mean_is_class_activation_mapping():
    """Zhou et al. 2016: weights of the linear layer over the number of places, times the pooled features."""
    for name in POOLED:
        shape = SHAPES[name]
        model = scrambled(dataclasses.replace(SMALL, name=name, pool="mean"), shape)
        x = torch.rand(2, 1, *shape)
        map_ = LayerGradCam(model, model.last_convolution).attribute(x)[:, 0].detach()
        h = model.features(x)
        weights = model.head.weight[0] / h[0, 0].numel()
        expected = torch.einsum("c,bcdhw->bdhw", weights, h)
        torch.testing.assert_close(map_, expected.detach(), rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_fit_their_grids(name):
    config = PRESETS[name]
    assert isinstance(build_model(config.model, GRIDS[config.grid], 0.0, 1.0), MODELS[config.model.name])
    assert config.steps > config.warmup_steps


@pytest.mark.parametrize(
    ("changes", "grid", "message"),
    [
        ({"name": "vgg"}, "demo", r"name vgg: unknown; there are: resnet, hemispheres, densenet121, efficientnet"),
        ({"widths": (8,) * 7}, "demo", r"keeps only 1 of an axis of the grid \(40, 48, 40\).*fewer --model.widths"),
        ({"widths": (8,) * 5}, "smoke", r"use --model.stem-stride 1, fewer --model.widths"),
        ({"name": "densenet121"}, "demo", r"only 1 of an axis .*use --model.stem-stride 1"),
        ({"name": "efficientnet"}, "demo", r"only 1 of an axis .*use --model.stem-stride 1"),
        ({"name": "efficientnet"}, "smoke", r"only 0 of .*\(20, 24, 20\), .*or --model.name resnet"),
        ({"name": "efficientnet", "groups": 16}, "paper", r"--model.groups 16: has to divide every width"),
        ({"widths": (8, 20)}, "demo", r"--model.groups 8: has to divide every width"),
        ({"groups": 0, "dropout": 1.0}, "demo", r"stem-stride, groups and summaries are at least 1, dropout is"),
        ({"stem_stride": 0}, "demo", r"stem-stride, groups and summaries are at least 1"),
        ({"name": "hemispheres", "margin_mm": -1.0}, "demo", r"--model.margin-mm -1: cannot be negative"),
        ({"name": "hemispheres", "region": "temporal"}, "demo", r"only 1 of an axis .*fewer --model.widths"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_advice(changes, grid, message):
    with pytest.raises(InputError, match=message):
        build_model(dataclasses.replace(ModelConfig(), **changes), GRIDS[grid], 0.0, 1.0)


@pytest.mark.parametrize("name", MODELS)
def test_advice_is_good(name):
    """What the refusals at the demo's grid ask for works there."""
    assert build_model(ModelConfig(name=name, stem_stride=1), GRIDS["demo"], 0.0, 1.0).config.name == name
