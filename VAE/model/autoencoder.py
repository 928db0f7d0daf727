"""A 3D convolutional variational autoencoder: ResNet blocks, GroupNorm, SiLU; one page, in the order the data flow.

Shapes: x (B, 1, D, H, W) in [0, 1], axes (left-right, back-front, foot-head); latent (B, C, D/f, H/f, W/f) with
f = stem_patch * 2 ** (levels - 1), rounded up: zeros, which are air, are added behind axes that do not
divide, and cropped again. With stem_patch 1 and no linear path this is the autoencoder of latent diffusion
(Rombach et al. 2022, https://arxiv.org/abs/2112.10752) as MONAI's AutoencoderKL has it.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from runtime.layers.convolution import Conv3d, FewOutputs
from runtime.layers.group_norm import GroupNorm
from VAE.config import ModelConfig
from VAE.model.output import OutputRule

Sizes = tuple[int, int, int]


def space_to_depth(x: torch.Tensor, p: int) -> torch.Tensor:
    """Moves each block of p x p x p voxels into channels: (B, C, D, H, W) -> (B, C p^3, D/p, H/p, W/p)."""
    return rearrange(x, "b c (d p) (h q) (w r) -> b (c p q r) d h w", p=p, q=p, r=p)


def depth_to_space(x: torch.Tensor, p: int) -> torch.Tensor:
    """Inverse of `space_to_depth`: (B, C p^3, D, H, W) -> (B, C, p D, p H, p W)."""
    return rearrange(x, "b (c p q r) d h w -> b c (d p) (h q) (w r)", p=p, q=p, r=p)


def lowest_frequencies(p: int, count: int) -> torch.Tensor:
    """The `count` lowest basis functions of the orthonormal DCT-II on a block of p^3 voxels, as rows (count, p^3)."""
    position, frequency = torch.arange(p, dtype=torch.float64), torch.arange(p, dtype=torch.float64)[:, None]
    basis = torch.cos(math.pi / p * (position + 0.5) * frequency) * math.sqrt(2 / p)
    basis[0] /= math.sqrt(2)
    order = sorted(itertools.product(range(p), repeat=3), key=lambda k: (sum(f * f for f in k), k))
    rows = [torch.einsum("x,y,z->xyz", basis[i], basis[j], basis[k]).flatten() for i, j, k in order[:count]]
    return torch.stack(rows).float()


def full_precision(h: torch.Tensor) -> torch.autocast:
    """No autocast for the layer that writes voxels: bfloat16 has 129 levels between 0.5 and 1, which shows as combs in
    a volume's histogram.
    """
    return torch.autocast(h.device.type, enabled=False)


def norm_silu(norm: GroupNorm, x: torch.Tensor) -> torch.Tensor:
    """SiLU of a group norm; without gradients the second overwrites the first's output, which nobody else holds."""
    h = norm(x)
    return F.silu(h, inplace=not h.requires_grad)


class ResBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input (through a 1x1x1 convolution when the width changes)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = Conv3d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = Conv3d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(norm_silu(self.norm1, x))
        h = self.conv2(norm_silu(self.norm2, h))
        return h.add_(self.shortcut(x))  # no gradient needs a convolution's output: its sum takes its place


class SelfAttention(nn.Module):
    """Single-head attention of every latent position to every other, plus the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.out = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x).flatten(2).transpose(1, 2)[:, None]  # (B, one head, positions, C)
        h = F.scaled_dot_product_attention(self.to_q(h), self.to_k(h), self.to_v(h))
        return x + self.out(h[:, 0]).transpose(1, 2).reshape(x.shape)


class Downsample(nn.Module):
    """Halves each axis by a strided convolution, padded at the far ends only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1, 0, 1)))


def fold(weight: torch.Tensor) -> torch.Tensor:
    """3x3x3 filters on a doubled volume as 2x2x2 filters on the volume before doubling, one for each parity.

    Along an axis, a position of the doubled volume sees only two positions of the small one, because two of the three
    taps fall on copies of one position: taps (a, b, c) become (a, b + c) at even and (a + b, c) at odd positions.
    (O, I, 3, 3, 3) -> (2, 2, 2, O, I, 2, 2, 2): parity along D, H, W, then the filters.
    """
    for _ in range(3):  # the last axis not folded yet is always axis 4
        a, b, c = weight.unbind(4)
        weight = torch.stack([torch.stack([a, b + c], 4), torch.stack([a + b, c], 4)])
    return weight


class Interleave(torch.autograd.Function):
    """Puts the eight parities of a doubled volume in their places; the backward pass takes them out again.

    Written by hand because differentiating eight slices makes eight full-size zero tensors.
    """

    @staticmethod
    def forward(ctx, h: torch.Tensor) -> torch.Tensor:
        """h (B, D + 1, H + 1, W + 1, 2, 2, 2, C) -> (B, 2 D, 2 H, 2 W, C)."""
        ctx.shape = h.shape
        B, D, H, W, *_, C = h.shape
        out = h.new_empty(B, D - 1, 2, H - 1, 2, W - 1, 2, C)
        for p, q, r in itertools.product((0, 1), repeat=3):
            out[:, :, p, :, q, :, r] = h[:, p : D - 1 + p, q : H - 1 + q, r : W - 1 + r, p, q, r]
        return out.view(B, 2 * D - 2, 2 * H - 2, 2 * W - 2, C)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        B, D, H, W, *_, C = ctx.shape
        gradient = gradient.reshape(B, D - 1, 2, H - 1, 2, W - 1, 2, C)
        out = gradient.new_zeros(ctx.shape)
        for p, q, r in itertools.product((0, 1), repeat=3):
            out[:, p : D - 1 + p, q : H - 1 + q, r : W - 1 + r, p, q, r] = gradient[:, :, p, :, q, :, r]
        return out


class Upsample(nn.Module):
    """Doubles each axis and convolves by 3x3x3 filters, or does both at once by a transposed convolution.

    With nearest-neighbour doubling the doubled input is never made: one 2x2x2 convolution with eight times the channels
    gives the same result with 8 products per output value instead of 27 (see `fold`). A test compares it with the plain
    form.
    """

    def __init__(self, channels: int, mode: str = "nearest") -> None:
        super().__init__()
        self.mode = mode
        if mode == "transposed":
            self.conv = nn.ConvTranspose3d(channels, channels, 3, stride=2, padding=1, output_padding=1)
        else:
            self.conv = Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mode == "transposed":
            return self.conv(x)
        if self.mode == "linear":
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="trilinear"))
        C = self.conv.out_channels
        weight = fold(self.conv.weight).flatten(0, 3).contiguous(memory_format=torch.channels_last_3d)
        h = F.conv3d(x, weight, self.conv.bias.repeat(8), padding=1)  # (B, 8 C, D + 1, H + 1, W + 1)
        h = h.permute(0, 2, 3, 4, 1).unflatten(-1, (2, 2, 2, C))
        return Interleave.apply(h).permute(0, 4, 1, 2, 3)


def middle(channels: int, config: ModelConfig, side: str) -> nn.Sequential:
    """Attention between two ResNet blocks at the lowest resolution, or nothing; `side` is encoder or decoder."""
    if not config.attention or config.attention_side not in ("both", side):
        return nn.Sequential()
    return nn.Sequential(
        ResBlock(channels, channels, config.groups),
        SelfAttention(channels, config.groups),
        ResBlock(channels, channels, config.groups),
    )


def run(layers: nn.Sequential, h: torch.Tensor, recompute: bool) -> torch.Tensor:
    """The layers in turn; with `recompute` their activations are computed again in the backward pass, not kept."""
    for layer in layers:
        h = checkpoint(layer, h, use_reentrant=False) if recompute and torch.is_grad_enabled() else layer(h)
    return h


def levels(plan: list[tuple[int, int, bool]], groups: int, between: Callable[[int], nn.Module]) -> nn.Sequential:
    """ResNet blocks of each level in turn, each with its attention if any, and a change of resolution between levels.

    `plan` is `ModelConfig.levels()`, in the order the data flow.
    """
    layers: list[nn.Module] = []
    width = plan[0][0]
    for level, (next_width, blocks, attention) in enumerate(plan):
        for _ in range(blocks):
            layers.append(ResBlock(width, next_width, groups))
            width = next_width
            if attention:
                layers.append(SelfAttention(width, groups))
        if level < len(plan) - 1:
            layers.append(between(width))
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """x (B, 1, D, H, W) -> features (B, latent_channels, d, h, w)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch, self.recompute = config.stem_patch, False
        self.conv_in = Conv3d(self.patch**3, config.channels[0], 3, padding=1)
        self.layers = levels(config.levels(), config.groups, Downsample)
        self.middle = middle(config.channels[-1], config, "encoder")
        self.norm_out = GroupNorm(config.groups, config.channels[-1], eps=1e-6)
        self.conv_out = Conv3d(config.channels[-1], config.latent_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv_in(space_to_depth(x, self.patch))  # (B, widths[0], D/p, H/p, W/p)
        h = self.middle(run(self.layers, h, self.recompute))  # (B, widths[-1], d, h, w)
        return self.conv_out(self.norm_out(h))


class Decoder(nn.Module):
    """z (B, latent_channels, d, h, w) -> x_hat, and with `support` a logit, (B, 1 or 2, D, H, W); unbounded."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths, self.patch, self.recompute = config.channels[::-1], config.stem_patch, False
        self.conv_in = Conv3d(config.latent_channels, widths[0], 3, padding=1)
        self.middle = middle(widths[0], config, "decoder")
        self.layers = levels(config.levels()[::-1], config.groups, partial(Upsample, mode=config.upsampling))
        self.norm_out = GroupNorm(config.groups, widths[-1], eps=1e-6)
        self.conv_out = FewOutputs(widths[-1], (1 + config.support) * self.patch**3)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        h = run(self.layers, self.middle(self.conv_in(z)), self.recompute)  # (B, widths[-1], D/p, H/p, W/p)
        h = self.norm_out(h)
        with full_precision(h):
            return depth_to_space(self.conv_out(h.float()), self.patch)


class LinearPath(nn.Module):
    """Voxel blocks to the latent and back by one linear map each, started as the lowest DCT frequencies."""

    def __init__(self, factor: int, latent_channels: int) -> None:
        super().__init__()
        self.factor = factor
        self.analysis = nn.Conv3d(factor**3, latent_channels, 1, bias=False)
        self.synthesis = nn.Conv3d(latent_channels, factor**3, 1, bias=False)
        with torch.no_grad():
            basis = lowest_frequencies(factor, latent_channels)
            self.analysis.weight.copy_(basis.view(*basis.shape, 1, 1, 1))
            self.synthesis.weight.copy_(basis.T.reshape(*basis.T.shape, 1, 1, 1))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, D, H, W) -> (B, C, d, h, w)."""
        return self.analysis(space_to_depth(x, self.factor))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """(B, C, d, h, w) -> (B, 1, D, H, W)."""
        return depth_to_space(self.synthesis(z), self.factor)


class Autoencoder(nn.Module):
    """Volume to latent posterior and back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, self.recompute = config, False
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        C = config.latent_channels
        self.to_mu = nn.Conv3d(C, C, 1)
        self.to_logvar = nn.Conv3d(C, C, 1)
        self.from_z = nn.Conv3d(C, C, 1)
        self.linear = LinearPath(self.factor, C) if config.linear_path else None
        self.output = OutputRule() if config.support else None
        if self.linear is not None:
            self._start_from_linear_path()

    def _start_from_linear_path(self) -> None:
        """Silences the convolutional branches at first, and makes the posterior narrow: noise of the prior's width
        would drown the codec that the linear path already is.
        """
        for layer in (self.to_mu, self.decoder.conv_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.to_logvar.weight)
        nn.init.constant_(self.to_logvar.bias, -5.0)

    def recompute_activations(self) -> None:
        """Trades time for memory: each level's activations are computed again in the backward pass."""
        self.recompute = self.encoder.recompute = self.decoder.recompute = True

    def compile_parts(self) -> None:
        """Compiles encoder and decoder, once for each shape they meet; with gradients and without count as two."""
        self.encoder.compile(dynamic=False)
        self.decoder.compile(dynamic=False)

    @property
    def factor(self) -> int:
        """Voxels per latent position along each axis."""
        return self.config.stem_patch * 2 ** (len(self.config.channels) - 1)

    def latent_shape(self, shape: Sizes) -> tuple[int, int, int, int]:
        """(C, d, h, w) for a volume of (D, H, W)."""
        return (self.config.latent_channels, *(-(-size // self.factor) for size in shape))  # type: ignore[return-value]

    def padded(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., D, H, W) with zeros behind each axis whose size is no multiple of `factor`."""
        padding = [side for size in x.shape[:-4:-1] for side in (0, -size % self.factor)]
        return F.pad(x, padding) if any(padding) else x

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x (B, 1, D, H, W) -> posterior mu and logvar, each (B, C, d, h, w), float32."""
        x = self.padded(x)
        h = self.encoder(x)
        mu, logvar = self.to_mu(h).float(), self.to_logvar(h).float()
        if self.linear is not None:
            mu = mu + self.linear.encode(x).float()
        return mu, logvar.clamp(-30.0, 20.0)

    def decode_raw(self, z: torch.Tensor, shape: Sizes | None = None) -> torch.Tensor:
        """z (B, C, d, h, w) -> intensities, and with `support` the logit of being inside the head after them:
        (B, 1 or 2, D, H, W), float32, unbounded. What training and a blend of tiles work with.

        Cropped to `shape` (D, H, W), that of the volume that z stands for; without it, as large as z makes it.
        """
        raw = self.decoder(self.from_z(z))
        if self.linear is not None:
            intensity, *logit = raw.split(1, dim=1)
            with full_precision(z):
                intensity = intensity + self.linear.decode(z.float())
            raw = torch.cat([intensity, *logit], dim=1)
        D, H, W = shape or raw.shape[2:]
        return raw[..., :D, :H, :W]

    def finish(self, raw: torch.Tensor) -> torch.Tensor:
        """Volumes (B, 1, D, H, W) in [0, 1] of what `decode_raw` gave; with `support`, 0 outside the head."""
        return raw.clamp(0.0, 1.0) if self.output is None else self.output(raw)

    def decode(self, z: torch.Tensor, shape: Sizes) -> torch.Tensor:
        """z (B, C, d, h, w) -> a volume as everybody is given it, (B, 1, D, H, W) in [0, 1], float32; `shape` is its
        (D, H, W), of which `latent_shape` is that of z.
        """
        return self.finish(self.decode_raw(z, shape))

    def forward(self, x: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `decode_raw` makes of z = mu + exp(logvar / 2) eps, and mu and logvar of x (B, 1, D, H, W) in [0, 1];
        eps is (B, C, d, h, w), standard normal.
        """
        mu, logvar = self.encode(x)
        return self.decode_raw(mu + torch.exp(0.5 * logvar) * eps, tuple(x.shape[2:])), mu, logvar
