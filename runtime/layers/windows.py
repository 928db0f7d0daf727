"""What lies in the cube of voxels about each voxel, axis by axis.

PyTorch's pooling takes the whole cube for every voxel on a CPU, 125 values for a side of 5, and one channel in
channels_last_3d without vector instructions: a dilation took a third of a step of the VAE, a mean as much of a step of
the privacy audit's encoder (benchmarks/RESULTS.md, "Where the time goes").
"""

from collections.abc import Callable
from functools import reduce

import torch
import torch.nn.functional as F


def over_windows(
    x: torch.Tensor, margin: int, combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Combines the values within `margin` voxels along each axis of volumes (B, C, D, H, W), 0 outside them, into one.

    `combine` is associative and commutative, such as torch.maximum or torch.add.
    """
    for axis, size in enumerate(x.shape[2:], start=2):
        padded = F.pad(x, [margin if axis == place else 0 for place in (4, 4, 3, 3, 2, 2)])
        x = reduce(combine, (padded.narrow(axis, start, size) for start in range(2 * margin + 1)))
    return x
