"""Trains the network that labels atlas regions in scans and synthetic volumes: on simulated anatomy, no data are read.

    python -m cohort.labelling.train demo

Each step draws anatomies (`cohort.labelling.anatomies`), images each through a scanner of the simulation and in a
random contrast (`cohort.labelling.imaging`), and lowers the divergence from the true shares and the error of volumes.
Writes a run folder with checkpoints/last.pt and best.pt (least loss on held-out anatomies), which
`cohort.labelling.measure` reads. The same command continues a run that was stopped.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from cohort.atlas import HIPPOCAMPI, REGIONS
from cohort.grids import Grid, parse_grid
from cohort.labelling.anatomies import Anatomies, anatomies_on, region_box
from cohort.labelling.config import PRESETS, TrainConfig
from cohort.labelling.imaging import as_scanned, in_random_contrast
from cohort.labelling.network import LabelNetwork, ModelConfig, resume_labels, save_labels
from cohort.labelling.reading import QUALITY, read_labels
from runtime import distributed, memory, seeding, training
from runtime.cli import describe, run_script
from runtime.device import Device, pick_device
from runtime.errors import InputError
from runtime.runs import Run, due, open_run

IMAGES = (as_scanned, in_random_contrast)
"""How each anatomy is imaged: once by each."""
LEAST_ML = 0.2
"""Added to volumes before their logarithm is taken, so that a region that left the field of view weighs nothing."""

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images (B, 1, D, H, W) and true shares (B, 1 + regions, D, H, W), background first."""


@dataclass(kw_only=True)
class LabelState(training.State):
    """What changes from step to step, and what every checkpoint says of scans."""

    grid: Grid
    limits: dict[str, float]
    """Of `reading.QUALITY`, by the last validation."""


def main(config: TrainConfig) -> None:
    """Trains, validates, saves; resumes when the run folder holds a checkpoint."""
    if config.batch_size % len(IMAGES):
        raise InputError(f"--batch-size {config.batch_size}: each anatomy is imaged twice, expected an even number")
    if config.held_out < 2:
        raise InputError(f"--held-out {config.held_out}: a correlation over anatomies needs 2 or more")
    device, grid = pick_device(config.precision, config.threads), parse_grid(config.grid)
    refuse_levels(config.model, grid)
    model = build(config, device)
    with open_run(config.run_dir, config, stage="cohort.labelling.train", device=device) as run:
        optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        state = LabelState(model, optimiser, training.copy_weights(model), config.patience, grid=grid, limits={})
        resume(run, state)
        anatomies = anatomies_on(grid)
        held_out = [make(anatomies, config.seed, "held out", k) for k in range(config.held_out)]
        parallel = distributed.wrap(model)
        guard = training.LossGuard(device.kind)
        one_step = partial(passes, grid=grid, device=device)
        advice = partial(memory.step_advice, one_step, model, device.kind, config.batch_size, multiple=len(IMAGES))
        run.say(memory.step_line(one_step, model, config.batch_size, device, started=bool(optimiser.state)))

        for step in training.steps_to_take(run, state, config.steps, "labels"):
            with memory.explained(advice):
                terms = train_step(parallel, state, batch_of(anatomies, step, config), device, config)
            guard.watch(step, terms["loss/train"])
            training.average(state.ema, model, training.rate_of_share(config.ema_share, step))
            state.step = step
            if due(step, config.log_every_steps, config.steps):
                guard.check(run)
                run.log_step(step, terms, optimiser)
            if due(step, config.val_every_steps, config.steps):
                guard.check(run)
                if validate(run, state, held_out, device, config):
                    save(run, "best", state)
            if due(step, config.save_every_steps, config.steps) or run.interrupted or state.stopped:
                guard.check(run)
                save(run, "last", state)
        run.say(f"least held-out loss {state.best:.4f}; checkpoint {run.checkpoint('best')}")


def refuse_levels(config: ModelConfig, grid: Grid) -> None:
    """Raises InputError for a network whose last level would be one voxel, of which no norm can be taken."""
    shape = region_box(grid).grid.shape
    most = math.ceil(math.log2(max(shape)))
    if len(config.channels) > most:
        levels = f"{len(config.channels)} levels, expected at most {most}"
        raise InputError(f"--model.channels: {levels} for the {'x'.join(map(str, shape))} voxels of grid {grid.name}")


def build(config: TrainConfig, device: Device) -> LabelNetwork:
    """The network with weights by the seed."""
    torch.manual_seed(seeding.address(config.seed, "weights"))
    return device.module(LabelNetwork(config.model))


def make(anatomies: Anatomies, seed: int, purpose: str, *index: int) -> Batch:
    """One anatomy and its images, by an address."""
    rng = seeding.rng(seed, f"labels {purpose}", *index)
    anatomy = anatomies.draw(rng)
    images = np.stack([image(anatomy, rng) for image in IMAGES])[:, None]
    background = (1 - anatomy.shares.sum(axis=0, keepdims=True)).clip(0)
    shares = torch.from_numpy(np.concatenate([background, anatomy.shares]))
    return torch.from_numpy(images), shares.expand(len(IMAGES), *shares.shape)


def batch_of(anatomies: Anatomies, step: int, config: TrainConfig) -> Batch:
    """This process's share of the global batch of a step."""
    places = distributed.local(torch.arange(config.batch_size // len(IMAGES))).tolist()
    images, shares = zip(*(make(anatomies, config.seed, "train", step, place) for place in places), strict=True)
    return torch.cat(images), torch.cat(shares)


def train_step(
    parallel: nn.Module, state: LabelState, batch: Batch, device: Device, config: TrainConfig
) -> dict[str, torch.Tensor]:
    """One update; returns its numbers by name."""
    x, shares = (device.tensor(part) for part in batch)
    with device.autocast():
        logits = parallel(x)
    terms = losses(logits.float(), shares, state.grid.spacing_mm, config)
    lr = training.learning_rate(state.step + 1, config.lr, config.steps, config.warmup_steps)
    norm = training.descend([terms["train"]], parallel, state.optimiser, lr, config.clip_norm)
    return {**{f"loss/{name}": distributed.mean(term.detach()) for name, term in terms.items()}, "grad/norm": norm}


def losses(
    logits: torch.Tensor, shares: torch.Tensor, spacing_mm: float, config: TrainConfig
) -> dict[str, torch.Tensor]:
    """``train``, the weighted sum of ``voxels``, Kullback and Leibler's divergence of the predicted from the true
    shares, summed over voxels per ml of the true regions, and ``volumes``, the mean difference of log-volumes.

    The divergence is 0 for the right shares and no others: where a scan leaves open what a voxel holds, the expected
    share is best, so that sums of shares are expected volumes.
    """
    voxel_ml = spacing_mm**3 / 1000
    logp = logits.log_softmax(dim=1)
    divergence = (torch.xlogy(shares, shares) - shares * logp).sum() * voxel_ml
    true, found = (part[:, 1:].sum(dim=(2, 3, 4)) * voxel_ml for part in (shares, logp.exp()))
    volumes = (torch.log(found + LEAST_ML) - torch.log(true + LEAST_ML)).abs().mean()
    voxels = divergence / true.sum().clamp(min=1.0)
    return {"train": voxels + config.volume_weight * volumes, "voxels": voxels, "volumes": volumes}


def passes(network: LabelNetwork, cases: int, *, grid: Grid, device: Device) -> None:
    """Forward and backward pass of a step, for its memory."""
    with device.autocast():
        found = network(device.tensor(memory.zeros(network, cases, 1, *region_box(grid).grid.shape)))
    found.float().log_softmax(dim=1).sum().backward()


@torch.no_grad()
def validate(run: Run, state: LabelState, held_out: list[Batch], device: Device, config: TrainConfig) -> bool:
    """Logs the averaged weights' loss on held-out anatomies, how far hippocampal volumes follow the true ones, and the
    limits of quality; True when the loss is the least so far. Every process does all of it.
    """
    found, true, terms, box = [], [], [], region_box(state.grid)
    with training.swapped_weights(state.model, state.ema):
        state.model.eval()
        for images, shares in held_out:
            with device.autocast():
                logits = state.model(device.tensor(images))
            terms.append(losses(logits.float(), device.tensor(shares), state.grid.spacing_mm, config)["train"].item())
            for x, own in zip(images, shares, strict=True):
                found.append(read_labels(device.tensor(x[None]), state.model, box, device))
                true.append(own[1:].sum(dim=(1, 2, 3)).numpy() * state.grid.spacing_mm**3 / 1000)
        state.model.train()
    hippocampi = [REGIONS.index(name) for name in HIPPOCAMPI]
    measured, true = np.array([labels.ml for labels in found]), np.array(true)
    follows = [np.corrcoef(measured[:, place], true[:, place])[0, 1] for place in hippocampi]
    errors = np.abs(measured / np.maximum(true, LEAST_ML) - 1)
    loss = float(np.mean(terms))
    state.limits = {name: max(getattr(labels, name) for labels in found) for name in QUALITY}
    figures = {"hippocampus_r": float(np.mean(follows)), "volume_error": float(np.median(errors)), **state.limits}
    run.log(state.step, {"loss/val": loss, **{f"val/{name}": value for name, value in figures.items()}})
    return state.note(loss, better=loss < state.best)


def resume(run: Run, state: LabelState) -> None:
    """Takes up checkpoints/last.pt when there is one."""
    path = run.last()
    if path is not None:
        record = resume_labels(path, state.model, state.grid)
        state.restore(record)
        state.limits = record["limits"]
        run.say(f"continuing at step {state.step}")
    run.continue_from(state.step)


def save(run: Run, name: str, state: LabelState) -> None:
    """Writes checkpoints/<name>.pt from the main process."""
    if distributed.is_main():
        own = {"grid": state.grid, "limits": state.limits}
        save_labels(run.checkpoint(name), state.model, **own, **state.to_dict())


if __name__ == "__main__":
    run_script(main, PRESETS, description=describe(__doc__))
