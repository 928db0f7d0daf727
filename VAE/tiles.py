"""The autoencoder slab by slab: less memory, and the same result.

Tiles that pass through the whole network one after the other, as MONAI's SlidingWindowInferer takes them, are each
normalised by their own statistics: with the demo's VAE, voxels of a decoded volume were off by up to half of the range,
whatever the overlap (benchmarks/RESULTS.md). The statistics of the whole are known norm by norm, one pass for each. So
volumes are divided within a layer here: a map is made from the one before it in slabs across the first axis, which
overlap as far as the layer's filters see, and a norm has the statistics of its whole map. Maps wait in the machine's
memory, so that a GPU holds no more than a slab; the widest ones, behind a change of resolution, are never whole, but
made again for each use.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from VAE.model import Autoencoder
from VAE.model.autoencoder import Downsample, ResBlock, Sizes, Upsample, depth_to_space, full_precision, space_to_depth

Work = Callable[..., torch.Tensor]
HALO = 2
"""Planes beyond a slab that layers are given on either side: filters see one, and one that halves starts at an even
place."""


@dataclass(frozen=True)
class Map:
    """A map (B, C, D, H, W) by its slabs: what `work` makes of the same places of `sources`, on `device`."""

    sources: Sequence["torch.Tensor | Map"]
    work: Work
    device: torch.device
    depth: int
    """D."""
    rows: int
    """Planes of a slab."""
    reduction: int = 1
    """Planes of the sources that become one."""
    growth: int = 1
    """Planes that one of the sources becomes."""

    def part(self, start: int, stop: int) -> torch.Tensor:
        """Planes start ... stop - 1."""
        length = self.depth * self.reduction // self.growth
        first = max(0, start * self.reduction // self.growth - HALO * self.reduction)
        last = min(length, -(-stop * self.reduction // self.growth) + HALO * self.reduction)
        made = self.work(*(
            source.part(first, last) if isinstance(source, Map) else source[:, :, first:last].to(self.device)
            for source in self.sources
        ))  # fmt: skip
        offset = first * self.growth // self.reduction
        return made[:, :, start - offset : stop - offset]

    def slabs(self) -> list[tuple[int, int]]:
        """First plane of each, and that behind its last."""
        return [(start, min(start + self.rows, self.depth)) for start in range(0, self.depth, self.rows)]

    def whole(self) -> torch.Tensor:
        """All of it, in the machine's memory."""
        out = None
        for start, stop in self.slabs():
            part = self.part(start, stop)
            if out is None:
                out = part.new_empty((*part.shape[:2], self.depth, *part.shape[3:]), device="cpu")
            out[:, :, start:stop] = part.cpu()
        return out

    def moments(self, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of each group of channels, (B, groups), summed in float64."""
        count, total, square = 0, 0.0, 0.0
        for start, stop in self.slabs():
            rows = self.part(start, stop).unflatten(1, (groups, -1)).flatten(2)  # (B, groups, values)
            count += rows.shape[2]
            variance, mean = torch.var_mean(rows.float(), dim=2, correction=0)
            mean = mean.double()
            total, square = total + rows.shape[2] * mean, square + rows.shape[2] * (variance.double() + mean**2)
        mean = total / count
        return mean.float(), (square / count - mean**2).float()


@torch.no_grad()
def encode(model: Autoencoder, x: torch.Tensor, tile: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """`Autoencoder.encode` of x (B, 1, D, H, W) in slabs of `tile` voxels, an even multiple of the model's `factor`."""
    encoder, x = model.encoder, model.padded(x).cpu()
    p, depth = encoder.patch, x.shape[2]
    start = Map([x], lambda part: encoder.conv_in(space_to_depth(part, p)), device, depth // p, tile // p, p)
    h = through([*encoder.layers, *encoder.middle], start)
    h = Map([h], normed(encoder.norm_out, h, encoder.conv_out), device, h.depth, h.rows).whole().to(device)
    mu, logvar = model.to_mu(h).float(), model.to_logvar(h).float()
    if model.linear is not None:
        f = model.factor
        mu = mu + Map([x], model.linear.encode, device, depth // f, tile // f, f).whole().float().to(device)
    return mu, logvar.clamp(-30.0, 20.0)


@torch.no_grad()
def decode(model: Autoencoder, z: torch.Tensor, shape: Sizes, tile: int, device: torch.device) -> torch.Tensor:
    """`Autoencoder.decode` of z (B, C, d, h, w) to volumes of `shape` in slabs of `tile` voxels."""
    decoder, f, d = model.decoder, model.factor, z.shape[2]
    start = Map([z.cpu()], lambda part: decoder.conv_in(model.from_z(part)), device, d, tile // f)
    h = through([*decoder.middle, *decoder.layers], start)

    def last(part: torch.Tensor) -> torch.Tensor:
        with full_precision(part):
            return depth_to_space(decoder.conv_out(part.float()), decoder.patch)

    raw = Map([h], normed(decoder.norm_out, h, last), device, d * f, tile, growth=decoder.patch).whole()
    if model.linear is not None:
        with full_precision(z):
            raw[:, :1] += Map([z.float().cpu()], model.linear.decode, device, d * f, tile, growth=f).whole()
    D, H, W = shape
    return model.finish(raw[..., :D, :H, :W].to(device))


def through(layers: Sequence[nn.Module], h: Map) -> Map:
    """The layers of encoder or decoder, and of their middle, in turn."""
    for layer in layers:
        if isinstance(layer, ResBlock):
            h = residual(layer, h)
        elif isinstance(layer, Downsample):
            h = kept(Map([h], layer, h.device, h.depth // 2, h.rows // 2, reduction=2))
        elif isinstance(layer, Upsample):
            h = Map([kept(h)], layer, h.device, 2 * h.depth, 2 * h.rows, growth=2)
        else:  # attention sees everything at once
            h = kept(Map([layer(h.part(0, h.depth))], nn.Identity(), h.device, h.depth, h.rows))
    return h


def residual(block: ResBlock, h: Map) -> Map:
    """A ResNet block."""
    inner = kept(Map([h], normed(block.norm1, h, block.conv1, F.silu), h.device, h.depth, h.rows))
    second = normed(block.norm2, inner, block.conv2, F.silu)
    return kept(Map([inner, h], lambda part, x: second(part) + block.shortcut(x), h.device, h.depth, h.rows))


def kept(h: Map) -> Map:
    """The same map, made once; not again for one that only waits."""
    return h if isinstance(h.work, nn.Identity) else Map([h.whole()], nn.Identity(), h.device, h.depth, h.rows)


def normed(norm: nn.GroupNorm, h: Map, then: Work, activation: Work | None = None) -> Work:
    """`then` of a part of `h`, normalised by the statistics of all of it."""
    mean, variance = h.moments(norm.num_groups)
    each, kind = norm.num_channels // norm.num_groups, norm(h.part(0, 1)).dtype  # rounded as autocast rounds it
    centre, width = (
        value.repeat_interleave(each, 1)[:, :, None, None, None] for value in (mean, torch.rsqrt(variance + norm.eps))
    )

    def work(part: torch.Tensor) -> torch.Tensor:
        scale = width * norm.weight[:, None, None, None]
        moved = (part.float() * scale + (norm.bias[:, None, None, None] - centre * scale)).to(kind)
        return then(moved if activation is None else activation(moved))

    return work
