"""Attribution by gradients of the logit: at the volume, around it, and along paths that lead to it.

Shapes: volumes and maps (B, 1, D, H, W). The map of a volume does not depend on what else is in its batch: noise and
random points have the address (seed, purpose, index of the volume, number of the draw).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from scipy import ndimage
from torch import nn

from classifier.saliency.explanation import Context
from runtime import seeding

BLURS_VOXELS = (1.0, 2.0)
"""Standard deviations of the blurred mean controls among gradient SHAP's baselines."""
NOISY_BASELINES = 2


def saliency(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """The gradient of the logit, signed. Source: Simonyan et al. 2013, arXiv 1312.6034."""
    return Saliency(model).attribute(x.detach().requires_grad_(True), abs=False)


def smoothgrad(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """The gradient, averaged over noisy copies of the volume. Source: Smilkov et al. 2017, arXiv 1706.03825."""
    total = torch.zeros_like(x)
    for rows, draws in _chunks(len(x), context.noise_samples, context.batch):
        noise = [_normal(context, "smoothgrad", x, indices[row], draw) for row, draw in zip(rows, draws, strict=True)]
        total.index_add_(0, _index(rows, x), _gradient(model, x[rows] + context.noise * torch.stack(noise)))
    return total / context.noise_samples


def input_x_gradient(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """Intensity times gradient: the first-order effect of blackening each voxel. Source: arXiv 1605.01713."""
    return InputXGradient(model).attribute(x.detach().requires_grad_(True))


def integrated_gradients(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """Integrated gradients from the empty volume. Source: Sundararajan et al. 2017, arXiv 1703.01365, equation 1."""
    return _integrate(model, x, torch.zeros_like(context.mean_hc), context)


def integrated_gradients_hc(
    model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]
) -> torch.Tensor:
    """Integrated gradients from the mean control: what distinguishes this volume from an average healthy one."""
    return _integrate(model, x, context.mean_hc, context)


def gradient_shap(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """Integrated gradients averaged over several baselines, by random points (expected gradients).

    The baselines (`shap_baselines`) take turns, and the points are stratified along the path, one in each of
    `shap_samples` equal parts: less variance than independent draws, the same expectation. Sources: Lundberg & Lee
    2017, arXiv 1705.07874; Erion et al. 2021, arXiv 1906.10670, equation 2.
    """
    baselines = shap_baselines(context)
    total = torch.zeros_like(x)
    for rows, draws in _chunks(len(x), context.shap_samples, context.batch):
        from_ = baselines[[draw % len(baselines) for draw in draws]]
        steps = [_share(context, indices[row], draw) for row, draw in zip(rows, draws, strict=True)]
        alpha = torch.tensor(steps, dtype=x.dtype, device=x.device).view(-1, 1, 1, 1, 1)
        away = x[rows] - from_
        total.index_add_(0, _index(rows, x), away * _gradient(model, from_ + alpha * away))
    return total / context.shap_samples


def shap_baselines(context: Context) -> torch.Tensor:
    """Gradient SHAP's baselines (5, 1, D, H, W): the mean control, two blurred and two noisy copies of it.

    Single controls of the training data are no part of a checkpoint (they are people's scans); its variants stand in
    for them.
    """
    mean = context.mean_hc
    image = mean[0, 0].cpu().numpy()
    blurred = [torch.from_numpy(ndimage.gaussian_filter(image, sigma))[None, None].to(mean) for sigma in BLURS_VOXELS]
    noise = [_normal(context, "gradient_shap_baseline", mean, 0, draw)[None] for draw in range(NOISY_BASELINES)]
    return torch.cat([mean, *blurred, *(mean + context.noise * one for one in noise)])


def _integrate(model: nn.Module, x: torch.Tensor, baseline: torch.Tensor, context: Context) -> torch.Tensor:
    # captum divides the batch among the volumes; each needs one point of its path at least
    size = max(context.batch, len(x))
    return IntegratedGradients(model).attribute(
        x, baselines=baseline, n_steps=context.ig_steps, internal_batch_size=size
    )


def _gradient(model: nn.Module, points: torch.Tensor) -> torch.Tensor:
    """Gradient of each volume's logit at each point (B, 1, D, H, W)."""
    points = points.detach().requires_grad_(True)
    with torch.enable_grad():
        return torch.autograd.grad(model(points).sum(), points)[0]


def _chunks(volumes: int, draws: int, batch: int) -> Iterator[tuple[list[int], list[int]]]:
    """All pairs of volume and draw, `batch` at a time, as rows and numbers of draws."""
    pairs = [(row, draw) for row in range(volumes) for draw in range(draws)]
    for start in range(0, len(pairs), batch):
        rows, numbers = zip(*pairs[start : start + batch], strict=True)
        yield list(rows), list(numbers)


def _index(rows: list[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(rows, device=like.device)


def _normal(context: Context, purpose: str, like: torch.Tensor, index: int, draw: int) -> torch.Tensor:
    source = seeding.generator(context.seed, purpose, index, draw, device=like.device)
    return torch.randn(like.shape[1:], generator=source, device=like.device)


def _share(context: Context, index: int, draw: int) -> float:
    """A random place in the draw's own part of the path, in (0, 1)."""
    drawn = torch.rand((), generator=seeding.generator(context.seed, "gradient_shap", index, draw))
    return (draw + float(drawn)) / context.shap_samples
