"""The optimiser: which parameters Muon takes, orthogonal updates, the learning rate over a run, resumption."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from diffusion.config import ModelConfig, TrainConfig
from diffusion.model import DiT
from diffusion.optimiser import Optimiser, hidden_matrices, learning_rate

MODEL = ModelConfig(dim=32, depth=2, heads=2, patch=(2, 2, 2))
LATENT = (4, 4, 4, 4)


def steps(optimiser: Optimiser, model: DiT, count: int, first: int = 0) -> None:
    for step in range(first, first + count):
        draw = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimiser.step(1e-2)


def test_muon_takes_the_matrices_inside_the_blocks_only() -> None:
    model = DiT(MODEL, LATENT)
    assert len(hidden_matrices(model)) == 2 * 4  # qkv, out and two of the MLP in each block
    optimiser = Optimiser(model, TrainConfig(optimiser="muon"))
    groups = [sum(len(group["params"]) for group in part.param_groups) for part in optimiser.parts]
    assert sum(groups) == len(list(model.parameters()))
    assert groups[1] == 8
    assert len(Optimiser(model, TrainConfig()).parts) == 1


def test_muon_updates_are_close_to_orthogonal() -> None:
    torch.manual_seed(0)
    model = DiT(MODEL, LATENT)
    matrix = model.blocks[0].attention.out.weight
    before = matrix.detach().clone()
    steps(Optimiser(model, TrainConfig(optimiser="muon")), model, 1)
    singular = torch.linalg.svdvals((matrix.detach() - before).double())
    # Five Newton-Schulz steps leave the very smallest values behind; a random gradient's ratio would be about ten.
    assert singular[0] / singular[-3] < 2


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_restored_optimiser_goes_on_to_the_bit(kind: str) -> None:
    config = TrainConfig(optimiser=kind)
    torch.manual_seed(0)
    one = DiT(MODEL, LATENT)
    whole = Optimiser(one, config)
    steps(whole, one, 2)
    two = DiT(MODEL, LATENT)
    two.load_state_dict(one.state_dict())
    restored = Optimiser(two, config)
    restored.load_state_dict(copy.deepcopy(whole.state_dict()))  # as through a file
    steps(whole, one, 2, first=2)
    steps(restored, two, 2, first=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_warm_up_stable_decay_and_constant() -> None:
    config = TrainConfig(steps=100, lr=1.0, warmup_steps=10, decay_share=0.2)
    assert [learning_rate(step, config) for step in (1, 10, 50, 80)] == pytest.approx([0.1, 1.0, 1.0, 1.0])
    assert learning_rate(90, config) == pytest.approx(0.01 + 0.99 * 0.5)
    assert learning_rate(100, config) == pytest.approx(0.01)
    constant = replace(config, decay_share=0.0)
    assert learning_rate(99, constant) == 1.0
