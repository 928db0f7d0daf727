"""Which voxels speak for TLE: the table of attribution methods, and maps of volumes.

Every map is float32 (D, H, W), per voxel; positive speaks for TLE in all methods that are signed. What its numbers are
stands in the table: in a complete method they are logits and sum to the difference of the volume's logit from that of
its baseline.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from classifier.checkpoint import LoadedClassifier
from classifier.saliency.activation import attention, grad_cam, occlusion
from classifier.saliency.gradients import (
    Context,
    input_x_gradient,
    integrated_gradients,
    integrated_gradients_hc,
    saliency,
    smoothgrad,
)
from cohort.atlas import Atlas
from runtime.device import Device
from runtime.errors import InputError


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    function: Callable[[nn.Module, torch.Tensor, Context, Sequence[int]], torch.Tensor]
    """(network, volumes (B, 1, D, H, W), context, indices of the volumes) to maps of the volumes' shape."""
    unit: str
    """What the numbers of its maps are."""
    baseline: Literal["none", "empty", "mean_hc"] = "none"
    """What a complete map is relative to; none where maps sum to nothing in particular."""
    signed: bool = True
    """Whether a positive value speaks for TLE and a negative one for HC."""
    settings: tuple[str, ...] = ()
    """Fields of Context, besides the mean control, that its maps depend on."""


METHODS: dict[str, Method] = {
    "smoothgrad": Method(smoothgrad, "logits per unit of intensity", settings=("noise_samples", "noise", "seed")),
    "saliency": Method(saliency, "logits per unit of intensity"),
    "integrated_gradients": Method(integrated_gradients, "logits", "empty", settings=("ig_steps",)),
    "integrated_gradients_hc": Method(integrated_gradients_hc, "logits", "mean_hc", settings=("ig_steps",)),
    "input_x_gradient": Method(input_x_gradient, "logits, to first order"),
    "occlusion": Method(occlusion, "logits, spread over a region's voxels", settings=("regions",)),
    "grad_cam": Method(grad_cam, "activation times mean gradient"),
    "attention": Method(attention, "share of the pooled features", signed=False),
}

COMPLETE = tuple(name for name, method in METHODS.items() if method.baseline != "none")
"""Methods whose maps sum to the logit minus the baseline's, up to the error of the integration rule."""


def check_methods(names: Sequence[str]) -> None:
    """Raises InputError that names the unknown methods, guesses what was meant, and lists the known ones."""
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        meant = {guess for name in unknown for guess in difflib.get_close_matches(name, METHODS, n=1)}
        hint = f" (did you mean {', '.join(sorted(meant))}?)" if meant else ""
        raise InputError(
            f"--methods: unknown: {', '.join(unknown) or 'none given'}{hint}; there are: {', '.join(METHODS)}"
        )


def context_for(
    loaded: LoadedClassifier, regions: Atlas, device: Device, *, batch: int | None = None, **numbers: int
) -> Context:
    """The context of a classifier on its device; `batch` is by default 8 on a CPU and 32 on a GPU."""
    labels = torch.from_numpy(regions.labels.astype(np.int64))[None, None].to(device.kind)
    batch = batch or (8 if device.kind.type == "cpu" else 32)
    return Context(device.tensor(loaded.mean_hc[None, None]), labels, batch=batch, **numbers)


def settings_of(method: str, context: Context) -> dict[str, float | str]:
    """The settings that a method's maps depend on, as plain values (tensors by their hash)."""
    values = {name: getattr(context, name) for name in METHODS[method].settings}
    return {
        name: hashlib.sha256(value.cpu().numpy().tobytes()).hexdigest()[:16] if torch.is_tensor(value) else value
        for name, value in values.items()
    }


def attribute(
    model: nn.Module, x: torch.Tensor, method: str, context: Context, indices: Sequence[int] = (0,)
) -> np.ndarray:
    """Maps of several volumes; each is what it would be alone, up to rounding.

    Args:
        model: gives logits (B,) for volumes (B, 1, D, H, W); in evaluation mode.
        x: (B, 1, D, H, W) in [0, 1]; at most `context.batch` of them make good use of it.
        method: a name in METHODS.
        context: baseline, regions and numbers.
        indices: B numbers, the addresses of the volumes' random draws.

    Returns:
        float32 (B, D, H, W).

    Raises:
        InputError: volumes that are not the network's, or a method that this network does not allow.
    """
    if x.dim() != 5 or x.shape[1:] != context.mean_hc.shape[1:]:
        raise InputError(
            f"volumes of shape {tuple(x.shape)} cannot be explained: this classifier was trained on (B, "
            f"{', '.join(map(str, context.mean_hc.shape[1:]))}); bring them onto its grid (cohort.scans.load_scan)"
        )
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
