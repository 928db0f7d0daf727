"""Whether synthetic volumes are as various as real ones. Functions of feature vectors, and of volumes for MS-SSIM.

Precision asks whether synthetic volumes lie where real ones do, recall and coverage whether they lie everywhere that
real ones do. Their values for finite samples depend on the sample size and the features, so every figure stands beside
the floor: real against other real subjects, at the same size, over the same draws (see `evaluation.fid`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from monai.metrics.regression import compute_ms_ssim

from evaluation import fid
from evaluation.fid import GROUPS, FeatureSet
from runtime import seeding

NEIGHBOURS = 5
"""k, the neighbour whose distance is a point's radius; Naeem et al. chose 5 for 10,000 points."""
METRICS = ("precision", "recall", "density", "coverage")

SSIM_KERNEL = 7
"""Voxels along each axis of the Gaussian window (standard deviation 1.5)."""
SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponent of each scale, finest first: Wang et al. 2003, section 3.2. With fewer scales, the first, summing to 1."""
_BATCH_VOXELS = 1_000_000


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances of all rows of a (N, F) from those of b (M, F): float64 (N, M).

    By the scalar products of centred vectors, many times faster than pair by pair. Equal rows come out at about 1e-8 of
    their length instead of 0, which no figure here depends on.
    """
    centre = a.mean(axis=0, dtype=np.float64)
    a, b = a - centre, b - centre
    squares = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0.0))


def radii(within: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """Distance of each point from its k-th nearest other point, (N,) of distances within a set (N, N), N above k."""
    if len(within) <= k:
        raise ValueError(f"{len(within)} points have no {k}-th neighbour")
    others = within + np.diag(np.full(len(within), np.inf))
    return np.partition(others, k - 1, axis=1)[:, k - 1]


def support(real: np.ndarray, across: np.ndarray, synthetic: np.ndarray, k: int = NEIGHBOURS) -> dict[str, float]:
    """Precision, recall, density and coverage, from distances.

    A set's support is the union of balls about its points, each as large as the distance to the point's k-th neighbour.
    Precision: share of synthetic points inside the real support; recall: share of real points inside the synthetic one
    (Kynkaanniemi et al. 2019, arXiv 1904.06991, equations 1 and 2). Density: mean number of real balls that a synthetic
    point lies in, over k, which an outlier's large ball raises less; coverage: share of real balls with a synthetic
    point in them (Naeem et al. 2020, arXiv 2002.09797, equations 2 and 3). Density can exceed 1.

    Args:
        real: distances within the real set (N, N).
        across: of real (rows) from synthetic points, (N, M).
        synthetic: within the synthetic set (M, M).
        k: below N and M.
    """
    inside_real = across <= radii(real, k)[:, None]
    inside_synthetic = across <= radii(synthetic, k)[None]
    return {
        "precision": float(inside_real.any(axis=0).mean()),
        "recall": float(inside_synthetic.any(axis=1).mean()),
        "density": float(inside_real.sum(axis=0).mean() / k),
        "coverage": float(inside_real.any(axis=1).mean()),
    }


def support_of(real: np.ndarray, synthetic: np.ndarray, k: int = NEIGHBOURS) -> dict[str, float]:
    """`support` of feature vectors (N, F) and (M, F)."""
    return support(distances(real, real), distances(real, synthetic), distances(synthetic, synthetic), k)


def hubness(across: np.ndarray) -> dict[str, float]:
    """How a sample spreads over its nearest training subjects.

    Args:
        across: distances of the sample (N rows) from all training subjects.

    Returns:
        ``distinct``: different training subjects among the N nearest ones; ``share``: over N; ``largest``: how many of
        the sample share one nearest training subject.
    """
    counts = np.bincount(across.argmin(axis=1))
    distinct = np.count_nonzero(counts)
    return {"distinct": float(distinct), "share": distinct / len(across), "largest": float(counts.max())}


def compare(sets: Mapping[str, FeatureSet], *, n: int, repeats: int, seed: int, k: int = NEIGHBOURS) -> dict:
    """Support and nearest neighbours of the synthetic set, the floor and the controls, over repeated draws of subjects.

    The draws are those of the Frechet distance, `n` volumes per class and sample without replacement, and the vectors
    of the three axes are taken as one.

    Args:
        sets: ``train``, ``test``, ``synthetic``; every other one is a control, made from ``test`` row by row.
        n: volumes per class in each sample (`fid.per_draw`).
        repeats: number of draws.

    Returns:
        ``k``; ``n`` (group -> volumes per sample); ``support``: group -> reference (``held_out``, ``training``) ->
        sample -> metric -> ``mean``, ``low``, ``high`` (2.5 and 97.5 percentiles over draws; draws share subjects, so
        other subjects vary more), and there also ``synthetic_minus_floor``, draw by draw; ``nearest``: group ->
        ``held_out`` and ``synthetic`` (as many of each) -> figures of `hubness` among all training subjects of the
        group, with the same three. A group whose samples hold k volumes or fewer has ``skipped`` with the reason in the
        place of its support.
    """
    rows, table = _numbered(sets)
    measured: dict[tuple[str, ...], list[float]] = {}
    sizes = {group: n * len(classes) for group, classes in GROUPS.items()}
    for repeat in range(repeats):
        drawn = fid.draw_once(sets, n, seeding.rng(seed, "fid draw", repeat))
        for group, classes in GROUPS.items():
            figures = _nearest(rows, table, drawn, classes)
            if sizes[group] > k:
                figures |= _supports(fid.pairs(rows, drawn, classes), table, k)
            for place, value in figures.items():
                measured.setdefault((place[0], group, *place[1:]), []).append(value)
    results: dict = {"k": k, "n": sizes, "support": {}, "nearest": {}}
    for group, size in sizes.items():
        if size <= k:
            results["support"][group] = {"skipped": f"{size} volumes in a sample, more than k = {k} are needed"}
    for (*places, metric), values in measured.items():
        at = results
        for place in places:
            at = at.setdefault(place, {})
        at[metric] = _range(values)
    return results


def _numbered(sets: Mapping[str, FeatureSet]) -> tuple[dict[str, FeatureSet], np.ndarray]:
    """The sets with each volume's number in the place of its features, and the distances (all, all) of those numbers.

    So `fid.pairs` arranges numbers as it arranges features, and distances are computed once for all draws.
    """
    joined, numbers, start = [], {}, 0
    for name, one in sets.items():
        stop = start + len(one.labels)
        numbers[name] = FeatureSet(np.arange(start, stop)[None, :, None], one.labels)
        joined.append(np.concatenate(list(one.pooled), axis=1))
        start = stop
    features = np.concatenate(joined)
    return numbers, distances(features, features)


def _supports(compared: Mapping[str, Mapping[str, tuple]], table: np.ndarray, k: int) -> dict[tuple[str, ...], float]:
    """Figures of one draw and group: (``support``, reference, sample, metric) to value."""
    figures: dict[tuple[str, ...], float] = {}
    for reference, samples in compared.items():
        for name, (a, b) in samples.items():
            real, made = a.ravel(), b.ravel()
            found = support(table[np.ix_(real, real)], table[np.ix_(real, made)], table[np.ix_(made, made)], k)
            figures |= {("support", reference, name, metric): value for metric, value in found.items()}
        for metric in METRICS:
            difference = (figures["support", reference, name, metric] for name in ("synthetic", "floor"))
            figures["support", reference, "synthetic_minus_floor", metric] = float(np.subtract(*difference))
    return figures


def _nearest(
    rows: Mapping[str, FeatureSet], table: np.ndarray, drawn: fid.Draw, classes: tuple[int, ...]
) -> dict[tuple[str, ...], float]:
    """Figures of one draw and group: (``nearest``, sample, figure) to value."""
    train = rows["train"].pooled.ravel()[np.isin(rows["train"].labels, classes)]
    figures = {}
    for name, source, role in (("held_out", "test", "reference"), ("synthetic", "synthetic", "synthetic")):
        sample = rows[source].rows(np.concatenate([drawn[role][code] for code in classes])).ravel()
        figures |= {("nearest", name, key): value for key, value in hubness(table[np.ix_(sample, train)]).items()}
    return figures


def _range(values: list[float]) -> dict[str, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}


def ms_ssim_scales(shape: tuple[int, ...]) -> int:
    """Scales of MS-SSIM that MONAI allows for volumes of this shape, 0 to 5: at 112 voxels 5, at 40 3, at 20 2.

    It asks for a shortest axis, divided by (scales - 1)^2, of at least the kernel's size.
    """
    fitting = [s for s in range(1, len(SSIM_WEIGHTS) + 1) if min(shape) // max(1, s - 1) ** 2 >= SSIM_KERNEL]
    return max(fitting, default=0)


@torch.inference_mode()
def ms_ssim(volumes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Multi-scale structural similarity of pairs of volumes; 1 for equal ones. Source: Wang et al. 2003.

    Args:
        volumes: (N, D, H, W) in [0, 1], `ms_ssim_scales` above 0; an array, or a stack that is read as it is indexed.
        pairs: int (P, 2), rows of `volumes`.

    Returns:
        float64 (P,) in [0, 1].
    """
    shape = tuple(volumes.shape[1:])
    scales = ms_ssim_scales(shape)
    if scales == 0:
        raise ValueError(f"volumes of {shape} are smaller than the kernel of {SSIM_KERNEL} voxels")
    weights = np.array(SSIM_WEIGHTS[:scales]) / sum(SSIM_WEIGHTS[:scales])
    step = max(1, _BATCH_VOXELS // int(np.prod(shape)))
    values = []
    for start in range(0, len(pairs), step):
        sides = [np.asarray(volumes[side.tolist()], dtype=np.float32) for side in pairs[start : start + step].T]
        a, b = (torch.from_numpy(side).unsqueeze(1) for side in sides)
        found = compute_ms_ssim(a, b, spatial_dims=3, kernel_size=SSIM_KERNEL, weights=weights.tolist())
        values.append(found.flatten().double().numpy())
    return np.concatenate(values)


def random_pairs(rows: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """Distinct unordered pairs of different rows, int (P, 2); all there are if `count` is not below their number."""
    first, second = np.triu_indices(len(rows), k=1)
    chosen = draw.permutation(len(first))[:count]
    return np.stack([rows[first[chosen]], rows[second[chosen]]], axis=1)


def compare_ms_ssim(
    real: tuple[np.ndarray, np.ndarray],
    synthetic: tuple[np.ndarray, np.ndarray],
    *,
    pairs: int = 100,
    resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """Similarity of synthetic volumes to one another, beside that of real ones: more alike means less various.

    Values of different grids, cohorts or numbers of scales cannot be compared; background counts as alike.

    Args:
        real, synthetic: volumes (N, D, H, W) in [0, 1], one per subject, and class codes (N,).
        pairs: random pairs of subjects on each side and in each group.
        resamples: of subjects, for the intervals. A pair counts as often as both its subjects are drawn together.

    Returns:
        ``protocol`` (scales, kernel, weights), and ``results``: group -> ``n`` (subjects on each side, as many of each
        class), ``pairs``, ``real``, ``synthetic`` and ``difference`` (synthetic minus real), each with ``mean``,
        ``low``, ``high``; or ``skipped`` with the reason, for all or for a group.
    """
    shape = tuple(real[0].shape[1:])
    scales = ms_ssim_scales(shape)
    if scales == 0:
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
            chosen = random_pairs(rows, pairs, draw)
            sides.append(_pair_means(ms_ssim(volumes, chosen), chosen, resamples, draw))
        figures = {"real": sides[0], "synthetic": sides[1], "difference": sides[1] - sides[0]}
        results[group] = {"n": n * len(classes), "pairs": len(chosen)} | {
            name: _estimate(values) for name, values in figures.items()
        }
    weights = [weight / sum(SSIM_WEIGHTS[:scales]) for weight in SSIM_WEIGHTS[:scales]]
    return {"protocol": {"scales": scales, "kernel": SSIM_KERNEL, "weights": weights}, "results": results}


def _pair_means(values: np.ndarray, pairs: np.ndarray, resamples: int, draw: np.random.Generator) -> np.ndarray:
    """Mean over pairs, then the means over resamples of the subjects in them: (1 + resamples,)."""
    subjects, member = np.unique(pairs, return_inverse=True)
    member = member.reshape(pairs.shape)
    counts = draw.multinomial(len(subjects), np.full(len(subjects), 1 / len(subjects)), size=resamples)
    weights = counts[:, member[:, 0]] * counts[:, member[:, 1]]
    total = weights.sum(axis=1)
    drawn = np.divide(weights @ values, total, out=np.full(resamples, np.nan), where=total > 0)
    return np.concatenate([[values.mean()], drawn])


def _estimate(values: np.ndarray) -> dict[str, float]:
    low, high = np.nanpercentile(values[1:], (2.5, 97.5))
    return {"mean": float(values[0]), "low": float(low), "high": float(high)}
