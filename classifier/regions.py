"""From maps to anatomy: how strongly each atlas region is attributed, and by how much the classes differ."""

from __future__ import annotations

import numpy as np
import pandas as pd

from classifier.metrics import bootstrap_weights
from cohort.atlas import Atlas


def region_means(map_: np.ndarray, atlas: Atlas) -> np.ndarray:
    """Mean over each region's voxels of a map (D, H, W), regions in the order of `atlas.names`; NaN without voxels.

    A mean, not a sum: the largest region would lead every ranking otherwise.
    """
    codes = np.array(list(atlas.names))
    size = int(max(codes.max(), atlas.labels.max())) + 1
    sums = np.bincount(atlas.labels.ravel(), weights=map_.ravel().astype(np.float64), minlength=size)[codes]
    voxels = np.bincount(atlas.labels.ravel(), minlength=size)[codes]
    return np.divide(sums, voxels, out=np.full(len(codes), np.nan), where=voxels > 0)


def rank_regions(
    magnitudes: np.ndarray,
    labels: np.ndarray,
    clusters: np.ndarray,
    atlas: Atlas,
    rng: np.random.Generator,
    resamples: int = 2000,
) -> pd.DataFrame:
    """Ranks regions by their mean |attribution| over subjects, with 95 % bootstrap intervals over subjects.

    Args:
        magnitudes: (N, regions), `region_means` of each subject's |map|.
        labels: (N,) 0 or 1.
        clusters: (N,) names of what is resampled as one.
        atlas: names the regions.
        rng: numpy generator.
        resamples: number of bootstrap resamples.

    Returns:
        One row per region that has voxels, strongest first: rank, region, voxels, mean_abs with low and high,
        mean_abs_HC, mean_abs_TLE, and TLE_minus_HC with difference_low and difference_high (NaN with one class only).
    """
    kept = np.flatnonzero(np.isfinite(magnitudes).all(0))
    values = magnitudes[:, kept]
    weights = bootstrap_weights(labels, clusters, resamples, rng)
    weights = np.concatenate([np.ones((1, len(labels))), weights])  # the first row is the estimate itself
    overall = _mean(weights, values)
    by_class = [_mean(weights * (labels == label), values) for label in (0, 1)]
    difference = by_class[1] - by_class[0]
    codes = np.array(list(atlas.names))[kept]
    table = pd.DataFrame(
        {
            "region": [atlas.names[code] for code in codes],
            "voxels": np.bincount(atlas.labels.ravel(), minlength=codes.max() + 1)[codes],
            "mean_abs": overall[0],
            **_interval(overall, "low", "high"),
            "mean_abs_HC": by_class[0][0],
            "mean_abs_TLE": by_class[1][0],
            "TLE_minus_HC": difference[0],
            **_interval(difference, "difference_low", "difference_high"),
        }
    )
    table = table.sort_values("mean_abs", ascending=False, kind="stable").reset_index(drop=True)
    table.insert(0, "rank", table.index + 1)
    return table


def _mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Weighted means (R, regions) of values (N, regions); NaN where all weights are 0."""
    total = weights.sum(1, keepdims=True)
    return np.divide(weights @ values, total, out=np.full((len(weights), values.shape[1]), np.nan), where=total > 0)


def _interval(estimates: np.ndarray, low: str, high: str) -> dict[str, np.ndarray]:
    ends = np.quantile(estimates[1:], [0.025, 0.975], axis=0)
    return {low: ends[0], high: ends[1]}
