"""What the training loops share: balanced epochs, the learning rate's course, averaged weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from runtime.training import (
    State,
    average,
    balanced_rows,
    copy_weights,
    descend,
    epoch_rows,
    learning_rate,
    rate_of_decay,
    rate_of_share,
    swapped_weights,
)


def test_epochs_are_permutations_end_to_end() -> None:
    rows = epoch_rows(7, torch.arange(21), seed=0, purpose="epoch").view(3, 7)
    assert all(sorted(epoch.tolist()) == list(range(7)) for epoch in rows)
    assert not torch.equal(rows[0], rows[1])


def test_any_part_of_the_sequence_can_be_asked_for() -> None:
    whole = epoch_rows(7, torch.arange(21), seed=0, purpose="epoch")
    assert torch.equal(epoch_rows(7, torch.arange(5, 12), seed=0, purpose="epoch"), whole[5:12])


def test_batches_are_balanced_and_epochs_complete() -> None:
    labels = torch.tensor([0] * 12 + [1] * 4)
    drawn = torch.stack([balanced_rows(labels, 8, step, 0, "epoch:") for step in range(1, 7)])
    assert (labels[drawn] == torch.tensor([0, 1] * 4)).all()
    assert torch.bincount(drawn.flatten(), minlength=16).tolist() == [2] * 12 + [6] * 4
    assert torch.equal(balanced_rows(labels, 8, 3, 0, "epoch:"), drawn[2])
    assert not torch.equal(balanced_rows(labels, 8, 3, 1, "epoch:"), drawn[2])


def test_a_class_smaller_than_half_a_batch_is_repeated() -> None:
    drawn = balanced_rows(torch.tensor([0] * 20 + [1] * 3), 16, 1, 0, "epoch:")
    assert torch.bincount(drawn[1::2], minlength=23)[20:].min() >= 2


def test_the_learning_rate_warms_up_and_decays() -> None:
    rates = [learning_rate(step, 1.0, 1000, 100) for step in (50, 100, 550, 1000)]
    assert rates == pytest.approx([0.5, 1.0, 0.505, 0.01])


def test_the_learning_rate_may_stay_at_its_peak() -> None:
    rates = [learning_rate(step, 1.0, 100, 10, decay_from=80) for step in (1, 10, 50, 80, 90, 100)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 1.0, 0.01 + 0.99 * 0.5, 0.01])
    assert learning_rate(99, 1.0, 100, 10, decay_from=100) == 1.0


def test_a_step_follows_the_clipped_gradient() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    optimiser = torch.optim.SGD(network.parameters(), lr=7.0)
    norm = descend([(3.0 * network.weight).sum()], network, optimiser, lr=0.5, clip_norm=1.0)
    assert float(norm) == pytest.approx(3.0)
    assert network.weight.item() == pytest.approx(-0.5, abs=1e-5)


@pytest.mark.parametrize("share", [0.05, 0.15])
def test_an_average_remembers_a_share_of_the_run(share: float) -> None:
    """With a weight equal to the step, an average over the last share of the run lags behind by about that share."""
    network = nn.Linear(1, 1)
    ema = copy_weights(network)
    for step in range(1, 2001):
        nn.init.constant_(network.bias, float(step))
        average(ema, network, rate_of_share(share, step))
    # The continuous limit of the average with rate 1 / (share t): lag = share / (1 + share) of the run.
    assert 2000 - float(ema["bias"]) == pytest.approx(2000 * share / (1 + share), rel=0.05)


def test_the_decay_of_an_average_grows_to_its_limit() -> None:
    assert [rate_of_decay(0.99, step) for step in (0, 8, 10**6)] == pytest.approx([0.9, 0.5, 0.01])


def test_swapped_weights_come_back() -> None:
    network = nn.Linear(2, 2)
    own = copy_weights(network)
    with swapped_weights(network, {name: value + 1 for name, value in own.items()}):
        assert torch.equal(network.bias, own["bias"] + 1)
    assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())


class Fixed(nn.Module):
    fixed = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("axes", torch.arange(10_000.0))


def test_what_nothing_changes_is_shared_by_averages_and_saved_once(tmp_path) -> None:
    network = nn.Sequential(nn.Linear(2, 2), Fixed())
    ema = copy_weights(network)
    nn.init.constant_(network[0].bias, 3.0)
    average(ema, network, 1.0)
    assert torch.equal(ema["0.bias"], network[0].bias)
    assert ema["0.bias"].data_ptr() != network[0].bias.data_ptr()
    torch.save({"weights": network.state_dict(), "ema": ema}, tmp_path / "whole.pt")
    assert (tmp_path / "whole.pt").stat().st_size < 1.5 * 4 * 10_000
    assert torch.equal(torch.load(tmp_path / "whole.pt")["ema"]["1.axes"], network[1].axes)


def state_of(seed: int) -> State:
    torch.manual_seed(seed)
    network = nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(network.parameters())
    descend([network(torch.ones(1, 2)).sum()], network, optimiser, lr=0.1, clip_norm=1.0)
    return State(network, optimiser, {"short": copy_weights(network), "long": copy_weights(network)}, patience=2)


def test_patience_counts_validations_without_a_better_one() -> None:
    state, stopped = state_of(0), []
    for value in (3.0, 2.0, 2.5, 2.5):
        state.note(value, better=value < state.best)
        stopped.append(state.stopped)
    assert stopped == [False, False, False, True]
    assert (state.best, state.stale) == (2.0, 2)
    state.patience = 0
    assert not state.stopped


def test_a_state_comes_back_from_what_a_checkpoint_holds() -> None:
    saved, state = state_of(0), state_of(1)
    saved.step, saved.best, saved.stale = 7, 0.5, 1
    place = state.ema["long"]["bias"]
    state.restore(saved.to_dict())
    assert (state.step, state.best, state.stale) == (7, 0.5, 1)
    assert torch.equal(state.ema["short"]["weight"], saved.ema["short"]["weight"])
    assert state.ema["long"]["bias"] is place  # in place: what holds the tensor sees the change
    moments = [each.state_dict()["state"][0]["exp_avg"] for each in (state.optimiser, saved.optimiser)]
    assert torch.equal(*moments)
