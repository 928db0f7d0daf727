"""Stateless randomness: every draw has an address (seed, purpose, step or index), and nothing else decides it.

A generator is made anew for each draw from its address, so that nothing depends on how often another was used: a run
that is killed and started again, or spread over more processes, draws the same numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def address(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit seed for (seed, purpose, index); distinct addresses give unrelated seeds (SHA-256)."""
    text = ":".join([str(seed), purpose, *map(str, index)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one address, for example ``generator(config.seed, "noise", step)``."""
    return torch.Generator(device=device).manual_seed(address(seed, purpose, *index))


def rng(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A numpy generator for one address."""
    return np.random.default_rng(address(seed, purpose, *index))


def epoch_rows(count: int, places: torch.Tensor, seed: int, purpose: str) -> torch.Tensor:
    """Rows at the given places of an endless sequence of epochs, each a fresh permutation of ``range(count)``.

    Args:
        count: rows in the data.
        places: positions in the sequence, from 0; int64, any length.
        seed: the run's.
        purpose: names the sequence.

    Returns:
        int64 rows in [0, count), as many as places.
    """
    epochs = (places // count).tolist()
    orders = {epoch: torch.randperm(count, generator=generator(seed, purpose, epoch)) for epoch in set(epochs)}
    return torch.stack([orders[epoch][place] for epoch, place in zip(epochs, (places % count).tolist(), strict=True)])


def seed_layers(seed: int, step: int, rank: int = 0) -> None:
    """Seeds torch's global generator for one step: layers such as dropout can draw from no other."""
    torch.manual_seed(address(seed, "layers", step, rank))
