"""A 3D Diffusion Transformer (DiT): patches of a latent in, prediction of the same shape out; one page.

Peebles and Xie 2023 (https://arxiv.org/abs/2212.09748), adaLN-Zero variant, in three dimensions. Names: B batch, C
latent channels, (D, H, W) = (left-right, back-front, foot-head), N tokens, dim width, t time, y class, K covariates.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from diffusion.config import ModelConfig
from diffusion.model.attention import Attention, Sizes, rotary_table
from diffusion.model.linear_start import LinearStart
from diffusion.process import Process
from runtime.errors import InputError

TIME_DIM = 256
"""Width of the sine-cosine embedding of the time, as in the published network."""


def patchify(z: torch.Tensor, patch: Sizes) -> torch.Tensor:
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


def unpatchify(tokens: torch.Tensor, patch: Sizes, shape: tuple[int, int, int, int]) -> torch.Tensor:
    """Inverse of `patchify`: (B, N, C * volume of a patch) -> (B, C, D, H, W) with `shape` = (C, D, H, W)."""
    C, D, H, W = shape
    p, q, r = patch
    d, h, w = -(-D // p), -(-H // q), -(-W // r)
    z = tokens.reshape(-1, d, h, w, C, p, q, r).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return z.reshape(-1, C, d * p, h * q, w * r)[:, :, :D, :H, :W]


def sincos(positions: torch.Tensor, dim: int, longest: float = 10_000.0) -> torch.Tensor:
    """Cosines, then sines, of positions (n,) at dim / 2 geometric frequencies: (n, dim).

    Source: Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762), section 3.5; also for times, as in DDPM.
    """
    frequencies = torch.exp(-math.log(longest) * torch.arange(dim // 2, device=positions.device) / (dim // 2))
    angles = positions.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def position_embedding(tokens: Sizes, dim: int) -> torch.Tensor:
    """Fixed 3D sine-cosine positions (N, dim): a third of the width (rounded to even) for each axis, then zeros."""
    third = dim // 6 * 2
    axes = torch.meshgrid(*(torch.arange(n) for n in tokens), indexing="ij")
    parts = [sincos(axis.reshape(-1), third, longest=100.0) for axis in axes]
    return F.pad(torch.cat(parts, dim=1), (0, dim - 3 * third))


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x (B, N, dim) scaled by 1 + scale (B, dim) and shifted by shift (B, dim)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Covariates(nn.Module):
    """Continuous conditions (B, K) as one vector (B, dim), the sum of one per covariate.

    A small MLP of the value, or a learned vector where the value is NaN, which means 'not told'.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(1, dim), nn.SiLU(), nn.Linear(dim, dim)) for _ in range(count)
        )
        self.untold = nn.Parameter(torch.zeros(count, dim))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        told = ~values.isnan()
        values = torch.where(told, values, 0.0)  # before the MLP: a NaN there would reach its gradients
        vectors = [
            torch.where(told[:, k, None], mlp(values[:, k, None]), self.untold[k]) for k, mlp in enumerate(self.mlps)
        ]
        return torch.stack(vectors).sum(0)


class Block(nn.Module):
    """Attention and MLP, each behind a norm whose scale, shift and gate come from the condition (adaLN-Zero)."""

    def __init__(self, config: ModelConfig, tokens: Sizes, window: Sizes) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(dim, config.heads, tokens, window, qk_norm=config.qk_norm)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        gelu = nn.GELU(approximate="none" if config.gelu == "exact" else "tanh")
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), gelu, nn.Linear(4 * dim, dim))
        self.modulation = nn.Linear(dim, 6 * dim)  # applied by DiT.condition

    def forward(self, x: torch.Tensor, condition: torch.Tensor, rotation: torch.Tensor | None) -> torch.Tensor:
        """x (B, N, dim) to the same, with condition (B, 6, dim) and the table of `Attention.forward`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = condition.unbind(1)
        x = x + gate1[:, None] * self.attention(modulate(self.norm1(x), shift1, scale1), rotation)
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class DiT(nn.Module):
    """Predicts noise, clean latent or velocity from a noised latent, its time, its class and its covariates.

    Args:
        config: architecture.
        latent_shape: (C, D, H, W) of the latents; fixes the positions.
        process: needed by the linear start alone, that is when `config.linear_rank` is above 0.

    Raises:
        InputError: windows or rotary positions that do not fit the tokens or heads.
        ValueError: a linear start without a process.
    """

    def __init__(
        self, config: ModelConfig, latent_shape: tuple[int, int, int, int], process: Process | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.latent_shape = tuple(latent_shape)
        C, *sizes = latent_shape
        dim, width = config.dim, C * math.prod(config.patch)
        tokens = tuple(-(-size // p) for size, p in zip(sizes, config.patch, strict=True))
        window = tuple(side or n for side, n in zip(config.window, tokens, strict=True))
        _check(config, tokens, window)
        rotary = config.positions == "rotary"
        self.embed = nn.Linear(width, dim)
        # In the checkpoint, because weights from elsewhere come with a table of their own.
        self.register_buffer("positions", None if rotary else position_embedding(tokens, dim))
        self.register_buffer(
            "rotation", rotary_table(tokens, dim // config.heads) if rotary else None, persistent=False
        )
        self.time = nn.Sequential(nn.Linear(TIME_DIM, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label = nn.Embedding(config.classes + 1, dim)
        self.covariates = Covariates(len(config.covariates), dim) if config.covariates else None
        self.blocks = nn.ModuleList(
            Block(config, tokens, window if index in config.window_blocks else tokens) for index in range(config.depth)
        )
        self.norm_out = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, width)
        self.start = _linear_start(config, self.latent_shape, process)
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
        silent = [*(block.modulation for block in self.blocks), self.modulation, self.out]
        for first, _, last in self.covariates.mlps if self.covariates is not None else ():
            nn.init.uniform_(first.weight, -1, 1)  # a scalar's MLP has nothing but its bends, so they are spread out
            nn.init.uniform_(first.bias, -1, 1)
            silent.append(last)
        for layer in silent:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def condition(
        self, t: torch.Tensor, y: torch.Tensor, covariates: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All that time, class and covariates say: the blocks' vectors (B, depth, 6, dim), the output's (B, 2, dim).

        Args:
            t: times (B,) on the process's scale, int64 or float.
            y: classes (B,), int64 in [0, classes]; `classes` itself is the null class.
            covariates: (B, K) in the order of `config.covariates`, NaN where not told; None tells nothing.

        Raises:
            ValueError: another number of covariates than the network has.
        """
        K = len(self.config.covariates)
        if covariates is not None and covariates.shape[1] != K:
            raise ValueError(f"{covariates.shape[1]} covariates, the network has {K}: {self.config.covariates}")
        vector = self.time(sincos(t, TIME_DIM)) + self.label(y)  # (B, dim)
        if self.covariates is not None:
            untold = vector.new_full((len(y), K), math.nan)
            vector = vector + self.covariates(untold if covariates is None else covariates)
        vector = F.silu(vector)
        blocks = torch.stack([block.modulation(vector) for block in self.blocks], dim=1)  # (B, depth, 6 dim)
        return blocks.unflatten(2, (6, -1)), self.modulation(vector).unflatten(1, (2, -1))

    def apply_condition(
        self, z_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor, condition: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """`forward` with the result of `condition`; `t` and `y` are for the linear start alone."""
        blocks, out = condition
        # Sums of many blocks stay in float32 under autocast.
        x = self.embed(patchify(z_t, self.config.patch)).float()  # (B, N, dim)
        if self.positions is not None:
            x = x + self.positions
        for index, block in enumerate(self.blocks):
            x = block(x, blocks[:, index], self.rotation)
        x = self.out(modulate(self.norm_out(x), *out.unbind(1)))  # (B, N, C * volume of a patch)
        prediction = unpatchify(x.float(), self.config.patch, self.latent_shape)
        return prediction if self.start is None else prediction + self.start(z_t, t, y).float()

    def forward(
        self, z_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor, covariates: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Prediction in the shape of the input, float32.

        Args:
            z_t: noised latents (B, C, D, H, W).
            t: times (B,), as in `condition`.
            y: classes (B,), as in `condition`.
            covariates: (B, K), as in `condition`.
        """
        return self.apply_condition(z_t, t, y, self.condition(t, y, covariates))


def _check(config: ModelConfig, tokens: Sizes, window: Sizes) -> None:
    """Refuses windows that do not fit the tokens, and heads that cannot be rotated."""
    problems = [
        f"window {side} along {axis}: must be 0 or a divisor of the {n} tokens there"
        for axis, side, n in zip("DHW", window, tokens, strict=True)
        if side < 0 or n % side
    ]
    strangers = [index for index in config.window_blocks if not 0 <= index < config.depth]
    if strangers:
        problems.append(f"window_blocks {strangers}: the blocks are 0 to {config.depth - 1}")
    if any(config.window) and not config.window_blocks:
        problems.append(f"window {config.window}: no block uses it; name some in window_blocks")
    head_dim = config.dim // config.heads
    if config.positions == "rotary" and (head_dim < 6 or head_dim % 2):
        problems.append(f"rotary positions: heads of {head_dim} dimensions, expected an even number of at least 6")
    if problems:
        raise InputError.of("model: attention does not fit", problems)


def _linear_start(
    config: ModelConfig, latent_shape: tuple[int, int, int, int], process: Process | None
) -> LinearStart | None:
    if not config.linear_rank:
        return None
    if process is None:
        raise ValueError(f"a linear start (rank {config.linear_rank}) needs the process that it inverts")
    return LinearStart(config.linear_rank, latent_shape, config.classes, process)
