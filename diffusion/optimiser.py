"""The optimiser and its learning rate over the run."""

from __future__ import annotations

import math
from typing import Any

import torch

from diffusion.config import TrainConfig
from diffusion.model import DiT

BETAS = (0.9, 0.99)


class Optimiser:
    """AdamW for all parameters, or Muon for the matrices inside the blocks and AdamW for the rest, stepping as one.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) orthogonalises each matrix's momentum. Its
    update is scaled to the root mean square of AdamW's (Liu et al. 2025, https://arxiv.org/abs/2502.16982), so that one
    learning rate serves both.
    """

    def __init__(self, model: DiT, config: TrainConfig) -> None:
        matrices = hidden_matrices(model) if config.optimiser == "muon" else []
        ids = {id(matrix) for matrix in matrices}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in ids]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=config.lr, betas=BETAS, weight_decay=config.weight_decay, fused=True)
        ]
        if matrices:
            muon = torch.optim.Muon(
                matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            self.parts.append(muon)

    def step(self, rate: float) -> None:
        """Updates all parameters at the given learning rate."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """Both parts' states, for a checkpoint."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Inverse of `state_dict`."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def hidden_matrices(model: DiT) -> list[torch.nn.Parameter]:
    """Weights of the linear layers of attention and MLP: matrices between hidden states, which Muon is made for."""
    return [
        parameter
        for block in model.blocks
        for layer in (block.attention, block.mlp)
        for parameter in layer.parameters()
        if parameter.dim() == 2
    ]


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, constant, then half a cosine to a hundredth over the last `decay_share` of the steps."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    decay_from = round(config.steps * (1.0 - config.decay_share))
    share = max(0, step - decay_from) / max(1, config.steps - decay_from)
    return config.lr * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * share)))
