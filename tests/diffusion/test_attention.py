"""Attention: windows against a block mask, rotary positions, and the plain formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from diffusion.model.attention import Attention, from_windows, rotary_table, rotate, to_windows

TOKENS = (3, 4, 6)
WINDOWS = [(1, 2, 3), (3, 2, 2), (3, 4, 1), (1, 1, 6), (3, 4, 6)]


def attention(window: tuple[int, int, int], *, qk_norm: bool = True) -> Attention:
    torch.manual_seed(0)
    layer = Attention(24, 2, TOKENS, window, qk_norm=qk_norm)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return layer


def masked(layer: Attention, x: torch.Tensor, mask: torch.Tensor, rotation: torch.Tensor | None) -> torch.Tensor:
    """All tokens with all, by the formula; pairs outside the mask (N, N) have no weight."""
    B, N, dim = x.shape
    q, k, v = layer.qkv(x).view(B, N, 3, layer.heads, -1).permute(2, 0, 3, 1, 4)
    if layer.scale_q is not None:
        q, k = F.rms_norm(q, q.shape[-1:]) * layer.scale_q, F.rms_norm(k, k.shape[-1:]) * layer.scale_k
    if rotation is not None:
        q, k = (rotate(value, *rotation.flatten(1, 3)) for value in (q, k))
    logits = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
    return layer.out((logits.softmax(-1) @ v).transpose(1, 2).reshape(B, N, dim))


def same_window(window: tuple[int, int, int]) -> torch.Tensor:
    """(N, N): whether two tokens lie in the same window."""
    at = torch.cartesian_prod(*(torch.arange(n) for n in TOKENS)) // torch.tensor(window)
    return (at[:, None] == at[None]).all(-1)


@pytest.mark.parametrize("window", WINDOWS)
def test_windows_are_undone(window: tuple[int, int, int]) -> None:
    x = torch.randn(2, 72, 5)
    parts = to_windows(x, TOKENS, window)
    assert parts.shape[1] == window[0] * window[1] * window[2]
    assert torch.equal(from_windows(parts, TOKENS, window), x)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
def test_windows_equal_a_block_mask(window: tuple[int, int, int], qk_norm: bool, rotary: bool) -> None:
    """With positions of the whole grid in the reference: inside a window they differ by the same amounts."""
    layer, x = attention(window, qk_norm=qk_norm), torch.randn(2, 72, 24)
    rotation = rotary_table(TOKENS, 12) if rotary else None
    torch.testing.assert_close(
        layer(x, rotation), masked(layer, x, same_window(window), rotation), atol=1e-5, rtol=1e-4
    )


def logits(shift: tuple[int, int, int]) -> torch.Tensor:
    """Of fixed queries and keys, independent of position, rotated for a block of 2 x 3 x 2 positions at `shift`."""
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 12, 64, generator=generator, dtype=torch.float64)
    (a, b, c), table = shift, rotary_table((9, 9, 9), 64)
    cos, sin = table[:, a : a + 2, b : b + 3, c : c + 2].flatten(1, 3)
    return rotate(q, cos, sin) @ rotate(k, cos, sin).T


@pytest.mark.parametrize("shift", [(7, 0, 0), (0, 6, 0), (0, 0, 7), (3, 1, 5)])
def test_rotary_logits_depend_on_relative_positions_alone(shift: tuple[int, int, int]) -> None:
    torch.testing.assert_close(logits(shift), logits((0, 0, 0)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_position_along_every_axis_turns_a_vector_differently(axis: int) -> None:
    sizes = tuple(28 if index == axis else 1 for index in range(3))
    cos, sin = rotary_table(sizes, 64).flatten(1, 3)
    assert torch.pdist(rotate(torch.ones(28, 64), cos, sin)).min() > 0.5


@pytest.mark.parametrize("head_dim", [6, 12, 16, 64, 128])
def test_rotation_keeps_norms_and_the_remainder(head_dim: int) -> None:
    x = torch.randn(3, 72, head_dim)
    cos, sin = rotary_table(TOKENS, head_dim).flatten(1, 3)
    turned = rotate(x, cos, sin)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    pairs, third = head_dim // 2, head_dim // 6
    still = [*range(3 * third, pairs), *range(pairs + 3 * third, head_dim)]
    assert torch.equal(turned[..., still], x[..., still])
    assert torch.equal(turned[:, 0], x[:, 0])
