"""The learning rate over a run."""

from __future__ import annotations

import math

from diffusion.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, constant, then half a cosine to a hundredth over the last `decay_share` of the steps."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    decay_from = round(config.steps * (1.0 - config.decay_share))
    share = max(0, step - decay_from) / max(1, config.steps - decay_from)
    return config.lr * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * share)))
