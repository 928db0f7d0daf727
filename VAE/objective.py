"""What the autoencoder is trained towards: which loss terms count at a step, with what weight, judged by whom."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from runtime import distributed, seeding
from runtime.device import Device
from VAE import losses
from VAE.config import LossConfig


@dataclass
class Judges:
    """The networks that only the loss needs: perceptual (fixed) and adversarial (trained); None where weight is 0."""

    perceptual: nn.Module | None = None
    discriminator: nn.Module | None = None
    optimiser: torch.optim.Optimizer | None = None


def build_judges(config: LossConfig, lr: float, device: Device) -> Judges:
    """The judges that the loss weights ask for.

    Raises:
        InputError: a perceptual network that needs weights was given none, or ones that do not fit it.
    """
    judges = Judges()
    if config.perceptual > 0:
        network = losses.perceptual_network(config.perceptual_network, config.perceptual_weights)
        judges.perceptual = network.to(device.kind)
    if config.adversarial > 0:
        judges.discriminator = device.module(losses.discriminator_network())
        judges.optimiser = torch.optim.AdamW(judges.discriminator.parameters(), lr=lr, betas=(0.5, 0.9))
    return judges


def weights(config: LossConfig, step: int) -> dict[str, float]:
    """Weight of each term that counts at this step; the adversarial one rises linearly over its warm-up."""
    named = {"reconstruction": 1.0, "kl": config.kl if step >= config.kl_start_step else 0.0}
    if config.perceptual > 0 and step >= config.perceptual_start_step:
        named["perceptual"] = config.perceptual
    if adversarial_counts(config, step):
        done = (step - config.adversarial_start_step + 1) / max(1, config.adversarial_warmup_steps)
        named["adversarial"] = config.adversarial * min(1.0, done)
    return named


def adversarial_counts(config: LossConfig, step: int) -> bool:
    """Whether the discriminator trains and judges at this step."""
    return config.adversarial > 0 and step >= config.adversarial_start_step


def objective(
    x_hat: torch.Tensor,
    x: torch.Tensor,
    mu: torch.Tensor,
    logvar: torch.Tensor,
    judges: Judges,
    config: LossConfig,
    step: int,
    seed: int,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of one batch.

    Args:
        x_hat, x: reconstructions and volumes (B, 1, D, H, W).
        mu, logvar: posterior (B, C, d, h, w).
        judges: networks that the terms need.
        config: kinds, weights and start steps.
        step: from 1; decides which terms count.
        seed: the run's, for the slices.

    Returns:
        the scalar to descend, and numbers to log: each term as ``loss/<name>`` unscaled and ``scaled/<name>`` as it
        enters the sum.
    """
    counted = weights(config, step)
    terms = {
        "reconstruction": losses.reconstruction(x_hat, x, config.reconstruction),
        "kl": losses.kl(mu, logvar, x[0].numel()),
    }
    if "perceptual" in counted:
        draw = seeding.generator(seed, "slices", step, distributed.rank())
        terms["perceptual"] = judges.perceptual(x_hat, x, config.perceptual_slices, draw)
    if "adversarial" in counted:
        judges.discriminator.requires_grad_(False)
        terms["adversarial"] = losses.generator_adversarial(judges.discriminator(x_hat)[-1], config.adversarial_kind)
    scaled = {name: counted[name] * term for name, term in terms.items()}
    log = {f"loss/{name}": term.detach() for name, term in terms.items()}
    return sum(scaled.values()), log | {f"scaled/{name}": term.detach() for name, term in scaled.items()}


def discriminator_step(
    judges: Judges, x_hat: torch.Tensor, x: torch.Tensor, config: LossConfig, device: Device
) -> torch.Tensor:
    """One update of the discriminator on a real and a reconstructed batch; returns its loss."""
    judges.discriminator.requires_grad_(True)
    with device.autocast():
        real, fake = judges.discriminator(x)[-1], judges.discriminator(x_hat)[-1]
        loss = losses.discriminator_adversarial(real, fake, config.adversarial_kind)
    judges.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    for parameter in judges.discriminator.parameters():
        parameter.grad = distributed.mean(parameter.grad)
    judges.optimiser.step()
    return loss.detach()
