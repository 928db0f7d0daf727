"""Speed and memory of the autoencoder beside MONAI's AutoencoderKL with the same weights, in one run.

    python -m benchmarks.vae                            # CPU: 80x96x80, one volume
    python -m benchmarks.vae --shape 112 136 112 --batch-size 16 --repeats 20      # GPU

MONAI's is timed first as its users run it (contiguous, eager, the C library's allocator), then both with this project's
settings: channels_last_3d for ours, freed memory kept on a CPU, compiled on a GPU.
"""

from dataclasses import dataclass

import torch
from monai.networks.nets import AutoencoderKL
from torch import nn

from benchmarks.timing import AS_RUN, SET, Jobs, contest, short, usual_device
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.device import Device
from VAE.config import PRESETS
from VAE.model import Autoencoder


@dataclass(frozen=True)
class BenchmarkConfig(ScriptConfig):
    shape: tuple[int, int, int] = (80, 96, 80)
    """Voxels (D, H, W); multiples of 4."""
    batch_size: int = 1
    """Volumes at once."""
    repeats: int = 5
    """Timed turns of each; the median counts."""


def main(config: BenchmarkConfig) -> None:
    usual = usual_device()
    theirs, ours = pair(usual.kind)
    x = torch.rand(config.batch_size, 1, *config.shape, generator=torch.Generator().manual_seed(0)).to(usual.kind)
    z = torch.randn((config.batch_size, *ours.latent_shape(config.shape)), device=usual.kind)
    precisions = {short(precision): Device(usual.kind, precision) for precision in (torch.float32, usual.precision)}

    def set_up(device: Device) -> dict[str, Jobs]:
        network = device.module(ours)
        if device.kind.type == "cuda":
            network.encoder.compile()
            network.decoder.compile()
        jobs = {}
        for name, own in precisions.items():
            jobs[f"MONAI, {name}, {SET}"] = jobs_of(theirs, x, z, own)
            jobs[f"ours, {name}"] = jobs_of(network, device.tensor(x), device.tensor(z), own)
        return jobs

    as_run = {f"MONAI, {name}, {AS_RUN}": jobs_of(theirs, x, z, own) for name, own in precisions.items()}
    references = [*as_run, *(f"MONAI, {name}, {SET}" for name in precisions)]
    contest(usual, as_run, set_up, repeats=config.repeats, batch=config.batch_size, references=references)


def jobs_of(network: nn.Module, x: torch.Tensor, z: torch.Tensor, device: Device) -> Jobs:
    """Training, encoding and decoding by one network, with tensors in its layout and the precision that it runs in."""

    def train() -> None:
        """Forward with posterior noise, L1, backward; no optimiser, whose cost is the same for both."""
        with device.autocast():
            inputs = (x, torch.randn_like(z)) if isinstance(network, Autoencoder) else (x,)
            loss = (network(*inputs)[0].float() - x).abs().mean()
        network.zero_grad(set_to_none=True)
        loss.backward()

    def encode() -> None:
        with torch.no_grad(), device.autocast():
            network.encode(x)

    def decode() -> None:
        with torch.no_grad(), device.autocast():
            network.decode(z)

    return {"train": train, "encode": encode, "decode": decode}


def pair(kind: torch.device) -> tuple[AutoencoderKL, Autoencoder]:
    """MONAI's network of the paper preset, random weights, and ours with the same."""
    config = PRESETS["paper"].model
    torch.manual_seed(0)
    theirs = AutoencoderKL(
        spatial_dims=3, in_channels=1, out_channels=1, channels=config.channels, norm_num_groups=config.groups,
        latent_channels=config.latent_channels, num_res_blocks=config.blocks,
        attention_levels=(False,) * len(config.channels), with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )  # fmt: skip
    ours = Autoencoder(config)
    # Both list their parameters in the order the data flow.
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    return theirs.to(kind), ours.to(kind)


if __name__ == "__main__":
    run_script(main, BenchmarkConfig, description=describe(__doc__))
