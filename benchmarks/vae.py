"""Speed and memory of the autoencoder beside MONAI's AutoencoderKL with the same weights, in one run.

    python -m benchmarks.vae                            # CPU: 80x96x80, one volume
    python -m benchmarks.vae --shape 112 136 112 --batch-size 16 --repeats 20      # GPU

MONAI's is timed first as its users run it (contiguous, eager, the C library's allocator). Then all are timed in turns
with the same settings: freed memory kept on a CPU, the same threads, all compiled on a GPU and none on a CPU (or all,
with --compile). MONAI's runs in both memory layouts; the second table holds ours against the faster one.
"""

import copy
import math
from dataclasses import dataclass, replace

import torch
from monai.networks.nets import AutoencoderKL
from torch import nn

from benchmarks.timing import AS_RUN, Jobs, contest, expect, print_table, short, usual_device
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.device import Device
from VAE.config import PRESETS
from VAE.model import Autoencoder

LAYOUTS = ("contiguous", "channels_last_3d")


@dataclass(frozen=True)
class BenchmarkConfig(ScriptConfig):
    shape: tuple[int, int, int] = (80, 96, 80)
    """Voxels (D, H, W); multiples of 4."""
    batch_size: int = 1
    """Volumes at once."""
    repeats: int = 5
    """Timed turns of each; the median counts."""
    compile: bool = False
    """Compile all networks on a CPU, too."""


def main(config: BenchmarkConfig) -> None:
    # Turns, two to warm up, and one in which operations are counted.
    expect(minutes=1.25 * (config.repeats + 3) * config.batch_size * math.prod(config.shape) / (80 * 96 * 80))
    usual = usual_device()
    theirs, ours = pair(usual.kind)
    x = torch.rand(config.batch_size, 1, *config.shape, generator=torch.Generator().manual_seed(0)).to(usual.kind)
    z = torch.randn((config.batch_size, *ours.latent_shape(config.shape)), device=usual.kind)
    precisions = {short(precision): Device(usual.kind, precision) for precision in (torch.float32, usual.precision)}

    def set_up(device: Device) -> dict[str, Jobs]:
        monais = {"contiguous": theirs, "channels_last_3d": device.module(copy.deepcopy(theirs))}
        network = device.module(ours)
        if config.compile or device.kind.type == "cuda":
            for coder in (part for net in (*monais.values(), network) for part in (net.encoder, net.decoder)):
                coder.compile()
        jobs = {}
        for name, own in precisions.items():
            for layout, net in monais.items():
                tensors = (x, z) if layout == "contiguous" else (device.tensor(x), device.tensor(z))
                jobs[f"MONAI, {name}, {layout}"] = jobs_of(net, *tensors, own)
            jobs[f"ours, {name}"] = jobs_of(network, device.tensor(x), device.tensor(z), own)
        return jobs

    as_run = {f"MONAI, {name}, {AS_RUN}": jobs_of(theirs, x, z, own) for name, own in precisions.items()}
    seconds = contest(usual, as_run, set_up, repeats=config.repeats, batch=config.batch_size, references=list(as_run))
    print("\nthe same settings\n")
    print_table([against_best(job, name, found) for job, found in seconds.items() for name in precisions])


def against_best(job: str, precision: str, seconds: dict[str, float]) -> dict[str, object]:
    """A row: ours at one job and precision against MONAI's in the faster of its layouts; `seconds` by network."""
    layout = min(LAYOUTS, key=lambda name: seconds[f"MONAI, {precision}, {name}"])
    best, own = seconds[f"MONAI, {precision}, {layout}"], seconds[f"ours, {precision}"]
    row = {"job": job, "precision": precision, "MONAI's best layout": layout, "MONAI s": best, "ours s": own}
    return row | {"MONAI's time over ours": best / own}


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
            (network.decode_raw if isinstance(network, Autoencoder) else network.decode)(z)

    return {"train": train, "encode": encode, "decode": decode}


def pair(kind: torch.device) -> tuple[AutoencoderKL, Autoencoder]:
    """MONAI's network of the paper preset, random weights, and ours with the same; without our second output."""
    config = replace(PRESETS["paper"].model, support=False)
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
