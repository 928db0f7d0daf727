"""How probabilities agree with what came true: recalibration and reliability."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit, logit

CALIBRATION = ("calibration_intercept", "calibration_slope")
"""0 and 1 for well calibrated probabilities."""
SMALLEST = 1e-12
"""Probabilities nearer to 0 or 1 than this count as this far away: their logit would be infinite."""
ITERATIONS = 100
ENTRIES = 2_000_000
"""Weights (rows x subjects) that are fitted at once; bounds the memory."""


def recalibration(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Calibration intercept and slope for many weightings of the subjects at once.

    With z the logit of the probability, the slope is b in the maximum-likelihood fit of logit P(TLE) = a + b z: below 1
    when probabilities are too extreme. The intercept is a in logit P(TLE) = a + z, slope held at 1
    (calibration-in-the-large): below 0 when probabilities are too high. It speaks of the share of TLE among these
    subjects too: probabilities learned on balanced batches are too high where fewer than half are TLE.
    Source: Cox 1958, Biometrika 45:562; Van Calster et al. 2019, https://doi.org/10.1186/s12916-019-1466-7.

    Args:
        labels: (N,) of 0 and 1.
        probabilities: (N,) in [0, 1].
        weights: (R, N), not negative; each row holds both classes.

    Returns:
        arrays (R,). Where a value of z separates the classes, the likelihood has no maximum: the slope is then
        infinity, minus infinity when TLE has the lower values, and not a number when all z are equal.
    """
    z = logit(np.clip(probabilities, SMALLEST, 1 - SMALLEST))
    blocks = np.array_split(weights, max(1, -(-weights.size // ENTRIES)))
    return {
        "calibration_intercept": np.concatenate([_intercept(labels, z, block) for block in blocks]),
        "calibration_slope": np.concatenate([_slope(labels, z, block) for block in blocks]),
    }


def _intercept(labels: np.ndarray, z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Newton's method for the root of a falling function, with steps of 2 at most, so that flat tails throw no one."""
    a = np.zeros(len(weights))
    cases = weights @ labels
    for _ in range(ITERATIONS):
        p = expit(a[:, None] + z)
        slope = np.einsum("rn,rn->r", weights, p * (1 - p))
        excess = cases - np.einsum("rn,rn->r", weights, p)
        step = np.clip(excess / np.maximum(slope, 1e-12), -2, 2)
        a += step
        if np.abs(step).max(initial=0) < 1e-10:
            break
    return a


def _slope(labels: np.ndarray, z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Infinite where separated; elsewhere by Newton's method."""
    slope = _separation(labels, z, weights)
    rows = np.flatnonzero(slope == 0)
    if len(rows):
        slope[rows] = _newton(labels, z, weights[rows])
    return slope


def _separation(labels: np.ndarray, z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,): infinity where no HC is above any TLE, minus infinity where none is below, 0 where the classes overlap."""
    present = weights > 0
    highest = [np.where(present & (labels == label), z, -np.inf).max(1) for label in (0, 1)]
    lowest = [np.where(present & (labels == label), z, np.inf).min(1) for label in (0, 1)]
    upwards, downwards = highest[0] <= lowest[1], highest[1] <= lowest[0]
    return np.select([upwards & downwards, upwards, downwards], [np.nan, np.inf, -np.inf], 0.0)


def _newton(labels: np.ndarray, z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Slope (R,) of the weighted logistic regression on z; a step that lowers the likelihood is halved."""
    middle, scale = z.mean(), z.std()
    x = (z - middle) / scale
    powers = np.stack([np.ones_like(x), x, x**2], axis=1)
    beta = np.zeros((len(weights), 2))
    value = _log_likelihood(labels, x, weights, beta)
    for _ in range(ITERATIONS):
        p = expit(beta[:, :1] + beta[:, 1:] * x)
        gradient = (weights * (labels - p)) @ powers[:, :2]
        m0, m1, m2 = ((weights * p * (1 - p)) @ powers).T
        determinant = np.maximum(m0 * m2 - m1**2, 1e-300)
        g0, g1 = gradient.T
        step = np.stack([m2 * g0 - m1 * g1, m0 * g1 - m1 * g0], axis=1) / determinant[:, None]
        for _ in range(40):
            moved = _log_likelihood(labels, x, weights, beta + step)
            worse = moved < value - 1e-9 * np.abs(value)
            if not worse.any():
                break
            step[worse] /= 2
        beta, value = beta + step, moved
        if np.abs(step).max() < 1e-9 * (1 + np.abs(beta).max()):
            break
    return beta[:, 1] / scale


def _log_likelihood(labels: np.ndarray, x: np.ndarray, weights: np.ndarray, beta: np.ndarray) -> np.ndarray:
    signed = np.where(labels == 1, -1.0, 1.0) * (beta[:, :1] + beta[:, 1:] * x)
    return -np.einsum("rn,rn->r", weights, np.logaddexp(0.0, signed))


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int) -> list[dict[str, Any]]:
    """Bins of equally many subjects, by rising probability: what was promised and what came true.

    Args:
        labels, probabilities: (N,).
        bins: how many; at most N.

    Returns:
        for each bin the mean probability ``promised``, the share of TLE ``observed``, its 95 % Wilson interval ``low``,
        ``high`` (Wilson 1927, JASA 22:209), and ``count``. Equal probabilities may lie in two bins.
    """
    order = np.argsort(probabilities, kind="stable")
    rows = []
    for part in np.array_split(order, min(bins, len(order))):
        low, high = wilson(int(labels[part].sum()), len(part))
        promised, observed = float(probabilities[part].mean()), float(labels[part].mean())
        rows.append({"promised": promised, "observed": observed, "low": low, "high": high, "count": len(part)})
    return rows


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share."""
    z = 1.959964
    middle = (hits + z**2 / 2) / (count + z**2)
    half = z / (count + z**2) * np.sqrt(hits * (count - hits) / count + z**2 / 4)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))
