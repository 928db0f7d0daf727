"""Tiled encoding and decoding against the whole volume."""

from __future__ import annotations

import pytest
import torch

from runtime.errors import InputError
from VAE.config import ModelConfig
from VAE.model import Autoencoder
from VAE.tiling import decode_tiled, encode_tiled

CONFIGS = {
    "two levels": ModelConfig(channels=(8, 8), groups=4),
    "stem": ModelConfig(channels=(8,), groups=4, stem_patch=2, linear_path=True),
}


def trained_like(config: ModelConfig) -> Autoencoder:
    """Random weights everywhere, also where a new network starts silent."""
    torch.manual_seed(0)
    model = Autoencoder(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2 if parameter.dim() == 1 else parameter[0].numel() ** -0.5)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_tiles_equal_the_whole_where_norms_alone_would_differ(name: str) -> None:
    """A volume whose left is dark and flat and whose right is bright and rough: tiles have other statistics."""
    model = trained_like(CONFIGS[name])
    x = torch.rand(1, 1, 96, 16, 16) * torch.linspace(0.1, 1.0, 96).view(1, 1, -1, 1, 1)
    with torch.no_grad():
        mu, logvar = model.encode(x)
        x_hat, alone = model.decode(mu), model.encode(x[:, :, :48])[0]
    tiled_mu, tiled_logvar = encode_tiled(model, x, 48, 24)
    for tiled, whole in ((tiled_mu, mu), (tiled_logvar, logvar), (decode_tiled(model, mu, 48, 24), x_hat)):
        assert tiled.shape == whole.shape
        torch.testing.assert_close(tiled, whole, atol=1e-3, rtol=0)
    assert (alone[:, :, :8] - mu[:, :, :8]).abs().max() > 1e-2  # what a tile by itself would give, far from its end


def test_memory_is_bounded_by_the_tile() -> None:
    model, largest = trained_like(CONFIGS["two levels"]), {}

    def note(_: torch.nn.Module, __: tuple, output: torch.Tensor) -> None:
        largest["now"] = max(largest.get("now", 0), output.numel())

    for module in model.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_hook(note)
    sizes = []
    for length in (64, 128):
        largest.clear()
        encode_tiled(model, torch.rand(1, 1, length, 16, 16), 32, 8)
        sizes.append(largest["now"])
    assert sizes[0] == sizes[1] <= 8 * 32 * 16 * 16


def test_a_tile_as_large_as_the_volume_is_the_whole() -> None:
    model = trained_like(CONFIGS["two levels"])
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        mu, _ = model.encode(x)
    assert torch.equal(encode_tiled(model, x, 32, 0)[0], mu)
    encode_tiled(model, torch.rand(1, 1, 64, 16, 16), 32, 8)
    assert all("forward" not in vars(module) for module in model.modules())  # norms are themselves again


def test_what_tiles_cannot_do_is_refused() -> None:
    x = torch.rand(1, 1, 16, 16, 16)
    with pytest.raises(InputError, match="self-attention"):
        encode_tiled(Autoencoder(ModelConfig(channels=(8, 8), groups=4, attention=True)), x, 8, 2)
    model = trained_like(CONFIGS["two levels"])
    for tile, overlap, message in (
        (7, 0, "--tile 7"),
        (4, 0, "--tile 4"),
        (32, 3, "--overlap 3"),
        (32, 32, "--overlap 32"),
    ):
        with pytest.raises(InputError, match=message):
            encode_tiled(model, x, tile, overlap)
