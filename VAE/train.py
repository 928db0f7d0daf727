"""Trains the autoencoder on the scans of a table: volumes in [0, 1] in, checkpoint of a latent space out.

    python -m VAE.train paper --train-csv data_csvs/train.csv --val-csv data_csvs/val.csv

Reads scans; writes a run folder with checkpoints/last.pt and best.pt (best by held-out PSNR inside the head). The same
command continues a run that was stopped.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from cohort.checking.checked import refuse_duplicates
from cohort.grids import Grid, parse_grid
from cohort.ledger import ledger_of, refuse_overlap
from cohort.stacks import Volumes, load_scans
from cohort.tables import CLASS_NAMES, read_table
from runtime import distributed, memory, seeding, training
from runtime.cli import describe, run_script
from runtime.device import Device, pick_device
from runtime.errors import InputError
from runtime.runs import Run, due, open_run
from VAE.checkpoint import resume_vae, save_vae, start_from
from VAE.config import PRESETS, TrainConfig
from VAE.dataset import augment, batch_rows, cut
from VAE.losses import (
    LossNetworks,
    adversarial_counts,
    adversarial_loss,
    build_networks,
    discriminator_step,
    objective,
    soft_volume,
)
from VAE.metrics import draw_pairs, reconstruction_metrics
from VAE.model import Autoencoder

CALIBRATION_SCANS = 64
CALIBRATION_VOXELS = 32_768
"""Training scans, and random voxels of each, on which the output rule is measured."""
CALIBRATION_VALUES = 13
"""Of four bytes that are kept of each of these voxels at the end: its place, its value once and for both that are
decoded, and two outputs of both, twice."""
LEAST_JUDGED = 16
"""Voxels per side that the loss's networks need: the discriminator's last level then has more than one place, for its
instance norms, and the perceptual network's last filters fit."""
LEAST_LPIPS = 32
"""The same of LPIPS, whose AlexNet reduces most."""


@dataclass(kw_only=True)
class VAEState(training.State):
    """What changes from step to step, and what every checkpoint says of its origin."""

    networks: LossNetworks
    grid: Grid
    ledger: list[str]


def main(config: TrainConfig) -> None:
    """Trains, validates, saves; resumes when the run folder holds a checkpoint."""
    device = pick_device(config.precision, config.threads)
    grid = parse_grid(config.grid)
    model, networks = build(config, grid, device)  # data and model before the folder: a refusal leaves nothing behind
    train, val, ledger, copies = load_tables(config, grid, device)
    if config.init is not None:
        ledger = sorted({*ledger, *start_from(config.init, model, grid, other_grid=config.init_other_grid)})
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True
    )
    state = VAEState(
        model, optimiser, training.copy_weights(model), config.patience, best=-math.inf,
        networks=networks, grid=grid, ledger=ledger,
    )  # fmt: skip
    one_step = partial(passes, state=state, config=config, device=device)
    hint = "; --patch trains on parts of the volumes" if not config.patch else "; a smaller --patch takes less"
    other = memory.inference_bytes(partial(one_scan, grid=grid, scans=len(train), device=device), model)
    cases, need = memory.settle(one_step, model, config, device, "convolutions", hint, other)
    with open_run(config.run_dir, config, stage="VAE.train", device=device) as run:
        run.say(f"{len(train)} training and {len(val)} held-out scans on the {grid.name} grid {grid.shape}")
        if config.patch >= max(grid.shape):
            run.say(f"--patch {config.patch} cuts nothing: no side of the volumes is longer")
        for line in (*copies, need):
            run.say(line)
        resume(run, state)
        parallel = distributed.wrap(model)
        guard = training.LossGuard(device.kind)
        recompute = None if model.recompute else Autoencoder.recompute_activations
        advice = partial(memory.step_advice, one_step, model, device.kind, config.batch_size, recompute)

        for step in training.steps_to_take(run, state, config.steps, "VAE"):
            with memory.explained(advice):
                terms = train_step(parallel, state, train, step, config, cases)
            guard.watch(step, terms["loss/train"])
            training.average(state.ema, model, training.rate_of_decay(config.ema_decay, step))
            state.step = step
            if due(step, config.log_every_steps, config.steps):
                guard.check(run)
                run.log_step(step, terms, optimiser)
            if due(step, config.val_every_steps, config.steps):
                guard.check(run)
                calibrate(state, train, config.seed)
                if validate(run, state, val):
                    save(run, "best", state)
            if due(step, config.save_every_steps, config.steps) or run.interrupted or state.stopped:
                guard.check(run)
                save(run, "last", state)
        run.say(f"best held-out PSNR inside the head {state.best:.2f} dB; checkpoint {run.checkpoint('best')}")


def load_tables(config: TrainConfig, grid: Grid, device: Device) -> tuple[Volumes, Volumes, list[str], list[str]]:
    """Training and held-out scans, the ledger of all their subjects, and what was said about copies of one scan.

    Refuses unreadable tables or scans, one class only, and subjects or copies of one scan in both tables.
    """
    frames = [read_table(path) for path in (config.train_csv, config.val_csv)]
    missing = sorted(set(CLASS_NAMES) - {CLASS_NAMES[label] for label in frames[0].label.unique()})
    if missing and not config.allow_one_class:
        hint = "an autoencoder that never saw it cannot encode it. --allow-one-class trains on one class on purpose"
        raise InputError(f"{config.train_csv}: no scan of class {missing[0]}; {hint}")
    refuse_overlap(frames[1], ledger_of(frames[0]), what=f"{config.val_csv}: held-out table")
    stacks = [load_scans(frame, grid, cache_dir=config.cache_dir, skip_bad=config.skip_bad) for frame in frames]
    ledger = sorted({*ledger_of(frames[0]), *ledger_of(frames[1])})
    copies = refuse_duplicates({"train": stacks[0].frame, "val": stacks[1].frame}, allow_leak=config.allow_leak)
    return Volumes(stacks[0], device), Volumes(stacks[1], device), ledger, copies.across + copies.within


def build(config: TrainConfig, grid: Grid, device: Device) -> tuple[Autoencoder, LossNetworks]:
    """The autoencoder with weights by the seed, and the networks that the loss weights ask for."""
    torch.manual_seed(seeding.address(config.seed, "weights"))
    model = Autoencoder(config.model)
    refuse_parts(config, model.factor)
    if config.recompute:
        model.recompute_activations()
    model = device.module(model)
    if device.compiles(config.compile):
        model.compile_parts()
    return model, build_networks(config.loss, config.lr, device)


def refuse_parts(config: TrainConfig, factor: int) -> None:
    """InputError where the loss cannot be had of parts of volumes, or of a batch, as the configuration asks for."""
    if config.patch % factor or config.patch < 0:
        raise InputError(f"--patch {config.patch}: expected a multiple of {factor}, the model's reduction, or 0")
    perceptual = config.loss.perceptual_network if config.loss.perceptual else ""
    least = LEAST_LPIPS if perceptual.startswith("lpips") else LEAST_JUDGED
    if (config.loss.adversarial or perceptual) and 0 < config.patch < least:
        raise InputError(f"--patch {config.patch}: the networks of the loss need {least} voxels per side or more")
    if perceptual.startswith("medicalnet") and (config.micro_batch or config.fit is not None):
        why = "is normalised over all that it sees at once; leave out --micro-batch and --fit"
        raise InputError(f"--loss.perceptual-network {perceptual} {why}")


def train_step(
    parallel: nn.Module, state: VAEState, train: Volumes, step: int, config: TrainConfig, cases: int
) -> dict[str, torch.Tensor]:
    """One update of the autoencoder, and of the discriminator when it takes part, `cases` volumes at once; returns its
    numbers by name.
    """
    device = train.device
    x = train.batch(batch_rows(len(train), config.batch_size, step, config.seed))
    places = distributed.local(torch.arange(config.batch_size)).tolist()  # in the global batch
    x = augment(x, config.augment, [seeding.generator(config.seed, "augment", step, place) for place in places])
    if config.patch:
        x = cut(x, config.patch, [seeding.generator(config.seed, "patch", step, place) for place in places])
    shape = (config.batch_size, *state.model.latent_shape(tuple(x.shape[2:])))
    draw = seeding.generator(config.seed, "posterior", step, device=device.kind)
    eps = distributed.local(torch.randn(shape, generator=draw, device=device.kind))
    parts, said, made = list(zip(x.split(cases), eps.split(cases), strict=True)), [], []

    def losses() -> Iterator[torch.Tensor]:
        for part, (x_part, eps_part) in enumerate(parts):
            place = (part, len(parts))
            with device.autocast():
                outputs = parallel(x_part, eps_part)
                loss, terms = objective(outputs, x_part, state.networks, config.loss, step, config.seed, *place)
            said.append({"loss/train": loss.detach(), **terms})
            made.append(soft_volume(outputs[0]).detach() if adversarial_counts(config.loss, step) else None)
            del outputs
            yield loss / len(parts)

    lr = training.learning_rate(step, config.lr, config.steps, config.warmup_steps)
    norm = training.descend(losses(), parallel, state.optimiser, lr, config.clip_norm)
    terms = {name: torch.stack([part[name] for part in said]).mean() for name in said[0]}
    if adversarial_counts(config.loss, step):
        pairs = [(x_hat, x_part) for x_hat, (x_part, _) in zip(made, parts, strict=True)]
        terms["loss/discriminator"] = discriminator_step(state.networks, pairs, config.loss, device)
    return {**terms, "grad/norm": norm}


def passes(network: Autoencoder, cases: int, *, state: VAEState, config: TrainConfig, device: Device) -> None:
    """Forward and backward pass of a step in which all losses count, for its memory."""
    shape = tuple(min(size, config.patch or size) for size in state.grid.shape)
    x = device.tensor(memory.zeros(network, cases, 1, *shape))
    eps = memory.zeros(network, cases, *network.latent_shape(shape))
    networks = memory.imitation(replace(state.networks, optimiser=None))
    with device.autocast():
        outputs = network(x, eps)
        loss, _ = objective(outputs, x, networks, config.loss, config.steps, config.seed)
    loss.backward()
    if adversarial_counts(config.loss, config.steps):
        pair = soft_volume(outputs[0]).detach(), x
        del outputs, loss
        adversarial_loss(networks, *pair, config.loss, device).backward()


def one_scan(network: Autoencoder, *, grid: Grid, scans: int, device: Device) -> None:
    """Encodes and decodes a whole volume, as `calibrate` does beside what it keeps of so many scans, for its memory."""
    x, kept = device.tensor(memory.zeros(network, 1, 1, *grid.shape)), min(scans, CALIBRATION_SCANS)
    _latents = memory.zeros(network, kept, *network.latent_shape(grid.shape))
    _voxels = memory.zeros(network, kept, min(CALIBRATION_VOXELS, x.numel()), CALIBRATION_VALUES)
    with device.autocast():
        network.decode(network.encode(x)[0], grid.shape)


@torch.no_grad()
def calibrate(state: VAEState, train: Volumes, seed: int) -> None:
    """Measures the constants of the output rule, where the model has one, with the averaged weights; `model` and `ema`
    get them.

    Decoded are posterior samples of training scans, spread evenly over their table, and as many draws from a Gaussian
    of the same samples: the rule serves reconstructions and generated latents alike, which are as smooth as these.
    """
    if state.model.output is None:
        return
    device, averaged = train.device, with_averaged_weights(state, train.device)
    rows = torch.linspace(0, len(train) - 1, min(len(train), CALIBRATION_SCANS)).round().int().tolist()
    own = distributed.shard(rows)
    samples, voxels, scans = {}, [], []
    for row in own:
        x, generator = train.batch(torch.tensor([row])), seeding.generator(seed, "calibration", row)
        with device.autocast():
            mu, logvar = averaged.encode(x)
        samples[row] = (mu + torch.exp(0.5 * logvar) * torch.randn(mu.shape, generator=generator).to(mu))[0].cpu()
        voxels.append(torch.randperm(x.numel(), generator=generator)[:CALIBRATION_VOXELS].clone())  # not all, by a view
        scans.append(x.flatten().float().cpu()[voxels[-1]])
    everyone = of_everyone(samples)
    mean, decoded = everyone.mean(0), []
    for row, places in zip(own, voxels, strict=True):
        draw = torch.randn(len(everyone), generator=seeding.generator(seed, "calibration Gaussian", row))
        draw /= max(1, len(everyone) - 1) ** 0.5
        gaussian = (1 - draw.sum()) * mean + torch.tensordot(draw, everyone, 1)  # mean + draw (everyone - mean)
        pair = []
        for latent in (everyone[rows.index(row)], gaussian):  # one at a time: a validation takes no more memory
            with device.autocast():
                raw = averaged.decode_raw(device.tensor(latent[None]), state.grid.shape)
            pair.append(raw.flatten(2).float().cpu()[0, :, places])
            del raw
        decoded.append(torch.cat(pair, dim=1))
    raw = torch.cat([part for parts in distributed.gather(decoded) for part in parts], dim=1)
    x = torch.cat([part.repeat(2) for parts in distributed.gather(scans) for part in parts])
    state.model.output.fit(raw, x)
    for name, constant in state.model.output.state_dict(prefix="output.").items():
        state.ema[name].copy_(constant)


def of_everyone(samples: dict[int, torch.Tensor]) -> torch.Tensor:
    """Samples of all processes, (N, C, d, h, w) in the order of rows. `samples` are gone then: of fine grids, two
    copies would be the largest thing in memory.
    """
    found = {row: z for part in distributed.gather(samples) for row, z in part.items()}
    samples.clear()
    everyone = torch.empty(len(found), *next(iter(found.values())).shape)
    for place, row in enumerate(sorted(found)):
        everyone[place] = found.pop(row)
    return everyone


def with_averaged_weights(state: VAEState, device: Device) -> Autoencoder:
    """A network of its own for the averaged weights: nothing is compiled for a scan."""
    averaged = device.module(Autoencoder(state.model.config)).eval()
    averaged.load_state_dict(state.ema)
    return averaged


@torch.no_grad()
def validate(run: Run, state: VAEState, val: Volumes) -> bool:
    """Reconstructs the held-out scans from `mu` with the averaged weights, logs, draws; True when PSNR improved."""
    rows, pictures = [], []
    with training.swapped_weights(state.model, state.ema):
        for row in distributed.shard(range(len(val))):
            x = val.batch(torch.tensor([row]))  # one scan at a time: one shape to compile
            with val.device.autocast():
                x_hat = state.model.decode(state.model.encode(x)[0], state.grid.shape)
            pair = [volume[0, 0].float() for volume in (x_hat, x)]
            rows.append(reconstruction_metrics(*pair))
            if len(pictures) < 3:
                pictures.append([volume.cpu().numpy() for volume in pair])
    rows = [row for part in distributed.gather(rows) for row in part]
    means = {f"val/{name}": sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    run.log(state.step, means)
    if distributed.is_main():
        title = f"held-out scans, step {state.step}, PSNR inside the head {means['val/psnr_head']:.1f} dB"
        draw_pairs(run.samples / f"reconstruction_{state.step:06d}.png", pictures, title)
    return state.note(means["val/psnr_head"], better=means["val/psnr_head"] > state.best)


def resume(run: Run, state: VAEState) -> None:
    """Takes up checkpoints/last.pt when there is one; checks that it is of this grid, architecture and cohort."""
    path, networks = run.last(), state.networks
    if path is not None:
        record = resume_vae(path, state.model, state.grid)
        if record["ledger"] != state.ledger:
            raise InputError(f"{path}: the run was started with other subjects; use another --run-dir")
        state.restore(record)
        if networks.discriminator is not None:
            networks.discriminator.load_state_dict(record["discriminator"])
            networks.optimiser.load_state_dict(record["discriminator_optimiser"])
        run.say(f"continuing at step {state.step}")
    run.continue_from(state.step)


def save(run: Run, name: str, state: VAEState) -> None:
    """Writes checkpoints/<name>.pt from the main process."""
    if not distributed.is_main():
        return
    adversary, networks = {}, state.networks
    if networks.discriminator is not None:
        adversary["discriminator"] = networks.discriminator.state_dict()
        adversary["discriminator_optimiser"] = networks.optimiser.state_dict()
    path = run.checkpoint(name)
    save_vae(path, state.model, grid=state.grid, ledger=state.ledger, **state.to_dict(), **adversary)


if __name__ == "__main__":
    run_script(main, PRESETS, description=describe(__doc__))
