"""Tiles against the whole: equality, what goes wrong without fixed statistics, memory, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from runtime.errors import InputError
from VAE.config import ModelConfig
from VAE.model import Autoencoder
from VAE.tiling import decode_tiled, encode_tiled, refuse_tiles, seamless_overlap

CASES = [  # name, architecture, shape of the volume, smallest tile
    ("two levels", ModelConfig(channels=(4, 8), groups=2), (40, 36, 20), 26),
    ("three levels", ModelConfig(channels=(4, 4, 8), groups=2), (80, 24, 16), 60),
    ("patch stem", ModelConfig(channels=(8,), groups=2, stem_patch=2, linear_path=True), (32, 28, 32), 18),
    ("patch stem, two levels", ModelConfig(channels=(4, 8), groups=2, stem_patch=2), (72, 24, 16), 52),
]


def random_model(config: ModelConfig) -> Autoencoder:
    """Random weights throughout: also in the layers that start at zero beside a linear path, and in the norms."""
    torch.manual_seed(0)
    model = Autoencoder(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def uneven(*shape: int) -> torch.Tensor:
    """A volume that is dark and smooth at one end of the first axis, bright and rough at the other: its parts have
    other statistics than the whole.
    """
    generator = torch.Generator().manual_seed(1)
    low = nn.functional.interpolate(torch.rand(1, 1, 4, 4, 4, generator=generator), size=shape, mode="trilinear")
    slope = torch.linspace(0.05, 1, shape[0]).view(1, 1, -1, 1, 1)
    return slope * (low + 0.3 * torch.rand(1, 1, *shape, generator=generator))


def largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max())


@pytest.mark.parametrize(("config", "shape", "least"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_tiles_equal_the_whole(config: ModelConfig, shape: tuple, least: int) -> None:
    model, x = random_model(config), uneven(*shape)
    overlap = seamless_overlap(model)
    assert overlap + model.factor == least
    tile = overlap + 4 * model.factor
    assert tile < max(shape)
    mu, logvar = model.encode(x)
    tiled_mu, tiled_logvar = encode_tiled(model, x, tile, overlap)
    assert largest(tiled_mu - mu) < 1e-4 < mu.std()
    assert largest(tiled_logvar - logvar) < 1e-4
    x_hat = model.decode(mu)
    assert largest(decode_tiled(model, mu, tile, overlap) - x_hat) < 3e-4 < x_hat.std()
    torch.testing.assert_close(model.encode(x)[0], mu, rtol=0, atol=0)  # the norms are as before


def test_a_tile_alone_has_other_statistics() -> None:
    """Without fixed statistics even that part of a tile is off that its border does not reach."""
    model, x = random_model(CASES[0][1]), uneven(40, 24, 24)
    away = (32 - seamless_overlap(model) // 2) // model.factor
    difference = model.encode(x[:, :, :32])[0][:, :, :away] - model.encode(x)[0][:, :, :away]
    assert largest(difference) > 0.01


@pytest.mark.parametrize("overlap", [0, 4, 12])
def test_a_small_overlap_harms_only_what_is_near_a_tile_edge(overlap: int) -> None:
    model, tile = random_model(CASES[0][1]), 30
    x, reach = uneven(2 * tile - overlap, 20, 20), seamless_overlap(model) // 2
    mu, _ = model.encode(x)
    x_hat = model.decode(mu)
    away = torch.ones(x.shape[2], dtype=torch.bool)
    away[tile - overlap - reach : tile + reach] = False  # the second tile begins and the first one ends in here
    assert away.any()
    mu_error = (encode_tiled(model, x, tile, overlap)[0] - mu).abs()
    x_error = (decode_tiled(model, mu, tile, overlap) - x_hat).abs()
    assert largest(mu_error[:, :, away[:: model.factor]]) < 1e-4
    assert largest(x_error[:, :, away]) < 1e-4
    assert min(largest(mu_error), largest(x_error)) > 1e-3


def test_no_seam_where_the_axes_differ() -> None:
    """One axis longer than the tile, one as long, one shorter than the overlap."""
    model, x = random_model(CASES[0][1]), uneven(36, 30, 16)
    mu, _ = model.encode(x)
    assert largest(encode_tiled(model, x, 30, 24)[0] - mu) < 1e-4
    assert largest(decode_tiled(model, mu, 30, 24) - model.decode(mu)) < 1e-4


def test_a_tile_that_holds_the_volume_is_the_whole() -> None:
    model, x = random_model(CASES[0][1]), uneven(24, 24, 24)
    mu, logvar = model.encode(x)
    tiled_mu, tiled_logvar = encode_tiled(model, x, 32, 4)
    assert torch.equal(tiled_mu, mu)
    assert torch.equal(tiled_logvar, logvar)
    assert torch.equal(decode_tiled(model, mu, 32, 4), model.decode(mu))


def test_activations_are_bounded_by_the_tile() -> None:
    model, seen = random_model(CASES[2][1]), []
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.numel()))

    def peak(size: int, tile: int) -> int:
        seen.clear()
        mu, _ = encode_tiled(model, uneven(size, size, size), tile, 16)
        decode_tiled(model, mu, tile, 16)
        return max(seen)

    whole = peak(24, 24)
    assert peak(32, 24) == peak(48, 24) == whole
    assert peak(48, 48) == 8 * whole


def test_the_norms_are_restored_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = random_model(CASES[0][1]), uneven(32, 24, 24)
    monkeypatch.setattr("VAE.tiling._blend", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encode_tiled(model, x, 26, 0)
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert not any("forward" in vars(norm) or norm._forward_pre_hooks for norm in norms)


def test_tiles_run_under_autocast() -> None:
    model, x = random_model(CASES[0][1]), uneven(32, 24, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mu, tiled_mu = model.encode(x)[0], encode_tiled(model, x, 30, 24)[0]
    assert tiled_mu.dtype == torch.float32
    assert float((tiled_mu - mu).abs().mean() / mu.std()) < 0.01


def test_refusals_name_every_problem() -> None:
    model = Autoencoder(CASES[0][1])
    with pytest.raises(InputError, match=r"(?s)--tile 25: .* multiple of 2 .* at least 26.*--overlap 3: .*"):
        refuse_tiles(model, 25, 3)
    with pytest.raises(InputError, match="--tile 24: "):
        refuse_tiles(model, 24, 0)
    with pytest.raises(InputError, match=r"--overlap 26: .* less than the tile"):
        refuse_tiles(model, 26, 26)
    with pytest.raises(ValueError, match="one volume at a time"):
        encode_tiled(model, torch.rand(2, 1, 32, 32, 32), 26, 0)
    attentive = Autoencoder(ModelConfig(channels=(4, 8), groups=2, attention=True))
    with pytest.raises(InputError, match="self-attention, which sees the whole volume"):
        decode_tiled(attentive, torch.rand(1, 4, 16, 16, 16), 26, 0)
