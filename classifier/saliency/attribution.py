"""Which voxels speak for TLE: the table of attribution methods, and maps of one volume or of many.

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

from classifier.saliency.activation import attention, grad_cam
from classifier.saliency.deeplift import deeplift
from classifier.saliency.explanation import Context, check_input
from classifier.saliency.gradients import (
    gradient_shap,
    input_x_gradient,
    integrated_gradients,
    integrated_gradients_hc,
    saliency,
    shap_baselines,
    smoothgrad,
)
from classifier.saliency.occlusion import occlusion
from runtime.errors import InputError

__all__ = ["COMPLETE", "METHODS", "Context", "Method", "attribute", "attribute_batch", "check_methods",
           "completeness_error", "settings_of"]  # fmt: skip


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    function: Callable[[nn.Module, torch.Tensor, Context, Sequence[int]], torch.Tensor]
    """(network, volumes (B, 1, D, H, W), context, indices of the volumes) to maps of the volumes' shape."""
    unit: str
    """What the numbers of its maps are."""
    baseline: Literal["none", "empty", "mean_hc", "shap"] = "none"
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
    "gradient_shap": Method(gradient_shap, "logits", "shap", settings=("shap_samples", "noise", "seed")),
    "input_x_gradient": Method(input_x_gradient, "logits, to first order"),
    "deeplift": Method(deeplift, "logits", "mean_hc"),
    "occlusion": Method(occlusion, "logits, spread over a region's voxels", settings=("regions",)),
    "grad_cam": Method(grad_cam, "activation times mean gradient"),
    "attention": Method(attention, "share of the pooled features", signed=False),
}

COMPLETE = tuple(name for name, method in METHODS.items() if method.baseline != "none")
"""Methods whose maps sum to the logit minus the baseline's: deeplift exactly, integrated gradients up to the error of
the integration rule, gradient SHAP up to sampling."""


def check_methods(names: Sequence[str]) -> None:
    """Raises InputError that names the unknown methods, guesses what was meant, and lists the known ones."""
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        meant = {guess for name in unknown for guess in difflib.get_close_matches(name, METHODS, n=1)}
        hint = f" (did you mean {', '.join(sorted(meant))}?)" if meant else ""
        raise InputError(
            f"--methods: unknown: {', '.join(unknown) or 'none given'}{hint}; there are: {', '.join(METHODS)}"
        )


def settings_of(method: str, context: Context) -> dict[str, float | str]:
    """The settings that a method's maps depend on, as plain values (tensors by their hash)."""
    values = {name: getattr(context, name) for name in METHODS[method].settings}
    return {
        name: hashlib.sha256(value.cpu().numpy().tobytes()).hexdigest()[:16] if torch.is_tensor(value) else value
        for name, value in values.items()
    }


def attribute_batch(
    model: nn.Module, x: torch.Tensor, method: str, context: Context, indices: Sequence[int]
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
        InputError: an unknown method, volumes that are not the network's, or a method that this network does not allow.
    """
    check_methods((method,))
    check_input(x, context)
    return METHODS[method].function(model, x.detach(), context, indices).detach()[:, 0].float().cpu().numpy()


def attribute(model: nn.Module, x: torch.Tensor, method: str, context: Context, index: int = 0) -> np.ndarray:
    """The map (D, H, W) of one volume (1, 1, D, H, W); see `attribute_batch`."""
    return attribute_batch(model, x, method, context, (index,))[0]


@torch.no_grad()
def completeness_error(model: nn.Module, x: torch.Tensor, method: str, context: Context, map_: np.ndarray) -> float:
    """How far the map of one volume, by one of the COMPLETE methods, is from its sum, in logits."""
    baselines = {
        "empty": lambda: torch.zeros_like(x),
        "mean_hc": lambda: context.mean_hc,
        "shap": lambda: shap_baselines(context),
    }[METHODS[method].baseline]()
    logits = model(torch.cat([x, baselines])).double()
    return float(map_.sum(dtype=np.float64) - float(logits[0] - logits[1:].mean()))
