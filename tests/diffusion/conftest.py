"""Checkpoints that nothing was trained for, and the smallest command that makes volumes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion.save_synth import SaveSynthConfig

SCALES = {"age": (40.0, 12.0), "sex": (0.5, 0.5)}


@pytest.fixture(scope="module")
def plain(random_diffusion: Callable[..., Path]) -> Path:
    """A checkpoint without covariates, trained with label dropout."""
    return random_diffusion()


@pytest.fixture(scope="module")
def knowing(random_diffusion: Callable[..., Path]) -> Path:
    """A checkpoint that takes age and sex."""
    return random_diffusion(covariates=SCALES)


@pytest.fixture
def config(random_vae: Path, plain: Path, tmp_path: Path) -> SaveSynthConfig:
    return SaveSynthConfig(
        vae=random_vae, diffusion=plain, label="HC", count=2, out=tmp_path / "out", steps=3, threads=1
    )
