"""Areas under the ROC curve of k-fold predictions: averaged over folds, with their sampling variance, and pooled.

Scores of different folds come from different networks and are not on one scale; pooling them mixes the folds' shifts
into the ranking. So the average over folds comes first (Airola et al. 2011, https://doi.org/10.1016/j.csda.2010.11.018;
LeDell et al. 2015, https://doi.org/10.1214/15-EJS1035).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import rankdata

from classifier.measures.metrics import Z95, PairedTest, auc, delong_covariance, paired_test_of, placements


def influence(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """What each subject of one fold adds to its area's error, (N,): their sum of squares estimates the variance.

    A TLE subject has its placement value (the share of controls below it, ties one half) less the area, over the number
    of TLE subjects, and a control likewise: the influence curve of LeDell et al. 2015, section 4, over N, with the
    class shares of the fold. DeLong's variance has P - 1 and N - 1 where this has P and N.
    """
    below, above = placements(labels, scores)
    parts = np.empty(len(labels))
    parts[labels == 1] = (below - below.mean()) / len(below)
    parts[labels == 0] = (above - above.mean()) / len(above)
    return parts


def fold_averaged_auc(
    labels: list[np.ndarray], scores: list[np.ndarray], clusters: list[np.ndarray]
) -> dict[str, float]:
    """Mean of the folds' areas (``value``), with the influence-curve interval of LeDell et al. 2015.

    It covers the sampling of subjects, given the networks; not another training. Scores of a fold are (N_f,), or
    (S, N_f) for S training seeds, whose areas are averaged. Scans of one cluster are not independent: their influences
    are added first.
    """
    areas, variance = [], 0.0
    for y, rows, names in zip(labels, scores, clusters, strict=True):
        rows = np.atleast_2d(rows)
        areas.append(np.mean([auc(y, row) for row in rows]))
        parts = np.mean([influence(y, row) for row in rows], axis=0) / len(labels)
        _, member = np.unique(np.asarray(names, dtype=str), return_inverse=True)
        variance += float(np.sum(np.bincount(member, parts) ** 2))
    value, se = float(np.mean(areas)), math.sqrt(variance)
    return {"value": value, "low": max(0.0, value - Z95 * se), "high": min(1.0, value + Z95 * se), "se": se}


def pooled_auc(labels: list[np.ndarray], scores: list[np.ndarray], *, ranked: bool) -> float:
    """One area over the subjects of all folds; `ranked` first takes the folds' shifts out, by ranks within each."""
    parts = [(rankdata(row) - 0.5) / len(row) for row in scores] if ranked else scores
    return auc(np.concatenate(labels), np.concatenate(parts))


def delong_by_fold(labels: list[np.ndarray], scores_a: list[np.ndarray], scores_b: list[np.ndarray]) -> PairedTest:
    """DeLong's test of equal fold-averaged areas; with one fold, `metrics.delong_test`.

    Folds have different subjects, so the variance of the mean is the mean of the folds' variances over their number.
    """
    areas, covariances = zip(
        *(delong_covariance(y, np.stack(pair)) for y, *pair in zip(labels, scores_a, scores_b, strict=True)),
        strict=True,
    )
    return paired_test_of(np.mean(areas, axis=0), np.mean(covariances, axis=0) / len(labels))
