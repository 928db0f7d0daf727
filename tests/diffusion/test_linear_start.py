"""The linear start: exact on the Gaussians it models, for every process and target; classes apart by their means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import fft

from diffusion.config import ModelConfig, ProcessConfig
from diffusion.model import DiT
from diffusion.model.linear_start import LinearStart
from diffusion.model.start_means import class_means
from diffusion.process import Process, build_process

SHAPE = (1, 2, 3, 4)
SIZE = 24
CASES = {
    "noise": (ProcessConfig(target="noise"), (10, 300, 800)),
    "x0": (ProcessConfig(target="x0"), (10, 300, 800)),
    "velocity": (ProcessConfig(target="velocity"), (10, 300, 800)),
    "cosine velocity": (ProcessConfig(schedule="cosine", target="velocity"), (0, 300, 999)),
    "flow velocity": (ProcessConfig(schedule="flow", target="velocity"), (0.37, 300.5, 1000.0)),
    "flow x0": (ProcessConfig(schedule="flow", target="x0"), (10.5, 300.25, 1000.0)),
}


def axes_of_two() -> torch.Tensor:
    """Two orthonormal axes (2, 24), float64."""
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(SIZE, 2, generator=generator, dtype=torch.float64))[0].T


def gaussian(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents with strong axes of variance 9 and 4 over a rest of 0.25, and two classes that differ at 12 positions."""
    generator = torch.Generator().manual_seed(1)
    strong = torch.randn(count, 2, generator=generator) * torch.tensor([8.75, 3.75]).sqrt()
    z = strong @ axes_of_two().float() + 0.5 * torch.randn(count, SIZE, generator=generator)
    y = torch.arange(count) % 2
    z[:, :12] += 1.5 * y[:, None]
    return z.view(count, *SHAPE), y


def times(process: Process, time: float, count: int) -> torch.Tensor:
    return torch.full((count,), time, dtype=torch.float32 if process.is_flow else torch.long)


@pytest.mark.parametrize("case", CASES)
def test_prediction_is_the_posterior_mean_of_a_known_gaussian(case: str) -> None:
    """Against m + alpha S (alpha^2 S + sigma^2 I)^-1 (z_t - alpha m) with the full covariance S, in float64."""
    config, moments = CASES[case]
    process = build_process(config)
    generator = torch.Generator().manual_seed(2)
    start = LinearStart(2, SHAPE, 2, process).double()
    start.axes.copy_(axes_of_two())
    start.variances.copy_(torch.tensor([9.0, 4.0]))
    start.spectrum.fill_(0.25)
    start.means.copy_(torch.randn(3, SIZE, generator=generator))
    U = axes_of_two().T
    S = U @ torch.diag(torch.tensor([8.75, 3.75], dtype=torch.float64)) @ U.T + 0.25 * torch.eye(SIZE)
    y = torch.tensor([0, 1, 2, 2])
    z_t = torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64)
    for time in moments:
        t = times(process, time, 4)
        alpha, sigma = process.at(time)
        m = start.means[y]
        inverse = torch.linalg.inv(alpha**2 * S + sigma**2 * torch.eye(SIZE))
        centred = (z_t.flatten(1) - alpha * m) @ inverse
        z_hat, eps_hat = m + alpha * centred @ S, sigma * centred
        expected = process.wanted(z_hat.view_as(z_t), eps_hat.view_as(z_t), t)
        # The process's coefficients are float32.
        torch.testing.assert_close(start(z_t, t, y), expected, atol=2e-6, rtol=2e-5)


def test_the_cosine_transform_is_scipys_and_has_an_inverse() -> None:
    start = LinearStart(2, (3, 5, 4, 6), 2, build_process(ProcessConfig()))
    z = torch.randn(2, 3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    found = start.cosine_transform(z)
    np.testing.assert_allclose(found, fft.dctn(z.numpy(), axes=(2, 3, 4), norm="ortho"), atol=2e-6)
    torch.testing.assert_close(start.cosine_transform(found, inverse=True), z, atol=2e-6, rtol=0)


def test_a_smooth_rest_is_denoised_as_such() -> None:
    """Against the full covariance, where axes are cosines, so that the rest's frequencies are not mixed by them; and
    better than a white rest of the same variance, fitted to the same smooth latents.
    """
    process = build_process(ProcessConfig(target="x0"))
    start = LinearStart(2, SHAPE, 2, process).double()
    basis = start.cosine_transform(torch.eye(SIZE, dtype=torch.float64).view(SIZE, *SHAPE), inverse=True).flatten(1)
    spectrum = torch.logspace(0.5, -2.0, SIZE, dtype=torch.float64)
    start.axes.copy_(basis[[0, 5]])
    start.variances.copy_(torch.tensor([9.0, 4.0]))
    start.spectrum.copy_(spectrum.view(SHAPE))
    variances = spectrum.clone()
    variances[[0, 5]] = torch.tensor([9.0, 4.0], dtype=torch.float64)
    S = basis.T @ torch.diag(variances) @ basis
    t = torch.full((4,), 300)
    alpha, sigma = process.at(300)
    draw = torch.Generator().manual_seed(0)
    z_t = torch.randn(4, *SHAPE, generator=draw, dtype=torch.float64)
    inverse = torch.linalg.inv(alpha**2 * S + sigma**2 * torch.eye(SIZE))
    expected = alpha * z_t.flatten(1) @ inverse @ S
    torch.testing.assert_close(start(z_t, t, t % 2).flatten(1), expected, atol=1e-6, rtol=1e-4)

    z = ((torch.randn(4000, SIZE, generator=draw).double() * variances.sqrt()) @ basis).view(-1, *SHAPE).float()
    fitted, y, t = LinearStart(2, SHAPE, 2, process), torch.arange(4000) % 2, torch.full((4000,), 300)
    fitted.fit(z, y)
    z_t = process.noised(z, torch.randn(z.shape, generator=draw), t)
    errors = []
    for rest in (fitted.spectrum.clone(), torch.full(SHAPE, float(fitted.spectrum.mean()))):
        fitted.spectrum.copy_(rest)
        errors.append((fitted(z_t, t, y) - z).square().mean())
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("case", CASES)
def test_no_linear_predictor_is_better(case: str) -> None:
    """Least squares from z_t and the class to the target, fitted on the same draws, gains less than two percent."""
    config, moments = CASES[case]
    process = build_process(config)
    z, y = gaussian(20_000)
    start = LinearStart(2, SHAPE, 2, process)
    start.fit(z, y)
    for time in moments:
        t = times(process, time, len(z))
        eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(int(time)))
        z_t, wanted = process.noised(z, eps, t), process.wanted(z, eps, t).flatten(1)
        inputs = torch.cat([z_t.flatten(1), torch.nn.functional.one_hot(y)], dim=1).double()
        best = torch.linalg.lstsq(inputs, wanted.double()).solution
        best_loss = (inputs @ best - wanted).square().mean()
        loss = (start(z_t, t, y).flatten(1) - wanted).square().mean()
        assert loss < 1.02 * best_loss + 1e-4
        assert loss < wanted.square().mean()


def test_the_fit_finds_means_axes_and_variances() -> None:
    z, y = gaussian(20_000)
    start = LinearStart(2, SHAPE, 2, build_process(ProcessConfig()))
    start.fit(z, y)
    torch.testing.assert_close(start.variances, torch.tensor([9.0, 4.0]), atol=0, rtol=0.05)
    torch.testing.assert_close(start.spectrum.sum(), torch.tensor(22 * 0.25), atol=0, rtol=0.05)  # without the axes
    assert (start.axes.double() @ axes_of_two().T).abs().diag().min() > 0.99
    torch.testing.assert_close(start.means[2], z.flatten(1).mean(0))
    difference = start.means[1] - start.means[0]
    torch.testing.assert_close(difference[:12], torch.full((12,), 1.5), atol=0.15, rtol=0)
    assert difference[12:].abs().max() < 0.1


def test_more_axes_than_latents_span_are_axes_all_the_same() -> None:
    """Ten latents around two means span eight dimensions; the ninth axis has no variance, and is orthonormal."""
    z, y = gaussian(10)
    start = LinearStart(9, SHAPE, 2, build_process(ProcessConfig()))
    start.fit(z, y)
    torch.testing.assert_close(start.axes @ start.axes.T, torch.eye(9), atol=1e-5, rtol=0)
    assert (start.variances >= 0).all()
    assert start.variances[8] < 1e-6 < start.variances[7]
    assert start.spectrum.max() < 1e-9


def test_sides_have_means_of_their_own_and_those_of_unknown_side_the_mixtures() -> None:
    """Right TLE at three times the left ones' number, their shift at 12 other positions; a quarter say no side."""
    z, y = gaussian(20_000)
    index = torch.arange(len(z))
    right = (y == 1) & (index % 8 != 1)
    z.view(-1, SIZE)[right, 12:] += 2.0
    side = torch.where(y == 0, 2, right.long())
    side[index % 16 == 3] = 2
    process = build_process(ProcessConfig(target="x0"))
    start = LinearStart(2, SHAPE, 2, process, sides=True)
    start.fit(z, y, side)
    hc, tle, _, left_mean, right_mean = start.means
    torch.testing.assert_close((left_mean - hc)[12:], torch.zeros(12), atol=0.15, rtol=0)
    torch.testing.assert_close((right_mean - hc)[12:], torch.full((12,), 2.0), atol=0.15, rtol=0)
    torch.testing.assert_close(tle, z.flatten(1)[y == 1].mean(0))
    known = side != 2
    torch.testing.assert_close(start.variances, torch.tensor([9.0, 4.0]), atol=0, rtol=0.2)
    plain = LinearStart(2, SHAPE, 2, process)
    plain.fit(z, y, side)  # of a network without sides: nothing changes
    t = torch.full((len(z),), 700)
    z_t = process.noised(z, torch.randn(z.shape, generator=torch.Generator().manual_seed(0)), t)
    rows = known & (y == 1)
    error = {
        name: (found[rows] - z[rows]).square().mean()
        for name, found in {
            "side": start(z_t, t, y, side),
            "none": start(z_t, t, y),
            "plain": plain(z_t, t, y, side),
        }.items()
    }
    assert error["side"] < 0.7 * min(error["none"], error["plain"])


def test_without_sides_the_fit_is_what_it_was() -> None:
    z, y = gaussian(50)
    starts = [LinearStart(2, SHAPE, 2, build_process(ProcessConfig())) for _ in range(2)]
    starts[0].fit(z, y)
    starts[1].fit(z, y, y)
    for name, value in starts[0].state_dict().items():
        assert torch.equal(value, starts[1].state_dict()[name]), name
    assert starts[0].means.shape == (3, SIZE)


def test_class_means_keep_a_weak_effect_of_a_region() -> None:
    """0.3 standard deviations at 200 of 2000 positions: invisible at each of them, right on average over the region."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 2
    z = torch.randn(120, 2000, generator=generator, dtype=torch.float64)
    z[:, 300:500] += 0.3 * y[:, None]
    means = class_means(z, y, 3)
    difference = means[1] - means[0]
    assert difference[300:500].mean() == pytest.approx(0.3, abs=0.04)  # three standard errors
    assert difference[500:].mean() == pytest.approx(0.0, abs=0.02)
    torch.testing.assert_close(means[2], z.mean(0))
    torch.testing.assert_close(class_means(z, torch.zeros_like(y), 3)[1:], z.mean(0).expand(2, -1))


def test_means_follow_covariates_within_classes_and_unknown_ones_leave_them() -> None:
    """A volume that is smaller in patients changes 6 positions; what else the class changes is at others."""
    z, y = gaussian(4000)
    draw = torch.Generator().manual_seed(3)
    c = torch.stack([torch.randn(4000, generator=draw) - 1.0 * y, torch.randn(4000, generator=draw)], 1)
    z.view(-1, SIZE)[:, 18:] += 0.7 * c[:, :1]
    c[::5, 0] = torch.nan
    process = build_process(ProcessConfig(target="x0"))
    start = LinearStart(2, SHAPE, 2, process, covariates=2)
    start.fit(z, y, None, c)
    torch.testing.assert_close(start.slopes[0, 18:], torch.full((6,), 0.7), atol=0.08, rtol=0)
    assert start.slopes[0, :18].abs().max() < 0.15
    assert start.slopes[1].abs().max() < 0.15
    torch.testing.assert_close(start.centres[:2, 0], torch.tensor([0.0, -1.0]), atol=0.1, rtol=0)
    t, label = torch.full((3,), 999), torch.zeros(3, dtype=torch.long)
    asked = torch.tensor([[torch.nan, torch.nan], [start.centres[0, 0], torch.nan], [3.0, torch.nan]])
    unknown, usual, large = start(torch.zeros(3, *SHAPE), t, label, None, asked).flatten(1)
    torch.testing.assert_close(usual, unknown, atol=1e-3, rtol=0)
    assert (large - usual)[18:].mean() == pytest.approx(0.7 * 3, abs=0.25)
    torch.testing.assert_close(start(torch.zeros(3, *SHAPE), t, label)[0], unknown.view(SHAPE))


def test_a_window_keeps_a_region_and_takes_chance_away() -> None:
    """0.5 standard deviations in a block of 4 x 4 x 4 positions, 200 people of each side; chance differs by 0.1."""
    shape, draw = (3, 12, 12, 12), torch.Generator().manual_seed(0)
    side = torch.arange(600) % 3  # L, R, HC
    y = (side < 2).long()
    z = torch.randn(600, *shape, generator=draw)
    block = torch.zeros(shape, dtype=torch.bool)
    block[:, 2:6, 4:8, 4:8] = True
    z[side == 0] += 0.5 * block
    starts = [LinearStart(1, shape, 2, build_process(ProcessConfig()), sides=True, window=width) for width in (0, 1)]
    for start in starts:
        start.fit(z, y, side)
    plain, shrunk = ((start.means[3] - start.means[0]).view(shape) for start in starts)
    assert shrunk[block].mean() == pytest.approx(0.5, abs=0.1)
    assert shrunk[~block].abs().mean() < 0.2 * plain[~block].abs().mean()
    assert (starts[1].means[4] - starts[1].means[0]).abs().mean() < 0.2 * plain[~block].abs().mean()
    torch.testing.assert_close(starts[1].means[0], starts[0].means[0])


def test_a_new_network_predicts_what_the_start_does() -> None:
    config = ModelConfig(dim=32, depth=1, heads=1, patch=(1, 1, 2), linear_rank=2)
    model = DiT(config, SHAPE, build_process(ProcessConfig(target="velocity")))
    z, y = gaussian(50)
    model.start.fit(z, y)
    t = torch.arange(50) * 20
    out = model(z, t, y)
    torch.testing.assert_close(out, model.start(z, t, y))
    assert out.abs().max() > 0.1
    assert {"start.axes", "start.variances", "start.spectrum", "start.means"} <= model.state_dict().keys()


def test_bfloat16_does_not_reach_the_start() -> None:
    start = LinearStart(2, SHAPE, 2, build_process(ProcessConfig(target="velocity")))
    z, y = gaussian(50)
    start.fit(z, y)
    t = torch.arange(50) * 20
    with torch.autocast("cpu", torch.bfloat16):
        inside = start(z, t, y)
    assert torch.equal(inside, start(z, t, y))
