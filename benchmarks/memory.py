"""Predicts what training and sampling take of memory, for grids and networks, without running any of them.

    python -m benchmarks.memory --grids demo 2mm paper 1mm

It is the prediction that every command prints before it starts: forward and backward pass of imitated networks, whose
tensors have no values, counted byte by byte (runtime/memory.py); here for a GPU in bfloat16, with the room that its
libraries are guessed to take. What a process needs besides, such as the CUDA context (half a GB), does not count.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.timing import expect, print_table
from cohort.grids import Grid, GridName, parse_grid
from diffusion.config import PRESETS as DIFFUSION
from diffusion.config import VARIANTS
from diffusion.model import DiT, dit
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.device import Device
from runtime.layers.group_norm import GroupNorm
from runtime.memory import MOMENTS, ROOM, Layers, imitation, peak_bytes, weight_bytes, zeros
from VAE.config import PRESETS as VAES
from VAE.losses import LossNetworks, objective
from VAE.model import Autoencoder

DEVICE = Device(torch.device("cpu"), torch.bfloat16)
"""Tensors are of the same sizes on a GPU, whose precision this is."""


@dataclass(frozen=True)
class MemoryConfig(ScriptConfig):
    """Rows and columns of the tables."""

    grids: tuple[GridName, ...] = ("demo", "2mm", "paper", "1mm")
    """Rows."""
    variants: tuple[str, ...] = ("S/4", "B/4", "XL/2")
    """DiTs, for latents of the VAE of the preset paper."""
    latents: int = 8
    """Latents that a DiT trains on at once."""


def main(config: MemoryConfig) -> None:
    """Prints both tables."""
    expect(minutes=len(config.grids) / 4)
    grids = [parse_grid(text) for text in config.grids]
    with as_on_a_gpu():
        print_table([vae_row(grid) for grid in grids])
        print_table([dit_row(grid, config) for grid in grids])


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Without what layers do on CPUs alone, and what that takes: a norm's own backward pass, scores written out."""
    plain_norm = mock.patch.object(GroupNorm, "forward", nn.GroupNorm.forward)
    with plain_norm, mock.patch.object(dit, "FEW_TOKENS", 0):
        yield


def vae_row(grid: Grid) -> dict[str, object]:
    """GB of the VAE of the preset paper, by what is done with how many volumes."""
    row: dict[str, object] = {"grid": grid.name, "voxels": "x".join(map(str, grid.shape))}
    for cases, again, patch in ((8, False, 0), (1, False, 0), (1, True, 0), (8, True, 64)):
        model = vae()
        if again:
            model.recompute_activations()
        shape = tuple(min(size, patch or size) for size in grid.shape)
        how = "".join([f"train {cases}", ", --recompute" * again, f", --patch {patch}" if patch else ""])
        row[how] = training(model, partial(vae_step, model, shape, cases), "convolutions", averages=1)
    model = vae()
    x, z = (DEVICE.tensor(zeros(model, 1, *size)) for size in ((1, *grid.shape), model.latent_shape(grid.shape)))
    row["encode 1"] = inference(model, lambda: model.encode(x))
    row["decode 1"] = inference(model, lambda: model.decode(z, grid.shape))
    return row


def dit_row(grid: Grid, config: MemoryConfig) -> dict[str, object]:
    """GB of DiTs on that VAE's latents, trained with and without recomputed activations."""
    shape = vae().latent_shape(grid.shape)
    row: dict[str, object] = {"grid": grid.name, "latent": "x".join(map(str, shape))}
    for name in config.variants:
        for again in (False, True):
            with FakeTensorMode(allow_non_fake_inputs=True):  # the real one would take GB
                model = DiT(replace(VARIANTS[name], sides=True), shape)
            if again:
                model.recompute_activations()
            row[f"{name} train {config.latents}" + ", --recompute" * again] = training(
                model, partial(dit_step, model, config.latents), "matrices", len(DIFFUSION["paper"].ema_shares)
            )
    return row


def vae() -> Autoencoder:
    """Imitated."""
    return imitation(DEVICE.module(Autoencoder(VAES["paper"].model)))


def vae_step(model: Autoencoder, shape: tuple[int, int, int], cases: int) -> None:
    x, eps = DEVICE.tensor(zeros(model, cases, 1, *shape)), zeros(model, cases, *model.latent_shape(shape))
    with DEVICE.autocast():
        loss, _ = objective(model(x, eps), x, LossNetworks(), VAES["paper"].loss, 1, 0)
    loss.backward()


def dit_step(model: DiT, cases: int) -> None:
    z, y = zeros(model, cases, *model.latent_shape), zeros(model, cases)
    with DEVICE.autocast():
        prediction = model(z, y.long(), y.long())
    prediction.square().mean().backward()


def training(model: nn.Module, step: Callable[[], None], layers: Layers, averages: int) -> str:
    """GB of a training step: weights, their averages and moments, gradients and activations."""
    held = (1 + averages + MOMENTS) * weight_bytes(model)
    return f"{(held + (1 + ROOM['cuda', layers]) * peak_bytes(step)) / 1e9:.1f}"


@torch.no_grad()
def inference(model: nn.Module, work: Callable[[], object]) -> str:
    """GB of a forward pass and its weights."""
    with DEVICE.autocast():
        peak = peak_bytes(work)
    return f"{(weight_bytes(model) + (1 + ROOM['cuda', 'convolutions']) * peak) / 1e9:.1f}"


if __name__ == "__main__":
    run_script(main, MemoryConfig, description=describe(__doc__))
