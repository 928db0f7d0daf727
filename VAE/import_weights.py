"""Makes a checkpoint of this project from an autoencoder that was trained with MONAI.

    python -m VAE.import_weights autoencoder.pt --grid paper --out runs/imported/vae.pt

VAE.infer, VAE.save_latent and diffusion.save_synth take the result, and VAE.train --init goes on from it. The file says
nothing about the scans behind it: you vouch for their orientation, spacing and intensities ([0, 1]), and for the
subjects, since the ledger is empty.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from cohort.grids import GridName, parse_grid
from runtime.checkpoints import checkpoint_hash, plain_fields
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.errors import InputError
from VAE.checkpoint import import_monai, save_vae


@dataclass(frozen=True)
class ImportConfig(ScriptConfig):
    """What to import, and what for."""

    file: tyro.conf.Positional[Path]
    """A state dict of MONAI's AutoencoderKL or AutoencoderKlMaisi, alone or in a training program's file."""
    out: Path
    """The checkpoint to write (.pt)."""
    grid: GridName = "paper"
    """Voxel grid that the network will be used on (cohort/grids.py)."""
    groups: int | None = None
    """Groups of its GroupNorms, which the file does not state. By default 32 (16 in files with a vae_state_dict)."""
    upsampling: Literal["nearest", "linear", "transposed"] | None = None
    """How its decoder doubles the resolution. Files of AutoencoderKL tell. Those of MAISI (linear, or transposed if
    trained with use_convtranspose) and of the older MONAI Generative Models (nearest, or transposed likewise) do not
    and need this."""


def main(config: ImportConfig) -> None:
    """Reads, translates, writes."""
    if config.out.exists():
        raise InputError(f"{config.out}: exists already; choose another --out")
    loaded = import_monai(config.file, grid=parse_grid(config.grid), groups=config.groups, upsampling=config.upsampling)
    weights = loaded.model.state_dict()
    save_vae(config.out, loaded.model, grid=loaded.grid, ledger=loaded.ledger, step=0, ema=weights)
    print(f"{config.out}: checkpoint {checkpoint_hash(config.out)}")
    flags = " ".join(_flags(plain_fields(loaded.model.config)))
    print(f"to go on from it: VAE.train PRESET --init {config.out} --grid {config.grid} {flags}")


def _flags(model: dict[str, Any]) -> Iterator[str]:
    """The network's fields as VAE.train takes them; all, because presets differ in them."""
    for name, value in model.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--model.{flag}" if value else f"--model.no-{flag}"
        elif value != []:
            yield " ".join([f"--model.{flag}", *map(str, value if isinstance(value, list) else [value])])


if __name__ == "__main__":
    run_script(main, ImportConfig, description=describe(__doc__))
