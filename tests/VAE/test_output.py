"""The output rule: zeros outside the head, and the scans' intensities inside."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from runtime.errors import InputError
from VAE.config import ModelConfig
from VAE.losses import reconstruction, soft_volume
from VAE.model import Autoencoder
from VAE.model.output import OutputRule

SHAPE = (24, 28, 24)


def scans(count: int) -> torch.Tensor:
    """Balls with dark rims in air that is exactly 0: (N, 1, D, H, W)."""
    places = np.meshgrid(*[np.linspace(-1, 1, size) for size in SHAPE], indexing="ij")
    radius = np.sqrt(sum(place**2 for place in places))
    random = np.random.default_rng(0)
    heads = [0.85 + 0.03 * random.standard_normal() - radius for _ in range(count)]
    noise = random.random((count, *SHAPE))
    rims = [np.clip(3 * head, 0.02, 0.5) + 0.4 * own for head, own in zip(heads, noise, strict=True)]
    volumes = [np.where(head > 0, rim, 0) for head, rim in zip(heads, rims, strict=True)]
    return torch.from_numpy(np.stack(volumes)[:, None].astype(np.float32))


def decoded(x: torch.Tensor) -> torch.Tensor:
    """What a network makes of scans: too bright at the rim, a haze in the air, an uncertain border."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(2, *x.shape, generator=draw)
    return torch.cat([0.1 + 0.8 * x.sqrt() + 0.02 * noise[0], 8 * (x > 0) - 3.0 + 2 * noise[1]], dim=1)


def test_measured_on_scans_the_rule_gives_their_zeros_and_their_intensities() -> None:
    x, rule = scans(6), OutputRule()
    raw = decoded(x)
    rule.fit(raw.transpose(0, 1).flatten(1), x.flatten())
    out = rule(raw)
    assert out.shape == x.shape
    assert (out == 0).float().mean() == pytest.approx(float((x == 0).float().mean()), abs=1e-5)
    shares = torch.linspace(0, 1, 101)
    made, real = (volumes[volumes > 0].quantile(shares) for volumes in (out, x))
    torch.testing.assert_close(made, real, atol=0.025, rtol=0)  # straight between quantiles
    hazy = raw[:, :1].clamp(0, 1)  # as it was: 5 percent dark voxels and no zeros
    assert (hazy == 0).float().mean() < 0.01
    assert abs(hazy.quantile(0.05) - x[x > 0].quantile(0.05)) > 0.05


def test_the_map_is_monotone_and_linear_between_its_knots() -> None:
    rule, x = OutputRule(), scans(4)
    rule.fit(decoded(x).transpose(0, 1).flatten(1), x.flatten())
    values = torch.linspace(-0.5, 1.5, 24 * 28 * 24).view(1, 1, *SHAPE)
    out = rule(torch.cat([values, torch.full_like(values, 9.0)], dim=1))
    expected = np.interp(values.flatten(), rule.decoded.numpy(), rule.scans.numpy())
    np.testing.assert_allclose(out.flatten(), expected, atol=1e-5)
    assert (out.flatten().diff() >= 0).all()
    assert out.min() >= x[x > 0].min()


def test_a_rule_that_was_not_measured_leaves_intensities_as_they_are() -> None:
    raw = torch.randn(2, 2, *SHAPE)
    torch.testing.assert_close(OutputRule()(raw), raw[:, :1].clamp(0, 1))


def test_scans_without_background_and_without_a_head() -> None:
    x, rule = scans(2).clamp(min=0.1), OutputRule()
    rule.fit(decoded(x).transpose(0, 1).flatten(1), x.flatten())
    assert (rule(decoded(x)) > 0).all()
    with pytest.raises(InputError, match="0 everywhere"):
        rule.fit(torch.rand(2, 10), torch.zeros(10))
    with pytest.raises(InputError, match="decodes is not finite; a lower --lr"):
        rule.fit(torch.full((2, 10), torch.nan), torch.rand(10))


def test_an_undecided_network_has_no_outside() -> None:
    x, rule = scans(2), OutputRule()
    raw = decoded(x)
    raw[:, 1] = 0.25
    rule.fit(raw.transpose(0, 1).flatten(1), x.flatten())
    assert (rule(raw) > 0).all()


def test_intensities_do_not_count_at_the_border_outside_the_head() -> None:
    x = scans(2)
    raw = decoded(x).requires_grad_()
    terms = reconstruction(raw, x, "l1")
    inside = (x > 0)[:, 0]
    near = torch.from_numpy(ndimage.binary_dilation(inside, np.ones((1, 5, 5, 5))))
    counted = inside | ~near
    assert 0 < (near & ~inside).sum() < near.sum()
    expected = ((raw[:, 0] - x[:, 0]).abs() * counted).sum() / x.numel()
    torch.testing.assert_close(terms["reconstruction"], expected, atol=1e-6, rtol=0)
    p = raw[:, 1].sigmoid()
    expected = -torch.where(inside, p.log(), (1 - p).log()).mean()
    torch.testing.assert_close(terms["support"], expected, atol=1e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad(terms["reconstruction"], raw)
    assert torch.equal(gradient[:, 0] != 0, counted)
    assert soft_volume(raw).shape == x.shape
    one = raw[:, :1]
    torch.testing.assert_close(reconstruction(one, x, "l2")["reconstruction"], (one - x).square().mean())
    assert soft_volume(one) is one


def test_decode_is_finish_of_decode_raw() -> None:
    torch.manual_seed(0)
    model = Autoencoder(ModelConfig(channels=(8, 8), groups=4, support=True)).eval()
    z = torch.randn(2, 4, 6, 7, 6)
    raw = model.decode_raw(z)
    assert raw.shape == (2, 2, 12, 14, 12)
    model.output.fit(raw.detach().transpose(0, 1).flatten(1), scans(2)[..., :12, :14, :12].flatten())
    assert torch.equal(model.decode(z, (12, 14, 12)), model.output(raw))
    assert 0.2 < (model.decode(z, (12, 14, 12)) == 0).float().mean() < 0.9
    plain = Autoencoder(ModelConfig(channels=(8, 8), groups=4)).eval()
    assert torch.equal(plain.decode(z, (12, 14, 12)), plain.decode_raw(z).clamp(0, 1))
