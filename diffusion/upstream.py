"""Weights of NeuroLDM-3D's diffusion trainer under this project's names: reads the file, infers the network, renames.

The file is torch.save({'epoch', 'model_state', 'ema_state', 'optimizer_state'}), its names as they are or behind
``model.`` or ``module.model.``. The network is a DiT without RMS normalisation of queries and keys, with exact GELU and
a table of positions of its own. Its process is `ProcessConfig()` on raw latents: mean 0 and standard deviation 1 in
`VAE.latents.Statistics`.

Two things leave no trace in the file: the number of heads, which is an argument, and attention within windows. Weights
trained with windows load like any others and give wrong samples; the trainer's default is none.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal

import torch

from diffusion.config import ModelConfig
from diffusion.model.dit import TIME_DIM
from runtime.checkpoints import load_tensors
from runtime.errors import InputError

Tensors = dict[str, torch.Tensor]
LatentShape = tuple[int, int, int, int]

HEADS = {384: 6, 768: 12, 1152: 16}
"""Heads of the trainer's networks S, B and XL, by width."""
PREFIXES = ("module.model.", "module.", "model.")
EMBED, CLASSES = "patch_embed.proj.weight", "y_embedder.embedding_table.weight"

LAYERS = {
    "patch_embed.proj": "embed",
    "t_embedder.mlp.0": "time.0",
    "t_embedder.mlp.2": "time.2",
    "final_layer.adaLN_modulation.1": "modulation",
    "final_layer.linear": "out",
}
BLOCK_LAYERS = {
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
    "adaLN_modulation.1": "modulation",
}


def read_upstream(
    path: Path | str,
    *,
    latent_shape: LatentShape = (4, 28, 34, 28),
    weights: Literal["ema", "raw"] = "ema",
    heads: int | None = None,
) -> tuple[ModelConfig, Tensors]:
    """The configuration that a file implies, and a state dict that `DiT(config, latent_shape)` loads strictly.

    Args:
        path: file of the trainer.
        latent_shape: (C, D, H, W) of the latents it was trained on; the patch must divide it.
        weights: the averaged weights or those of the last step.
        heads: by default those of the published widths.

    Raises:
        InputError: missing or damaged file, without such weights, of another network, or one this model cannot hold
            (relative positions); names every tensor that is missing, unexpected or of another shape. Or a width of
            unknown heads.
    """
    tensors = _tensors(path, f"{'ema' if weights == 'ema' else 'model'}_state")
    relative = [name for name in tensors if re.fullmatch(r"blocks\.\d+\.attn\.rel_pos_[xyz]", name)]
    if relative:
        raise InputError(
            f"{path}: trained with relative positions in its attention, which this model does not have: "
            f"{', '.join(relative)}"
        )
    names = _names(_depth(tensors))
    problems = [f"{name}: missing" for name in names if name not in tensors]
    problems += [f"{name}: not part of such a network" for name in tensors if name not in names]
    problems += _misshapen(tensors, latent_shape)
    if problems:
        raise InputError.of(f"{path}: not a diffusion network of NeuroLDM-3D for latents {latent_shape}", problems)
    config = _config(tensors, heads, path)
    ours = {names[name]: value for name, value in tensors.items()}
    ours["embed.weight"] = ours["embed.weight"].flatten(1)
    ours["positions"] = ours["positions"][0]
    for leaf in ("out.weight", "out.bias"):
        ours[leaf] = _channels_first(ours[leaf], config)
    return config, ours


def _tensors(path: Path | str, entry: str) -> Tensors:
    """The state dict under `entry`, its names without what all of them begin with."""
    record = load_tensors(path)
    found = record.get(entry)
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path}: no weights under {entry!r}; it holds {sorted(map(str, record))}")
    found = {str(name): value for name, value in found.items()}
    others = [f"{name}: a {type(value).__name__}" for name, value in found.items() if not torch.is_tensor(value)]
    if others:
        raise InputError.of(f"{path}: {entry!r} holds more than tensors", others)
    prefix = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in found)), "")
    return {name.removeprefix(prefix): value for name, value in found.items()}


def _depth(tensors: Tensors) -> int:
    """Blocks, judged by their names; at least 1, so that a file without blocks lacks the first."""
    found = (re.match(r"blocks\.(\d{1,3})\.", name) for name in tensors)
    return max((int(match[1]) + 1 for match in found if match), default=1)


def _names(depth: int) -> dict[str, str]:
    """This project's name of each tensor of a network of this depth."""
    layers = dict(LAYERS)
    for index in range(depth):
        layers |= {f"blocks.{index}.{theirs}": f"blocks.{index}.{ours}" for theirs, ours in BLOCK_LAYERS.items()}
    names = {f"{theirs}.{leaf}": f"{ours}.{leaf}" for theirs, ours in layers.items() for leaf in ("weight", "bias")}
    return {**names, "pos_embed": "positions", CLASSES: "label.weight"}


def _misshapen(tensors: Tensors, latent_shape: LatentShape) -> list[str]:
    """Tensors whose shape is not the one that the patch embedding implies."""
    if EMBED not in tensors:
        return []
    kernel = tensors[EMBED].shape
    if len(kernel) != 5:
        return [f"{EMBED}: shape {tuple(kernel)}, expected (dim, C, and three sides of a patch)"]
    dim, C, *patch = kernel
    if latent_shape[0] != C or any(size % p for size, p in zip(latent_shape[1:], patch, strict=True)):
        return [f"{EMBED}: {C} channels and patches {tuple(patch)} do not divide latents {latent_shape}"]
    expected = _shapes(_depth(tensors), dim, C, patch, latent_shape)
    if CLASSES in tensors:
        rows = tensors[CLASSES].shape[0] if tensors[CLASSES].ndim else 0
        expected[CLASSES] = (max(rows, 2), dim)  # one class and the null class at least
    return [
        f"{name}: shape {tuple(tensors[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]


def _shapes(depth: int, dim: int, C: int, patch: list[int], latent_shape: LatentShape) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor, except the table of classes."""
    width = C * math.prod(patch)
    linear = {
        "t_embedder.mlp.0": (dim, TIME_DIM),
        "t_embedder.mlp.2": (dim, dim),
        "final_layer.adaLN_modulation.1": (2 * dim, dim),
        "final_layer.linear": (width, dim),
    }
    block = {
        "attn.qkv": (3 * dim, dim),
        "attn.proj": (dim, dim),
        "mlp.fc1": (4 * dim, dim),
        "mlp.fc2": (dim, 4 * dim),
        "adaLN_modulation.1": (6 * dim, dim),
    }
    linear |= {f"blocks.{index}.{name}": shape for index in range(depth) for name, shape in block.items()}
    shapes = {f"{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    N = math.prod(latent_shape[1:]) // math.prod(patch)
    return {**shapes, "patch_embed.proj.bias": (dim,), "pos_embed": (1, N, dim)}


def _config(tensors: Tensors, heads: int | None, path: Path | str) -> ModelConfig:
    dim, C, *patch = tensors[EMBED].shape
    heads = HEADS.get(dim) if heads is None else heads
    if heads is None:
        raise InputError(f"{path}: width {dim}, whose number of heads is not known; give it as `heads`")
    if heads < 1 or dim % heads:
        raise InputError(f"{path}: heads={heads}, expected a divisor of the width {dim}")
    return ModelConfig(
        dim=dim,
        depth=_depth(tensors),
        heads=heads,
        patch=tuple(patch),
        qk_norm=False,
        gelu="exact",
        latent_channels=C,
        classes=tensors[CLASSES].shape[0] - 1,
    )


def _channels_first(rows: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Rows of the output layer, weight or bias, from the order (patch, C) to (C, patch)."""
    return rows.unflatten(0, (-1, config.latent_channels)).transpose(0, 1).flatten(0, 1)
