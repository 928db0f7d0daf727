"""Weights of NeuroLDM-3D's diffusion trainer under this project's names: infers the network and renames its tensors.

The file is torch.save({'epoch', 'model_state', 'ema_state', 'optimizer_state'}), its names as they are or behind
``model.`` or ``module.model.``. The network is a DiT without RMS normalisation of queries and keys, with exact GELU and
a table of positions of its own. Its process is `ProcessConfig()` on raw latents: mean 0 and standard deviation 1 in
`VAE.latents.Statistics`.

Two things leave no trace in the file: the number of heads, and attention within windows. Weights trained with windows
load like any others and give wrong samples; the trainer's default is none.
"""

import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from diffusion.config import ModelConfig, ProcessConfig
from diffusion.dataset import LatentSpace
from runtime.checkpoints import plain_fields
from runtime.errors import InputError
from VAE.latents import Statistics

Tensors = dict[str, torch.Tensor]

HEADS = {384: 6, 768: 12, 1152: 16}
"""Heads of the trainer's networks S, B and XL, by width."""
PREFIXES = ("module.model.", "module.", "model.")
EMBED, CLASSES = "patch_embed.proj.weight", "y_embedder.embedding_table.weight"
LAYERS = {
    "patch_embed.proj": "embed",
    "t_embedder.mlp.": "time.",
    "y_embedder.embedding_table": "label",
    "pos_embed": "positions",
    "final_layer.adaLN_modulation.1": "modulation",
    "final_layer.linear": "out",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
    "adaLN_modulation.1": "modulation",
}
"""Our name of each layer, after ``blocks.<k>.`` where it is part of a block."""
_LAYER = re.compile(rf"^(blocks\.\d+\.)?({'|'.join(map(re.escape, LAYERS))})")


def read_upstream(
    record: dict[str, Any], path: Path | str, weights: str, latent_shape: tuple[int, int, int, int] = (4, 28, 34, 28)
) -> dict[str, Any]:
    """What a file holds, as a checkpoint of `diffusion.checkpoint` holds it.

    Names that such a network does not have stay as they are, for `runtime.checkpoints.load_weights` to refuse. The
    patch must divide `latent_shape`, (C, D, H, W) of the latents it was trained on. Networks with relative positions
    or a width of unknown heads are refused.
    """
    tensors = _tensors(record, path, "ema_state" if weights == "ema" else "model_state")
    if any(".attn.rel_pos_" in name for name in tensors):
        raise InputError(f"{path}: trained with relative positions in its attention, which this model does not have")
    config = _config(tensors, path, latent_shape)
    ours = {_LAYER.sub(lambda found: (found[1] or "") + LAYERS[found[2]], name): v for name, v in tensors.items()}
    ours["embed.weight"] = ours["embed.weight"].flatten(1)
    if "positions" in ours:
        ours["positions"] = ours["positions"].squeeze(0)
    C = latent_shape[0]
    for name in ("out.weight", "out.bias"):
        if name in ours and len(ours[name]) == C * math.prod(config.patch):  # rows (patch, C) become (C, patch)
            ours[name] = ours[name].unflatten(0, (-1, C)).transpose(0, 1).flatten(0, 1)
    raw = Statistics(mean=(0.0,) * C, std=(1.0,) * C, count=0, split="", vae="", grid={}, ledger=[])
    space = LatentSpace(raw, torch.zeros(latent_shape), torch.ones(latent_shape))
    return {
        "model_config": plain_fields(config), "process_config": asdict(ProcessConfig()), "latent_shape": latent_shape,
        "space": space.to_dict(), "weights": ours, "ema": {"": ours}, "track": "", "ledger": [], "step": 0,
        "label_dropout": 0.1, "covariates": {},
    }  # fmt: skip


def _tensors(record: dict[str, Any], path: Path | str, entry: str) -> Tensors:
    """The state dict under `entry`, its names without what all of them begin with."""
    found = record.get(entry)
    if not isinstance(found, dict) or not found or not all(torch.is_tensor(value) for value in found.values()):
        raise InputError(f"{path}: no weights under {entry!r}; the file holds {sorted(map(str, record))}")
    found = {str(name): value for name, value in found.items()}
    prefix = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in found)), "")
    return {name.removeprefix(prefix): value for name, value in found.items()}


def _config(tensors: Tensors, path: Path | str, latent_shape: tuple[int, int, int, int]) -> ModelConfig:
    kernel, classes = (tuple(tensors[name].shape) if name in tensors else () for name in (EMBED, CLASSES))
    if len(kernel) != 5 or len(classes) != 2:
        raise InputError(f"{path}: not a diffusion network of NeuroLDM-3D: {EMBED} {kernel}, {CLASSES} {classes}")
    dim, C, *patch = kernel
    if latent_shape[0] != C or any(size % p for size, p in zip(latent_shape[1:], patch, strict=True)):
        raise InputError(f"{path}: {C} channels and patches {tuple(patch)} do not divide latents {latent_shape}")
    if dim not in HEADS:
        raise InputError(f"{path}: width {dim}, whose number of heads is not known; known are {sorted(HEADS)}")
    blocks = {found[1] for name in tensors if (found := re.match(r"blocks\.(\d{1,3})\.", name))}
    return ModelConfig(
        dim=dim, depth=max(1, len(blocks)), heads=HEADS[dim], patch=tuple(patch), qk_norm=False, gelu="exact",
        classes=classes[0] - 1,
    )  # fmt: skip
