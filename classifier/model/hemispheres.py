"""A network that compares the two halves of the head: what is seen on the left, and the mirror image of the right.

Epilepsy of the temporal lobe starts on one side, whose hippocampus is smaller than the other one. One network looks at
both halves, the right one mirrored, so that a lesion of either side is one thing to learn. It reads each half out by
place, and gives each a logit from its own summaries and those of the other half. Over HC (logit 0), TLE-L and TLE-R
(the logits l of the halves) this is a softmax: TLE has the logit log(exp l_left + exp l_right), right against left the
difference. Mirroring a volume exchanges the sides' logits and leaves that of TLE as it is.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from classifier.config import ModelConfig
from classifier.model.classifier import Classifier, FeatureNorm, undecided
from classifier.model.resnet import levels, shrunk
from cohort.atlas import atlas
from cohort.grids import Grid
from runtime.errors import InputError
from runtime.layers.group_norm import GroupNorm

Box = tuple[slice, slice, slice]
REGION = ("Hippocampus", "Amygdala")


class Hemispheres(Classifier):
    """Box of each half, ResNet, summaries by place, one logit per half; features are (2 B, C, d, h, w), left first."""

    def __init__(self, config: ModelConfig, grid: Grid, mean: float, std: float) -> None:
        super().__init__(config, mean, std)
        self.box = box_of(config, grid)
        width, K = config.widths[-1], config.summaries
        self.stem = nn.Conv3d(1, config.widths[0], 3, stride=config.stem_stride, padding=1, bias=False)
        self.blocks = levels(config)
        self.norm = GroupNorm(config.groups, width)
        self.activation = nn.SiLU()
        self.readout = nn.Linear(width * math.prod(self.last_level(config, grid)), K, bias=False)
        self.standardise = FeatureNorm(K) if config.feature_norm else nn.Identity()
        self.width = 2 * K
        self.head = undecided(2 * K, 1)
        nn.init.constant_(self.head.bias, -math.log(2))  # two sides of 1/4 each, so that TLE has 1/2
        self.regions = undecided(K, config.volumes) if config.volumes else None

    @staticmethod
    def last_level(config: ModelConfig, grid: Grid) -> tuple[int, ...]:
        return shrunk(config, tuple(part.stop - part.start for part in box_of(config, grid)))

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        halves = torch.cat([x, x.flip(2)])[:, :, *self.box]  # (2B, 1, d', h', w')
        return self.norm(self.blocks(self.stem(halves)))

    def pool(self, h: torch.Tensor) -> torch.Tensor:
        """Features (2B, C, d, h, w) to summaries of each half (2B, K)."""
        return self.readout(h.flatten(1))

    def everything(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        z = self.standardise(self.pool(self.features(x))).unflatten(0, (2, -1))  # (2, B, K), left first
        if keep is not None:
            z = z * torch.stack(keep.chunk(2, dim=1))
        left, right = self.head(torch.cat([z, z.flip(0)], dim=2))[..., 0].float()  # a half, and the other one
        found = [torch.logaddexp(left, right)[:, None], (right - left)[:, None]]
        if self.regions is not None:
            found.append(self.regions(z).permute(1, 2, 0).flatten(1).float())  # (B, S, 2) to (B, 2S)
        return torch.cat(found, dim=1)

    def onto_volume(self, coarse: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Maps of both halves (2B, 1, d, h, w) in their places of the volume (B, 1, D, H, W), 0 outside the boxes."""
        fine = F.interpolate(coarse, [part.stop - part.start for part in self.box], mode="trilinear")
        whole = coarse.new_zeros(len(coarse), 1, *shape)
        whole[:, :, *self.box] = fine
        left, right = whole.chunk(2)
        return left + right.flip(2)


def box_of(config: ModelConfig, grid: Grid) -> Box:
    """Voxels of the left half that are seen; InputError on a grid whose halves are no mirror images."""
    if abs(grid.centre_mm[0]) > 1e-3:
        raise InputError(f"--model.name hemispheres: the grid {grid.name} is not symmetric about the midline, x = 0")
    if config.margin_mm < 0:
        raise InputError(f"--model.margin-mm {config.margin_mm:g}: cannot be negative")
    half = (-(-grid.shape[0] // 2), *grid.shape[1:])  # of an odd number of voxels the middle one is in both halves
    if config.region == "head":
        return tuple(slice(0, size) for size in half)
    regions = atlas(grid)
    left = sum(regions.mask(f"Left {name}") | regions.mask(f"Right {name}")[::-1] for name in REGION) > 0
    places = left.nonzero()
    margin = math.ceil(config.margin_mm / grid.spacing_mm)
    ends = zip(places, half, strict=True)
    return tuple(slice(max(0, int(at.min()) - margin), min(size, int(at.max()) + 1 + margin)) for at, size in ends)
