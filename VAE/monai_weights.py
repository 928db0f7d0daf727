"""Weights of MONAI's autoencoders under this project's names: reads the file, infers the network, renames.

Understood are the state dicts of AutoencoderKL (monai.networks.nets), of MAISI's variant of it
(monai.apps.generation.maisi, convolutions nested one level deeper, linear upsampling) and of AutoencoderKL in the older
MONAI Generative Models.

Two things leave no trace in a state dict: the number of groups of the GroupNorms, and whether the upsampling of MAISI's
or of the older network was a transposed convolution, whose weights have the names and shapes of a plain one. The first
is an argument, the second is taken to be plain, as in the published models.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch

from runtime.checkpoints import load_tensors
from runtime.errors import InputError
from VAE.config import ModelConfig

Tensors = dict[str, torch.Tensor]

CONTAINERS = ("vae_state_dict", "state_dict", "model")
SHOWN_NAMES = 6

# One letter for each kind of layer: a network is then a word, and a pattern says which words this model can hold.
CONV, RESNET, RESAMPLE, ATTENTION, NORM, UNKNOWN = "CRSAN?"
PATTERNS = {
    "encoder": re.compile(r"C(?P<levels>R+(SR+)*)(?P<middle>RAR)?NC"),
    "decoder": re.compile(r"C(?P<middle>RAR)?(?P<levels>R+(SR+)*)NC"),
}
MIDDLE = {"encoder": re.compile(r"(?<=R)A(?=RNC$)"), "decoder": re.compile(r"(?<=^CR)A(?=R)")}
POSTERIOR = {"quant_conv_mu": "to_mu", "quant_conv_log_sigma": "to_logvar", "post_quant_conv": "from_z"}


class Weights(NamedTuple):
    """A state dict as found in a file."""

    tensors: Tensors
    container: str | None
    """Entry of the file that held it; None when the file is the state dict."""


class Layer(NamedTuple):
    """One entry of MONAI's list of layers."""

    name: str
    kind: str
    tensors: Tensors
    """By their names inside the layer, without the levels of wrapping around a convolution."""


class Part(NamedTuple):
    """The encoder or the decoder."""

    layers: list[Layer]
    blocks: list[int]
    """ResNet blocks of each level, in the order the data flow."""
    widths: list[int]
    """Channels after each level."""
    middle: bool


def read_weights(path: Path | str) -> Weights:
    """Reads a state dict, bare or in one of the usual containers, without running what the file may hold.

    A prefix ``module.`` that all names share is taken off.

    Raises:
        InputError: missing or damaged file, contents other than tensors and plain values, or no state dict in it.
    """
    record = load_tensors(path)
    container = next((name for name in CONTAINERS if isinstance(record.get(name), dict)), None)
    tensors = record if container is None else record[container]
    others = [str(name) for name, value in tensors.items() if not isinstance(value, torch.Tensor)]
    if others or not tensors:
        raise InputError(
            f"{path}: holds no state dict: no entry {' or '.join(CONTAINERS)}, and of its own entries these are no "
            f"tensors: {some(others) or 'it is empty'}"
        )
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return Weights(tensors, container)


def translate(tensors: Tensors, groups: int, path: Path | str) -> tuple[ModelConfig, Tensors]:
    """The configuration that a MONAI state dict implies, and its weights under this project's names.

    Args:
        tensors: the state dict of an AutoencoderKL or AutoencoderKlMaisi in three dimensions.
        groups: of its GroupNorms.
        path: where it comes from, for the messages.

    Raises:
        InputError: another kind of network, or one this model cannot hold; lists everything that stands in the way.
    """
    _refuse(path, _foreign(tensors))
    layers = {side: _layers(tensors, side) for side in PATTERNS}
    _refuse(path, _unsupported_layers(layers))
    encoder, decoder = (_part(side, layers[side]) for side in PATTERNS)
    _refuse(path, _unsupported_levels(encoder, decoder))
    if any(width % groups for width in encoder.widths):
        raise InputError(
            f"{path}: groups={groups} does not divide its widths {encoder.widths}; the number of groups of the "
            "GroupNorms is not in the file: give the one it was trained with as `groups`"
        )
    config = ModelConfig(
        channels=tuple(encoder.widths),
        blocks=encoder.blocks[0],
        groups=groups,
        latent_channels=encoder.layers[-1].tensors["weight"].shape[0],
        attention=encoder.middle,
        # Only MAISI wraps its convolutions twice, and it upsamples linearly where AutoencoderKL repeats voxels.
        upsampling="linear" if "decoder.blocks.0.conv.conv.weight" in tensors else "nearest",
    )
    renamed = {
        f"{POSTERIOR[owner]}.{leaf}": value
        for owner, leaf, value in ((*_unwrap(name).rsplit(".", 1), value) for name, value in tensors.items())
        if owner in POSTERIOR
    }
    for side, part in (("encoder", encoder), ("decoder", decoder)):
        for home, layer in zip(_homes(side, part), part.layers, strict=True):
            renamed.update({f"{side}.{home}.{name}": value for name, value in _rename(layer).items()})
    return config, renamed


def some(names: list[str]) -> str:
    """A list of names, the first few when it is long."""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


def _refuse(path: Path | str, problems: list[str]) -> None:
    if problems:
        raise InputError.of(f"{path}: not an autoencoder that this model can hold", problems)


def _unwrap(name: str) -> str:
    """``encoder.blocks.1.conv1.conv.conv.weight`` -> ``encoder.blocks.1.conv1.weight``."""
    return ".".join(part for part in name.split(".") if part not in ("conv", "postconv"))


def _foreign(tensors: Tensors) -> list[str]:
    """What tells a state dict from that of any AutoencoderKL, or from a three-dimensional one."""
    shape = re.compile(rf"(encoder|decoder)\.blocks\.\d+\.\w.*|({'|'.join(POSTERIOR)})\.(weight|bias)")
    plain = {name: _unwrap(name) for name in tensors}
    other = [name for name, short in plain.items() if not shape.fullmatch(short)]
    wanted = [f"{owner}.{leaf}" for owner in POSTERIOR for leaf in ("weight", "bias")]
    missing = [name for name in wanted if name not in plain.values()]
    missing += [f"{side}.blocks.0" for side in PATTERNS if f"{side}.blocks.0.weight" not in plain.values()]
    flat = [name for name, value in tensors.items() if value.ndim in (3, 4)]
    problems = [f"not part of such a network: {some(other)}"] if other else []
    problems += [f"not found: {some(missing)}"] if missing else []
    problems += [f"convolutions of one or two dimensions: {some(flat)}"] if flat else []
    return problems


def _layers(tensors: Tensors, side: str) -> list[Layer]:
    """The layers of the encoder or decoder in their order."""
    found: dict[int, Tensors] = {}
    for name, value in tensors.items():
        if name.startswith(f"{side}."):
            _, _, index, inner = _unwrap(name).split(".", 3)
            found.setdefault(int(index), {})[inner] = value
    ends = (0, max(found))
    return [Layer(f"{side}.blocks.{i}", _kind(inner, i in ends), inner) for i, inner in sorted(found.items())]


def _kind(inner: Tensors, end: bool) -> str:
    """Letter of a layer with these names and shapes, which is the first or last of its network, or not."""
    if inner.keys() == {"weight", "bias"}:
        return NORM if inner["weight"].ndim == 1 else CONV if end else RESAMPLE
    if {"norm1.weight", "conv1.weight", "norm2.weight", "conv2.weight"} <= inner.keys():
        return RESNET
    if {"attn.qkv.weight", "attn.to_q.weight", "to_q.weight"} & inner.keys():
        return ATTENTION
    return UNKNOWN


def _unsupported_layers(layers: dict[str, list[Layer]]) -> list[str]:
    """Single layers that this model has no place for."""
    problems = []
    for side, row in layers.items():
        word = "".join(layer.kind for layer in row)
        inside = [row[at.start()].name for at in re.finditer("A", MIDDLE[side].sub("a", word))]
        transposed = [layer.name for layer in row if any(name.startswith("deconv") for name in layer.tensors)]
        unknown = [layer.name for layer in row if layer.kind == UNKNOWN and layer.name not in transposed]
        problems += [f"attention inside the levels: {some(inside)}"] if inside else []
        problems += [f"upsampling by transposed convolution: {some(transposed)}"] if transposed else []
        problems += [f"layers of an unknown kind: {some(unknown)}"] if unknown else []
        if not (inside or transposed or unknown or PATTERNS[side].fullmatch(word)):
            problems.append(f"{side}: its layers come in another order ({word})")
    for what, layer, axis in (("input", layers["encoder"][0], 1), ("output", layers["decoder"][-1], 0)):
        channels = layer.tensors["weight"].shape[axis] if layer.kind == CONV else 1
        problems += [f"{channels} {what} channels, not 1: {layer.name}"] if channels != 1 else []
    return problems


def _part(side: str, layers: list[Layer]) -> Part:
    found = PATTERNS[side].fullmatch("".join(layer.kind for layer in layers))
    blocks = [len(level) for level in found["levels"].split(RESAMPLE)]
    at, widths = found.start("levels") - 1, []
    for count in blocks:
        at += count + 1
        widths.append(layers[at - 1].tensors["conv2.weight"].shape[0])
    return Part(layers, blocks, widths, found["middle"] is not None)


def _unsupported_levels(encoder: Part, decoder: Part) -> list[str]:
    """Levels that differ in depth, or a decoder that is not the encoder's mirror image."""
    problems = [
        f"{side}: levels of different numbers of ResNet blocks {part.blocks}"
        for side, part in (("encoder", encoder), ("decoder", decoder))
        if len(set(part.blocks)) > 1
    ]
    for what in ("blocks", "widths"):
        there, back = getattr(encoder, what), getattr(decoder, what)[::-1]
        if there != back and not problems:
            problems.append(f"{what} of the levels: encoder {there}, decoder {back}, finest first")
    if encoder.middle != decoder.middle:
        problems.append(f"attention in the middle of the {'encoder' if encoder.middle else 'decoder'} alone")
    return problems


def _homes(side: str, part: Part) -> list[str]:
    """Where this project's encoder or decoder keeps each layer, in the order of `part.layers`."""
    middle = [f"middle.{index}" for index in range(3)] if part.middle else []
    levels = [f"layers.{index}" for index in range(len(part.layers) - len(middle) - 3)]
    return ["conv_in", *(levels + middle if side == "encoder" else middle + levels), "norm_out", "conv_out"]


def _rename(layer: Layer) -> Tensors:
    """A layer's tensors under this project's names inside the layer."""
    if layer.kind == RESAMPLE:
        return {f"conv.{name}": value for name, value in layer.tensors.items()}
    if layer.kind == RESNET:
        return {name.replace("nin_shortcut", "shortcut"): value for name, value in layer.tensors.items()}
    return _attention(layer.tensors) if layer.kind == ATTENTION else layer.tensors


def _attention(tensors: Tensors) -> Tensors:
    """Queries, keys, values and the projection after them, each by itself.

    MAISI has no projection; the older package has one among its weights (``proj_attn``) that its forward pass never
    used. Both become the identity.
    """
    inner = {name.removeprefix("attn."): value for name, value in tensors.items()}
    named = {name.replace("out_proj.", "out."): value for name, value in inner.items() if "proj_attn." not in name}
    for leaf in ("weight", "bias"):
        if f"qkv.{leaf}" in named:
            named |= zip((f"to_{x}.{leaf}" for x in "qkv"), named.pop(f"qkv.{leaf}").chunk(3), strict=True)
    width = named["norm.weight"].shape[0] if "norm.weight" in named else 0
    return {"out.weight": torch.eye(width), "out.bias": torch.zeros(width), **named}
