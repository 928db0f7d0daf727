"""Whether synthetic volumes are as various as real ones. Functions of feature vectors, and of volumes for MS-SSIM.

Values for finite samples depend on the sample size and the features, so every figure stands beside the floor: real
against other real subjects, at the same size, over the same draws (see `evaluation.fid`).
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics.pairwise import euclidean_distances

from evaluation.distances import support
from evaluation.fid import GROUPS, FeatureSet, Rows, controls_of, draw_all, over_draws, spread
from runtime import seeding

NEIGHBOURS = 5
"""k, the neighbour whose distance is a point's radius; Naeem et al. chose 5 for 10,000 points."""
METRICS = ("precision", "recall", "density", "coverage")

SSIM_KERNEL, SSIM_SIGMA = 7, 1.5
"""Voxels along each axis of the Gaussian window, and its standard deviation."""
SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponent of each scale, finest first: Wang et al. 2003, section 3.2. With fewer scales, the first, summing to 1."""
_BATCH_VOXELS = 1_000_000


def compare(sets: Mapping[str, FeatureSet], *, n: int, repeats: int, seed: int, k: int = NEIGHBOURS) -> dict:
    """Support of the synthetic set, the floor and the controls, over the draws of subjects of `fid.compare`.

    The vectors of the three axes are taken as one.

    Returns:
        ``k``; ``n`` (group -> volumes per sample); ``support``: group -> reference (``held_out``, ``training``) ->
        sample -> metric -> ``mean``, ``low``, ``high`` (2.5 and 97.5 percentiles over draws; draws share subjects, so
        other subjects vary more), and there also ``synthetic_minus_floor``, draw by draw. A group whose samples hold k
        volumes or fewer has ``skipped`` with the reason instead.
    """
    table, draws = Distances(sets), draw_all(sets, n, repeats, seed)
    controls = controls_of(sets)
    sizes, supports = {group: n * len(classes) for group, classes in GROUPS.items()}, {}

    def measure(real: Rows, made: Rows) -> dict[str, float]:
        return support(table(real, real), table(real, made), table(made, made), k)

    for group, classes in GROUPS.items():
        if sizes[group] <= k:
            supports[group] = {"skipped": f"{sizes[group]} volumes in a sample, more than k = {k} are needed"}
            continue
        found = over_draws(draws, classes, controls, measure)
        for samples in found.values():
            samples["synthetic_minus_floor"] = [
                {metric: made[metric] - floor[metric] for metric in METRICS}
                for made, floor in zip(samples["synthetic"], samples["floor"], strict=True)
            ]
        supports[group] = {
            reference: {name: _ranges(values) for name, values in samples.items()}
            for reference, samples in found.items()
        }
    return {"k": k, "n": sizes, "support": supports}


class Distances:
    """Euclidean distances of all volumes of all sets from one another, computed once for all draws."""

    def __init__(self, sets: Mapping[str, FeatureSet]) -> None:
        vectors = np.concatenate([np.concatenate(list(features.pooled), axis=1) for features in sets.values()])
        self._table = euclidean_distances(vectors)
        counts = [len(features.labels) for features in sets.values()]
        self._first = dict(zip(sets, np.cumsum(counts) - counts, strict=True))

    def __call__(self, a: Rows, b: Rows) -> np.ndarray:
        """(len(a), len(b))."""
        return self._table[np.ix_(*(self._first[name] + rows for name, rows in (a, b)))]


def _ranges(values: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Figures of every draw to the range of each figure."""
    return {name: spread([figures[name] for figures in values]) for name in values[0]}


def ssim_weights(shape: tuple[int, ...]) -> list[float]:
    """Exponents of the scales of MS-SSIM that MONAI allows for volumes of this shape; none where they are too small.

    It asks for a shortest axis, divided by (scales - 1)^2, of at least the kernel's size: at 112 voxels 5 scales, at 40
    3, at 20 2.
    """
    fitting = [s for s in range(1, len(SSIM_WEIGHTS) + 1) if min(shape) // max(1, s - 1) ** 2 >= SSIM_KERNEL]
    weights = SSIM_WEIGHTS[: max(fitting, default=0)]
    return [weight / sum(weights) for weight in weights]


@torch.inference_mode()
def ms_ssim(volumes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Multi-scale structural similarity, float64 (P,) in [0, 1], 1 for equal ones. Source: Wang et al. 2003.

    Args:
        volumes: (N, D, H, W) in [0, 1], large enough for one scale; an array, or a stack that is read as it is indexed.
        chosen: int (P, 2), rows of `volumes`.
    """
    shape = tuple(volumes.shape[1:])
    step = max(1, _BATCH_VOXELS // int(np.prod(shape)))
    values = []
    for start in range(0, len(chosen), step):
        sides = [np.asarray(volumes[side.tolist()], dtype=np.float32) for side in chosen[start : start + step].T]
        pair, found = torch.from_numpy(np.stack(sides)), torch.ones(len(sides[0]))  # (2, B, D, H, W)
        for weight in (weights := ssim_weights(shape))[:-1]:
            _, contrast = _similarity(*pair)
            found *= contrast.relu() ** weight
            pair = F.avg_pool3d(pair, 2)
        whole, _ = _similarity(*pair)
        values.append((found * whole.relu() ** weights[-1]).double().numpy())
    return np.concatenate(values)


def _similarity(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Structural similarity of volumes (B, D, H, W) with as many others, and its part that is contrast, means over
    windows, (B,) each. Source: Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861, equation 13.
    """
    mean_a, mean_b, aa, bb, ab = _windowed(torch.stack([a, b, a * a, b * b, a * b]))
    variances, covariance = aa - mean_a**2 + bb - mean_b**2, ab - mean_a * mean_b
    luminance_floor, contrast_floor = 0.01**2, 0.03**2  # of intensities that span 0 to 1
    contrast = (2 * covariance + contrast_floor) / (variances + contrast_floor)
    luminance = (2 * mean_a * mean_b + luminance_floor) / (mean_a**2 + mean_b**2 + luminance_floor)
    return (luminance * contrast).flatten(1).mean(1), contrast.flatten(1).mean(1)


def _windowed(maps: torch.Tensor) -> torch.Tensor:
    """Means of (..., D, H, W) over Gaussian windows that lie inside: each axis is shorter by SSIM_KERNEL - 1.

    One axis after the other, 21 products a voxel; the window as one filter has 343.
    """
    distance = torch.arange(SSIM_KERNEL, dtype=torch.float64) - (SSIM_KERNEL - 1) / 2
    window = torch.softmax(-0.5 * (distance / SSIM_SIGMA) ** 2, dim=0).tolist()
    for axis in (-3, -2, -1):
        kept = maps.shape[axis] - SSIM_KERNEL + 1
        total = window[0] * maps.narrow(axis, 0, kept)
        for start, weight in enumerate(window[1:], start=1):
            total.add_(maps.narrow(axis, start, kept), alpha=weight)
        maps = total
    return maps


def random_pairs(rows: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """Distinct unordered pairs of different rows, int (P, 2); all there are if `count` is not below their number."""
    first, second = np.triu_indices(len(rows), k=1)
    chosen = draw.permutation(len(first))[:count]
    return np.stack([rows[first[chosen]], rows[second[chosen]]], axis=1)


def compare_ms_ssim(
    real: tuple[np.ndarray, np.ndarray],
    synthetic: tuple[np.ndarray, np.ndarray],
    *,
    count: int = 100,
    resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """Similarity of synthetic volumes to one another, beside that of real ones: more alike means less various.

    Values of different grids, cohorts or numbers of scales cannot be compared; background counts as alike.

    Args:
        real, synthetic: volumes (N, D, H, W) in [0, 1], one per subject, and class codes (N,).
        count: random pairs of subjects on each side and in each group.
        resamples: of subjects, for the intervals. A pair counts as often as both its subjects are drawn together.

    Returns:
        ``protocol``, and ``results``: group -> ``n`` (subjects on each side, as many of each class), ``pairs``,
        ``real``, ``synthetic`` and ``difference`` (synthetic minus real), each with ``mean``, ``low``, ``high``; or
        ``skipped`` with the reason, for all or for a group.
    """
    shape = tuple(real[0].shape[1:])
    weights = ssim_weights(shape)
    if not weights:
        return {"skipped": f"volumes of {shape} are smaller than the kernel of {SSIM_KERNEL} voxels"}
    results = {}
    for group, classes in GROUPS.items():
        n = min(int(np.sum(labels == code)) for _, labels in (real, synthetic) for code in classes)
        if n * len(classes) < 3:
            results[group] = {"skipped": f"{n} subjects per class on a side; pairs to resample need 3 subjects"}
            continue
        sides = []
        for place, (volumes, labels) in enumerate((real, synthetic)):
            draw = seeding.rng(seed, "ms-ssim", place, *classes)
            rows = np.concatenate([draw.permutation(np.flatnonzero(labels == code))[:n] for code in classes])
            chosen = random_pairs(rows, count, draw)
            sides.append(_pair_means(ms_ssim(volumes, chosen), chosen, resamples, draw))
        figures = {"real": sides[0], "synthetic": sides[1], "difference": sides[1] - sides[0]}
        results[group] = {"n": n * len(classes), "pairs": len(chosen)}
        results[group] |= {name: _estimate(values) for name, values in figures.items()}
    return {"protocol": {"scales": len(weights), "kernel": SSIM_KERNEL, "weights": weights}, "results": results}


def _pair_means(values: np.ndarray, chosen: np.ndarray, resamples: int, draw: np.random.Generator) -> np.ndarray:
    """Mean over pairs, then the means over resamples of the subjects in them: (1 + resamples,)."""
    subjects, member = np.unique(chosen, return_inverse=True)
    member = member.reshape(chosen.shape)
    counts = draw.multinomial(len(subjects), np.full(len(subjects), 1 / len(subjects)), size=resamples)
    weights = counts[:, member[:, 0]] * counts[:, member[:, 1]]
    total = weights.sum(axis=1)
    drawn = np.divide(weights @ values, total, out=np.full(resamples, np.nan), where=total > 0)
    return np.concatenate([[values.mean()], drawn])


def _estimate(values: np.ndarray) -> dict[str, float]:
    low, high = np.nanpercentile(values[1:], (2.5, 97.5))
    return {"mean": float(values[0]), "low": float(low), "high": float(high)}
