"""Weights of MONAI's autoencoders under this project's names: reads the file, infers the network, renames.

Understood are the state dicts of AutoencoderKL (monai.networks.nets), of MAISI's variant of it
(monai.apps.generation.maisi, convolutions nested one level deeper, linear upsampling) and of AutoencoderKL in the older
MONAI Generative Models.

Two things leave no trace in a state dict: the number of groups of the GroupNorms, and whether the upsampling of MAISI's
or of the older network was a transposed convolution, whose weights have the names and shapes of a plain one. Both are
arguments. AutoencoderKL's transposed convolution has a name of its own, and filters of 2x2x2.
"""

import re
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F

from runtime.checkpoints import load_tensors
from runtime.errors import InputError
from VAE.config import ModelConfig

Tensors = dict[str, torch.Tensor]

CONTAINERS = ("vae_state_dict", "state_dict", "model")
POSTERIOR = {"quant_conv_mu.": "to_mu.", "quant_conv_log_sigma.": "to_logvar.", "post_quant_conv.": "from_z."}
KINDS = "C convolution, R ResNet block, S change of resolution, A attention, N norm, ? unknown"
"""One letter for each kind of layer, so that a network is a word."""
LEVELS = r"(?P<levels>(?:(?:R+|(?:RA)+)S)*(?:R+|(?:RA)+))"
WORDS = {"encoder": rf"C{LEVELS}(?P<middle>RAR)?NC", "decoder": rf"C(?P<middle>RAR)?{LEVELS}NC"}
"""What this model can hold."""
UPSAMPLING = {
    "deconv": ("transposed",), "postconv.conv": ("nearest",),
    "conv.conv.conv": ("linear", "transposed"), "conv.conv": ("nearest", "transposed"),
}  # fmt: skip
"""What the name of the convolution in a decoder's change of resolution says: AutoencoderKL's two, MAISI's, the older
package's. (MAISI's other convolutions have the name of the last.)"""

Layer = tuple[str, Tensors]
"""One entry of MONAI's list of layers: its kind, and its tensors by their names inside it, without the levels of
wrapping around a convolution."""


def read_weights(path: Path | str) -> tuple[Tensors, str | None]:
    """A state dict, bare or in one of the usual containers, read without running what the file may hold, and the entry
    of the file that held it, None when it is the file. A prefix ``module.`` that all names share is taken off.
    """
    record = load_tensors(path)
    container = next((name for name in CONTAINERS if isinstance(record.get(name), dict)), None)
    tensors = record if container is None else record[container]
    others = [str(name) for name, value in tensors.items() if not isinstance(value, torch.Tensor)]
    if others or not tensors:
        found = f"of its own entries these are no tensors: {', '.join(others[:6]) or 'it is empty'}"
        raise InputError(f"{path}: holds no state dict: no entry {' or '.join(CONTAINERS)}, and {found}")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors, container


def translate(tensors: Tensors, groups: int, upsampling: str | None, path: Path | str) -> tuple[ModelConfig, Tensors]:
    """The configuration that the state dict of a 3D AutoencoderKL or AutoencoderKlMaisi implies, and its weights under
    this project's names. Whether these fit it in all their names and shapes is for the caller to see.

    Raises:
        InputError: another kind of network, layers in another order than this model's, groups that do not divide, or an
            upsampling that the names do not tell or contradict.
    """
    renamed, found = {}, {"encoder": {}, "decoder": {}}
    for name, value in tensors.items():
        plain = ".".join(part for part in name.split(".") if part not in ("conv", "postconv", "deconv"))
        if name.endswith(".deconv.weight"):  # 2x2x2 are 3x3x3 filters whose first tap along each axis is 0
            value = F.pad(value, (1, 0) * 3)
        side, _, place = plain.partition(".blocks.")
        index, _, inner = place.partition(".")
        if side in found and index.isdigit():
            found[side].setdefault(int(index), {})[inner] = value
        else:
            start = plain[: plain.find(".") + 1]
            renamed[POSTERIOR.get(start, start) + plain.removeprefix(start)] = value
    if not (found["encoder"] and found["decoder"]):
        raise InputError(f"{path}: not an autoencoder of MONAI: no encoder.blocks or decoder.blocks in it")
    layers = {
        side: [(_kind(inner, index in (0, max(row))), inner) for index, inner in sorted(row.items())]
        for side, row in found.items()
    }
    words = _words(layers, path)
    several = "S" in words["decoder"]["levels"]
    config = _config(layers, words, groups, _upsampling(tensors, upsampling, path) if several else "nearest", path)
    for side, row in layers.items():
        for home, layer in zip(_homes(side, words[side]), row, strict=True):
            renamed |= {f"{side}.{home}.{name}": value for name, value in _rename(*layer).items()}
    return config, renamed


def _kind(inner: Tensors, end: bool) -> str:
    if inner.keys() == {"weight", "bias"}:
        return "N" if inner["weight"].ndim == 1 else "C" if end else "S"
    if {"norm1.weight", "conv1.weight", "norm2.weight", "conv2.weight"} <= inner.keys():
        return "R"
    return "A" if {"attn.qkv.weight", "attn.to_q.weight", "to_q.weight"} & inner.keys() else "?"


def _words(layers: dict[str, list[Layer]], path: Path | str) -> dict[str, re.Match]:
    """Encoder and decoder as words, taken apart; the one's levels are the other's in reverse."""
    words = {side: "".join(kind for kind, _ in row) for side, row in layers.items()}
    matches = {side: re.fullmatch(WORDS[side], word) for side, word in words.items()}
    problems = [
        f"{side}: its layers are {words[side]}; this model's are C, levels of R... or RARA... with S between, NC, and "
        "RAR or nothing at the lowest resolution"
        for side, match in matches.items()
        if not match
    ]
    levels = {side: match["levels"].split("S") for side, match in matches.items() if match}
    if not problems and levels["encoder"] != levels["decoder"][::-1]:
        problems = [f"decoder: its levels are {levels['decoder']}, not the encoder's {levels['encoder']} in reverse"]
    if problems:
        raise InputError.of(f"{path}: not an autoencoder that this model can hold ({KINDS})", problems)
    return matches  # type: ignore[return-value]


def _upsampling(tensors: Tensors, asked: str | None, path: Path | str) -> str:
    """How the decoder doubles its resolution, by the names in the file, or as asked where they do not tell."""
    names = {re.sub(r"^decoder\.blocks\.\d+\.", "", name).removesuffix(".weight") for name in tensors}
    possible = next((ways for name, ways in UPSAMPLING.items() if name in names), ("nearest",))
    if asked is None and len(possible) > 1:
        raise InputError(
            f"{path}: does not say how its decoder doubles the resolution: give --upsampling {possible[0]}, or "
            f"--upsampling {possible[1]} if it was trained with use_convtranspose"
        )
    if asked not in (None, *possible):
        raise InputError(f"{path}: the upsampling of its decoder is {' or '.join(possible)}, not {asked}")
    return asked or possible[0]


def _config(
    layers: dict[str, list[Layer]], words: dict[str, re.Match], groups: int, upsampling: str, path: Path | str
) -> ModelConfig:
    rows = words["encoder"]["levels"].split("S")
    first = accumulate([1, *(len(row) + 1 for row in rows[:-1])])
    widths = tuple(layers["encoder"][place][1]["conv2.weight"].shape[0] for place in first)
    if any(width % groups for width in widths):
        hint = "the file does not say how many its GroupNorms have: give the number it was trained with by --groups"
        raise InputError(f"{path}: groups={groups} does not divide its widths {list(widths)}; {hint}")
    blocks = tuple(row.count("R") for row in rows)
    attention = tuple("A" in row for row in rows)
    sides = [side for side, word in words.items() if word["middle"]]
    return ModelConfig(
        channels=widths, blocks=blocks[0] if len(set(blocks)) == 1 else blocks, groups=groups,
        attention=bool(sides), attention_side=sides[0] if len(sides) == 1 else "both",
        attention_levels=attention if any(attention) else (),
        upsampling=upsampling, latent_channels=layers["encoder"][-1][1]["weight"].shape[0],
    )  # fmt: skip


def _homes(side: str, word: re.Match) -> list[str]:
    """Where this project's encoder or decoder keeps each layer, in MONAI's order."""
    middle = [f"middle.{index}" for index in range(len(word["middle"] or ""))]
    levels = [f"layers.{index}" for index in range(len(word["levels"]))]
    return ["conv_in", *(levels + middle if side == "encoder" else middle + levels), "norm_out", "conv_out"]


def _rename(kind: str, tensors: Tensors) -> Tensors:
    """A layer's tensors under this project's names inside the layer; in attention queries, keys, values and the
    projection after them each by itself.

    MAISI has no projection; the older package has one among its weights (``proj_attn``) that its forward pass never
    used. Both become the identity.
    """
    if kind != "A":
        start = "conv." if kind == "S" else ""
        return {start + name.replace("nin_shortcut", "shortcut"): value for name, value in tensors.items()}
    inner = {name.removeprefix("attn.").replace("out_proj.", "out."): value for name, value in tensors.items()}
    inner = {name: value for name, value in inner.items() if "proj_attn." not in name}
    for leaf in ("weight", "bias"):
        if f"qkv.{leaf}" in inner:
            inner |= zip((f"to_{x}.{leaf}" for x in "qkv"), inner.pop(f"qkv.{leaf}").chunk(3), strict=True)
    width = inner["norm.weight"].shape[0] if "norm.weight" in inner else 0
    return {"out.weight": torch.eye(width), "out.bias": torch.zeros(width), **inner}
