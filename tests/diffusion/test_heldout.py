"""Held-out losses: against a loop that writes them out, and what bins and classes mean."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from diffusion.config import ModelConfig, ProcessConfig
from diffusion.dataset import Batch
from diffusion.heldout import BINS, by_class_and_noise, held_out_losses
from diffusion.model import DiT
from diffusion.process import build_process
from runtime import seeding
from runtime.device import Device
from tests.support.checkpoints import awake

SHAPE = (2, 4, 4, 4)


class Few:
    """Five latents without posterior noise, three of class 0."""

    device = Device(torch.device("cpu"), torch.float32)
    labels = torch.tensor([0, 1, 0, 1, 0])
    shape = SHAPE

    def __init__(self) -> None:
        self.z = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return 5

    def batch(self, rows: torch.Tensor, eps: torch.Tensor) -> Batch:
        return Batch(self.z[rows], self.labels[rows], torch.zeros(len(rows), 0), torch.full_like(rows, 2))


def test_losses_equal_the_loop_over_latents_and_bins() -> None:
    val, process = Few(), build_process(ProcessConfig(schedule="flow", target="velocity"))
    model = awake(DiT(ModelConfig(dim=16, depth=1, heads=1, patch=(2, 2, 2)), SHAPE))
    space = SimpleNamespace(enter=lambda z: 2 * z)
    losses = held_out_losses(model, val, process, space, seed=3)

    expected = torch.zeros(2, BINS, dtype=torch.float64)
    for row in range(5):
        draw = seeding.generator(3, "validation", row)
        _, eps = (torch.randn((BINS, *SHAPE), generator=draw) for _ in range(2))
        for k in range(BINS):
            t = torch.tensor([(k + (row + 0.5) / 5) / BINS * 1000])
            z = 2 * val.z[row : row + 1]
            share = t / 1000
            z_t = (1 - share) * z + share * eps[k : k + 1]
            with torch.no_grad():
                error = model(z_t, t, val.labels[row : row + 1]) - (eps[k : k + 1] - z)
            expected[val.labels[row], k] += error.square().mean().double() / (3 if val.labels[row] == 0 else 2)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-4)


def test_names_say_class_and_share_of_the_schedule() -> None:
    losses = torch.arange(2 * BINS, dtype=torch.float64).view(2, BINS)
    entries = by_class_and_noise(losses)
    assert entries["val/HC/t00-20"] == 0.0
    assert entries["val/TLE/t80-100"] == 2 * BINS - 1
