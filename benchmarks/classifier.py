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

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from monai.networks.nets.densenet import DenseNet121
from monai.networks.nets.resnet import resnet10, resnet18
from torch import nn

from benchmarks.timing import count_flops, introduce, time_turns, usual_device, vol2col_kernels
from classifier.config import PRESETS, ModelConfig
from classifier.model import build_model
from classifier.saliency.attribution import Context, attribute
from cohort.scans import GRIDS
from runtime.cli import describe, run_script
from runtime.device import Device, pick_device


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to time."""

    grid: Literal["demo", "paper"] = "demo"
    """Voxel grid; also the preset whose ResNet is ours."""
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


JOBS = ("train", "infer")
MONAIS: dict[str, Callable[[], nn.Module]] = {
    "DenseNet121": lambda: DenseNet121(spatial_dims=3, in_channels=1, out_channels=1),
    "ResNet18": lambda: resnet18(spatial_dims=3, n_input_channels=1, num_classes=1, conv1_t_stride=2),
    "ResNet10": lambda: resnet10(spatial_dims=3, n_input_channels=1, num_classes=1, conv1_t_stride=2),
}
REFERENCES = ("DenseNet121", "ResNet18")
AS_RUN, SET = "as its users run it", "our settings"


class Contender:
    """A network with its own optimiser, the tensors in the layout it runs on, and the operations it performs."""

    def __init__(self, network: nn.Module, x: torch.Tensor, device: Device, *, compiled: bool = False) -> None:
        self.network, self.x, self.device = network, x, device
        self.y = (torch.arange(len(x), device=device.kind) % 2).float()
        self.optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.05)
        self.run = network
        self.flops = {job: count_flops(getattr(self, job)) for job in JOBS}
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


def main(config: BenchmarkConfig) -> None:
    """Times all contenders and prints the tables."""
    usual, grid = usual_device(config.threads), GRIDS[config.grid]
    x = torch.rand(config.batch_size, 1, *grid.shape, generator=torch.Generator().manual_seed(0))
    users = {
        f"MONAI {name}, {AS_RUN}": Contender(seeded(make).to(usual.kind), x.to(usual.kind), usual)
        for name, make in MONAIS.items()
    }
    alone = timed(users, config, usual)
    device = pick_device("auto", config.threads)
    cuda = device.kind.type == "cuda"
    networks = ours(config) | {f"MONAI {name}, {SET}": seeded(make) for name, make in MONAIS.items()}
    together = {
        name: Contender(device.module(network), device.tensor(x), device, compiled=cuda)
        for name, network in networks.items()
    }
    turns = timed(together, config, device)
    rate = introduce(device, grid=grid.shape, batch=config.batch_size)
    ratios = " | ".join(f"times {name}, {how}" for how in ("as run", SET) for name in REFERENCES)
    columns = f"parameters | GFLOP per volume | median s | volumes/s | {ratios} | of matrix rate | peak"
    print(f"\n| job | network | {columns} |\n{'|---' * 12}|")
    for job in JOBS:
        found = alone[job] | turns[job]
        for name, contender in (users | together).items():
            (seconds, peak), flops = found[name], contender.flops[job]
            ratios = " | ".join(
                f"{found[f'MONAI {reference}, {how}'][0] / seconds:.2f}"
                for how in (AS_RUN, SET)
                for reference in REFERENCES
            )
            millions = sum(parameter.numel() for parameter in contender.network.parameters()) / 1e6
            print(f"| {job} | {name} | {millions:.2f} M | {flops / len(x) / 1e9:.2f} | {seconds:.3f} | "
                  f"{len(x) / seconds:.1f} | {ratios} | {flops / seconds / rate:.0%} | {peak} |")  # fmt: skip
    if cuda:
        print(f"\nkernels of vol2col in our training step: {vol2col_kernels(together['ours, ResNet'].train)}")
    explain(config, device)


def timed(contenders: dict[str, Contender], config: BenchmarkConfig, device: Device) -> dict[str, dict]:
    """Job -> name -> seconds and peak."""
    return {
        job: time_turns(
            {name: getattr(contender, job) for name, contender in contenders.items()}, config.repeats, device,
            warm_ups=1,
        )
        for job in JOBS
    }  # fmt: skip


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A network whose weights are the same in every run."""
    torch.manual_seed(0)
    return make()


def ours(config: BenchmarkConfig) -> dict[str, nn.Module]:
    """The preset's ResNet, and the EfficientNet with the stem that fits the grid."""
    shape = GRIDS[config.grid].shape
    slices = ModelConfig(name="efficientnet", stem_stride=2 if min(shape) > 64 else 1)
    return {
        "ours, ResNet": seeded(lambda: build_model(PRESETS[config.grid].model, shape, 0.3, 0.25)),
        "ours, EfficientNet-B0 on slices": seeded(lambda: build_model(slices, shape, 0.3, 0.25)),
    }


def explain(config: BenchmarkConfig, device: Device) -> None:
    """Integrated gradients of `subjects` volumes, by every network."""
    shape = GRIDS[config.grid].shape
    empty = torch.zeros(1, 1, *shape, device=device.kind)
    context = Context(mean_hc=empty, regions=empty.long(), ig_steps=config.ig_steps, batch=config.ig_batch)
    x = device.tensor(torch.rand(config.subjects, 1, *shape, generator=torch.Generator().manual_seed(1)))
    networks = ours(config)
    networks |= {f"MONAI {name}": nn.Sequential(seeded(MONAIS[name]), nn.Flatten(0)) for name in REFERENCES}
    frozen = {name: device.module(network).eval().requires_grad_(False) for name, network in networks.items()}
    jobs = {
        name: partial(attribute, network, x, "integrated_gradients", context, range(config.subjects))
        for name, network in frozen.items()
    }
    found = time_turns(jobs, config.repeats, device, warm_ups=1)
    slowest = found["MONAI DenseNet121"][0]
    print(f"\n| integrated gradients, {config.ig_steps} steps, float32 | s per subject | s per 100 subjects "
          "| times MONAI DenseNet121 | peak |\n|---|---|---|---|---|")  # fmt: skip
    for name, (median, peak) in found.items():
        each = median / config.subjects
        print(f"| {name} | {each:.3f} | {100 * each:.1f} | {slowest / median:.2f} | {peak} |", flush=True)


if __name__ == "__main__":
    run_script(main, BenchmarkConfig, description=describe(__doc__))
