"""Stateless randomness: every draw has an address (seed, purpose, step or index), and nothing else decides it.

A generator is made anew for each draw from its address, so that nothing depends on how often another was used: a run
that is killed and started again, or spread over more processes, draws the same numbers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def address(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit seed for (seed, purpose, index); distinct addresses give unrelated seeds (SHA-256)."""
    text = ":".join([str(seed), purpose, *map(str, index)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A numpy generator for one address."""
    return np.random.default_rng(address(seed, purpose, *index))


def generator(seed: int, purpose: str, *index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one address, for example ``generator(config.seed, "noise", step)``."""
    import torch  # takes seconds, and most of the cohort's commands draw with numpy alone

    return torch.Generator(device=device).manual_seed(address(seed, purpose, *index))
