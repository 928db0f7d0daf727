"""Checkpoints of both stages with random weights, for tests that sample and decode; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cohort.grids import GRIDS
from cohort.labelling import network
from diffusion.checkpoint import save_diffusion
from diffusion.config import ModelConfig, ProcessConfig
from diffusion.dataset import LatentSpace
from diffusion.model import DiT
from diffusion.process import build_process
from runtime.checkpoints import checkpoint_hash
from VAE.checkpoint import save_vae
from VAE.config import PRESETS
from VAE.latents import Statistics
from VAE.model import Autoencoder

LATENT = (4, 10, 12, 10)
"""Shape of the smoke VAE's latents."""


def awake(model: DiT, seed: int = 0) -> DiT:
    """Random weights everywhere: a new DiT's output is zero by design."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="session")
def random_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE's checkpoint on the smoke grid. Its linear path decodes sensibly without training."""
    torch.manual_seed(0)
    model = Autoencoder(PRESETS["smoke"].model)
    path = tmp_path_factory.mktemp("vae") / "vae.pt"
    save_vae(path, model, grid=GRIDS["smoke"], ledger=["a" * 16, "b" * 16], step=1, ema=model.state_dict())
    return path


@pytest.fixture(scope="session")
def random_labels(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Writes the checkpoint of a network that labels regions, on the smoke grid; with random weights by a seed."""
    folder = tmp_path_factory.mktemp("labels")

    def write(seed: int = 0) -> Path:
        torch.manual_seed(seed)
        model = network.LabelNetwork(network.ModelConfig(channels=(4, 4, 4)))
        model.unet.output_block.conv.conv.bias.data[0] = 5.0  # mostly background: volumes of a region's size
        path = folder / f"{seed}.pt"
        limits = {"displacement_mm": 100.0, "uncertainty": 100.0}
        network.save_labels(path, model, grid=GRIDS["smoke"], ema=model.state_dict(), step=1, limits=limits)
        return path

    return write


@pytest.fixture(scope="session")
def random_diffusion(random_vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes the checkpoint of a small DiT, which belongs to `random_vae`; see the arguments below."""
    folder = tmp_path_factory.mktemp("diffusion")

    def write(
        process: ProcessConfig | None = None,
        covariates: dict[str, tuple[float, float]] | None = None,
        label_dropout: float = 0.1,
        vae: str | None = None,
        sides: bool = False,
        rank: int = 0,
    ) -> Path:
        process, scales = process or ProcessConfig(target="velocity"), covariates or {}
        config = ModelConfig(
            dim=32, depth=2, heads=1, patch=(2, 2, 2), covariates=tuple(scales), sides=sides, linear_rank=rank
        )
        model = DiT(config, LATENT, build_process(process))
        awake(model, seed=1)
        if rank:
            fitted = torch.Generator().manual_seed(2)
            latents = torch.randn((2 * rank + 4, *LATENT), generator=fitted)
            model.start.fit(latents, torch.arange(len(latents)) % 2)
        statistics = Statistics(
            mean=(0.0,) * 4, std=(1.0,) * 4, count=12, split="train", ledger=["b" * 16, "c" * 16],
            vae=checkpoint_hash(random_vae) if vae is None else vae, grid=GRIDS["smoke"].to_dict(),
        )  # fmt: skip
        ema = {name: 0.9 * value for name, value in model.named_parameters()}
        ema = {**model.state_dict(), **ema}
        path = folder / f"{len(list(folder.iterdir()))}.pt"
        save_diffusion(
            path, model, process, LatentSpace(statistics, torch.zeros(LATENT), torch.ones(LATENT)),
            ema={"0.05": ema}, track="0.05", step=1, ledger=statistics.ledger, label_dropout=label_dropout,
            covariates=scales,
        )  # fmt: skip
        return path

    return write
