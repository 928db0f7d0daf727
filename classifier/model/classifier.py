"""What every classifier has in common: the constants of its input, the pooling of its last level, its logits.

Shapes: x (B, 1, D, H, W) in [0, 1], axes (left-right, back-front, foot-head); features (B, C, d, h, w); logits (B,).
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import nn

from classifier.config import ModelConfig
from cohort.grids import Grid
from runtime import distributed


class Classifier(nn.Module, ABC):
    """Standardised volume to features to pooled features to one logit (TLE) or two (TLE, and right against left).

    A network makes its layers, `activation` (never in place) for its last level too, calls `add_head`, and says with
    `trunk` how data flow through them. Nothing in it may draw random numbers, and in evaluation mode nothing may depend
    on other volumes of the batch: then a run resumes exactly, several processes equal one, and attributions may put any
    volumes in one batch. Its constructor also takes their grid; `mean` and `std` are those of all training voxels.
    """

    activation: nn.Module
    width: int
    """Pooled features of a volume, of which training drops some."""

    def __init__(self, config: ModelConfig, mean: float, std: float) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        self.score: nn.Module | None = None

    @staticmethod
    @abstractmethod
    def last_level(config: ModelConfig, grid: Grid) -> tuple[int, ...]:
        """Voxels of the last level along each axis that it still has."""

    @abstractmethod
    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        """Standardised volumes (B, 1, D, H, W) to the last level (B, C, d, h, w), before its activation."""

    def add_head(self, width: int, *, attention: bool) -> None:
        """Makes the layers behind the features; with `attention` they are weighted by place, else averaged."""
        self.width = width
        self.standardise = FeatureNorm(width) if self.config.feature_norm else nn.Identity()
        self.head = undecided(width, self.config.outputs + 2 * self.config.volumes)
        if attention:
            # w tanh(V h), equation 8 of Ilse et al. 2018, and not the gated form (equation 9): half the parameters, and
            # cohorts are small. With w = 0 all places start with the same weight, which is averaging.
            w = nn.Linear(width // 4, 1, bias=False)
            nn.init.zeros_(w.weight)
            self.score = nn.Sequential(nn.Linear(width, width // 4), nn.Tanh(), w)

    @property
    def last_convolution(self) -> nn.Module:
        """Its output (B, C, d, h, w) is pooled, and what Grad-CAM weighs; with averaging, class activation mapping."""
        return self.activation

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Volumes (B, 1, D, H, W) to the features that are pooled (B, C, d, h, w)."""
        return self.activation(self.trunk((x - self.mean) / self.std))

    def everything(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """All logits, then the predicted volumes (left, right) of each structure, standardised: (B, outputs + 2 S)."""
        h = self.standardise(self.pool(self.features(x)))  # (B, C)
        return self.head(h if keep is None else h * keep)

    def both(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """All logits (B, outputs): TLE against HC, and where there are two, right against left."""
        found = self.everything(x, keep)
        return found[:, : found.shape[1] - 2 * self.config.volumes]

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of TLE (B,); `keep` (B, C) is a training step's scaled dropout mask."""
        return self.both(x, keep)[:, 0]

    def onto_volume(self, coarse: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Maps on the last level's places (B, 1, d, h, w), interpolated to the volume's voxels (B, 1, D, H, W)."""
        return F.interpolate(coarse, size=shape, mode="trilinear", align_corners=False)

    def attention(self, x: torch.Tensor) -> torch.Tensor | None:
        """Weight of each place of the last level, (B, d, h, w), sums to 1; None when all count the same."""
        return None if self.score is None else self._weights(self.features(x))

    def pool(self, h: torch.Tensor) -> torch.Tensor:
        """Features (B, C, d, h, w) to (B, C). Source: Ilse et al. 2018, arXiv 1802.04712, equation 7."""
        if self.score is None:
            return h.mean((2, 3, 4))
        return (h * self._weights(h)[:, None]).sum((2, 3, 4))

    def _weights(self, h: torch.Tensor) -> torch.Tensor:
        score = self.score(h.flatten(2).transpose(1, 2))[..., 0]  # (B, d h w)
        return score.float().softmax(dim=1).unflatten(1, h.shape[2:])  # (B, d, h, w)


class FeatureNorm(nn.Module):
    """Pooled features (B, C) to mean 0 and variance 1 over subjects; batch normalisation without learned factors.

    Features averaged over a volume hardly differ between subjects (measured on the demo cohort: standard deviation 0.02
    about a mean of 0.2), because group normalisation has removed each volume's own level; a linear layer on them learns
    next to nothing. In training the statistics are those of the batch, over all processes, with their gradient; in
    evaluation the running ones. Source: Ioffe & Szegedy 2015, arXiv 1502.03167, algorithm 1.
    """

    RATE = 0.1
    EPSILON = 1e-6

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        h = h.float()
        if not self.training:
            return (h - self.running_mean) * torch.rsqrt(self.running_var + self.EPSILON)
        mean = distributed.mean_with_gradient(h.mean(0))
        var = distributed.mean_with_gradient(((h - mean) ** 2).mean(0))
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.RATE)
            self.running_var.lerp_(var, self.RATE)
        return (h - mean) * torch.rsqrt(var + self.EPSILON)


def undecided(width: int, outputs: int) -> nn.Linear:
    """A linear layer of zeros: an untrained network answers "no idea", logit 0."""
    layer = nn.Linear(width, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Everything(nn.Module):
    """A classifier whose `forward` is `everything`: DistributedDataParallel and the compiler see `forward` alone."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        return self.classifier.everything(x, keep)
