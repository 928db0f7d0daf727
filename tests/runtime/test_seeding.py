"""Stateless randomness: equal addresses, equal numbers; everything else different."""

from __future__ import annotations

import numpy as np
import torch

from runtime.seeding import epoch_rows, generator, rng


def test_a_draw_depends_on_its_address_only() -> None:
    first = torch.randn(5, generator=generator(0, "noise", 3))
    torch.randn(100)
    assert torch.equal(first, torch.randn(5, generator=generator(0, "noise", 3)))
    others = [(1, "noise", 3), (0, "noise", 4), (0, "label", 3)]
    assert all(not torch.equal(first, torch.randn(5, generator=generator(*other))) for other in others)
    np.testing.assert_array_equal(rng(0, "a", 1).random(3), rng(0, "a", 1).random(3))


def test_epochs_are_permutations_end_to_end() -> None:
    rows = epoch_rows(7, torch.arange(21), seed=0, purpose="epoch").view(3, 7)
    assert all(sorted(epoch.tolist()) == list(range(7)) for epoch in rows)
    assert not torch.equal(rows[0], rows[1])


def test_any_part_of_the_sequence_can_be_asked_for() -> None:
    whole = epoch_rows(7, torch.arange(21), seed=0, purpose="epoch")
    assert torch.equal(epoch_rows(7, torch.arange(5, 12), seed=0, purpose="epoch"), whole[5:12])
