"""Stateless randomness: equal addresses, equal numbers; everything else different."""

from __future__ import annotations

import numpy as np
import torch

from runtime.seeding import generator, rng


def test_a_draw_depends_on_its_address_only() -> None:
    first = torch.randn(5, generator=generator(0, "noise", 3))
    torch.randn(100)
    assert torch.equal(first, torch.randn(5, generator=generator(0, "noise", 3)))
    others = [(1, "noise", 3), (0, "noise", 4), (0, "label", 3)]
    assert all(not torch.equal(first, torch.randn(5, generator=generator(*other))) for other in others)
    np.testing.assert_array_equal(rng(0, "a", 1).random(3), rng(0, "a", 1).random(3))
