"""DeepLIFT with the rescale rule for every operation of this stage's networks.

The network runs once on volumes and baselines together. Backwards, each nonlinearity passes on its secant between the
two (rise over run) instead of its derivative, and a product passes on the mean of its other factor; sums of relevance
are then exact, whatever the distance from the baseline. Source: Shrikumar et al. 2017, arXiv 1704.02685, section 3.5;
for products, the Shapley value of two factors (Lundberg & Lee 2017, arXiv 1705.07874).

captum's DeepLift knows modules such as ReLU; it takes GroupNorm, SiLU as a function and attention for linear, and its
maps then sum to something else. GroupNorm is resolved here into mean, square, inverse root and product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from classifier.saliency.explanation import Context
from runtime.errors import InputError

TOLERANCE = 0.005
"""Largest error of completeness, as a share of the logits' difference (in logits where that is below 1). Rules for all
operations leave about 1e-6; one without a rule, such as max pooling, a few percent."""


def deeplift(model: nn.Module, x: torch.Tensor, context: Context, indices: Sequence[int]) -> torch.Tensor:
    """DeepLIFT (rescale) from the mean control.

    Raises:
        InputError: the maps do not sum to the logits' difference; the network then has an operation without a rule.
    """
    baseline = context.mean_hc
    both = torch.cat([x.detach(), baseline.expand_as(x)]).requires_grad_(True)
    with torch.enable_grad(), _Secants():
        logits = model(both)
    multipliers = torch.autograd.grad(logits[: len(x)].sum(), both)[0][: len(x)]
    maps = multipliers * (x - baseline)
    logits = logits.detach().double()
    found, wanted = maps.double().sum((1, 2, 3, 4)), logits[: len(x)] - logits[len(x) :]
    error = float(((found - wanted).abs() / wanted.abs().clamp(min=1)).max())
    if error > TOLERANCE:
        raise InputError(
            f"deeplift: its maps miss the difference of logits by {error:.1%}; {type(model).__name__} has an "
            "operation without a rescale rule. Use integrated_gradients_hc, which asks the same of any network"
        )
    return maps


def _secant(function: Callable[[torch.Tensor], torch.Tensor], a: torch.Tensor) -> torch.Tensor:
    """`function(a)` (2 B, ...), elementwise, whose gradient is the secant between first and second half."""
    first, second = a.detach().chunk(2)
    value = function(a.detach())
    rise, run = value[: len(first)] - value[len(first) :], first - second
    middle = ((first + second) / 2).requires_grad_(True)
    with torch.enable_grad():
        tangent = torch.autograd.grad(function(middle).sum(), middle)[0]
    # short of a thousandth of its own size a run is mostly rounding, and the tangent is as good
    slope = torch.where(run.abs() > 1e-3 * torch.maximum(first.abs(), second.abs()), rise / run, tangent)
    slope = torch.cat([slope, slope])
    return slope * a + (value - slope * a.detach())


def _product(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """`u * v`, whose gradient for each factor is the mean of the other over the two halves."""
    u_mean, v_mean = (torch.cat([half := (part[: len(part) // 2] + part[len(part) // 2 :]) / 2, half])
                      for part in (u.detach(), v.detach()))  # fmt: skip
    linear = u * v_mean + u_mean * v
    return linear + (u * v - linear).detach()


def _group_norm(x: torch.Tensor, groups: int, weight=None, bias=None, eps: float = 1e-5) -> torch.Tensor:
    parts = x.reshape(len(x), groups, -1)  # (2 B, groups, C / groups * voxels)
    centred = parts - parts.mean(2, keepdim=True)
    variance = _secant(torch.square, centred).mean(2, keepdim=True)
    scaled = _product(centred, _secant(lambda value: torch.rsqrt(value + eps), variance)).view_as(x)
    channels = (1, -1, *[1] * (x.dim() - 2))
    scaled = scaled if weight is None else scaled * weight.view(channels)
    return scaled if bias is None else scaled + bias.view(channels)


def _softmax(x: torch.Tensor, dim: int, *_: object, **__: object) -> torch.Tensor:
    top = torch.maximum(*x.detach().amax(dim, keepdim=True).chunk(2))  # one shift for both: softmax does not see it
    powers = _secant(torch.exp, x - torch.cat([top, top]))
    return _product(powers, _secant(torch.reciprocal, powers.sum(dim, keepdim=True)))


def _power(a: torch.Tensor, exponent: float) -> torch.Tensor:
    return _secant(lambda value: value**exponent, a)


def _elementwise(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
    return lambda a, *_, **__: _secant(function, a)


_ACTIVATIONS = {
    F.silu: (F.silu,),
    torch.relu: (F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_),
    torch.sigmoid: (F.sigmoid, torch.sigmoid, torch.Tensor.sigmoid),
    torch.tanh: (F.tanh, torch.tanh, torch.Tensor.tanh),
}
_RULES: dict[Callable, Callable] = {
    **{name: _elementwise(function) for function, names in _ACTIVATIONS.items() for name in names},
    **dict.fromkeys((F.softmax, torch.softmax, torch.Tensor.softmax), _softmax),
    **dict.fromkeys((torch.pow, torch.Tensor.pow, torch.Tensor.__pow__), _power),
    F.group_norm: _group_norm,
}
_PRODUCTS = (torch.mul, torch.Tensor.mul, torch.Tensor.__mul__)


class _Secants(TorchFunctionMode):
    """Within it, the operations of _RULES and products of two activations have the gradients of the rescale rule."""

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        kwargs = kwargs or {}
        if func in _RULES:
            return _RULES[func](*args, **kwargs)
        if func in _PRODUCTS and all(isinstance(part, torch.Tensor) and part.requires_grad for part in args):
            return _product(*args)
        return func(*args, **kwargs)
