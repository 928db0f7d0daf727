"""A 3D Diffusion Transformer (DiT): patches of a latent in, prediction of the same shape out; one page.

Peebles and Xie 2023 (https://arxiv.org/abs/2212.09748), adaLN-Zero variant, in three dimensions. Names: B batch, C
latent channels, (D, H, W) = (left-right, back-front, foot-head), (d, h, w) tokens along them, N = d h w, dim width,
t time, y class, K covariates.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffusion.config import NO_SIDE, ModelConfig
from diffusion.model.linear_start import LinearStart
from diffusion.process import Process
from runtime.errors import InputError

TIME_DIM = 256
"""Width of the sine-cosine embedding of the time, as in the published network."""
Sizes = tuple[int, int, int]
FEW_TOKENS = 1024
"""Up to so many tokens scores are written out when a CPU trains in bfloat16: PyTorch's fused backward pass takes two to
five times as long there at 150 tokens and 1.3 to 1.6 times at 833, where freed memory is kept (`runtime.device`); at
2,000 a tenth more, for which the scores would take too much memory. It is faster in float32."""


def patchify(z: torch.Tensor, patch: Sizes) -> torch.Tensor:
    """Cuts (B, C, D, H, W) into tokens (B, N, C * volume of a patch); zeros are added behind where sizes do not divide.

    Reshape and a linear layer replace the strided convolution others use: conv3d with kernel = stride is many times
    slower in cuDNN and oneDNN.
    """
    padding = [side for size, p in zip(z.shape[:1:-1], patch[::-1], strict=True) for side in (0, -size % p)]
    p, q, r = patch
    return rearrange(F.pad(z, padding), "B C (d p) (h q) (w r) -> B (d h w) (C p q r)", p=p, q=q, r=r)


def unpatchify(tokens: torch.Tensor, patch: Sizes, shape: tuple[int, int, int, int]) -> torch.Tensor:
    """Inverse of `patchify`: (B, N, C * volume of a patch) -> (B, C, D, H, W) with `shape` = (C, D, H, W)."""
    (_, D, H, W), (p, q, r) = shape, patch
    d, h = -(-D // p), -(-H // q)
    z = rearrange(tokens, "B (d h w) (C p q r) -> B C (d p) (h q) (w r)", d=d, h=h, p=p, q=q, r=r)
    return z[:, :, :D, :H, :W]


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


def resized(table: torch.Tensor, tokens: Sizes, wanted: Sizes) -> torch.Tensor:
    """A table of positions (N, dim) of `tokens` along each axis for another number of them, linearly between them.

    The first and the last token keep their place, so that no two of the new ones come to share one.
    """
    field = table.T.unflatten(1, tokens)[None]  # (1, dim, d, h, w)
    return F.interpolate(field, wanted, mode="trilinear", align_corners=True)[0].flatten(1).T.contiguous()


def rotary_table(tokens: Sizes, head_dim: int, longest: float = 100.0) -> torch.Tensor:
    """Cosines and sines (2, N, head_dim / 2) of the angles by which `rotate` turns each pair of a head.

    A third of the pairs (rounded down) turns with the position along each axis, at geometric frequencies from 1 radian
    per token to nearly 1 / longest; the remaining pairs stand still.
    Source: Su et al. 2021 (https://arxiv.org/abs/2104.09864), section 3.2, axis by axis and with frequencies for short
    axes as in Heo et al. 2024 (https://arxiv.org/abs/2403.13298), section 3.
    """
    pairs = head_dim // 2
    third = pairs // 3
    frequencies = longest ** -(torch.arange(third) / max(third, 1))
    axes = torch.meshgrid(*(torch.arange(n) for n in tokens), indexing="ij")
    angles = torch.cat([axis.reshape(-1, 1) * frequencies for axis in axes], dim=1)  # (N, 3 third)
    angles = F.pad(angles, (0, pairs - 3 * third))
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns the pairs (i, i + head_dim / 2) of x (..., N, head_dim) by the angles of cos, sin (N, head_dim / 2).

    Computed in float32, returned in the type of `x`.
    """
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x (B, N, dim) scaled by 1 + scale (B, dim) and shifted by shift (B, dim)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Covariates(nn.Module):
    """Continuous conditions (B, K) as one vector (B, dim), the sum of one per covariate.

    A small MLP of the value, or a learned vector where the value is NaN, which means unknown.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(1, dim), nn.SiLU(), nn.Linear(dim, dim)) for _ in range(count)
        )
        self.unknown = nn.Parameter(torch.zeros(count, dim))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        known = ~values.isnan()
        values = torch.where(known, values, 0.0)  # before the MLP: a NaN there would reach its gradients
        vectors = [
            torch.where(known[:, k, None], mlp(values[:, k, None]), self.unknown[k]) for k, mlp in enumerate(self.mlps)
        ]
        return torch.stack(vectors).sum(0)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(head_dim)) v for (B, heads, N, head_dim), by the kernel that is fastest there."""
    slow_backward = q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad
    if slow_backward and q.shape[2] <= FEW_TOKENS:
        return torch.softmax(q * q.shape[3] ** -0.5 @ k.mT, dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head self-attention.

    With `qk_norm`, queries and keys are RMS-normalised (Dehghani et al. 2023, https://arxiv.org/abs/2302.05442).
    """

    def __init__(self, dim: int, heads: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.scale_q = nn.Parameter(torch.ones(dim // heads)) if qk_norm else None
        self.scale_k = nn.Parameter(torch.ones(dim // heads)) if qk_norm else None
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, rotation: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, dim) to the same; queries and keys are rotated by `rotation`, a `rotary_table`, where it is given."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, N, head_dim)
        if self.scale_q is not None:
            q = F.rms_norm(q, q.shape[-1:], self.scale_q.to(q.dtype))
            k = F.rms_norm(k, k.shape[-1:], self.scale_k.to(k.dtype))
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and MLP, each behind a norm whose scale, shift and gate come from the condition (adaLN-Zero)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(dim, config.heads, qk_norm=config.qk_norm)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        gelu = nn.GELU(approximate="none" if config.gelu == "exact" else "tanh")
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), gelu, nn.Linear(4 * dim, dim))
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, x: torch.Tensor, cond: torch.Tensor, rotation: torch.Tensor | None) -> torch.Tensor:
        """x (B, N, dim) to the same, with the condition (B, dim) and the table of `Attention.forward`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(cond).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attention(modulate(self.norm1(x), shift1, scale1), rotation)
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class DiT(nn.Module):
    """Predicts noise, clean latent or velocity from a noised latent, its time, its class, side and covariates.

    `latent_shape` (C, D, H, W) fixes the positions; `process` is needed by the linear start alone.
    """

    def __init__(
        self, config: ModelConfig, latent_shape: tuple[int, int, int, int], process: Process | None = None
    ) -> None:
        super().__init__()
        self.config, self.recompute = config, False
        self.latent_shape = tuple(latent_shape)
        C, *sizes = latent_shape
        dim, width = config.dim, C * math.prod(config.patch)
        self.tokens = tokens = tuple(-(-size // p) for size, p in zip(sizes, config.patch, strict=True))
        rotary, head_dim = config.positions == "rotary", dim // config.heads
        if rotary and (head_dim < 6 or head_dim % 2):
            raise InputError(f"rotary positions: heads of {head_dim} dimensions, expected an even number of at least 6")
        self.embed = nn.Linear(width, dim)
        # In the checkpoint, because weights from elsewhere come with a table of their own.
        self.register_buffer("positions", None if rotary else position_embedding(tokens, dim))
        self.register_buffer("rotation", rotary_table(tokens, head_dim) if rotary else None, persistent=False)
        self.time = nn.Sequential(nn.Linear(TIME_DIM, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label = nn.Embedding(config.classes + 1, dim)
        self.side = nn.Embedding(NO_SIDE + 1, dim) if config.sides else None
        self.covariates = Covariates(len(config.covariates), dim) if config.covariates else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_out = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, width)
        rank = config.linear_rank
        fixed = (rank, self.latent_shape, config.classes, process)
        conditions = {"sides": config.sides, "covariates": len(config.covariates), "window": config.means_window}
        self.start = LinearStart(*fixed, **conditions) if rank else None
        self._initialise()

    def compile_step(self) -> None:
        """Compiles what runs at every step of a sampler, for one batch shape, into CUDA graphs."""
        compiled = torch.compile(self.forward, mode="reduce-overhead", dynamic=False)

        def forward(*arguments: object) -> torch.Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(*arguments).clone()  # the graph's own output is overwritten by the next step

        self.forward = forward

    @property
    def null_class(self) -> int:
        """The label that says nothing: the condition of the unguided half in classifier-free guidance."""
        return self.config.classes

    def recompute_activations(self) -> None:
        """Trades time for memory: each block's activations are computed again in the backward pass."""
        self.recompute = True

    def _initialise(self) -> None:
        """DiT's scheme: Xavier everywhere, small embeddings, zeros where a block or the output must start silent."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.label.weight, std=0.02)
        if self.side is not None:
            nn.init.normal_(self.side.weight, std=0.02)
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

    def forward(
        self,
        z_t: torch.Tensor,
        t: torch.Tensor,
        y: torch.Tensor,
        covariates: torch.Tensor | None = None,
        side: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Prediction in the shape of the input, float32.

        Args:
            z_t: noised latents (B, C, D, H, W).
            t: times (B,) on the process's scale, int64 or float.
            y: classes (B,), int64 in [0, classes]; `classes` itself is the null class.
            covariates: (B, K) in the order of `config.covariates`, NaN where unknown; None for all unknown.
            side: (B,) of `config.SIDE_CODES`, int64; None for all unknown. A network without sides does not look at it.
        """
        K = len(self.config.covariates)
        if covariates is not None and covariates.shape[1] != K:
            raise ValueError(f"{covariates.shape[1]} covariates, the network has {K}: {self.config.covariates}")
        cond = self.time(sincos(t, TIME_DIM)) + self.label(y)  # (B, dim)
        if self.side is not None:
            cond = cond + self.side(torch.full_like(y, NO_SIDE) if side is None else side)
        if self.covariates is not None:
            cond = cond + self.covariates(cond.new_full((len(y), K), math.nan) if covariates is None else covariates)
        cond = F.silu(cond)
        # Sums of many blocks stay in float32 under autocast.
        x = self.embed(patchify(z_t, self.config.patch)).float()  # (B, N, dim)
        if self.positions is not None:
            x = x + self.positions
        again = self.recompute and torch.is_grad_enabled()
        for block in self.blocks:
            inputs = (x, cond, self.rotation)
            x = checkpoint(block, *inputs, use_reentrant=False) if again else block(*inputs)
        x = modulate(self.norm_out(x), *self.modulation(cond).chunk(2, dim=1))
        prediction = unpatchify(self.out(x).float(), self.config.patch, self.latent_shape)
        return prediction if self.start is None else prediction + self.start(z_t, t, y, side, covariates).float()
