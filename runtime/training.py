"""What the training loops share: rows of a batch, learning rate, the optimiser's step, averages, state, loss guard."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from runtime import distributed, seeding
from runtime.errors import InputError
from runtime.runs import Run

Weights = dict[str, torch.Tensor]
"""A network's parameters and buffers by name, as its `state_dict` gives them."""


def epoch_rows(count: int, places: torch.Tensor, seed: int, purpose: str) -> torch.Tensor:
    """Rows at some places (from 0) of an endless sequence of epochs, each a fresh permutation of ``range(count)``."""
    epochs = (places // count).tolist()
    orders = {epoch: torch.randperm(count, generator=seeding.generator(seed, purpose, epoch)) for epoch in set(epochs)}
    return torch.stack([orders[epoch][place] for epoch, place in zip(epochs, (places % count).tolist(), strict=True)])


def balanced_rows(labels: torch.Tensor, batch_size: int, step: int, seed: int, purpose: str) -> torch.Tensor:
    """Rows of this process's share of a global batch, equally many of each class whatever the table's balance.

    Each class runs through epochs of its own permutations, whose purpose is `purpose` followed by its label; slot k of
    the endless sequence of slots belongs to class k mod classes. Every class occurs in `labels` (N,); steps are from 1.
    """
    classes = int(labels.max()) + 1
    slots = torch.arange((step - 1) * batch_size, step * batch_size)
    rows = torch.empty_like(slots)
    for label in range(classes):
        members = torch.nonzero(labels == label)[:, 0]
        mine = slots % classes == label
        order = epoch_rows(len(members), slots[mine] // classes, seed, f"{purpose}{label}")
        rows[mine] = members[order]
    return distributed.local(rows)


def learning_rate(step: int, peak: float, steps: int, warmup_steps: int, decay_from: int | None = None) -> float:
    """Linear warm-up to `peak`, constant until `decay_from` (by default the warm-up's end), then half a cosine down to
    a hundredth of it at the last step; steps are from 1.
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    decay_from = warmup_steps if decay_from is None else decay_from
    share = max(0, step - decay_from) / max(1, steps - decay_from)
    return peak * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * share)))


def descend(
    losses: Iterable[torch.Tensor], network: nn.Module, optimiser: torch.optim.Optimizer, lr: float, clip_norm: float
) -> torch.Tensor:
    """One step of the optimiser down the gradient of a sum of losses; returns the gradient's norm before clipping.

    Each loss is let go of before the next is asked for, so that a generator holds the activations of one at a time.
    """
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.zero_grad(set_to_none=True)
    for loss in losses:
        loss.backward()
        del loss
    norm = nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    optimiser.step()
    return norm


def copy_weights(network: nn.Module) -> Weights:
    """A copy of a network's weights, from which an average starts.

    Modules whose attribute ``fixed`` is true have buffers that nothing changes after the network was built: these are
    shared with it, and so take memory and room in a checkpoint once.
    """
    modules = [(place, module) for place, module in network.named_modules() if getattr(module, "fixed", False)]
    shared = {f"{place}.{name}" for place, module in modules for name, _ in module.named_buffers()}
    return {name: value if name in shared else value.clone() for name, value in network.state_dict().items()}


def average(ema: Weights, network: nn.Module, rate: float) -> None:
    """One step of an exponential moving average of the weights, in place: `rate` of the way to the network's."""
    state = network.state_dict()
    own = [name for name, value in ema.items() if value.data_ptr() != state[name].data_ptr()]
    torch._foreach_lerp_([ema[name] for name in own], [state[name] for name in own], rate)


def rate_of_decay(decay: float, step: int) -> float:
    """Rate of `average` for a decay that grows as (1 + step) / (10 + step): the random start is soon forgotten."""
    return 1.0 - min(decay, (1 + step) / (10 + step))


def rate_of_share(share: float, step: int) -> float:
    """Rate of `average` that remembers about the last `share` of the steps so far: a fixed decay of 0.9999 would still
    hold the random start of a run of a few thousand steps.
    """
    return min(1.0, 1.0 / max(1.0, share * step))


@contextmanager
def swapped_weights(network: nn.Module, weights: Weights) -> Iterator[None]:
    """Gives a network other weights until the block ends: what is compiled for it serves them too."""
    own = copy_weights(network)
    network.load_state_dict(weights)
    try:
        yield
    finally:
        network.load_state_dict(own)


@dataclass
class State:
    """What changes from step to step and comes back from a checkpoint; a stage adds its own."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    ema: dict[str, Any]
    """Averaged weights, or several sets of them by name."""
    patience: int = 0
    """Stop after so many validations without a better one; 0: never."""
    step: int = 0
    best: float = math.inf
    """Best held-out value so far."""
    stale: int = 0
    """Validations since."""

    @property
    def stopped(self) -> bool:
        """Whether patience has run out."""
        return 0 < self.patience <= self.stale

    def note(self, value: float, *, better: bool) -> bool:
        """Takes in the value of a validation; returns `better`."""
        self.best, self.stale = (value, 0) if better else (self.best, self.stale + 1)
        return better

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint, besides the model's own weights."""
        numbers = {"step": self.step, "best": self.best, "stale": self.stale}
        return {"ema": self.ema, "optimiser": self.optimiser.state_dict(), **numbers}

    def restore(self, record: dict[str, Any]) -> None:
        """Inverse of `to_dict`."""
        self.optimiser.load_state_dict(record["optimiser"])
        _copy(self.ema, record["ema"])
        self.step, self.best, self.stale = record["step"], record["best"], record["stale"]


def _copy(weights: dict[str, Any], saved: dict[str, Any]) -> None:
    for name, value in saved.items():
        if isinstance(value, dict):
            _copy(weights[name], value)
        else:
            weights[name].copy_(value)


def steps_to_take(run: Run, state: State, steps: int, desc: str) -> Iterator[int]:
    """Steps from the state's to the last behind a progress bar; fewer when the state's patience runs out."""
    for step in run.progress(state.step, state.step if state.stopped else steps, desc):
        yield step
        if state.stopped:
            run.say(f"stopped early: {state.stale} validations without a better one")
            return


class LossGuard:
    """Remembers on the device when the loss first stopped being finite; read rarely, because reading waits."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.zeros((), dtype=torch.int64, device=device)

    def watch(self, step: int, loss: torch.Tensor) -> None:
        """Notes one step's loss (a scalar tensor)."""
        new = (self._first == 0) & ~torch.isfinite(loss.detach())
        self._first = torch.where(new, torch.full_like(self._first, step), self._first)

    def check(self, run: Run) -> None:
        """Raises InputError that names the step; call it before anything is saved."""
        if step := int(self._first):
            hint = "A lower --lr or --precision float32 usually helps"
            if run.checkpoint("last").exists():
                kept, where = "checkpoints/last.pt holds the last good state that was saved", ", in another --run-dir."
            else:
                kept, where = "Nothing had been saved yet", ", also in this folder."
            raise InputError(f"{run.path}: the loss of step {step} is not finite. {kept}. {hint}{where}")
