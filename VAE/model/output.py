"""From the decoder's two channels to a volume: what is outside the head is exactly 0, as in a scan.

A network that is trained on intensities alone leaves a haze of small values where scans have none, and rounds off the
dark rim of the head: the share of zeros by itself then tells its volumes from scans. Here a second channel, a logit,
says which voxels belong to the head, and intensities are learned inside the head only, so that an uncertain border
moves the border rather than darkening it. Two constants of the trained network make the rest agree: the threshold of
the logit that leaves as many voxels outside as scans have, and a monotone map that gives the intensities of decoded
scans the distribution of the scans' own (histogram matching; Nyul et al. 2000, https://doi.org/10.1109/42.836373). Both
are measured on decoded training scans and decoded draws of a Gaussian of their latents (`VAE.train.calibrate`), and
travel with the weights. No volume is compared with a scan when it is made.
"""

import numpy as np
import torch
from torch import nn

from runtime.errors import InputError

LEVELS = (0.001, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, *(k / 20 for k in range(2, 20)), 0.98, 0.995, 0.999)
"""Quantiles at which the map is measured; dense at the dark end, where the border of the head lies. The smallest and
the largest voxel are no measure of anything; what lies beyond the outermost levels is clipped to them."""


class OutputRule(nn.Module):
    """Zeros outside the head and the scans' intensities inside, by constants that `fit` measures."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(torch.finfo().min))  # until it is measured, nothing is outside
        for name in ("decoded", "scans"):
            self.register_buffer(name, torch.linspace(0, 1, len(LEVELS)))

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """Intensities and logits (B, 2, D, H, W) -> volumes (B, 1, D, H, W) in [0, 1]."""
        x, logit = raw.split(1, dim=1)
        place = torch.searchsorted(self.decoded, x.contiguous()).clamp(1, len(LEVELS) - 1)
        low, high = self.decoded[place - 1], self.decoded[place]
        share = ((x - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
        x = torch.lerp(self.scans[place - 1], self.scans[place], share)
        return torch.where(logit > self.threshold, x, 0.0)

    @torch.no_grad()
    def fit(self, raw: torch.Tensor, x: torch.Tensor) -> None:
        """Measures the constants on voxels: decoded intensities and logits (2, N) and the scans' own values (N,)."""
        inside = x[x > 0]
        if len(inside) == 0:
            raise InputError("the scans are 0 everywhere")
        if not raw.isfinite().all():
            raise InputError("what the network decodes is not finite; a lower --lr or --precision float32 may help")
        outside = len(x) - len(inside)
        threshold = ordered(raw[1])[outside - 1] if outside else raw[1].min() - 1
        if not (raw[1] > threshold).any():  # a network at its start, undecided everywhere
            threshold = raw[1].min() - 1
        self.threshold.copy_(threshold)
        quantiles = torch.tensor(LEVELS, dtype=torch.float64)
        for name, values in (("decoded", raw[0][raw[1] > threshold]), ("scans", inside)):
            getattr(self, name).copy_(ordered(values)[(quantiles * (len(values) - 1)).round().long()])


def ordered(values: torch.Tensor) -> torch.Tensor:
    """Values (N,) of the CPU from the smallest on; torch's sort makes places as well, which take twice the memory."""
    return torch.from_numpy(np.sort(values.numpy()))
