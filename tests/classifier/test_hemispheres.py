"""The network that compares the halves of the head."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from classifier.config import ModelConfig
from classifier.model import Hemispheres, build_model
from classifier.model.hemispheres import box_of
from classifier.saliency import attribution
from cohort.atlas import atlas
from cohort.grids import GRIDS
from runtime.errors import InputError
from tests.support.scans import grid_of

HEAD = ModelConfig(name="hemispheres", widths=(8, 16), blocks=1, stem_stride=1, summaries=6, volumes=2)
TEMPORAL = dataclasses.replace(HEAD, region="temporal")
GRID = GRIDS["smoke"]


def scrambled(config: ModelConfig, grid=GRID) -> Hemispheres:
    """A network without the zeros of its initialisation."""
    torch.manual_seed(0)
    model = build_model(config, grid, 0.3, 0.2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def volumes(count=3, shape=GRID.shape):
    return torch.rand(count, 1, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("config", "shape"), [(HEAD, (12, 9, 10)), (HEAD, (11, 12, 9)), (TEMPORAL, GRID.shape)])
def test_mirroring_a_volume_exchanges_the_sides(config, shape, training):
    model, x = scrambled(config, grid_of(shape) if config is HEAD else GRID).train(training), volumes(shape=shape)
    found, mirrored = model.everything(x), model.everything(x.flip(2))
    torch.testing.assert_close(mirrored[:, 0], found[:, 0])
    torch.testing.assert_close(mirrored[:, 1], -found[:, 1])
    torch.testing.assert_close(mirrored[:, 2:].view(3, 2, 2), found[:, 2:].view(3, 2, 2).flip(2))
    assert found[:, 1].abs().min() > 1e-3
    assert (found[:, 2] - found[:, 3]).abs().min() > 1e-4


def test_logits_are_those_of_a_softmax_over_hc_left_and_right():
    model, x = scrambled(HEAD), volumes()
    z = model.standardise(model.pool(model.features(x)))
    left, right = z.chunk(2)
    sides = [model.head(torch.cat(pair, dim=1))[:, 0] for pair in ((left, right), (right, left))]
    p = torch.stack([torch.zeros(3), *sides], dim=1).softmax(1)  # HC, left, right
    tle, side = model.both(x).T
    torch.testing.assert_close(tle.sigmoid(), p[:, 1] + p[:, 2])
    torch.testing.assert_close(side.sigmoid(), p[:, 2] / (p[:, 1] + p[:, 2]))


def test_an_untrained_network_gives_either_side_a_quarter():
    logits = build_model(HEAD, GRID, 0.3, 0.2).eval().both(volumes())
    torch.testing.assert_close(logits, torch.zeros(3, 2), atol=1e-6, rtol=0)


def test_the_read_out_knows_places_and_pools_none():
    model = scrambled(HEAD)
    h = model.features(volumes())
    moved = h.flatten(2)[..., torch.randperm(h[0, 0].numel(), generator=torch.Generator().manual_seed(2))]
    torch.testing.assert_close(moved.mean(2), h.mean((2, 3, 4)))
    assert (model.pool(moved) - model.pool(h)).abs().mean() > 0.1 * model.pool(h).abs().mean()
    torch.testing.assert_close(model.pool(h), F.linear(h.flatten(1), model.readout.weight))


@pytest.mark.parametrize("name", ["smoke", "demo", "paper"])
def test_box_holds_the_structures_of_either_side_and_grows_by_the_margin(name):
    grid = GRIDS[name]
    regions, config = atlas(grid), dataclasses.replace(TEMPORAL, margin_mm=0.0)
    close, wide = (box_of(dataclasses.replace(config, margin_mm=mm), grid) for mm in (0.0, 2 * grid.spacing_mm))
    inside = np.zeros(grid.shape, bool)
    inside[close] = True
    for structure in ("Hippocampus", "Amygdala"):
        assert inside[regions.mask(f"Left {structure}")].all()
        assert inside[::-1][regions.mask(f"Right {structure}")].all()
    for axis, (a, b) in enumerate(zip(close, wide, strict=True)):
        limit = grid.shape[0] // 2 if axis == 0 else grid.shape[axis]
        assert (b.start, b.stop) == (max(0, a.start - 2), min(limit, a.stop + 2))
    assert 25 < (close[1].stop - close[1].start) * grid.spacing_mm < 70  # hippocampus and amygdala, back to front


def test_what_is_outside_the_boxes_is_not_seen():
    model, x = scrambled(TEMPORAL), volumes().requires_grad_(True)
    model.both(x).sum().backward()
    seen = torch.zeros(GRID.shape, dtype=torch.bool)
    seen[model.box] = True
    seen |= seen.flip(0)
    assert x.grad[:, 0, ~seen].abs().max() == 0
    assert x.grad[:, 0, seen].abs().amax(0).min() > 0
    assert 0.02 < seen.float().mean() < 0.5


@pytest.mark.parametrize("config", [HEAD, TEMPORAL])
def test_maps_of_the_last_level_are_put_back_where_their_half_is(config):
    model = scrambled(config)
    coarse = torch.zeros(2, 1, *model.last_level(config, GRID))
    coarse[1, 0, 0, 1, 1] = 1.0  # of the right half: its outermost place
    map_ = model.onto_volume(coarse, torch.Size(GRID.shape))[0, 0]
    assert map_.shape == GRID.shape
    assert map_[: GRID.shape[0] // 2].abs().max() == 0
    peak = GRID.shape[0] - 1 - int(map_.amax((1, 2)).argmax())
    assert 0 <= peak - model.box[0].start <= 1


@pytest.mark.parametrize("method", [name for name in attribution.METHODS if name != "attention"])
@pytest.mark.parametrize("config", [HEAD, TEMPORAL])
def test_maps_are_of_the_whole_volume_and_mirror_with_it(config, method):
    model, x = scrambled(config).requires_grad_(False), volumes(2)
    regions = torch.zeros(1, 1, *GRID.shape, dtype=torch.int64)
    regions[..., 5:9, 8:14, 6:12], regions[..., 11:15, 8:14, 6:12] = 1, 2
    mean = volumes(1) / 2 + volumes(1).flip(2) / 2
    context = attribution.Context(mean, regions, ig_steps=4, noise_samples=2, noise=0.0)
    turned = dataclasses.replace(context, regions=regions.flip(2))
    maps = attribution.attribute(model, x, method, context, (0, 1))
    assert maps.shape == (2, *GRID.shape)
    again = attribution.attribute(model, x.flip(2), method, turned, (0, 1))
    np.testing.assert_allclose(again, maps[:, ::-1], atol=1e-5 * np.abs(maps).max())
    for half in (maps[:, :10], maps[:, 10:]):
        assert np.abs(half).max() > 0.01 * np.abs(maps).max()


def test_completeness_holds_through_crop_and_mirror():
    model, x = scrambled(TEMPORAL).requires_grad_(False), volumes(2)
    context = attribution.Context(volumes(1) / 2, torch.zeros(1, 1, *GRID.shape, dtype=torch.int64), ig_steps=32)
    maps = attribution.attribute(model, x, "integrated_gradients", context, (0, 1))
    errors = attribution.completeness_errors(model, x, "integrated_gradients", context, maps)
    assert np.abs(errors).max() < 0.02 * np.abs(maps.sum((1, 2, 3))).min()


def test_attention_is_refused_with_advice():
    model = scrambled(HEAD).requires_grad_(False)
    context = attribution.Context(volumes(1), torch.zeros(1, 1, *GRID.shape, dtype=torch.int64))
    with pytest.raises(InputError, match="Hemispheres has no attention head"):
        attribution.attribute(model, volumes(1), "attention", context)


def test_a_grid_beside_the_midline_is_refused():
    with pytest.raises(InputError, match="not symmetric about the midline"):
        build_model(HEAD, dataclasses.replace(GRID, centre_mm=(2.0, -17.0, 8.0)), 0.0, 1.0)
    assert all(grid.centre_mm[0] == 0 for grid in GRIDS.values())  # what mirrored training volumes assume
