"""Measures of a two-class prediction and their uncertainty over subjects.

Everywhere: `labels` (N,) of 0 (HC) and 1 (TLE), `scores` (N,) larger for TLE, `probabilities` (N,) in [0, 1].
"""

import numpy as np
from scipy.optimize import minimize_scalar

from classifier.measures.calibration import recalibration
from runtime.errors import InputError

MEASURES = (
    "accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision", "f1", "auc", "average_precision",
    "brier", "calibration_intercept", "calibration_slope",
)  # fmt: skip
"""All that is measured. The calibration slope is None where the classes are perfectly separated."""
CALIBRATION = MEASURES[-2:]
"""Those that are any number; all others lie in [0, 1]."""


def check_labels(labels: np.ndarray) -> None:
    """Raises InputError unless both classes are there and nothing else."""
    values, counts = np.unique(labels, return_counts=True)
    if values.tolist() != [0, 1]:
        found = ", ".join(f"{count} of class {value}" for value, count in zip(values, counts, strict=True)) or "none"
        raise InputError(f"a two-class measure needs subjects of both classes, 0 (HC) and 1 (TLE); there are: {found}")


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the share of (TLE, HC) pairs in the right order, ties counting one half."""
    check_labels(labels)
    return float(weighted_auc(labels, scores, np.ones((1, len(labels))))[0])


def choose_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The threshold (at or above it is TLE) of largest balanced accuracy, among equals the one nearest 0.5.

    Candidates are the middles between neighbouring distinct probabilities, so that a threshold is never a subject's own
    value. To be called on validation subjects only.
    """
    check_labels(labels)
    values = np.unique(probabilities)
    candidates = (values[1:] + values[:-1]) / 2 if len(values) > 1 else np.array([0.5])
    called = probabilities[None] >= candidates[:, None]
    balanced = (called[:, labels == 1].mean(1) + (~called[:, labels == 0]).mean(1)) / 2
    best = candidates[balanced >= balanced.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - 0.5))])


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """The T in [0.05, 20] by which to divide logits for the least `balanced_loss`, which is convex in 1/T.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2.
    """
    check_labels(labels)
    found = minimize_scalar(
        lambda factor: balanced_loss(labels, factor * logits), bounds=(1 / 20, 20.0), options={"xatol": 1e-6}
    )
    return float(1 / found.x)


def balanced_loss(labels: np.ndarray, logits: np.ndarray) -> float:
    """Cross-entropy in nats; both classes weighted equally, as in training batches."""
    losses = np.logaddexp(0.0, np.where(labels == 1, -logits, logits))
    return float((losses[labels == 0].mean() + losses[labels == 1].mean()) / 2)


def weighted_metrics(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """All of MEASURES, (R,) each, for many weightings (R, N) of the subjects at once, each with both classes.

    Average precision is the step-wise sum over distinct scores, and precision is 0 where nobody is called TLE, both as
    in scikit-learn.
    """
    positive, weights = labels == 1, np.asarray(weights, np.float64)
    w_pos, w_neg = weights[:, positive], weights[:, ~positive]
    P, N = w_pos.sum(1), w_neg.sum(1)
    called = probabilities >= threshold
    hits, alarms = w_pos @ called[positive], w_neg @ called[~positive]
    sensitivity, specificity = hits / P, 1 - alarms / N
    return {
        "accuracy": (hits + N - alarms) / (P + N),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": np.divide(hits, hits + alarms, out=np.zeros_like(P), where=hits + alarms > 0),
        "f1": 2 * hits / (hits + alarms + P),
        "auc": weighted_auc(labels, probabilities, weights),
        "average_precision": _average_precision(positive, probabilities, weights),
        "brier": weights @ (probabilities - labels) ** 2 / (P + N),
        **recalibration(labels, probabilities, weights),
    }


def weighted_auc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`auc` (R,) for many weightings (R, N) of the subjects at once; each row holds both classes."""
    positive = labels == 1
    w_pos, w_neg = weights[:, positive], weights[:, ~positive]
    return np.einsum("rp,rp->r", w_pos, w_neg @ pairs_in_order(labels, scores).T) / (w_pos.sum(1) * w_neg.sum(1))


def pairs_in_order(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(P, N): 1 where a TLE subject scores above a control, 0 where below, one half where they tie."""
    return np.sign(scores[labels == 1][:, None] - scores[labels == 0][None]) / 2 + 0.5


def cumulative(scores: np.ndarray, *weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Weights (R, N) at or above each of the K distinct scores, from the highest; (R, K) each."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    return tuple(np.cumsum(part[:, order], axis=1)[:, ends] for part in weights)


def _average_precision(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    hits, called = cumulative(scores, positive * weights, weights)
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    return (np.diff(hits, axis=1, prepend=0.0) * precision).sum(1) / hits[:, -1]
