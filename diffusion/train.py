"""Trains a class-conditional 3D DiT on latents: a folder of posteriors in, checkpoint of a generator out.

    python -m diffusion.train demo --latents latents/demo --vae runs/demo/vae/checkpoints/best.pt

Writes a run folder with checkpoints/last.pt and best.pt (best by held-out loss of the averaged weights). The same
command continues a run that was stopped.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import nn

from cohort.pictures import gallery
from diffusion.checkpoint import average, resume_diffusion, save_diffusion
from diffusion.config import PRESETS, TrainConfig
from diffusion.dataset import Latents, balanced_rows
from diffusion.model import DiT
from diffusion.process import Process, build_process
from diffusion.sampler import ddim, guided
from diffusion.space import LatentSpace, fit_space
from runtime import distributed, seeding
from runtime.cli import describe, run_script
from runtime.device import Device, pick_device
from runtime.errors import InputError
from runtime.finite import LossGuard
from runtime.runs import Run, due, open_run
from VAE.checkpoint import LoadedVAE, load_vae
from VAE.latents import read_statistics

VAL_DRAWS = 4
"""Noise draws per held-out latent in each validation; the same draws every time, so that losses can be compared."""


@dataclass
class State:
    """What changes from step to step besides the weights."""

    ema: dict[str, torch.Tensor]
    step: int = 0
    best: float = math.inf
    ledger: list[str] = field(default_factory=list)


def main(config: TrainConfig) -> None:
    """Trains, validates, draws samples, saves; resumes when the run folder holds a checkpoint."""
    device = pick_device(config.precision, config.threads)
    train, val, space, ledger = load_latents(config, device)  # before the folder: a refusal leaves nothing behind
    vae, process = decoder(config, space, device), build_process(config.process)
    model = build(config, train, space, process, device)
    with open_run(config.run_dir, config, stage="diffusion.train", device=device) as run:
        run.say(f"{len(train)} training and {len(val)} held-out latents {train.shape}")
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
        )
        state = State(ema={name: value.clone() for name, value in model.state_dict().items()}, ledger=ledger)
        resume(run, model, space, optimiser, state, config)
        network, guard = distributed.wrap(model), LossGuard(device.kind)
        started = time.perf_counter()

        for step in run.progress(state.step, config.steps, "diffusion"):
            terms = train_step(network, process, space, optimiser, train, step, config)
            guard.watch(step, terms["loss/train"])
            average(state.ema, model, config.ema_share, step)
            state.step = step
            if due(step, config.log_every_steps, config.steps):
                guard.check(run)
                seconds = (time.perf_counter() - started) / config.log_every_steps
                run.log(step, {**terms, "lr": optimiser.param_groups[0]["lr"], "time/step_s": seconds})
                started = time.perf_counter()
            better = due(step, config.val_every_steps, config.steps) and validate(
                run, state, val, model, process, space, config
            )
            if better:
                save(run, "best", model, space, optimiser, state, config)
            if vae is not None and due(step, config.sample_every_steps) and distributed.is_main():
                draw_samples(run, state, model, process, space, vae, device, config)
            if due(step, config.save_every_steps, config.steps) or run.interrupted:
                guard.check(run)
                save(run, "last", model, space, optimiser, state, config)
        run.say(f"best held-out loss {state.best:.4f}; checkpoint {run.checkpoint('best')}")


def load_latents(config: TrainConfig, device: Device) -> tuple[Latents, Latents, LatentSpace, list[str]]:
    """Both splits, the space fitted on the training one, and the ledger.

    Raises:
        InputError: missing or mixed latents, statistics of another VAE, shapes that differ between the splits.
    """
    statistics = read_statistics(config.latents)
    train, val = (
        Latents(config.latents, split, config.model.classes, device) for split in (config.train_split, config.val_split)
    )
    for split, latents in ((config.train_split, train), (config.val_split, val)):
        if latents.vae != statistics.vae:
            raise InputError(
                f"{config.latents / split}: latents of VAE {latents.vae!r}, statistics.json is of {statistics.vae!r}"
            )
    if train.shape != val.shape:
        raise InputError(f"{config.latents}: training latents {train.shape}, held-out latents {val.shape}")
    if train.shape[0] != config.model.latent_channels:
        raise InputError(
            f"{config.latents}: latents of {train.shape[0]} channels, --model.latent-channels is "
            f"{config.model.latent_channels}"
        )
    space = fit_space(train.mu.cpu(), train.logvar.cpu(), statistics, centred=config.process.centre)
    return train, val, space, statistics.ledger


def decoder(config: TrainConfig, space: LatentSpace, device: Device) -> LoadedVAE | None:
    """The VAE for pictures, when one was given.

    Raises:
        InputError: it is not the one the latents came from.
    """
    if config.vae is None:
        return None
    vae = load_vae(config.vae)
    if vae.hash != space.statistics.vae:
        raise InputError(f"--vae {config.vae} is checkpoint {vae.hash}; the latents came from {space.statistics.vae}")
    device.module(vae.model)
    return vae


def build(config: TrainConfig, train: Latents, space: LatentSpace, process: Process, device: Device) -> DiT:
    """The network with weights by the seed, and its linear start fitted when it has one.

    Raises:
        InputError: a patch larger than the latent, heads that do not divide the width, or too few latents for the rank.
    """
    if any(patch > size for patch, size in zip(config.model.patch, train.shape[1:], strict=True)):
        raise InputError(f"--model.patch {config.model.patch} is larger than the latent {train.shape[1:]}")
    if config.model.dim % config.model.heads:
        raise InputError(f"--model.dim {config.model.dim} does not divide by --model.heads {config.model.heads}")
    if config.model.linear_rank >= len(train):
        raise InputError(f"--model.linear-rank {config.model.linear_rank} needs more than the {len(train)} latents")
    torch.manual_seed(seeding.address(config.seed, "weights"))
    model = DiT(config.model, train.shape, process.timesteps)
    if model.start is not None:
        model.start.fit(space.enter(train.mu.cpu()), process)
    return device.module(model)


def train_step(
    network: nn.Module,
    process: Process,
    space: LatentSpace,
    optimiser: torch.optim.Optimizer,
    train: Latents,
    step: int,
    config: TrainConfig,
) -> dict[str, torch.Tensor]:
    """One update; returns named numbers. All that is random is drawn for the global batch, then shared out."""
    device = train.device
    shape = (config.batch_size, *train.shape)
    draw = seeding.generator(config.seed, "batch", step, device=device.kind)
    posterior, eps = (torch.randn(shape, generator=draw, device=device.kind) for _ in range(2))
    t = torch.randint(process.timesteps, (config.batch_size,), generator=draw, device=device.kind)
    dropped = torch.rand(config.batch_size, generator=draw, device=device.kind) < config.label_dropout
    posterior, eps, t, dropped = (distributed.local(value) for value in (posterior, eps, t, dropped))
    rows = balanced_rows(train.labels, config.batch_size, step, config.seed)

    z, y = train.batch(rows, posterior)
    z, y = space.enter(z), torch.where(dropped, config.model.classes, y)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(step, config)
    with device.autocast():
        prediction = network(process.noised(z, eps, t), t, y)
    loss = process.loss(prediction, z, eps, t).mean()
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
    optimiser.step()
    return {"loss/train": loss.detach(), "grad/norm": norm}


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, constant, then half a cosine to a hundredth over the last `decay_share` of the steps."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    decay_from = round(config.steps * (1.0 - config.decay_share))
    share = max(0, step - decay_from) / max(1, config.steps - decay_from)
    return config.lr * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * share)))


@torch.no_grad()
def validate(
    run: Run, state: State, val: Latents, model: DiT, process: Process, space: LatentSpace, config: TrainConfig
) -> bool:
    """Held-out loss of the averaged weights at timesteps spread evenly over the schedule; True when it improved."""
    averaged = val.device.module(DiT(model.config, model.latent_shape, process.timesteps)).eval()
    averaged.load_state_dict(state.ema, strict=True)
    total, count = torch.zeros((), device=val.device.kind), 0
    for row in distributed.shard(range(len(val))):
        draw = seeding.generator(config.seed, "validation", row, device=val.device.kind)
        posterior, eps = (
            torch.randn((VAL_DRAWS, *val.shape), generator=draw, device=val.device.kind) for _ in range(2)
        )
        # Every latent gets other timesteps, and together they cover the schedule evenly.
        place = (torch.arange(VAL_DRAWS, device=val.device.kind) + (row + 0.5) / len(val)) / VAL_DRAWS
        t = (place * process.timesteps).long()
        z, y = val.batch(torch.full((VAL_DRAWS,), row), posterior)
        z = space.enter(z)
        with val.device.autocast():
            prediction = averaged(process.noised(z, eps, t), t, y)
        total += process.loss(prediction, z, eps, t).sum()
        count += VAL_DRAWS
    totals = distributed.gather((float(total), count))
    loss = sum(part for part, _ in totals) / sum(part for _, part in totals)
    run.log(state.step, {"loss/val": loss})
    better = loss < state.best
    state.best = min(state.best, loss)
    return better


@torch.no_grad()
def draw_samples(
    run: Run,
    state: State,
    model: DiT,
    process: Process,
    space: LatentSpace,
    vae: LoadedVAE,
    device: Device,
    config: TrainConfig,
) -> None:
    """Four samples, two of each class from the same two noises, as a picture; 25 DDIM steps with averaged weights."""
    averaged = device.module(DiT(model.config, model.latent_shape, process.timesteps)).eval()
    averaged.load_state_dict(state.ema, strict=True)
    draw = seeding.generator(config.seed, "samples", device=device.kind)
    noise = torch.randn((2, *model.latent_shape), generator=draw, device=device.kind)
    y = torch.tensor([0, 0, 1, 1], device=device.kind)
    with device.autocast():
        denoise = guided(averaged, process, model.null_class, 1.0)
        z = ddim(denoise, noise.repeat(2, 1, 1, 1, 1), y, process, min(25, process.timesteps), lambda: noise)
        x = vae.model.decode(space.leave(z)).clamp(0, 1)[:, 0].float().cpu().numpy()
    gallery(
        run.samples / f"samples_{state.step:06d}.png",
        [("HC", list(x[:2])), ("TLE", list(x[2:]))],
        title=f"synthetic, step {state.step}; same noise in each column",
    )


def resume(
    run: Run, model: DiT, space: LatentSpace, optimiser: torch.optim.Optimizer, state: State, config: TrainConfig
) -> None:
    """Takes up checkpoints/last.pt when there is one; checks network, process and latents."""
    path = run.checkpoint("last")
    if path.exists():
        record = resume_diffusion(path, model, space, config.process)
        optimiser.load_state_dict(record["optimiser"])
        for name, value in record["ema"].items():
            state.ema[name].copy_(value)
        state.step, state.best = record["step"], record["best"]
        run.say(f"continuing at step {state.step}")
    run.continue_from(state.step)


def save(
    run: Run,
    name: str,
    model: DiT,
    space: LatentSpace,
    optimiser: torch.optim.Optimizer,
    state: State,
    config: TrainConfig,
) -> None:
    """Writes checkpoints/<name>.pt from the main process."""
    if distributed.is_main():
        save_diffusion(
            run.checkpoint(name), model, space, config.process, step=state.step, best=state.best, ledger=state.ledger,
            ema=state.ema, optimiser=optimiser.state_dict(),
        )  # fmt: skip


if __name__ == "__main__":
    run_script(main, PRESETS, description=describe(__doc__))
