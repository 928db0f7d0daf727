"""How probabilities agree with what came true: calibration intercept and slope."""

import numpy as np
from scipy.special import expit, logit

SMALLEST = 1e-12  # probabilities nearer to 0 or 1 count as this far away: their logit would be infinite
ITERATIONS = 100


def recalibration(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Calibration intercept and slope, (R,) each, for many weightings (R, N) of the subjects at once: 0 and 1 are good.

    With z the logit of the probability, the slope is b in the maximum-likelihood fit of logit P(TLE) = a + b z: below 1
    when probabilities are too extreme. The intercept is a in logit P(TLE) = a + z: below 0 when probabilities are too
    high, as those learned on balanced batches are where fewer than half of the subjects are TLE.
    Source: Cox 1958, Biometrika 45:562; Van Calster et al. 2019, https://doi.org/10.1186/s12916-019-1466-7.

    Where a value of z separates the classes, the likelihood has no maximum: the slope is then infinity, minus infinity
    when TLE has the lower values, and not a number when all z are equal. Each weighting holds both classes.
    """
    z = logit(np.clip(probabilities, SMALLEST, 1 - SMALLEST))
    intercept = _newton(labels, np.ones((len(z), 1)), z, weights)[:, 0]
    slope = _separation(labels, z, weights)
    if len(rows := np.flatnonzero(slope == 0)):
        scale = z.std()
        design = np.stack([np.ones_like(z), (z - z.mean()) / scale], axis=1)
        slope[rows] = _newton(labels, design, np.zeros_like(z), weights[rows])[:, 1] / scale
    return {"calibration_intercept": intercept, "calibration_slope": slope}


def _separation(labels: np.ndarray, z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,): infinity where no HC is above any TLE, minus infinity where none is below, 0 where the classes overlap."""
    present = weights > 0
    highest = [np.where(present & (labels == label), z, -np.inf).max(1) for label in (0, 1)]
    lowest = [np.where(present & (labels == label), z, np.inf).min(1) for label in (0, 1)]
    upwards, downwards = highest[0] <= lowest[1], highest[1] <= lowest[0]
    return np.select([upwards & downwards, upwards, downwards], [np.nan, np.inf, -np.inf], 0.0)


def _newton(labels: np.ndarray, design: np.ndarray, offset: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Coefficients (R, K) of logistic regressions on `design` (N, K) with a fixed `offset` (N,), by Newton's method.

    All R weightings at once, which a library's solver in a loop takes a hundred times as long for. A step that lowers
    the likelihood is halved.
    """
    K = design.shape[1]
    products = (design[:, :, None] * design[:, None, :]).reshape(-1, K * K)
    sign = np.where(labels == 1, -1.0, 1.0)

    def likelihood(beta: np.ndarray) -> np.ndarray:
        return -np.einsum("rn,rn->r", weights, np.logaddexp(0.0, sign * (beta @ design.T + offset)))

    beta = np.zeros((len(weights), K))
    value = likelihood(beta)
    for _ in range(ITERATIONS):
        p = expit(beta @ design.T + offset)
        gradient = (weights * (labels - p)) @ design  # (R, K)
        curvature = ((weights * p * (1 - p)) @ products).reshape(-1, K, K)
        step = np.linalg.solve(curvature + 1e-12 * np.eye(K), gradient[:, :, None])[:, :, 0]
        for _ in range(40):
            moved = likelihood(beta + step)
            worse = moved < value - 1e-9 * np.abs(value)
            if not worse.any():
                break
            step[worse] /= 2
        beta, value = beta + step, moved
        if np.abs(step).max() < 1e-9 * (1 + np.abs(beta).max()):
            break
    return beta
