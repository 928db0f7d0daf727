"""Trains a classifier of HC and TLE on real scans, synthetic volumes or both; tests it on real held-out subjects.

    python -m classifier.train demo --run-dir runs/demo/real
    python -m classifier.train demo --synth-percent 100 --run-dir runs/demo/real_and_synthetic
    python -m classifier.train demo --real 0 --synth-count 200 --run-dir runs/demo/synthetic
    python -m classifier.train demo --model.name hemispheres --model.region temporal --run-dir runs/demo/hemispheres
    python -m classifier.train demo --folds 5 --fold 2 --index data/demo/pickle_prep_demo.csv --run-dir runs/demo/fold2

Reads tables, scans and volumes; writes a run folder with checkpoints/last.pt and best.pt (least validation loss at its
best temperature), predictions.csv (one row per held-out scan), results.json (measures with intervals, baselines) and
curves.png. The same command continues a run that was stopped. Many arms, seeds and folds: `classifier.run_arms`.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from classifier.checkpoint import resume_classifier, save_classifier
from classifier.config import PRESETS, STRENGTH, TrainConfig
from classifier.dataset import Answers, Volumes, augment, counts_text, mirrored
from classifier.evaluation import evaluate, predict
from classifier.known_volumes import volume_targets
from classifier.measures import metrics
from classifier.model import Classifier, Everything, build_model
from classifier.selection import Selection, select
from cohort.checking.checked import refuse_duplicates
from cohort.grids import Grid, parse_grid
from cohort.stacks import ScanStack, load_scans
from runtime import distributed, memory, seeding, training
from runtime.cli import describe, run_script
from runtime.device import Device, pick_device
from runtime.errors import InputError
from runtime.files import read_json
from runtime.runs import Run, due, open_run


@dataclass(kw_only=True)
class ClassifierState(training.State):
    """What changes from step to step, and what every checkpoint says of its origin."""

    grid: Grid
    ledger: list[str]
    mean_hc: torch.Tensor
    fingerprint: str


def main(config: TrainConfig) -> None:
    """Trains, validates, saves, evaluates; resumes when the run folder holds a checkpoint."""
    device = pick_device(config.precision, config.threads)
    grid = parse_grid(config.grid)
    # Before the folder: a refusal leaves nothing behind.
    selection, known, reader = select(config), config.known_volumes(), config.label_reader(grid)
    stacks = load_stacks(selection, config, grid)
    copies = refuse_duplicates({name: stack.frame for name, stack in stacks.items()}, allow_leak=config.allow_leak)
    selection.leaks.extend(copies.across)
    selection.notes.extend(copies.within)
    with open_run(config.run_dir, config, stage="classifier.train", device=device) as run:
        targets = None
        if config.learns_volumes:
            targets = volume_targets(stacks["train"].frame, known, config.structures)
            selection.notes.append(f"volumes were known of {np.isfinite(targets).any((1, 2)).sum()} training scans")
        train, val = Volumes(stacks["train"], device, targets), Volumes(stacks["val"], device)
        run.say(f"training on {counts_text(stacks['train'])}; grid {grid.name} {grid.shape}")

        model = build(config, grid, device, train.constants())
        optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        state = ClassifierState(
            model, optimiser, training.copy_weights(model), config.patience, grid=grid, ledger=selection.ledger,
            mean_hc=train.mean_volume(label=0), fingerprint=selection.fingerprint,
        )  # fmt: skip
        resume(run, state)
        everything = Everything(model)
        if device.compiles(config.compile):
            everything.compile(dynamic=False)
        network = distributed.wrap(everything)
        guard = training.LossGuard(device.kind)
        one_step = partial(passes, grid=grid, device=device)
        advice = partial(memory.step_advice, one_step, model, device.kind, config.batch_size, multiple=2)
        run.say(memory.step_line(one_step, state.model, config.batch_size, device, started=bool(optimiser.state)))

        for step in training.steps_to_take(run, state, config.steps, "classifier"):
            with memory.explained(advice):
                terms = train_step(network, optimiser, train, step, config, model.width)
            guard.watch(step, terms["loss/total"])
            training.average(state.ema, model, training.rate_of_decay(config.ema_decay, step))
            state.step = step
            if due(step, config.log_every_steps, config.steps):
                guard.check(run)
                run.log_step(step, terms, optimiser)
            if due(step, config.val_every_steps, config.steps):
                guard.check(run)
                if validate(run, state, everything, val):
                    save(run, "best", state)
            if due(step, config.save_every_steps, config.steps) or run.interrupted or state.stopped:
                guard.check(run)
                save(run, "last", state)
        if distributed.dismiss() and not is_evaluated(run, config):
            evaluate(run, selection, stacks, known, reader, device, config)


def is_evaluated(run: Run, config: TrainConfig) -> bool:
    """Whether results.json is there, of as many steps."""
    path = run.path / "results.json"
    return path.exists() and read_json(path)["steps"] == config.steps


def load_stacks(selection: Selection, config: TrainConfig, grid: Grid) -> dict[str, ScanStack]:
    """The scans of training, validation and test; real and synthetic ones take the same way and the same scaling."""
    stacks = {}
    for name in ("train", "val", "test"):
        bad = config.skip_bad and config.skip_bad.with_stem(f"{config.skip_bad.stem}_{name}")
        stacks[name] = load_scans(getattr(selection, name), grid, cache_dir=config.cache_dir, skip_bad=bad)
    return stacks


def build(config: TrainConfig, grid: Grid, device: Device, constants: tuple[float, float]) -> Classifier:
    """The network with weights by the seed, the mean and deviation of its input, and outputs for what it learns."""
    torch.manual_seed(seeding.address(config.seed, "weights"))
    outputs = 2 if config.side_weight or config.model.name == "hemispheres" else config.model.outputs
    volumes = len(config.structures) if config.learns_volumes else 0
    architecture = replace(config.model, outputs=outputs, volumes=volumes)
    return device.module(build_model(architecture, grid, *constants))


def train_step(
    network: nn.Module, optimiser: torch.optim.Optimizer, train: Volumes, step: int, config: TrainConfig, width: int
) -> dict[str, torch.Tensor]:
    """One update on a balanced batch, with dropout of `width` pooled features; returns numbers by name."""
    rows = training.balanced_rows(train.labels, config.batch_size, step, config.seed, "epoch:")
    x, answers = train.batch(rows), train.answers.of(rows)
    if config.mirror:
        x, answers = mirrored(x, answers, config.seed, step)
    if config.augmentation != "none":
        strength = config.augment.scaled(STRENGTH[config.augmentation])
        x = augment(x, strength, train.grid.spacing_mm, config.seed, step)
    keep = 1.0 - config.model.dropout
    drawn = torch.rand((config.batch_size, width), generator=seeding.generator(config.seed, "dropout", step))
    mask = distributed.local((drawn < keep).float() / keep)
    with train.device.autocast():
        found = network(train.device.tensor(x), mask.to(train.device.kind, non_blocking=True))
    answers = Answers(*(column.to(found.device, non_blocking=True) for column in answers))
    terms = losses(found.float(), answers, config)
    lr = training.learning_rate(step, config.lr, config.steps, config.warmup_steps)
    norm = training.descend([terms["total"]], network, optimiser, lr, config.clip_norm)
    return {**{f"loss/{name}": distributed.mean(term.detach()) for name, term in terms.items()}, "grad/norm": norm}


def passes(network: Classifier, cases: int, *, grid: Grid, device: Device) -> None:
    """Forward and backward pass of a step, for its memory."""
    network.eval()  # in training its norm would wait for other processes
    with device.autocast():
        found = Everything(network)(device.tensor(memory.zeros(network, cases, 1, *grid.shape)))
    found.float().sum().backward()


def losses(found: torch.Tensor, answers: Answers, config: TrainConfig) -> dict[str, torch.Tensor]:
    """What a network says, (B, outputs + 2 S), against the answers: terms by name, and ``total``, their weighted sum.

    Cross-entropy of TLE (``train``), of the side where there is a second logit and it is known, half the squared error
    of known volumes. They are of this process's share, so scaled that the mean over processes is that of all. For
    hemispheres, the side weighs as much as its share of the batch is known: a patient's loss is then -log p(TLE)
    - log p(side | TLE) = -log p(TLE on that side), the cross-entropy over HC, TLE-L and TLE-R, and where the side is
    unknown -log p(TLE), the sum over both. Volumes weigh as much as their share of the batch is known, so that one
    scan's count alike whoever else is in it: were the few known among many synthetic volumes a lesson of full weight,
    that of one or two scans in each step would drown the other.
    """
    S = answers.volumes.shape[1]
    logits, volumes = found[:, : found.shape[1] - 2 * S], found[:, found.shape[1] - 2 * S :]
    terms = {"train": F.binary_cross_entropy_with_logits(logits[:, 0], answers.labels.float())}
    total = terms["train"]
    if logits.shape[1] > 1:
        known = (answers.sides >= 0).float()
        each = F.binary_cross_entropy_with_logits(logits[:, 1], answers.sides.clamp(min=0).float(), reduction="none")
        share = distributed.mean(known.mean())
        terms["side"] = (each * known).mean() / share.clamp(min=1e-6)
        total = total + (config.side_weight + share * (config.model.name == "hemispheres")) * terms["side"]
    if S:
        known = answers.volumes.isfinite().float()
        errors = (volumes.view(-1, S, 2) - answers.volumes.nan_to_num()) ** 2 / 2
        share = distributed.mean(known.mean())
        terms["volumes"] = (errors * known).mean() / share.clamp(min=1e-6)
        total = total + config.volumes_weight * share * terms["volumes"]
    return {**terms, "total": total}


def validate(run: Run, state: ClassifierState, network: Everything, val: Volumes) -> bool:
    """Logs the loss of the EMA weights on validation; True when it is the least so far.

    It is the loss at the temperature that suits it best, as the results use it. The plain loss would prefer the first,
    ignorant steps to later ones that rank subjects well but are too sure of themselves. Every process does all of it.
    """
    network.eval()
    with training.swapped_weights(state.model, state.ema):
        logits, labels = predict(network, val)[:, 0], val.labels.numpy()
    network.train()
    loss = metrics.balanced_loss(labels, logits / metrics.fit_temperature(labels, logits))
    plain = metrics.balanced_loss(labels, logits)
    run.log(state.step, {"loss/val": plain, "loss/val_calibrated": loss, "auc/val": metrics.auc(labels, logits)})
    return state.note(loss, better=loss < state.best)


def resume(run: Run, state: ClassifierState) -> None:
    """Takes up checkpoints/last.pt when there is one."""
    path = run.last()
    if path is not None:
        record = resume_classifier(path, state.model, state.grid)
        if record["fingerprint"] != state.fingerprint:
            raise InputError(f"{path}: the run was started with other subjects or volumes; use another --run-dir")
        state.restore(record)
        run.say(f"continuing at step {state.step}")
    run.continue_from(state.step)


def save(run: Run, name: str, state: ClassifierState) -> None:
    """Writes checkpoints/<name>.pt from the main process."""
    if distributed.is_main():
        origin = {field: getattr(state, field) for field in ("grid", "ledger", "mean_hc", "fingerprint")}
        save_classifier(run.checkpoint(name), state.model, temperature=1.0, threshold=None, **origin, **state.to_dict())


if __name__ == "__main__":
    run_script(main, PRESETS, description=describe(__doc__))
