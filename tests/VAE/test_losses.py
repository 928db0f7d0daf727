"""Loss terms against closed forms, and the networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from monai.losses import PatchAdversarialLoss
from monai.losses import perceptual as monai_perceptual
from monai.networks.nets import resnet as monai_resnet
from torch.distributions import Normal, kl_divergence

from runtime.device import Device
from runtime.errors import InputError
from VAE import losses
from VAE.config import LossConfig
from VAE.latents import Latent, compute_statistics


def test_kl_equals_torch_distributions() -> None:
    mu, logvar = torch.randn(3, 4, 2, 2, 2), torch.randn(3, 4, 2, 2, 2)
    expected = kl_divergence(Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).flatten(1).sum(1).mean() / 512
    torch.testing.assert_close(losses.kl(mu, logvar, 512), expected)
    assert losses.kl(torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1), 1) == 0


def test_reconstruction_kinds() -> None:
    x_hat, x, mu = torch.full((1, 1, 2, 2, 2), 0.5), torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 1, 1, 1)
    for kind, expected in (("l1", 0.5), ("l2", 0.25)):
        config = LossConfig(reconstruction=kind)
        loss, _ = losses.objective((x_hat, mu, mu), x, losses.LossNetworks(), config, step=1, seed=0)
        assert loss == expected


def test_random_slices_are_the_same_of_both_volumes_and_cover_all_axes() -> None:
    x = torch.arange(1, 1 + 2 * 4 * 5 * 6, dtype=torch.float32).view(2, 1, 4, 5, 6)
    a, b, share = losses.random_slices(x, -x, 60, torch.Generator().manual_seed(0))
    assert a.shape == b.shape == (60, 1, 5, 6)
    assert torch.equal(a, -b)
    torch.testing.assert_close((a != 0).float().mean((1, 2, 3)), share)
    assert {round(value, 4) for value in share.tolist()} == {1.0, 0.8, round(20 / 30, 4)}
    sagittal = a[share == 1.0, 0]
    assert all(any(torch.equal(one, x[b, 0, k]) for b in range(2) for k in range(4)) for one in sagittal)


def test_random_slices_are_unbiased() -> None:
    """The mean over many draws is the mean over all slices of all axes, each counted once, whatever their size."""
    x, y = torch.rand(2, 2, 1, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    x[:, :, 0] += 2  # so that it shows when a slice is drawn too seldom
    every = torch.cat([(x - y).square().movedim(2 + axis, 1).flatten(2).mean(2).flatten() for axis in range(3)])
    a, b, share = losses.random_slices(x, y, 60_000, torch.Generator().manual_seed(1))
    drawn = (a - b).square().mean((1, 2, 3)) / share
    assert abs(drawn.mean() - every.mean()) < 4 * every.std() / 60_000**0.5


def test_padding_does_not_dilute_the_distance() -> None:
    """One axis only: slices padded to twice their size give the distance of the slices as they are, but for the rim."""
    perceptual = losses.EfficientNetLite0()
    torch.manual_seed(0)
    smooth = F.interpolate(torch.rand(1, 1, 8, 8), size=(96, 96), mode="bilinear")
    noisy = smooth + 0.1 * torch.randn_like(smooth)
    plain = perceptual.distance(noisy, smooth)
    padded = perceptual.distance(F.pad(noisy, (0, 96)), F.pad(smooth, (0, 96))) / 0.5
    assert abs(padded / plain - 1) < 0.15


def test_perceptual_distance_orders_distortions_and_has_a_gradient() -> None:
    perceptual = losses.perceptual_network("efficientnet_lite0", None)
    torch.manual_seed(0)
    x = F.interpolate(torch.rand(2, 1, 8, 8, 8), size=(32, 40, 36), mode="trilinear")
    near, far = (x + scale * torch.randn_like(x) for scale in (0.02, 0.3))

    def distance(x_hat: torch.Tensor) -> torch.Tensor:
        return perceptual(x_hat, x, 6, torch.Generator().manual_seed(0))

    assert distance(x) == 0
    assert 0 < distance(near) < distance(far)
    far.requires_grad_()
    distance(far).backward()
    assert far.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in perceptual.parameters())


def backbone(depth: str, spatial_dims: int, channels: int, path: Path) -> None:
    """A file of random weights as such networks are passed around: with a head and a prefix."""
    torch.manual_seed(0)
    network = getattr(monai_resnet, depth)(
        spatial_dims=spatial_dims, n_input_channels=channels, feed_forward=False, shortcut_type="B",
        bias_downsample=False,
    )  # fmt: skip
    named = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": {**named, "module.fc.weight": torch.zeros(2, 2)}}, path)


def test_radimagenet_equals_monais_distance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone("resnet50", 2, 3, tmp_path / "weights.pth")
    perceptual = losses.perceptual_network("radimagenet_resnet50", tmp_path / "weights.pth")
    network = torch.nn.Module()
    network.forward = lambda x: losses.resnet_features(perceptual.network, x)
    monkeypatch.setattr(torch.hub, "load", lambda *_, **__: network)
    theirs = monai_perceptual.RadImageNetPerceptualSimilarity()
    x, y = torch.rand(2, 3, 1, 64, 64)
    torch.testing.assert_close(perceptual.distance(x, y), theirs(x, y).flatten(), atol=1e-6, rtol=1e-4)


def test_medicalnet_equals_monais_distance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone("resnet10", 3, 1, tmp_path / "weights.pth")
    perceptual = losses.perceptual_network("medicalnet_resnet10_23datasets", tmp_path / "weights.pth")
    network = torch.nn.Module()
    network.forward = lambda x: losses.resnet_features(perceptual.network, x)
    monkeypatch.setattr(torch.hub, "load", lambda *_, **__: network)
    theirs = monai_perceptual.MedicalNetPerceptualSimilarity()
    x, y = torch.rand(2, 2, 1, 32, 32, 32)
    assert losses.resnet_features(perceptual.network, x).shape[2:] == (4, 4, 4)  # an eighth, by dilation, not a 32nd
    torch.testing.assert_close(perceptual(x, y, 1, torch.Generator()), theirs(x, y).mean(), atol=1e-6, rtol=1e-4)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    backbone("resnet18", 2, 3, tmp_path / "small.pth")
    with pytest.raises(InputError, match=r"layer1\.0\.conv3\.weight: missing"):
        losses.perceptual_network("radimagenet_resnet50", tmp_path / "small.pth")
    with pytest.raises(InputError, match="no such file"):
        losses.perceptual_network("radimagenet_resnet50", tmp_path / "none.pth")
    with pytest.raises(InputError, match=r"--loss\.perceptual-weights"):
        losses.perceptual_network("medicalnet_resnet50_23datasets", None)


@pytest.mark.parametrize("kind", ["least_squares", "hinge"])
def test_adversarial_losses_equal_monais(kind: str) -> None:
    """MONAI squashes logits before its hinge loss; here the original papers' losses take them as they are."""
    theirs = PatchAdversarialLoss(criterion=kind, no_activation_leastsq=True)
    real, fake = torch.randn(2, 2, 1, 3, 3, 3)
    seen_real, seen_fake = (real.tanh(), fake.tanh()) if kind == "hinge" else (real, fake)
    constant = 1.0 if kind == "hinge" else 0.0  # MONAI's is 1 - mean, which has the same gradient
    torch.testing.assert_close(
        losses.generator_adversarial(seen_fake, kind) + constant,
        theirs(fake, target_is_real=True, for_discriminator=False),
    )
    expected = 0.5 * (
        theirs(real, target_is_real=True, for_discriminator=True)
        + theirs(fake, target_is_real=False, for_discriminator=True)
    )
    torch.testing.assert_close(losses.discriminator_adversarial(seen_real, seen_fake, kind), expected)


def test_the_discriminator_gives_a_logit_for_each_patch() -> None:
    networks = losses.build_networks(LossConfig(adversarial=0.1), 1e-3, Device(torch.device("cpu"), torch.float32))
    assert networks.discriminator(torch.rand(1, 1, 16, 16, 16))[-1].shape[1] == 1


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
    mean, std = statistics.columns()
    normalised = (z - mean) / std
    assert normalised.std((0, 2, 3, 4)).tolist() == pytest.approx([1, 1], rel=0.1)
