"""Which voxels speak for TLE: the attribution methods, and maps of volumes.

Positive speaks for TLE in all methods that are signed. The map of a volume does not depend on what else is in its
batch: SmoothGrad's noise has the address (seed, purpose, index of the volume, number of the draw), which captum's
NoiseTunnel cannot give. A method is a function of (network, volumes (B, 1, D, H, W), context, indices of the volumes)
that returns maps of the volumes' shape, and its row in METHODS.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from captum.attr import FeatureAblation, InputXGradient, IntegratedGradients, LayerGradCam, Saliency
from torch import nn

from classifier.checkpoint import LoadedClassifier
from cohort.atlas import Atlas
from runtime import seeding
from runtime.device import Device
from runtime.errors import InputError


@dataclass(frozen=True)
class Context:
    """Baseline, regions and numbers of all methods."""

    mean_hc: torch.Tensor
    """(1, 1, D, H, W), the mean control of the training data."""
    regions: torch.Tensor
    """int64 (1, 1, D, H, W), atlas labels, 0 outside every region."""
    ig_steps: int = 32
    """Points of the Gauss-Legendre rule on the path of integrated gradients."""
    noise_samples: int = 16
    """Noisy copies in SmoothGrad."""
    noise: float = 0.1
    """Standard deviation of their noise, in intensity units (volumes span 0 to 1)."""
    batch: int = 8
    """Volumes evaluated at once: points of paths, noisy copies and occluded copies count each."""
    seed: int = 0
    """Seed of all noise."""


def saliency(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """The gradient of the logit, signed. Source: Simonyan et al. 2013, arXiv 1312.6034."""
    return Saliency(model).attribute(x.detach().requires_grad_(True), abs=False)


def smoothgrad(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """The gradient, averaged over noisy copies of the volume. Source: Smilkov et al. 2017, arXiv 1706.03825."""

    def noise(row: int, draw: int) -> torch.Tensor:
        source = seeding.generator(context.seed, "smoothgrad", indices[row], draw, device=x.device)
        return torch.randn(x.shape[1:], generator=source, device=x.device)

    copies = list(itertools.product(range(len(x)), range(context.noise_samples)))
    total = torch.zeros_like(x)
    for start in range(0, len(copies), context.batch):
        chosen = copies[start : start + context.batch]
        rows = torch.tensor([row for row, _ in chosen], device=x.device)
        noisy = x[rows] + context.noise * torch.stack([noise(row, draw) for row, draw in chosen])
        total.index_add_(0, rows, saliency(model, noisy, context, ()))
    return total / context.noise_samples


def input_x_gradient(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """Intensity times gradient: the first-order effect of blackening each voxel. Source: arXiv 1605.01713."""
    return InputXGradient(model).attribute(x.detach().requires_grad_(True))


def integrated_gradients(
    model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int], from_mean_hc: bool = False
) -> torch.Tensor:
    """Integrated gradients from the empty volume, or from the mean control: what differs from an average healthy one.

    Source: Sundararajan et al. 2017, arXiv 1703.01365, equation 1.
    """
    # captum divides the batch among the volumes; each needs one point of its path at least
    numbers = {"n_steps": context.ig_steps, "internal_batch_size": max(context.batch, len(x))}
    baseline = context.mean_hc if from_mean_hc else torch.zeros_like(context.mean_hc)
    return IntegratedGradients(model).attribute(x, baselines=baseline, **numbers)


def occlusion(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """How much the logit falls when one atlas region becomes the mean control's, spread over the region's voxels.

    Voxels outside every region get 0. Replacing by the mean control stays nearer to real volumes than a hole would; its
    borders are sharp all the same.
    """
    codes, features = torch.unique(context.regions, return_inverse=True)
    fall = FeatureAblation(model).attribute(
        x, baselines=context.mean_hc, feature_mask=features, perturbations_per_eval=max(1, context.batch // len(x))
    )
    voxels = torch.bincount(features.flatten(), minlength=len(codes))[features]
    return torch.where(context.regions > 0, fall / voxels, 0.0)


def grad_cam(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """Activations of the last convolution, weighted by their mean gradients, signed. For comparison only.

    One value per place of the last level, constant in H where a network has the coronal slices as channels. Source:
    Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2 without the ReLU.
    """
    layer = getattr(model, "last_convolution", None)
    if layer is None:
        raise InputError(f"grad_cam: {type(model).__name__} names no last convolution; use another method")
    with torch.enable_grad():
        coarse = LayerGradCam(model, layer).attribute(x.detach().requires_grad_(True))  # (B, 1, d, h, w)
    return model.onto_volume(coarse, x.shape[2:])


@torch.no_grad()
def attention(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """Where the pooling head takes its features from: not signed, sums to 1, says nothing about the direction.

    Source: Ilse et al. 2018, arXiv 1802.04712, equation 8.
    """
    weights = model.attention(x) if hasattr(model, "attention") else None
    if weights is None:
        wanted = "train --model.name resnet --model.pool attention"
        raise InputError(f"attention: {type(model).__name__} has no attention head; {wanted}")
    fine = model.onto_volume(weights[:, None].float(), x.shape[2:])
    return fine / fine.sum((2, 3, 4), keepdim=True)


@dataclass(frozen=True)
class Method:
    """One row of the table of methods."""

    function: Callable[[nn.Module, torch.Tensor, Context, Sequence[int]], torch.Tensor]
    unit: str
    """What the numbers of its maps are."""
    baseline: Literal["none", "empty", "mean_hc"] = "none"
    """Whose logit a complete map, summed, is relative to; none where maps sum to nothing in particular."""
    signed: bool = True
    """Whether a positive value speaks for TLE and a negative one for HC."""
    settings: tuple[str, ...] = ()
    """Fields of Context, besides the mean control, that its maps depend on."""


METHODS: dict[str, Method] = {
    "smoothgrad": Method(smoothgrad, "logits per unit of intensity", settings=("noise_samples", "noise", "seed")),
    "saliency": Method(saliency, "logits per unit of intensity"),
    "integrated_gradients": Method(integrated_gradients, "logits", "empty", settings=("ig_steps",)),
    "integrated_gradients_hc": Method(
        partial(integrated_gradients, from_mean_hc=True), "logits", "mean_hc", settings=("ig_steps",)
    ),
    "input_x_gradient": Method(input_x_gradient, "logits, to first order"),
    "occlusion": Method(occlusion, "logits, spread over a region's voxels", settings=("regions",)),
    "grad_cam": Method(grad_cam, "activation times mean gradient"),
    "attention": Method(attention, "share of the pooled features", signed=False),
}

COMPLETE = tuple(name for name, method in METHODS.items() if method.baseline != "none")
"""Methods whose maps sum to the logit minus the baseline's, up to the error of the integration rule."""


def check_methods(names: Sequence[str]) -> None:
    """Refuses unknown methods, and none at all; lists the known ones."""
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise InputError(f"--methods: unknown: {', '.join(unknown) or 'none given'}; there are: {', '.join(METHODS)}")


def context_for(
    loaded: LoadedClassifier, regions: Atlas, device: Device, *, batch: int | None = None, **numbers: int
) -> Context:
    """The context of a classifier on its device; `batch` is by default 8 on a CPU and 32 on a GPU."""
    labels = torch.from_numpy(regions.labels.astype(np.int64))[None, None].to(device.kind)
    batch = batch or (8 if device.kind.type == "cpu" else 32)
    return Context(device.tensor(loaded.mean_hc[None, None]), labels, batch=batch, **numbers)


def settings_of(method: str, context: Context) -> dict[str, float | str]:
    """The settings that a method's maps depend on, as plain values (regions by their hash)."""
    found = {name: getattr(context, name) for name in METHODS[method].settings}
    if "regions" in found:
        found["regions"] = hashlib.sha256(context.regions.cpu().numpy().tobytes()).hexdigest()[:16]
    return found


def attribute(
    model: nn.Module, x: torch.Tensor, method: str, context: Context, indices: Sequence[int] = (0,)
) -> np.ndarray:
    """Maps float32 (B, D, H, W) of volumes (B, 1, D, H, W) in [0, 1]; each is what it would be alone, up to rounding.

    `model` gives logits (B,) and is in evaluation mode; `indices` (B,) are the addresses of the volumes' random draws.
    InputError for volumes that are not the network's, and a method that this network does not allow.
    """
    if x.dim() != 5 or x.shape[1:] != context.mean_hc.shape[1:]:
        wanted = f"(B, {', '.join(map(str, context.mean_hc.shape[1:]))})"
        raise InputError(f"volumes of shape {tuple(x.shape)} cannot be explained: this classifier was trained on "
                         f"{wanted}; bring them onto its grid (cohort.scans.load_scan)")  # fmt: skip
    return METHODS[method].function(model, x.detach(), context, indices).detach()[:, 0].float().cpu().numpy()


@torch.no_grad()
def completeness_errors(
    model: nn.Module, x: torch.Tensor, method: str, context: Context, maps: np.ndarray
) -> list[float | None]:
    """How far each map (B, D, H, W) is from its sum, in logits; None for methods that do not promise one."""
    if method not in COMPLETE:
        return [None] * len(x)
    baseline = context.mean_hc if METHODS[method].baseline == "mean_hc" else torch.zeros_like(context.mean_hc)
    logits = model(torch.cat([x, baseline])).double().cpu().numpy()
    return (maps.sum((1, 2, 3), dtype=np.float64) - (logits[:-1] - logits[-1])).tolist()
