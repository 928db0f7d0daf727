"""The learning rate: warm-up, stable, decay."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diffusion.config import TrainConfig
from diffusion.learning_rate import learning_rate


def test_warm_up_stable_decay_and_constant() -> None:
    config = TrainConfig(steps=100, lr=1.0, warmup_steps=10, decay_share=0.2)
    assert [learning_rate(step, config) for step in (1, 10, 50, 80)] == pytest.approx([0.1, 1.0, 1.0, 1.0])
    assert learning_rate(90, config) == pytest.approx(0.01 + 0.99 * 0.5)
    assert learning_rate(100, config) == pytest.approx(0.01)
    constant = replace(config, decay_share=0.0)
    assert learning_rate(99, constant) == 1.0
