"""Volumes in slabs: the same as whole ones, in less memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from runtime.memory import peak_bytes
from VAE import tiles
from VAE.config import PRESETS, ModelConfig
from VAE.model import Autoencoder

CPU = torch.device("cpu")
CONFIGS = {
    "demo": PRESETS["demo"].model,
    "levels": ModelConfig(channels=(8, 16, 16), groups=4, blocks=2, support=True),
    "linear": ModelConfig(channels=(8, 8), groups=4, upsampling="linear"),
    "attention": ModelConfig(
        channels=(8, 12), groups=4, blocks=(1, 3), attention_levels=(False, True), attention=True,
        upsampling="transposed", stem_patch=2, linear_path=True,
    ),
}  # fmt: skip


def network(config: ModelConfig) -> Autoencoder:
    """One whose convolutions say something beside the linear path."""
    torch.manual_seed(0)
    model = Autoencoder(config).eval().requires_grad_(False)
    for layer in (model.to_mu, model.decoder.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.05)
    return model


@pytest.mark.parametrize("slabs", [1, 2, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_slabs_give_the_whole_whatever_their_width(name: str, slabs: int) -> None:
    """Sizes that do not divide by the reduction, nor by the slabs."""
    model, shape = network(CONFIGS[name]), (41, 22, 26)
    tile = 2 * model.factor * slabs
    x = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(1))
    mu, logvar = model.encode(x)
    found = tiles.encode(model, x, tile, CPU)
    torch.testing.assert_close(found, (mu, logvar), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tiles.decode(model, mu, shape, tile, CPU), model.decode(mu, shape), atol=2e-5, rtol=0)


def test_thin_slabs_take_less_memory() -> None:
    model = network(ModelConfig(channels=(16, 32), groups=8))
    x, z = torch.rand(1, 1, 96, 24, 24), torch.randn(1, 4, 48, 12, 12)
    whole = [peak_bytes(partial(model.encode, x)), peak_bytes(partial(model.decode, z, (96, 24, 24)))]
    thin = [
        peak_bytes(partial(tiles.encode, model, x, 4, CPU)),
        peak_bytes(partial(tiles.decode, model, z, (96, 24, 24), 4, CPU)),
    ]
    assert thin[0] < 0.75 * whole[0]
    assert thin[1] < 0.75 * whole[1]
