"""Self-attention of the DiT: over all tokens or within windows, with 3D rotary positions where asked.

Names: B batch, (d, h, w) tokens along (left-right, back-front, foot-head), N = d h w, dim width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

Sizes = tuple[int, int, int]


def to_windows(x: torch.Tensor, tokens: Sizes, window: Sizes) -> torch.Tensor:
    """Tokens (B, N, dim) by windows: (B * windows, tokens of a window, dim), windows and tokens in (d, h, w) order.

    Args:
        x: tokens in (d, h, w) order.
        tokens: d, h, w.
        window: sides of a window, divisors of `tokens`.
    """
    (d, h, w), (a, b, c) = tokens, window
    x = x.reshape(-1, d // a, a, h // b, b, w // c, c, x.shape[-1]).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(-1, a * b * c, x.shape[-1])


def from_windows(x: torch.Tensor, tokens: Sizes, window: Sizes) -> torch.Tensor:
    """Inverse of `to_windows`."""
    (d, h, w), (a, b, c) = tokens, window
    x = x.reshape(-1, d // a, h // b, w // c, a, b, c, x.shape[-1]).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(-1, d * h * w, x.shape[-1])


def rotary_table(tokens: Sizes, head_dim: int, longest: float = 100.0) -> torch.Tensor:
    """Cosines and sines (2, d, h, w, head_dim / 2) of the angles by which `rotate` turns each pair of a head.

    A third of the pairs (rounded down) turns with the position along each axis, at geometric frequencies from 1 radian
    per token to nearly 1 / longest; the remaining pairs stand still.
    Source: Su et al. 2021 (https://arxiv.org/abs/2104.09864), section 3.2, axis by axis and with frequencies for short
    axes as in Heo et al. 2024 (https://arxiv.org/abs/2403.13298), section 3.

    Args:
        tokens: d, h, w.
        head_dim: even.
        longest: ratio of the frequencies.
    """
    pairs = head_dim // 2
    third = pairs // 3
    frequencies = longest ** -(torch.arange(third) / max(third, 1))
    axes = torch.meshgrid(*(torch.arange(n) for n in tokens), indexing="ij")
    angles = torch.cat([axis[..., None] * frequencies for axis in axes], dim=-1)  # (d, h, w, 3 third)
    angles = F.pad(angles, (0, pairs - 3 * third))
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns the pairs (i, i + head_dim / 2) of x (..., n, head_dim) by the angles of cos, sin (n, head_dim / 2).

    Computed in float32, returned in the type of `x`.
    """
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention within windows of tokens, by PyTorch's fused kernel.

    Args:
        dim: width.
        heads: a divisor of `dim`.
        tokens: d, h, w.
        window: sides of a window, divisors of `tokens`; `tokens` itself for attention over all of them.
        qk_norm: RMS-normalise queries and keys (Dehghani et al. 2023, https://arxiv.org/abs/2302.05442).
    """

    def __init__(self, dim: int, heads: int, tokens: Sizes, window: Sizes, *, qk_norm: bool) -> None:
        super().__init__()
        self.heads, self.tokens, self.window = heads, tokens, window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.scale_q = nn.Parameter(torch.ones(dim // heads)) if qk_norm else None
        self.scale_k = nn.Parameter(torch.ones(dim // heads)) if qk_norm else None
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, rotation: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, dim) to the same.

        Args:
            x: tokens in (d, h, w) order.
            rotation: `rotary_table` of all tokens; without it, queries and keys are not rotated.
        """
        x = to_windows(x, self.tokens, self.window)  # (B * windows, n, dim)
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (.., heads, n, head_dim)
        if self.scale_q is not None:
            q = F.rms_norm(q, q.shape[-1:], self.scale_q.to(q.dtype))
            k = F.rms_norm(k, k.shape[-1:], self.scale_k.to(k.dtype))
        if rotation is not None:
            # Only differences of positions matter, and they are the same in every window: the first's table will do.
            a, b, c = self.window
            cos, sin = rotation[:, :a, :b, :c].flatten(1, 3)  # each (n, head_dim / 2)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B * windows, n, dim)
        return from_windows(self.out(x), self.tokens, self.window)
