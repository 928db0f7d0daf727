"""Trains a class-conditional 3D DiT on latents: a folder of posteriors in, checkpoint of a generator out.

    python -m diffusion.train demo --latents runs/demo/latents --vae runs/demo/vae/checkpoints/best.pt

Writes a run folder with checkpoints/last.pt and best.pt (best by held-out loss of the averaged weights). The same
command continues a run that was stopped.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from cohort.pictures import gallery
from cohort.tables import CLASS_NAMES, DIAGNOSES, SIDES
from diffusion.checkpoint import resume_diffusion, save_diffusion, start_from
from diffusion.config import NO_SIDE, PRESETS, SIDE_CODES, TrainConfig
from diffusion.covariates import Scales, covariates_of, fit_scales, standardise
from diffusion.dataset import Latents, LatentSpace, fit_space
from diffusion.heldout import BINS, by_class_and_noise, held_out_losses
from diffusion.mixing import Mixer, spacing_of
from diffusion.model import DiT
from diffusion.process import Process, build_process
from diffusion.sampler import DEFAULT, SAMPLERS, guided
from runtime import distributed, memory, seeding, training
from runtime.cli import describe, run_script
from runtime.device import Device, pick_device
from runtime.errors import InputError
from runtime.runs import Run, due, open_run
from VAE.checkpoint import LoadedVAE, load_vae
from VAE.latents import read_ledger, read_statistics

MIXTURES = 6
"""Mixtures for each axis of the linear start: of fewer, the axes would fit those that happened to be drawn."""


@dataclass(kw_only=True)
class DiffusionState(training.State):
    """What changes from step to step."""

    track: str
    """The average with the lowest held-out loss at the best validation."""


@dataclass(frozen=True)
class Data:
    """What a run learns from: both splits on the device, and what must travel in every checkpoint."""

    train: Latents
    val: Latents
    space: LatentSpace
    ledger: list[str]
    scales: Scales
    mixer: Mixer | None = None


def main(config: TrainConfig) -> None:
    """Trains, validates, draws samples, saves; resumes when the run folder holds a checkpoint."""
    device = pick_device(config.precision, config.threads)
    process = build_process(config.process)
    data = load_latents(config, device)  # before the folder: a refusal leaves nothing behind
    vae = decoder(config, data.space, device)
    model, data = build(config, data, process, device)
    state = fresh_state(model, config)
    one_step = partial(passes, process=process, device=device)
    other = between_steps(model, vae, process, config, device)
    cases, need = memory.settle(one_step, model, config, device, "matrices", other=other)
    with open_run(config.run_dir, config, stage="diffusion.train", device=device) as run:
        run.say(f"{len(data.train)} training and {len(data.val)} held-out latents {data.train.shape}")
        if config.model.sides and not model.config.sides:
            run.say("sides are no condition: training latents do not name both, L and R (VAE.save_latent adds them)")
        if (rank := model.config.linear_rank) < config.model.linear_rank:
            latents = f"a quarter of the {len(data.train)} latents; VAE.save_latent --mirrored doubles them"
            run.say(f"a linear start of {rank} axes instead of {config.model.linear_rank}: {latents}")
        run.say(need)
        resume(run, state, data, config)
        network, guard = distributed.wrap(model), training.LossGuard(device.kind)
        recompute = None if model.recompute else DiT.recompute_activations
        advice = partial(memory.step_advice, one_step, model, device.kind, config.batch_size, recompute)

        for step in training.steps_to_take(run, state, config.steps, "diffusion"):
            with memory.explained(advice):
                terms = train_step(network, process, data, state.optimiser, step, config, cases)
            guard.watch(step, terms["loss/train"])
            for share, track in state.ema.items():
                training.average(track, model, training.rate_of_share(float(share), step))
            state.step = step
            if due(step, config.log_every_steps, config.steps):
                guard.check(run)
                run.log_step(step, terms, state.optimiser)
            if due(step, config.val_every_steps, config.steps):
                guard.check(run)
                if validate(run, state, data, process, config):
                    save(run, "best", state, data, config)
            if vae is not None and due(step, config.sample_every_steps) and distributed.is_main():
                draw_samples(run, state, data.space, process, vae, config)
            if due(step, config.save_every_steps, config.steps) or run.interrupted or state.stopped:
                guard.check(run)
                save(run, "last", state, data, config)
        run.say(f"best held-out loss {state.best:.4f}; checkpoint {run.checkpoint('best')}")


def fresh_state(model: DiT, config: TrainConfig) -> DiffusionState:
    """Every average starts at the weights."""
    if not config.ema_shares:
        raise InputError("--ema-shares: at least one length; loaders return averaged weights")
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
    )
    ema = {str(share): training.copy_weights(model) for share in config.ema_shares}
    return DiffusionState(model, optimiser, ema, config.patience, track=str(config.ema_shares[0]))


def load_latents(config: TrainConfig, device: Device) -> Data:
    """Both splits with their covariates, the space fitted on the training one, and the ledger of both: the held-out
    one chooses the checkpoint.
    """
    statistics, splits = read_statistics(config.latents), (config.train_split, config.val_split)
    train, val = (Latents(config.latents, split, config.model.classes, device) for split in splits)
    for split, latents in zip(splits, (train, val), strict=True):
        if latents.vae not in ("", statistics.vae):  # files of other programs do not say
            found = f"latents of VAE {latents.vae!r}, statistics.json is of {statistics.vae!r}"
            raise InputError(f"{config.latents / split}: {found}")
    if train.shape != val.shape:
        raise InputError(f"{config.latents}: training latents {train.shape}, held-out latents {val.shape}")
    volumes, names = config.known_volumes(), config.model.covariates
    values = [covariates_of(part.subjects, names, config.tables, volumes, part.mirrored) for part in (train, val)]
    scales = fit_scales(values[0], config.model.covariates)
    for split, own in zip((train, val), values, strict=True):
        split.covariates = standardise(own, scales).to(device.kind)
    space = fit_space(train.mu.cpu(), train.logvar.cpu(), statistics, centred=config.process.centre)
    if not config.sample_posterior:  # the space is the same: what posteriors cannot tell apart stays small in it
        for split in (train, val):
            split.logvar.fill_(-math.inf)  # every draw is the mean
    ledgers = [
        read_ledger(config.latents, name, part.subjects) for name, part in zip(splits, (train, val), strict=True)
    ]
    ledger = sorted({*statistics.ledger, *ledgers[0], *ledgers[1]})
    mixer = None
    if config.mix_mm:
        if config.mix_mm < 0 or not statistics.grid:
            raise InputError(f"--mix-mm {config.mix_mm:g}: expected 0 or more, of latents that say their grid")
        if config.model.covariates:
            raise InputError("--mix-mm mixes two people, whose --model.covariates differ; leave one of the two out")
        mixer = Mixer(train, spacing_of(statistics.grid, train.shape), config.mix_mm)
    return Data(train, val, space, ledger, scales, mixer)


def decoder(config: TrainConfig, space: LatentSpace, device: Device) -> LoadedVAE | None:
    """The VAE for pictures, when one was given; it must be the one that the latents came from."""
    if config.vae is None:
        return None
    vae = load_vae(config.vae)
    if vae.hash != space.statistics.vae:
        raise InputError(f"--vae {config.vae} is checkpoint {vae.hash}; the latents came from {space.statistics.vae}")
    device.module(vae.model)
    return vae


def build(config: TrainConfig, data: Data, process: Process, device: Device) -> tuple[DiT, Data]:
    """The network with weights by the seed or of --init, and the data in the space that its weights know."""
    shape = data.train.shape
    config.model.check(shape)
    rank, count = config.model.linear_rank, len(data.train)
    if 2 * rank > count and data.mixer is None and config.init is None:
        # Axes through nearly every subject leave no rest, in which all new people differ from these.
        rank = count // 4
    torch.manual_seed(seeding.address(config.seed, "weights"))
    here = replace(config.model, sides=config.model.sides and data.train.has_sides, linear_rank=rank)
    model = DiT(here, shape, process)
    grid, other_grid = data.space.statistics.grid, False
    if config.init is not None:
        start = start_from(config.init, model, config.process, grid, other_grid=config.init_other_grid)
        known, ledger = start.space.statistics, sorted({*data.ledger, *start.ledger})
        other_grid = config.init_other_grid and known.grid != grid
        statistics = replace(data.space.statistics, mean=known.mean, std=known.std)
        space = data.space if other_grid else replace(start.space, statistics=statistics)
        data = replace(data, space=space, ledger=ledger)
    if model.start is not None and (config.init is None or other_grid):
        model.start.fit(*start_latents(data, rank, config.seed))
    if config.recompute:
        model.recompute_activations()
    model = device.module(model)
    if device.compiles(config.compile):
        for block in model.blocks:  # block by block: one compilation serves them all
            block.compile(dynamic=False)
    return model, data


def start_latents(data: Data, rank: int, seed: int) -> tuple[torch.Tensor, ...]:
    """What the linear start is fitted to: latents in the network's space, classes, sides, covariates. Mixtures, where
    the network is to learn from these, MIXTURES times as many as axes or more, each person about equally often.
    """
    train = data.train
    if data.mixer is None:
        return data.space.enter(train.mu.cpu()), train.labels, train.sides, train.covariates.cpu()
    rows = torch.arange(len(train) * math.ceil(MIXTURES * rank / len(train))) % len(train)
    draw = seeding.generator(seed, "mixtures of the linear start", device=train.device.kind)
    chance, posterior, nodes = data.mixer.noise(len(rows), draw)
    z = data.mixer.mix(rows, train.mu[rows.to(train.device.kind)], chance, torch.zeros_like(posterior), nodes)
    return data.space.enter(z.cpu()), train.labels[rows], train.sides[rows], train.covariates.cpu()[rows]


def train_step(
    network: nn.Module,
    process: Process,
    data: Data,
    optimiser: torch.optim.Optimizer,
    step: int,
    config: TrainConfig,
    cases: int,
) -> dict[str, torch.Tensor]:
    """One update, `cases` latents at once; returns named numbers. All that is random is drawn for the global batch,
    then shared out.
    """
    train, size = data.train, config.batch_size
    device = train.device
    draw = seeding.generator(config.seed, "batch", step, device=device.kind)
    posterior, eps = (torch.randn((size, *train.shape), generator=draw, device=device.kind) for _ in range(2))
    t = process.draw_times(size, draw, device.kind)
    dropped = torch.rand(size, generator=draw, device=device.kind) < config.label_dropout
    hidden = torch.rand((size, len(data.scales)), generator=draw, device=device.kind) < config.covariate_dropout
    sideless = torch.rand(size, generator=draw, device=device.kind) < config.side_dropout
    mixing = () if data.mixer is None else data.mixer.noise(size, draw)
    posterior, eps, t, dropped, hidden, sideless, *mixing = map(
        distributed.local, (posterior, eps, t, dropped, hidden, sideless, *mixing)
    )

    rows = training.balanced_rows(train.labels, size, step, config.seed, "epoch of class ")
    batch = train.batch(rows, posterior)
    z = data.space.enter(data.mixer.mix(rows, batch.z, *mixing) if mixing else batch.z)
    y, side = torch.where(dropped, config.model.classes, batch.y), batch.side.masked_fill(dropped | sideless, NO_SIDE)
    covariates = batch.covariates.masked_fill(hidden, math.nan)
    inputs = (process.noised(z, eps, t), t, y, covariates, side, z, eps)
    parts, said = list(zip(*(value.split(cases) for value in inputs), strict=True)), []

    def losses() -> Iterator[torch.Tensor]:
        for *conditions, z_part, eps_part in parts:
            with device.autocast():
                prediction = network(*conditions)
            loss = process.loss(prediction, z_part, eps_part, conditions[1]).mean() / len(parts)
            said.append(loss.detach())
            yield loss

    norm = training.descend(losses(), network, optimiser, rate(step, config), config.clip_norm)
    return {"loss/train": torch.stack(said).sum(), "grad/norm": norm}


def rate(step: int, config: TrainConfig) -> float:
    """Learning rate of a step."""
    decay_from = round(config.steps * (1.0 - config.decay_share))
    return training.learning_rate(step, config.lr, config.steps, config.warmup_steps, decay_from)


def settles(step: int, config: TrainConfig) -> bool:
    """Whether since the last validation the rate has fallen below half of its peak.

    The choice of the best step then begins anew: losses of a high and a low rate differ by less than what the low rate
    does for samples (in one run of the demo, the step of held-out loss 0.8192 had an FID 6 above that of 0.8194).
    """
    before = max(step - config.val_every_steps, config.warmup_steps)
    return config.decay_share > 0 and rate(before, config) > config.lr / 2 >= rate(step, config)


def passes(network: DiT, cases: int, *, process: Process, device: Device) -> None:
    """Forward and backward pass of a step, for its memory."""
    z, y = memory.zeros(network, cases, *network.latent_shape), memory.zeros(network, cases)
    with device.autocast():
        prediction = network(z, process.spread_times(y), y.long())
    prediction.square().mean().backward()


@torch.no_grad()
def between_steps(model: DiT, vae: LoadedVAE | None, process: Process, config: TrainConfig, device: Device) -> int:
    """The most bytes of tensors that a validation makes, or the decoding of a picture's volume."""

    def look(network: DiT) -> None:
        z, y = memory.zeros(network, BINS, *network.latent_shape), memory.zeros(network, BINS)
        with device.autocast():
            network(z, process.spread_times(y), y.long())

    def picture(network: nn.Module) -> None:
        with device.autocast():
            network.decode(device.tensor(memory.zeros(network, 1, *model.latent_shape)), vae.grid.shape)

    drawn = vae is not None and config.sample_every_steps
    return max(memory.inference_bytes(look, model), memory.inference_bytes(picture, vae.model) if drawn else 0)


def validate(run: Run, state: DiffusionState, data: Data, process: Process, config: TrainConfig) -> bool:
    """Logs the held-out loss of every weight average, by class and noise; True when the lowest is the best so far, or
    the first with a low learning rate.
    """
    losses: dict[str, torch.Tensor] = {}
    for name, weights in state.ema.items():
        with training.swapped_weights(state.model, weights):
            losses[name] = held_out_losses(state.model, data.val, process, data.space, config.seed)
    means = {name: float(values.mean()) for name, values in losses.items()}
    track = min(means, key=means.__getitem__)
    averages = {f"val/average_{name}": mean for name, mean in means.items()}
    run.log(state.step, {"loss/val": means[track], **averages, **by_class_and_noise(losses[track])})
    better = state.note(means[track], better=means[track] < state.best or settles(state.step, config))
    state.track = track if better else state.track
    return better


@torch.no_grad()
def draw_samples(
    run: Run, state: DiffusionState, space: LatentSpace, process: Process, vae: LoadedVAE, config: TrainConfig
) -> None:
    """Two samples of each class, or of HC and each side, from the same two noises, as a picture; 25 steps with averaged
    weights.
    """
    device, model = run.device, state.model
    draw = seeding.generator(config.seed, "samples", device=device.kind)
    noise = torch.randn((2, *model.latent_shape), generator=draw, device=device.kind)
    names = ("HC", "TLE-L", "TLE-R") if model.config.sides else CLASS_NAMES
    y = torch.tensor([DIAGNOSES[name] for name in names], device=device.kind).repeat_interleave(2)
    codes = [SIDE_CODES[SIDES.get(name, "")] for name in names]
    side = torch.tensor(codes, device=device.kind).repeat_interleave(2)
    with training.swapped_weights(model, state.ema[state.track]), device.autocast():
        steps = min(25, process.timesteps)
        denoise = guided(model, process, y, side=side)
        z = SAMPLERS[DEFAULT](denoise, noise.repeat(len(names), 1, 1, 1, 1), process, steps, lambda: noise)
        z = device.tensor(space.leave(z))
        x = [vae.model.decode(one[None], vae.grid.shape)[0, 0].float().cpu().numpy() for one in z]  # one fits if any
    rows, title = [(name, x[2 * k : 2 * k + 2]) for k, name in enumerate(names)], "same noise in each column"
    gallery(run.samples / f"samples_{state.step:06d}.png", rows, title=f"synthetic, step {state.step}; {title}")


def resume(run: Run, state: DiffusionState, data: Data, config: TrainConfig) -> None:
    """Takes up checkpoints/last.pt when there is one; checks network, process and latents."""
    path = run.last()
    if path is not None:
        record = resume_diffusion(path, state.model, config.process, data.space)
        state.restore(record)
        state.track = record["track"]
        run.say(f"continuing at step {state.step}")
    run.continue_from(state.step)


def save(run: Run, name: str, state: DiffusionState, data: Data, config: TrainConfig) -> None:
    """Writes checkpoints/<name>.pt from the main process."""
    if distributed.is_main():
        save_diffusion(
            run.checkpoint(name), state.model, config.process, data.space, **state.to_dict(), track=state.track,
            ledger=data.ledger, label_dropout=config.label_dropout, covariates=data.scales,
        )  # fmt: skip


if __name__ == "__main__":
    run_script(main, PRESETS, description=describe(__doc__))
