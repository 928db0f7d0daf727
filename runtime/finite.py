"""Watches losses without making the device wait: the step of the first one that was not finite."""

from __future__ import annotations

import torch

from runtime.errors import InputError
from runtime.runs import Run


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
        step = int(self._first)
        if step:
            raise InputError(
                f"{run.path}: the loss of step {step} is not finite. checkpoints/last.pt still holds the last good "
                "state. A lower --lr or --precision float32 usually helps."
            )
