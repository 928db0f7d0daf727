"""The means of the linear start: of each class and side, and how they follow covariates, from training latents."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy import ndimage

EXCESS = 1.5
"""How many times the expected chance energy counts as chance: within a neighbourhood the chance is correlated, and its
energy varies more than that of as many independent values."""


class Means(NamedTuple):
    """What latents of a row of `LinearStart.rows` are expected to be: means[row] + (values - centres[row]) slopes."""

    means: torch.Tensor
    """(rows, F), float64."""
    slopes: torch.Tensor
    """(K, F): change per unit of each covariate, within rows."""
    centres: torch.Tensor
    """(rows, K): mean covariates of each row, which unknown ones are taken to be."""

    def of(self, rows: torch.Tensor, covariates: torch.Tensor | None) -> torch.Tensor:
        """(N, F) for rows (N,) and covariates (N, K), NaN where unknown."""
        means = self.means[rows]
        if covariates is None or not len(self.slopes):
            return means
        return means + (covariates - self.centres[rows]).nan_to_num(0.0).to(means) @ self.slopes


def fit_means(
    z: torch.Tensor, y: torch.Tensor, rows: torch.Tensor, count: int, classes: int, covariates: torch.Tensor | None,
    window: float, shape: tuple[int, int, int, int],
) -> Means:  # fmt: skip
    """Least squares of latents z (N, F), F the size of `shape`, on their rows and covariates (N, K).

    Of `count` rows the first are classes y (N,), then the null class, then sides, `rows` (N,) of latents with a known
    one. With a `window` what rows differ by from the first class, and the slopes, are `shrunk`.
    """
    z = z.double()
    means, centres = class_means(z, y, count), _known_means(covariates, y, count)
    means[classes + 1 :] = class_means(z, rows, count)[classes + 1 :]
    centres[classes + 1 :] = _known_means(covariates, rows, count)[classes + 1 :]
    found = Means(means, z.new_zeros(0, z.shape[1]), centres)
    c = z.new_zeros(len(z), 0) if covariates is None else (covariates.to(z) - centres[rows]).nan_to_num(0.0)
    gram = torch.linalg.pinv(c.T @ c)
    found = found._replace(slopes=gram @ (c.T @ z - c.T @ F.one_hot(rows, count).to(c) @ means))
    if not window:
        return found
    parts = zip(*(part.split(64) for part in (z, rows, c)), strict=True)  # a copy of all latents would be large
    variance = sum((own - means[row] - x @ found.slopes).square().sum(0) for own, row, x in parts) / len(z)
    members = torch.stack([F.one_hot(part, count).sum(0) for part in (y, rows)]).amax(0).double()
    for row in (row for row in range(1, count) if row != classes and members[row]):
        chance = variance * (1 / members[row] + 1 / members[0])
        means[row] = means[0] + shrunk(means[row] - means[0], chance, window, shape)
    means[classes] = members[:classes] @ means[:classes] / members[:classes].sum()
    slopes = [shrunk(*pair, window, shape) for pair in zip(found.slopes, gram.diag()[:, None] * variance, strict=True)]
    return found._replace(slopes=torch.stack(slopes) if slopes else found.slopes)


def shrunk(
    difference: torch.Tensor, chance: torch.Tensor, window: float, shape: tuple[int, int, int, int]
) -> torch.Tensor:
    """A field (F,) with known chance variance (F,), shrunk where it is no larger than chance makes it; (F,).

    By the positive part of 1 - EXCESS chance / energy, both smoothed over a Gaussian neighbourhood of `window`
    positions and all channels: James and Stein's estimator of many means at once, block by block (Cai 1999,
    https://doi.org/10.1214/aos/1018031262), where what is weak at each position of a region is strong together.
    """
    energy, expected = (
        torch.from_numpy(ndimage.gaussian_filter(part.view(shape).sum(0).cpu().numpy(), window)).to(difference)
        for part in (difference.square(), chance)
    )
    keep = (1 - EXCESS * expected / energy.clamp(min=torch.finfo(energy.dtype).tiny)).clamp(min=0)
    return (difference.view(shape) * keep).flatten()


def class_means(z: torch.Tensor, y: torch.Tensor, rows: int) -> torch.Tensor:
    """Mean of each class, and of all latents for rows without members, the null class among them: (rows, size).

    The means as they are, not shrunk by position: an effect spread over a region is far below the noise at each of its
    positions, so that any threshold by position removes it, while its mean over the region stays unbiased. The noise
    this costs is 1 / (members of a class) of the variance. z is (N, size) float64, y (N,) int64 in [0, rows).
    """
    members = F.one_hot(y, rows).to(z)  # (N, rows)
    counts = members.sum(0)[:, None]
    return torch.where(counts > 0, members.T @ z / counts.clamp(min=1), z.mean(0))


def _known_means(covariates: torch.Tensor | None, y: torch.Tensor, rows: int) -> torch.Tensor:
    """Mean of what is known of each covariate (N, K) in each class, of all for rows that know none: (rows, K)."""
    if covariates is None:
        return torch.zeros(rows, 0, dtype=torch.float64, device=y.device)
    known = ~covariates.isnan()
    members = F.one_hot(y, rows).double()
    counts, sums = members.T @ known.double(), members.T @ covariates.nan_to_num(0.0).double()
    overall = sums.sum(0) / counts.sum(0).clamp(min=1)
    return torch.where(counts > 0, sums / counts.clamp(min=1), overall)
