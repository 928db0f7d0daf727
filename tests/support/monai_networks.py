"""Autoencoders of MONAI with random weights, and their files."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.networks.nets import AutoencoderKL


def monai(
    kind: type = AutoencoderKL, *, channels: tuple = (8, 8, 16), blocks: object = 1, **options
) -> torch.nn.Module:
    """A network of MONAI with random parameters, those of the norms and the biases too."""
    torch.manual_seed(0)
    middle, count = options.pop("middle", False), len(channels)
    widths = {"channels" if kind is AutoencoderKL else "num_channels": channels}
    settings = {
        "spatial_dims": 3, "in_channels": 1, "out_channels": 1, "latent_channels": 3, "norm_num_groups": 4,
        "num_res_blocks": (blocks,) * count if isinstance(blocks, int) else blocks,
        "attention_levels": (False,) * count,
        "with_encoder_nonlocal_attn": middle, "with_decoder_nonlocal_attn": middle, **widths, **options,
    }  # fmt: skip
    if kind is AutoencoderKlMaisi:
        settings = {"num_splits": 1, "norm_float16": False, "save_mem": False, **settings}
    network = kind(**settings).eval()
    for name, parameter in network.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def older(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Its state dict as the older MONAI Generative Models would name it: upsampling and attention have other names, and
    there is a projection after the attention that was never applied. Its transposed convolutions are MAISI's, which
    wraps all convolutions once more.
    """
    state = {
        name.replace(".attn.to_", ".to_").replace(".postconv.", ".conv."): value
        for name, value in network.state_dict().items()
    }
    if isinstance(network, AutoencoderKlMaisi):
        state = {name.replace(".conv.conv.", ".conv."): value for name, value in state.items()}
    for name in [name for name in state if name.endswith("to_q.weight")]:
        width = state[name].shape[0]
        state[name.replace("to_q", "proj_attn")] = torch.randn(width, width)
        state[name.replace("to_q.weight", "proj_attn.bias")] = torch.randn(width)
    return state


def file_of(path: Path, network: torch.nn.Module) -> Path:
    """Its state dict in a file."""
    torch.save(network.state_dict(), path)
    return path
