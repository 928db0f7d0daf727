"""Speed and memory of the autoencoder beside MONAI's AutoencoderKL with the same weights, in one run.

    python -m benchmarks.vae                            # CPU: 80x96x80, one volume
    python -m benchmarks.vae --shape 112 136 112 --batch-size 16 --repeats 20      # GPU

Both networks hold the same weights and see the same volumes. MONAI's is timed first, as its users run it: contiguous
tensors, eager, the C library's allocator as it comes. Then this project's settings are made (on a CPU: freed memory is
kept, see runtime.device) and both are timed in turns, so that what else the machine does falls on both. Prints medians
and ratios as a table in Markdown; on a GPU also peak memory and whether any convolution fell back to vol2col.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from monai.networks.nets import AutoencoderKL
from torch import nn

from benchmarks.timing import count_flops, introduce, short, time_turns, usual_device, vol2col_kernels
from runtime.cli import describe, run_script
from runtime.device import Device, pick_device
from VAE.config import PRESETS
from VAE.model import Autoencoder


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to time."""

    shape: tuple[int, int, int] = (80, 96, 80)
    """Voxels (D, H, W); multiples of 4."""
    batch_size: int = 1
    """Volumes at once."""
    repeats: int = 5
    """Timed turns of each; the median counts."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


JOBS = ("train", "encode", "decode")
AS_RUN, SET = "as its users run it", "our settings"


def jobs_of(network: nn.Module, x: torch.Tensor, z: torch.Tensor, device: Device) -> dict[str, Callable[[], None]]:
    """JOBS for one network, with tensors in its layout and the precision that it runs in."""

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

    return dict(zip(JOBS, (train, encode, decode), strict=True))


def main(config: BenchmarkConfig) -> None:
    """Times all contenders and prints the table."""
    usual = usual_device(config.threads)
    kind = usual.kind
    theirs, ours = pair(kind)
    x = torch.rand(config.batch_size, 1, *config.shape, generator=torch.Generator().manual_seed(0)).to(kind)
    z = torch.randn((config.batch_size, *ours.latent_shape(config.shape)), device=kind)
    flops = {
        name: {job: count_flops(run) for job, run in jobs_of(network, x, z, usual).items()}
        for name, network in (("MONAI", theirs), ("ours", ours))
    }
    precisions = [Device(kind, precision) for precision in dict.fromkeys((torch.float32, usual.precision))]
    users = {f"MONAI, {short(device.precision)}, {AS_RUN}": jobs_of(theirs, x, z, device) for device in precisions}
    alone = {job: time_turns({name: jobs[job] for name, jobs in users.items()}, config.repeats, usual) for job in JOBS}

    device = pick_device("auto", config.threads)
    network = device.module(ours)
    if kind.type == "cuda":
        network.encoder.compile()
        network.decoder.compile()
    together = {}
    for own in precisions:
        together[f"MONAI, {short(own.precision)}, {SET}"] = jobs_of(theirs, x, z, own)
        together[f"ours, {short(own.precision)}"] = jobs_of(network, device.tensor(x), device.tensor(z), own)
    turns = {
        job: time_turns({name: jobs[job] for name, jobs in together.items()}, config.repeats, device) for job in JOBS
    }
    rate = introduce(device, shape=config.shape, batch=config.batch_size)
    print("\n| job | network | median s | volumes/s | times MONAI float32 as run | times MONAI same precision, as run "
          "| times MONAI same settings | GFLOP | of matrix rate | peak |\n|---" + "|---" * 9 + "|")  # fmt: skip
    for job in JOBS:
        found = alone[job] | turns[job]
        for name, (seconds, peak) in found.items():
            network_name, precision = name.split(", ")[:2]
            references = [f"MONAI, {way}, {AS_RUN}" for way in ("float32", precision)]
            ratios = [f"{found[reference][0] / seconds:.2f}" for reference in references]
            ratios.append("-" if name in users else f"{found[f'MONAI, {precision}, {SET}'][0] / seconds:.2f}")
            operations = flops[network_name][job]
            print(f"| {job} | {name} | {seconds:.3f} | {config.batch_size / seconds:.2f} | {' | '.join(ratios)} | "
                  f"{operations / 1e9:.0f} | {operations / seconds / rate:.0%} | {peak} |")  # fmt: skip
    if kind.type == "cuda":
        print(f"\nkernels of vol2col in our training step: {vol2col_kernels(list(together.values())[-1]['train'])}")


def pair(kind: torch.device) -> tuple[AutoencoderKL, Autoencoder]:
    """MONAI's network of the paper preset, random weights, and ours with the same."""
    config = PRESETS["paper"].model
    torch.manual_seed(0)
    theirs = AutoencoderKL(
        spatial_dims=3, in_channels=1, out_channels=1, channels=config.channels, norm_num_groups=config.groups,
        latent_channels=config.latent_channels, num_res_blocks=(config.blocks,) * len(config.channels),
        attention_levels=(False,) * len(config.channels), with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )  # fmt: skip
    ours = Autoencoder(config)
    # Both list their parameters in the order the data flow.
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    return theirs.to(kind), ours.to(kind)


if __name__ == "__main__":
    run_script(main, BenchmarkConfig, description=describe(__doc__))
