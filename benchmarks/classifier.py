"""Speed and memory of the classifier beside MONAI's DenseNet121 and ResNets, in one run.

    python -m benchmarks.classifier --grid demo                                            # CPU
    python -m benchmarks.classifier --grid paper --batch-size 64 --repeats 20              # GPU

All networks see the same volumes, in the same precision, in training (forward, loss, backward, clipping, AdamW) and in
inference. MONAI's are timed first, as its users run them: contiguous tensors, eager, the C library's allocator as it
comes. Then this project's settings are made (on a CPU freed memory is kept, see runtime.device; channels_last_3d; on a
GPU compiled) and all are timed in turns, so that what else the machine does falls on all. They are other architectures:
the table also says how many operations each has. The ResNets' first convolution has stride 2, as ours; MONAI's default,
1, would be slower. The second table is integrated gradients, through classifier.saliency.attribution, in float32.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from monai.networks.nets.densenet import DenseNet121
from monai.networks.nets.resnet import resnet10, resnet18
from torch import nn

from benchmarks.timing import count_flops, matrix_rate, short, time_turns, vol2col_kernels
from classifier.config import PRESETS, ModelConfig
from classifier.model import build_model
from classifier.saliency.attribution import Context, attribute
from cohort.scans import GRIDS
from runtime.cli import describe, run_script
from runtime.device import Device, Precision, cpu_has_bfloat16, keep_freed_memory, pick_device
from runtime.errors import InputError
from runtime.runs import environment


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to time."""

    grid: Literal["demo", "paper"] = "demo"
    """Voxel grid; also the preset whose ResNet is ours."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where; auto is the GPU when there is one."""
    precision: Precision = "auto"
    """Of all networks; auto is bfloat16 where the device has fast kernels for it."""
    batch_size: int = 16
    """Volumes at once."""
    repeats: int = 3
    """Timed turns of each; the median counts."""
    ig_steps: int = 64
    """Points of integrated gradients' path."""
    subjects: int = 1
    """Subjects whose maps are made in one timed call."""
    ig_batch: int = 16
    """Volumes evaluated at once in integrated gradients."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


class Contender:
    """A network with its own optimiser, the tensors in the layout it runs on, and the operations it performs."""

    def __init__(self, name: str, network: nn.Module, x: torch.Tensor, device: Device, *, compiled: bool) -> None:
        self.name, self.network, self.x, self.device = name, network, x, device
        self.y = (torch.arange(len(x), device=device.kind) % 2).float()
        self.optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.05)
        self.run = network
        self.flops = {job: count_flops(getattr(self, job)) for job in JOBS}  # the counter sees eager code alone
        if compiled:
            self.run = torch.compile(network, dynamic=False)

    def train(self) -> None:
        """One step, as classifier.train makes it."""
        self.network.train()
        with self.device.autocast():
            logits = self.run(self.x).view(len(self.x))
        loss = F.binary_cross_entropy_with_logits(logits.float(), self.y)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()

    @torch.no_grad()
    def infer(self) -> None:
        """Logits of a batch."""
        self.network.eval()
        with self.device.autocast():
            self.run(self.x)


JOBS = ("train", "infer")
MONAIS: dict[str, Callable[[], nn.Module]] = {
    "DenseNet121": lambda: DenseNet121(spatial_dims=3, in_channels=1, out_channels=1),
    "ResNet18": lambda: resnet18(spatial_dims=3, n_input_channels=1, num_classes=1, conv1_t_stride=2),
    "ResNet10": lambda: resnet10(spatial_dims=3, n_input_channels=1, num_classes=1, conv1_t_stride=2),
}
REFERENCES = ("DenseNet121", "ResNet18")
AS_RUN, SET = "as its users run it", "our settings"


def main(config: BenchmarkConfig) -> None:
    """Times all contenders and prints the tables."""
    usual, grid = before_settings(config), GRIDS[config.grid]
    x = torch.rand(config.batch_size, 1, *grid.shape, generator=torch.Generator().manual_seed(0))
    users = [
        Contender(f"MONAI {name}, {AS_RUN}", seeded(make).to(usual.kind), x.to(usual.kind), usual, compiled=False)
        for name, make in MONAIS.items()
    ]
    alone = {job: time_turns([getattr(one, job) for one in users], config.repeats, usual, warm_ups=1) for job in JOBS}

    device = with_settings(config)
    cuda = device.kind.type == "cuda"
    together = [
        Contender(name, device.module(network), device.tensor(x), device, compiled=cuda)
        for name, network in ours(config).items()
    ] + [
        Contender(f"MONAI {name}, {SET}", device.module(seeded(make)), device.tensor(x), device, compiled=cuda)
        for name, make in MONAIS.items()
    ]
    turns = {
        job: time_turns([getattr(one, job) for one in together], config.repeats, device, warm_ups=1) for job in JOBS
    }
    for name, value in {**environment(device), "grid": grid.shape, "batch": config.batch_size}.items():
        print(f"{name}: {value}")
    rate = matrix_rate(device)
    print(f"measured matrix rate, {short(device.precision)}: {rate / 1e12:.2f} TFLOP/s")
    ratios = " | ".join(f"times {name}, {how}" for how in ("as run", SET) for name in REFERENCES)
    columns = f"parameters | GFLOP per volume | median s | volumes/s | {ratios} | of matrix rate | peak"
    print(f"\n| job | network | {columns} |\n{'|---' * 12}|")
    for job in JOBS:
        times = dict(zip([one.name for one in users + together], alone[job][0] + turns[job][0], strict=True))
        peaks = alone[job][1] + turns[job][1]
        for one, peak in zip(users + together, peaks, strict=True):
            report(one, job, times, rate, peak)
    if cuda:
        print(f"\nkernels of vol2col in our training step: {vol2col_kernels(together[0].train)}")
    explain(config, device)


def before_settings(config: BenchmarkConfig) -> Device:
    """The device and precision, with nothing of this project's settings made."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no GPU here")
    kind = torch.device("cpu" if config.device == "cpu" or not torch.cuda.is_available() else "cuda")
    torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
    fast = config.precision != "float32" and (kind.type == "cuda" or cpu_has_bfloat16())
    return Device(kind, torch.bfloat16 if fast else torch.float32)


def with_settings(config: BenchmarkConfig) -> Device:
    """The same device, as this project's scripts set it up."""
    if config.device != "cpu":
        return pick_device(config.precision, config.threads)
    keep_freed_memory()  # also where a GPU is there and not wanted
    return before_settings(config)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A network whose weights are the same in every run."""
    torch.manual_seed(0)
    return make()


def ours(config: BenchmarkConfig) -> dict[str, nn.Module]:
    """The preset's ResNet, and the EfficientNet with the stem that fits the grid."""
    shape = GRIDS[config.grid].shape
    configs = {
        "ours, ResNet": PRESETS[config.grid].model,
        "ours, EfficientNet-B0 on slices": ModelConfig(name="efficientnet", stem_stride=2 if min(shape) > 64 else 1),
    }
    return {
        name: seeded(lambda chosen=chosen: build_model(chosen, shape, 0.3, 0.25)) for name, chosen in configs.items()
    }


def report(one: Contender, job: str, times: dict[str, float], rate: float, peak: str) -> None:
    """One row of the first table."""
    seconds, flops = times[one.name], one.flops[job]
    ratios = " | ".join(
        f"{times[f'MONAI {name}, {how}'] / seconds:.2f}" for how in (AS_RUN, SET) for name in REFERENCES
    )
    count = sum(parameter.numel() for parameter in one.network.parameters())
    print(f"| {job} | {one.name} | {count / 1e6:.2f} M | {flops / len(one.x) / 1e9:.2f} | {seconds:.3f} | "
          f"{len(one.x) / seconds:.1f} | {ratios} | {flops / seconds / rate:.0%} | {peak} |", flush=True)  # fmt: skip


def explain(config: BenchmarkConfig, device: Device) -> None:
    """Integrated gradients of `subjects` volumes, by every network."""
    shape = GRIDS[config.grid].shape
    empty = torch.zeros(1, 1, *shape, device=device.kind)
    context = Context(mean_hc=empty, regions=empty.long(), ig_steps=config.ig_steps, batch=config.ig_batch)
    x = device.tensor(torch.rand(config.subjects, 1, *shape, generator=torch.Generator().manual_seed(1)))
    networks = ours(config)
    networks |= {f"MONAI {name}": nn.Sequential(seeded(MONAIS[name]), nn.Flatten(0)) for name in REFERENCES}
    frozen = [device.module(network).eval().requires_grad_(False) for network in networks.values()]
    jobs = [
        lambda network=network: attribute(network, x, "integrated_gradients", context, range(config.subjects))
        for network in frozen
    ]
    seconds, peaks = time_turns(jobs, config.repeats, device, warm_ups=1)
    slowest = seconds[list(networks).index("MONAI DenseNet121")]
    print(f"\n| integrated gradients, {config.ig_steps} steps, float32 | s per subject | s per 100 subjects "
          "| times MONAI DenseNet121 | peak |\n|---|---|---|---|---|")  # fmt: skip
    for name, median, peak in zip(networks, seconds, peaks, strict=True):
        each = median / config.subjects
        print(f"| {name} | {each:.3f} | {100 * each:.1f} | {slowest / median:.2f} | {peak} |", flush=True)


if __name__ == "__main__":
    run_script(main, BenchmarkConfig, description=describe(__doc__))
