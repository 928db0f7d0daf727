"""Loss terms against closed forms, and the judges."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from VAE import losses
from VAE.latents import Latent, compute_statistics


def test_kl_equals_torch_distributions() -> None:
    mu, logvar = torch.randn(3, 4, 2, 2, 2), torch.randn(3, 4, 2, 2, 2)
    expected = kl_divergence(Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).flatten(1).sum(1).mean() / 512
    torch.testing.assert_close(losses.kl(mu, logvar, 512), expected)
    assert losses.kl(torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1), 1) == 0


def test_random_slices_are_the_same_of_both_volumes_and_cover_all_axes() -> None:
    x = torch.arange(2 * 4 * 5 * 6, dtype=torch.float32).view(2, 1, 4, 5, 6)
    pairs = losses.random_slices(x, x + 0.5, 60, torch.Generator().manual_seed(0))
    assert {tuple(a.shape[2:]) for a, _ in pairs} == {(5, 6), (4, 6), (4, 5)}
    assert sum(len(a) for a, _ in pairs) == 60
    assert all(torch.equal(a + 0.5, b) for a, b in pairs)
    sagittal = next(a for a, _ in pairs if a.shape[2:] == (5, 6))
    assert all(any(torch.equal(one[0], x[b, 0, k]) for b in range(2) for k in range(4)) for one in sagittal)


def test_perceptual_distance_orders_distortions_and_has_a_gradient() -> None:
    judge = losses.PerceptualDistance()
    torch.manual_seed(0)
    x = torch.nn.functional.interpolate(torch.rand(2, 1, 8, 8), size=(64, 64), mode="bilinear")
    near, far = (x + scale * torch.randn_like(x) for scale in (0.02, 0.3))
    assert judge(x, x) == 0
    assert 0 < judge(near, x) < judge(far, x)
    far.requires_grad_()
    judge(far, x).backward()
    assert far.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in judge.parameters())


def test_adversarial_losses_at_their_optimum() -> None:
    ones, zeros = torch.ones(2, 1, 3, 3, 3), torch.zeros(2, 1, 3, 3, 3)
    assert losses.discriminator_adversarial(ones, zeros) == 0
    assert losses.generator_adversarial(ones) == 0
    assert losses.generator_adversarial(zeros) == 1
    assert losses.discriminator_network()(torch.rand(1, 1, 16, 16, 16))[-1].shape[1] == 1


def test_statistics_follow_the_law_of_total_variance() -> None:
    """Means and standard deviations equal those of a large sample drawn from the posteriors."""
    generator = torch.Generator().manual_seed(0)
    mu = torch.randn(20, 2, 3, 3, 3, generator=generator) * torch.tensor([1.0, 3.0]).view(1, 2, 1, 1, 1) + 2
    logvar = torch.full_like(mu, -1.0)
    latents = [Latent(m.numpy(), v.numpy(), 0, "s", "vae", {}) for m, v in zip(mu, logvar, strict=True)]
    statistics = compute_statistics(latents, split="train", ledger=[])
    sample = mu + torch.exp(0.5 * logvar) * torch.randn(500, *mu.shape, generator=generator)
    assert statistics.mean == pytest.approx(sample.mean((0, 1, 3, 4, 5)).tolist(), rel=0.02)
    assert statistics.std == pytest.approx(sample.std((0, 1, 3, 4, 5)).tolist(), rel=0.02)
    z = sample[0]
    normalised = statistics.normalise(z)
    assert normalised.std((0, 2, 3, 4)).tolist() == pytest.approx([1, 1], rel=0.1)
    torch.testing.assert_close(statistics.denormalise(normalised), z, atol=1e-5, rtol=1e-5)
