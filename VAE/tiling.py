"""Encoding and decoding tile by tile, for volumes whose activations do not fit in memory.

Two things make a tile differ from the same place of the whole volume. A GroupNorm takes its mean and variance over all
it sees: here they are first found over the whole volume, tile by tile and norm by norm, and then held fixed. Without
that the result depends on the tile everywhere. And a tile's border is padded with zeros where the whole has neighbours:
overlapping tiles are blended with Gaussian weights, and the rim that the padding reaches has weight 0 as far as the
overlap covers it. From an overlap of twice that reach on (the default of `VAE.infer`) no seam is left.

Memory: one tile's activations, and the output. Time: beside the blended pass one partial pass per GroupNorm, from the
input up to that norm, and every pass computes its tiles' halos again. Three levels on 112 x 136 x 112 voxels, without
a seam: about 12 times the time of the whole with tiles of 96, 20 times with tiles of 80. Take tiles as large as fit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from runtime.errors import InputError
from VAE.model.autoencoder import Autoencoder, Upsample

GAUSSIAN_SHARE = 0.125
"""Standard deviation of the blending weights as a share of the tile (Isensee et al. 2021, nnU-Net, and MONAI)."""


def seamless_overlap(model: Autoencoder) -> int:
    """The overlap in voxels from which on tiles leave no seam: twice what an output sees to each side."""
    return 2 * model.factor * max(part.reach for part in (_encoder(model), _decoder(model)))


def refuse_tiles(model: Autoencoder, tile: int, overlap: int) -> None:
    """Checks what the tiled functions need of their arguments.

    A tile must have a middle that its borders do not reach: without it there are no exact statistics.

    Raises:
        InputError: names every problem.
    """
    factor, problems = model.factor, []
    if model.config.attention:
        problems.append("this VAE has self-attention, which sees the whole volume at once: use --tile 0")
    elif tile < seamless_overlap(model) + factor or tile % factor:
        least = seamless_overlap(model) + factor
        problems.append(f"--tile {tile}: this VAE needs a multiple of {factor} that is at least {least}")
    if overlap % factor or not 0 <= overlap < tile:
        problems.append(f"--overlap {overlap}: not a multiple of {factor} that is at least 0 and less than the tile")
    if problems:
        raise InputError.of("cannot work in tiles", problems)


@torch.no_grad()
def encode_tiled(model: Autoencoder, x: torch.Tensor, tile: int, overlap: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`Autoencoder.encode` in tiles.

    Args:
        model: without attention.
        x: one volume (1, 1, D, H, W) on any device; tiles of it are moved to the model's.
        tile: edge of a tile in voxels, a multiple of the model's factor. A volume no larger is encoded as a whole.
        overlap: voxels that neighbouring tiles share, a multiple of the factor.

    Returns:
        mu and logvar, each (1, C, d, h, w) float32, on the CPU.

    Raises:
        InputError: see `refuse_tiles`.
    """
    refuse_tiles(model, tile, overlap)
    model.latent_shape(tuple(x.shape[2:]))
    mu, logvar = _tiled(_encoder(model), x, tile // model.factor, overlap // model.factor, model.factor, 1)
    return mu, logvar


@torch.no_grad()
def decode_tiled(model: Autoencoder, z: torch.Tensor, tile: int, overlap: int) -> torch.Tensor:
    """`Autoencoder.decode` in tiles.

    Args:
        model: without attention.
        z: one latent (1, C, d, h, w) on any device.
        tile: edge of a tile of the *volume* in voxels, as for `encode_tiled`.
        overlap: voxels that neighbouring tiles share, a multiple of the factor.

    Returns:
        x_hat (1, 1, D, H, W) float32, on the CPU.

    Raises:
        InputError: see `refuse_tiles`.
    """
    refuse_tiles(model, tile, overlap)
    (x_hat,) = _tiled(_decoder(model), z, tile // model.factor, overlap // model.factor, 1, model.factor)
    return x_hat


_Span = tuple[int, int, torch.Tensor]
"""Along one axis: a tile's first position, the one after its last, and the weights of its output voxels."""


@dataclass(frozen=True)
class _Part:
    """Encoder or decoder. Sizes below are in latent positions, in which input and output have whole-number scales."""

    layers: nn.Module
    call: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
    voxels: int
    """Voxels per position of the first convolution's input."""
    factor: int

    @property
    def device(self) -> torch.device:
        return next(self.layers.parameters()).device

    def reaches(self) -> Iterator[tuple[nn.Module, int]]:
        """Each layer in order of execution, and how many latent positions, rounded up, its *input* sees to each side.

        The part itself comes last, with the reach of its output. Modules are registered in the order in which they run.
        A convolution of width 3 sees one more position of its own resolution; one of stride 2 one more of the coarser.
        """
        voxels, reach = self.voxels, 0
        for module in self.layers.modules():
            yield module, math.ceil(reach / self.factor)
            if isinstance(module, Upsample):
                voxels //= 2
            elif isinstance(module, nn.Conv3d):
                voxels *= module.stride[0]
                reach += voxels * (module.kernel_size[0] // 2)
        yield self.layers, math.ceil(reach / self.factor)

    @property
    def reach(self) -> int:
        """How many latent positions an output sees to each side."""
        *_, (_, reach) = self.reaches()
        return reach


def _encoder(model: Autoencoder) -> _Part:
    return _Part(model.encoder, model.encode, model.config.stem_patch, model.factor)


def _decoder(model: Autoencoder) -> _Part:
    return _Part(model.decoder, lambda z: (model.decode(z),), model.factor, model.factor)


def _tiled(
    part: _Part, value: torch.Tensor, tile: int, overlap: int, scale_in: int, scale_out: int
) -> tuple[torch.Tensor, ...]:
    """One volume or latent through a part. `tile` and `overlap` in latent positions, the scales in voxels of each."""
    if value.shape[0] != 1:
        raise ValueError(f"tiles are cut from one volume at a time, not from {value.shape[0]}")
    sizes = [size // scale_in for size in value.shape[2:]]
    if max(sizes) <= tile:
        return tuple(output.cpu() for output in part.call(value.to(part.device)))
    with ExitStack() as frozen:
        for layer, reach in part.reaches():
            if isinstance(layer, nn.GroupNorm):
                mean, variance = _statistics(part, layer, value, tile, reach, scale_in)
                frozen.enter_context(_frozen(layer, mean, variance))
        axes = [_axis_weights(size, tile, overlap, part.reach, scale_out) for size in sizes]
        return _blend(part, value, axes, scale_in, scale_out)


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward pass at a norm and carries that norm's input."""

    def __init__(self, activation: torch.Tensor) -> None:
        super().__init__()
        self.activation = activation


def _input_of(norm: nn.GroupNorm, part: _Part, window: torch.Tensor) -> torch.Tensor:
    """What a norm is given when the part runs on a window; nothing after it is computed."""

    def stop(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        raise _Reached(inputs[0])

    handle = norm.register_forward_pre_hook(stop)
    try:
        part.call(window)
    except _Reached as reached:
        return reached.activation
    finally:
        handle.remove()
    raise RuntimeError("a GroupNorm that takes no part in the forward pass")


def _statistics(
    part: _Part, norm: nn.GroupNorm, value: torch.Tensor, tile: int, halo: int, scale: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (groups,) of a norm's input over the whole volume, float64."""
    sums = torch.zeros(2, norm.num_groups, dtype=torch.float64, device=part.device)
    count = 0
    for cores in itertools.product(*(_cores(size // scale, tile, halo) for size in value.shape[2:])):
        low, high, start, stop = zip(*cores, strict=True)
        h = _input_of(norm, part, _cut(value, low, high, scale).to(part.device))
        fine = h.shape[2] // (high[0] - low[0])  # positions of this norm's resolution per latent position
        start, stop = ([a - b for a, b in zip(places, low, strict=True)] for places in (start, stop))
        h = _cut(h, start, stop, fine).double().reshape(norm.num_groups, -1)
        sums += torch.stack([h.sum(1), h.square().sum(1)])
        count += h.shape[1]
    mean, square = sums / count
    return mean, square - mean**2


def _cores(size: int, tile: int, halo: int) -> list[tuple[int, int, int, int]]:
    """Along one axis: tiles (first position, the one after the last) and the core of each, which are disjoint.

    A core ends `halo` positions before its tile, except where the tile ends with the axis: there the padding is the
    volume's own.
    """
    found, start = [], 0
    while start < size:
        low = max(start - halo, 0)
        high = min(low + tile, size)
        stop = size if high == size else high - halo
        found.append((low, high, start, stop))
        start = stop
    return found


@contextmanager
def _frozen(norm: nn.GroupNorm, mean: torch.Tensor, variance: torch.Tensor) -> Iterator[None]:
    """Within the block the norm uses these statistics (groups,) in place of those of what it is given."""
    each = norm.num_channels // norm.num_groups
    deviation = (variance + norm.eps).sqrt().repeat_interleave(each)
    scale = norm.weight / deviation
    shift = norm.bias - mean.repeat_interleave(each) * scale
    scale, shift = (column.float().view(1, -1, 1, 1, 1) for column in (scale, shift))
    norm.forward = lambda h: (h * scale).add_(shift)
    try:
        yield
    finally:
        del norm.forward  # the class's own shows again


def _blend(
    part: _Part, value: torch.Tensor, axes: list[list[_Span]], scale_in: int, scale_out: int
) -> tuple[torch.Tensor, ...]:
    """Overlapping tiles, weighted and added up on the CPU.

    The tiles form a lattice, so the weights are products of one weight per axis; no volume of summed weights is needed.
    """
    full = [max(high for _, high, _ in spans) * scale_out for spans in axes]
    totals: list[torch.Tensor] = []
    for window in itertools.product(*axes):
        low, high, weights = zip(*window, strict=True)
        outputs = part.call(_cut(value, low, high, scale_in).to(part.device))
        weight = torch.einsum("x,y,z->xyz", *weights)
        totals = totals or [torch.zeros(1, output.shape[1], *full) for output in outputs]
        for total, output in zip(totals, outputs, strict=True):
            _cut(total, low, high, scale_out).add_(output.cpu() * weight)
    return tuple(totals)


def _axis_weights(size: int, tile: int, overlap: int, reach: int, scale: int) -> list[_Span]:
    """The tiles along one axis with their weights, which add up to 1 at each place.

    Tiles start every ``tile - overlap`` positions; the last one ends with the axis. Weights are Gaussian, and 0 in the
    `reach` positions next to an end inside the volume, or in as many as leave every place to some tile.
    """
    step, tile = tile - overlap, min(tile, size)
    starts = [*range(0, size - tile, step), size - tile]
    rim = min(reach, overlap // 2) * scale
    place = torch.arange(tile * scale, dtype=torch.float64) - (tile * scale - 1) / 2
    bell = torch.exp(-0.5 * (place / (GAUSSIAN_SHARE * tile * scale)) ** 2)
    weights = torch.zeros(len(starts), size * scale, dtype=torch.float64)
    for row, start in zip(weights, starts, strict=True):
        row[start * scale : (start + tile) * scale] = bell
        if start > 0:
            row[: start * scale + rim] = 0
        if start + tile < size:
            row[(start + tile) * scale - rim :] = 0
    weights /= weights.sum(0)
    return [
        (start, start + tile, row[start * scale : (start + tile) * scale].float())
        for row, start in zip(weights, starts, strict=True)
    ]


def _cut(value: torch.Tensor, low: Sequence[int], high: Sequence[int], scale: int) -> torch.Tensor:
    """A view of (B, C, D, H, W) from `low` to below `high`, given in units of `scale` elements."""
    return value[(..., *(slice(a * scale, b * scale) for a, b in zip(low, high, strict=True)))]
