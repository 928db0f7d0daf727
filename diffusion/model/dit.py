"""A 3D Diffusion Transformer (DiT): patches of a latent in, prediction of the same shape out; one page.

Peebles and Xie 2023 (https://arxiv.org/abs/2212.09748), adaLN-Zero variant, in three dimensions, with RMS-normalised
queries and keys (stable in bfloat16; Dehghani et al. 2023, https://arxiv.org/abs/2302.05442). Names: B batch, C latent
channels, (D, H, W) = (left-right, back-front, foot-head), N tokens, dim width, t timestep, y class.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from diffusion.config import ModelConfig
from diffusion.model.linear_start import LinearStart


def patchify(z: torch.Tensor, patch: tuple[int, int, int]) -> torch.Tensor:
    """Cuts (B, C, D, H, W) into tokens (B, N, C * volume of a patch); zeros are added behind where sizes do not divide.

    Reshape and a linear layer replace the strided convolution others use: conv3d with kernel = stride is many times
    slower in cuDNN and oneDNN.
    """
    B, C, *sizes = z.shape
    padding = [side for size, p in zip(sizes[::-1], patch[::-1], strict=True) for side in (0, -size % p)]
    z = F.pad(z, padding)
    p, q, r = patch
    d, h, w = z.shape[2] // p, z.shape[3] // q, z.shape[4] // r
    z = z.reshape(B, C, d, p, h, q, w, r).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return z.reshape(B, d * h * w, C * p * q * r)


def unpatchify(tokens: torch.Tensor, patch: tuple[int, int, int], shape: tuple[int, int, int, int]) -> torch.Tensor:
    """Inverse of `patchify`: (B, N, C * volume of a patch) -> (B, C, D, H, W) with `shape` = (C, D, H, W)."""
    C, D, H, W = shape
    p, q, r = patch
    d, h, w = -(-D // p), -(-H // q), -(-W // r)
    z = tokens.reshape(-1, d, h, w, C, p, q, r).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return z.reshape(-1, C, d * p, h * q, w * r)[:, :, :D, :H, :W]


def sincos(positions: torch.Tensor, dim: int, longest: float = 10_000.0) -> torch.Tensor:
    """Sines and cosines of positions (n,) at dim / 2 geometric frequencies: (n, dim).

    Source: Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762), section 3.5; also for timesteps, as in DDPM.
    """
    frequencies = torch.exp(-math.log(longest) * torch.arange(dim // 2, device=positions.device) / (dim // 2))
    angles = positions.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def position_embedding(tokens: tuple[int, int, int], dim: int) -> torch.Tensor:
    """Fixed 3D sine-cosine positions (N, dim): a third of the width (rounded to even) for each axis, then zeros."""
    third = dim // 6 * 2
    axes = torch.meshgrid(*(torch.arange(n) for n in tokens), indexing="ij")
    parts = [sincos(axis.reshape(-1), third, longest=100.0) for axis in axes]
    return F.pad(torch.cat(parts, dim=1), (0, dim - 3 * third))


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x (B, N, dim) scaled by 1 + scale (B, dim) and shifted by shift (B, dim)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, by PyTorch's fused kernel."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.scale_q = nn.Parameter(torch.ones(dim // heads))
        self.scale_k = nn.Parameter(torch.ones(dim // heads))
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, N, dim = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, N, dim / heads)
        q = F.rms_norm(q, q.shape[-1:], self.scale_q.to(q.dtype))
        k = F.rms_norm(k, k.shape[-1:], self.scale_k.to(k.dtype))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).reshape(B, N, dim))


class Block(nn.Module):
    """Attention and MLP, each behind a norm whose scale, shift and gate come from the condition (adaLN-Zero)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition)).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class DiT(nn.Module):
    """Predicts noise, clean latent or velocity from a noised latent, its timestep and its class.

    Args:
        config: architecture.
        latent_shape: (C, D, H, W) of the latents; fixes the positions.
        timesteps: of the schedule; only the linear start needs it.
    """

    def __init__(self, config: ModelConfig, latent_shape: tuple[int, int, int, int], timesteps: int = 1000) -> None:
        super().__init__()
        self.config = config
        self.latent_shape = tuple(latent_shape)
        C, *sizes = latent_shape
        dim, width = config.dim, C * math.prod(config.patch)
        tokens = tuple(-(-size // p) for size, p in zip(sizes, config.patch, strict=True))
        self.embed = nn.Linear(width, dim)
        self.register_buffer("positions", position_embedding(tokens, dim), persistent=False)
        self.time = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label = nn.Embedding(config.classes + 1, dim)
        self.blocks = nn.ModuleList(Block(dim, config.heads) for _ in range(config.depth))
        self.norm_out = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, width)
        self.start = LinearStart(config.linear_rank, math.prod(latent_shape), timesteps) if config.linear_rank else None
        self._initialise()

    @property
    def null_class(self) -> int:
        """The label that says nothing: the condition of the unguided half in classifier-free guidance."""
        return self.config.classes

    def _initialise(self) -> None:
        """DiT's scheme: Xavier everywhere, small embeddings, zeros where a block or the output must start silent."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.label.weight, std=0.02)
        for layer in (self.time[0], self.time[2]):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (*(block.modulation for block in self.blocks), self.modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, z_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Prediction in the shape of the input, float32.

        Args:
            z_t: noised latents (B, C, D, H, W).
            t: timesteps (B,), in [0, timesteps).
            y: classes (B,), int64 in [0, classes]; `classes` itself is the null class.
        """
        condition = self.time(sincos(t, 256)) + self.label(y)  # (B, dim)
        x = self.embed(patchify(z_t, self.config.patch)) + self.positions  # (B, N, dim)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(F.silu(condition)).chunk(2, dim=1)
        x = self.out(modulate(self.norm_out(x), shift, scale))  # (B, N, C * volume of a patch)
        prediction = unpatchify(x.float(), self.config.patch, self.latent_shape)
        return prediction if self.start is None else prediction + self.start(z_t, t).float()
