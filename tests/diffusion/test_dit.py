"""The DiT: patches, shapes, parameter and operation counts, conditioning, silence at the start."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusion.config import ModelConfig
from diffusion.model import DiT
from diffusion.model.dit import patchify, position_embedding, unpatchify

SMALL = ModelConfig(dim=32, depth=2, heads=2, patch=(2, 2, 2), latent_channels=3)


def awake(model: DiT) -> DiT:
    """Random weights everywhere: a new DiT's output is zero by design."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("patch", [(4, 2, 4), (2, 2, 2), (1, 2, 2)])
def test_patches_are_undone_on_sizes_that_do_not_divide(patch: tuple[int, int, int]) -> None:
    z = torch.randn(2, 3, 5, 7, 6)
    tokens = patchify(z, patch)
    counts = [-(-size // p) for size, p in zip(z.shape[2:], patch, strict=True)]
    assert tokens.shape == (2, counts[0] * counts[1] * counts[2], 3 * patch[0] * patch[1] * patch[2])
    assert torch.equal(unpatchify(tokens, patch, (3, 5, 7, 6)), z)


def test_patch_embedding_equals_a_strided_convolution() -> None:
    z, layer = torch.randn(2, 3, 4, 6, 8), torch.nn.Conv3d(3, 16, (2, 3, 4), stride=(2, 3, 4))
    expected = layer(z).flatten(2).transpose(1, 2)
    actual = torch.nn.functional.linear(patchify(z, (2, 3, 4)), layer.weight.flatten(1), layer.bias)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_output_has_the_latents_shape_and_is_zero_at_the_start() -> None:
    model = DiT(SMALL, (3, 5, 7, 6))
    out = model(torch.randn(2, 3, 5, 7, 6), torch.tensor([0, 999]), torch.tensor([0, 2]))
    assert out.shape == (2, 3, 5, 7, 6)
    assert torch.equal(out, torch.zeros_like(out))


def test_time_class_and_position_all_matter() -> None:
    model = awake(DiT(SMALL, (3, 4, 4, 4)))
    z, t, y = torch.randn(1, 3, 4, 4, 4), torch.tensor([500]), torch.tensor([0])
    out = model(z, t, y)
    assert not torch.allclose(out, model(z, torch.tensor([501]), y))
    assert not torch.allclose(out, model(z, t, torch.tensor([1])))
    assert not torch.allclose(out, model(z, t, torch.tensor([model.null_class])))
    assert not torch.allclose(out.flip(2), model(z.flip(2), t, y), atol=1e-3)


def test_samples_do_not_see_each_other() -> None:
    model = awake(DiT(SMALL, (3, 4, 4, 4)))
    z, t, y = torch.randn(3, 3, 4, 4, 4), torch.tensor([1, 500, 900]), torch.tensor([0, 1, 2])
    alone = torch.cat([model(z[k : k + 1], t[k : k + 1], y[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(model(z, t, y), alone, atol=1e-5, rtol=1e-5)


def test_positions_are_distinct_on_every_axis() -> None:
    positions = position_embedding((5, 6, 7), 48)
    assert torch.cdist(positions, positions).add(10 * torch.eye(210)).min() > 0.05


def test_published_size_of_dit_s4_at_the_paper_grid() -> None:
    """32.5 million parameters and 48.4 GFLOP forward at 833 tokens: 24 N d^2 + 4 N^2 d per block, and the rest."""
    config, latent = ModelConfig(), (4, 28, 34, 28)
    model = DiT(config, latent)
    N, d, L, p = 7 * 17 * 7, 384, 12, 4 * 32
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(32.5e6, rel=0.02)
    # The counter knows no formula for the CPU's fused attention; the plain one has the same products.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, *latent), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    condition = 12 * L * d * d + 2 * (2 * d * d) + 2 * (256 * d + d * d)
    closed_form = L * (24 * N * d * d + 4 * N * N * d) + 4 * N * d * p + condition
    assert counter.get_total_flops() == pytest.approx(closed_form, rel=1e-6)
    assert closed_form == pytest.approx(48.4e9, rel=0.01)
