"""Speed and memory of the classifier beside MONAI's DenseNet121 and ResNets, in one run.

    python -m benchmarks.classifier --grid demo                                                    # CPU
    python -m benchmarks.classifier --grid paper --batch-size 64 --repeats 20 --subjects 100       # GPU

MONAI's are timed first as their users run them (contiguous, eager), then all with this project's settings
(channels_last_3d; freed memory kept on a CPU, compiled on a GPU). They are other architectures: the table has the
operations of each. MONAI's ResNets get a first stride of 2, as ours; with its default, 1, they would be slower. The
second table is integrated gradients in float32.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from monai.networks.nets.densenet import DenseNet121
from monai.networks.nets.resnet import resnet10, resnet18
from torch import nn

from benchmarks.timing import AS_RUN, SET, Jobs, contest, expect, print_table, time_turns, usual_device
from classifier.config import ModelConfig
from classifier.model import build_model
from classifier.saliency.attribution import Context, attribute
from cohort.grids import GRIDS, GridName, parse_grid, preset_of
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.device import Device, pick_device

REFERENCES = ("DenseNet121", "ResNet18")
_SMALL = ModelConfig(widths=(16, 32, 64, 128), blocks=1)
RESNETS = {"smoke": _SMALL, "demo": _SMALL, "paper": ModelConfig()}
"""By the preset whose grid is nearest."""
IG_STEPS, IG_BATCH = 64, 16


@dataclass(frozen=True)
class BenchmarkConfig(ScriptConfig):
    grid: GridName = "demo"
    """Voxel grid; the networks are of a size for it."""
    batch_size: int = 16
    """Volumes at once."""
    repeats: int = 3
    """Timed turns of each; the median counts."""
    subjects: int = 1
    """Subjects whose maps are made in one timed call."""


def main(config: BenchmarkConfig) -> None:
    usual, shape = usual_device(), parse_grid(config.grid).shape
    turn, maps = 0.4 * config.batch_size, 14 * config.subjects  # seconds of the grid demo
    seconds = turn * (config.repeats + 3) + maps * (config.repeats + 1)
    expect(minutes=seconds / 60 * math.prod(shape) / math.prod(GRIDS["demo"].shape))
    x = torch.rand(config.batch_size, 1, *shape, generator=torch.Generator().manual_seed(0))
    for name, network in (ours(config) | monais("")).items():
        print(f"{name}: {sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M parameters")

    def set_up(device: Device) -> dict[str, Jobs]:
        networks = {name: device.module(network) for name, network in (monais(SET) | ours(config)).items()}
        if device.kind.type == "cuda":
            for network in networks.values():
                network.compile(dynamic=False)
        return {name: jobs_of(network, device.tensor(x), device) for name, network in networks.items()}

    as_run = {name: jobs_of(net.to(usual.kind), x.to(usual.kind), usual) for name, net in monais(AS_RUN).items()}
    references = [f"MONAI {name}, {how}" for how in (AS_RUN, SET) for name in REFERENCES]
    contest(usual, as_run, set_up, repeats=config.repeats, batch=config.batch_size, references=references)
    explain(config, pick_device())


def ours(config: BenchmarkConfig) -> dict[str, nn.Module]:
    """A ResNet of the grid's size, the same on either half, and the EfficientNet with the stem that fits the grid."""
    grid = parse_grid(config.grid)
    resnet = RESNETS[preset_of(grid)]
    slices = ModelConfig(name="efficientnet", stem_stride=2 if min(grid.shape) > 64 else 1)
    models = {"ours, ResNet": resnet, "ours, hemispheres": replace(resnet, name="hemispheres")}
    models["ours, EfficientNet-B0 on slices"] = slices
    return {name: build_model(model, grid, 0.3, 0.25) for name, model in models.items()}


def monais(how: str) -> dict[str, nn.Module]:
    resnet = {"spatial_dims": 3, "n_input_channels": 1, "num_classes": 1, "conv1_t_stride": 2}
    networks = {
        "DenseNet121": DenseNet121(spatial_dims=3, in_channels=1, out_channels=1),
        "ResNet18": resnet18(**resnet),
        "ResNet10": resnet10(**resnet),
    }
    return {f"MONAI {name}, {how}".removesuffix(", "): network for name, network in networks.items()}


def jobs_of(network: nn.Module, x: torch.Tensor, device: Device) -> Jobs:
    y = (torch.arange(len(x), device=device.kind) % 2).float()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.05)

    def train() -> None:
        """One step, as classifier.train makes it."""
        network.train()
        with device.autocast():
            logits = network(x).view(len(x))
        loss = F.binary_cross_entropy_with_logits(logits.float(), y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()

    def infer() -> None:
        network.eval()
        with torch.no_grad(), device.autocast():
            network(x)

    return {"train": train, "infer": infer}


def explain(config: BenchmarkConfig, device: Device) -> None:
    shape = parse_grid(config.grid).shape
    empty = torch.zeros(1, 1, *shape, device=device.kind)
    context = Context(mean_hc=empty, regions=empty.long(), ig_steps=IG_STEPS, batch=IG_BATCH)
    x = device.tensor(torch.rand(config.subjects, 1, *shape, generator=torch.Generator().manual_seed(1)))
    networks = ours(config) | {name: nn.Sequential(net, nn.Flatten(0)) for name, net in monais("").items()}
    frozen = {name: device.module(network).eval().requires_grad_(False) for name, network in networks.items()}
    jobs = {
        name: partial(attribute, network, x, "integrated_gradients", context, range(config.subjects))
        for name, network in frozen.items()
    }
    found = time_turns(jobs, config.repeats, device, warm_ups=1)
    slowest = found["MONAI DenseNet121"][0]
    print(f"\nintegrated gradients, {IG_STEPS} steps, float32\n")
    heads = ("network", "s per subject", "times DenseNet121", "peak")
    rows = [(name, s / config.subjects, slowest / s, peak) for name, (s, peak) in found.items()]
    print_table([dict(zip(heads, row, strict=True)) for row in rows])


if __name__ == "__main__":
    run_script(main, BenchmarkConfig, description=describe(__doc__))
