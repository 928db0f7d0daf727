"""Posterior health against a planted live and a planted dead channel."""

from __future__ import annotations

import pytest
import torch

from VAE.posterior import PosteriorHealth


def test_closed_forms_and_a_dead_channel() -> None:
    """Channel 0: means of variance 4, noise of variance 0.25. Channel 1: the prior itself, which tells nothing."""
    torch.manual_seed(0)
    mu = torch.stack([2.0 * torch.randn(200, 4, 4, 4), torch.zeros(200, 4, 4, 4)], dim=1)
    logvar = torch.stack([torch.full((200, 4, 4, 4), 0.25).log(), torch.zeros(200, 4, 4, 4)], dim=1)
    parts = PosteriorHealth(2), PosteriorHealth(2)
    for start in range(0, 200, 50):
        parts[start // 100].add(mu[start : start + 50], logvar[start : start + 50])
    parts[0].merge(parts[1])
    live, dead = parts[0].report()["channels"]
    assert live["std"] == pytest.approx(2.0, rel=0.03)
    assert live["noise_share"] == pytest.approx(0.25 / 4.25, rel=0.05)
    assert live["kl"] == pytest.approx(0.5 * (4 + 0.25 - 1 - torch.tensor(0.25).log().item()), rel=0.05)
    assert not live["dead"]
    assert dead["noise_share"] == 1.0
    assert dead["kl"] == 0
    assert dead["dead"]
    assert parts[0].report()["dead"] == [1]
