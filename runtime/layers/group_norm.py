"""Group normalisation of volumes with a backward pass that is fast on a CPU in channels_last_3d.

There PyTorch's walks through memory channel by channel: of 32 channels at 10,000 places it takes 38 times as long as on
contiguous tensors in bfloat16 and 10 times in float32, more than the convolutions around it
(benchmarks/RESULTS.md, "Where the time goes"). Its forward pass is fast in both layouts.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` to rounding, with the same weights under the same names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        slow = not torch.compiler.is_compiling() and x.device.type == "cpu" and x.requires_grad
        if slow and _is_channels_last(x):
            return _ChannelsLast.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return super().forward(x)


def _is_channels_last(x: torch.Tensor) -> bool:
    """And not contiguous as well, as volumes of one channel are."""
    return x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()


class _ChannelsLast(torch.autograd.Function):
    """Of x (B, C, D, H, W) in channels_last_3d; places are S = D H W, groups G, channels of a group C / G."""

    @staticmethod
    def forward(
        ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float
    ) -> torch.Tensor:
        y, mean, rstd = torch.native_group_norm(x, weight, bias, *x.shape[:2], x[0, 0].numel(), groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Sums over places for each channel, then for each group, in float32; all other work is element by element.

        With x_hat = (x - mean) rstd and g = weight dy, dx = rstd (g - <g> - x_hat <g x_hat>), means over a group.
        """
        x, weight, mean, rstd = ctx.saved_tensors  # mean and rstd are (B, G)
        (B, C), G = x.shape[:2], mean.shape[1]
        values, dy = (part.movedim(1, -1).flatten(1, 3).float() for part in (x, gradient))  # (B, S, C)
        sums, products = dy.sum(1), (dy * values).sum(1)  # (B, C)

        def by_channel(of_group: torch.Tensor) -> torch.Tensor:
            return of_group.repeat_interleave(C // G, dim=1)  # (B, G) to (B, C)

        def by_group(of_channel: torch.Tensor) -> torch.Tensor:
            return (of_channel * weight).view(B, G, -1).sum(2) / (values[0].numel() // G)

        d_weight = ((products - sums * by_channel(mean)) * by_channel(rstd)).sum(0)
        slope = -(by_group(products) - by_group(sums) * mean) * rstd**3  # of x
        shift = -by_group(sums) * rstd - slope * mean
        dx = torch.addcmul(by_channel(shift)[:, None], values, by_channel(slope)[:, None])
        dx.addcmul_(dy, (by_channel(rstd) * weight)[:, None])
        dx = dx.to(x.dtype).unflatten(1, x.shape[2:]).movedim(-1, 1)
        return dx, d_weight, sums.sum(0), None, None
