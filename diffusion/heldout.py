"""The loss on held-out latents, the same noise and times in every validation, by class and by noise."""

import torch

from cohort.tables import CLASS_NAMES
from diffusion.dataset import Latents, LatentSpace
from diffusion.model import DiT
from diffusion.process import Process
from runtime import distributed, seeding

BINS = 5
"""Bins of equal width over the timesteps. Each latent is noised once in each, the same way in every validation, so that
losses can be compared."""


@torch.no_grad()
def held_out_losses(model: DiT, val: Latents, process: Process, space: LatentSpace, seed: int) -> torch.Tensor:
    """Mean loss of each class in each bin of timesteps, (classes, BINS) float64; all processes share the work."""
    device = val.device
    total = torch.zeros(model.config.classes, BINS, dtype=torch.float64)
    count = torch.zeros(model.config.classes, dtype=torch.float64)
    for row in distributed.shard(range(len(val))):
        draw = seeding.generator(seed, "validation", row, device=device.kind)
        posterior, eps = (torch.randn((BINS, *val.shape), generator=draw, device=device.kind) for _ in range(2))
        # Every latent gets other timesteps, and together they cover the schedule evenly.
        t = process.spread_times((torch.arange(BINS, device=device.kind) + (row + 0.5) / len(val)) / BINS)
        batch = val.batch(torch.full((BINS,), row), posterior)
        z = space.enter(batch.z)
        with device.autocast():
            prediction = model(process.noised(z, eps, t), t, batch.y, batch.covariates, batch.side)
        label = int(val.labels[row])
        total[label] += process.loss(prediction, z, eps, t).double().cpu()
        count[label] += 1
    shares = distributed.gather((total, count))
    return sum(part for part, _ in shares) / sum(part for _, part in shares)[:, None]


def by_class_and_noise(losses: torch.Tensor) -> dict[str, float]:
    """Losses (classes, BINS) under names for the log, such as ``val/TLE/t20-40``: percent of the schedule."""
    edges = [round(100 * k / BINS) for k in range(BINS + 1)]
    return {
        f"val/{CLASS_NAMES[label]}/t{edges[k]:02d}-{edges[k + 1]}": float(losses[label, k])
        for label in range(len(losses))
        for k in range(BINS)
    }
