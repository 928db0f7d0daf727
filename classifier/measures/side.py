"""Parts of a table of predictions with two classes of their own: right against left, HC against sclerosis."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from classifier.measures.metrics import weighted_auc


def with_sclerosis(frame: pd.DataFrame) -> pd.Series:
    """Patients of whom a column says that their scan is not negative, bool (N,)."""
    return (frame["label"] == 1) & frame.get("mri_negative", pd.Series(np.nan, frame.index)).eq(0)


def right_against_left(frame: pd.DataFrame) -> pd.DataFrame:
    """The patients whose side is known: right is class 1, with the probability of the side; none if none was learned"""
    score = frame.get("side_probability", pd.Series(np.nan, frame.index))
    right = (frame["side"] == "R").astype(int)
    return frame.assign(label=right, probability=score)[(frame["side"] != "") & score.notna()]


PARTS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "side": right_against_left,
    "side_sclerosis": lambda frame: right_against_left(frame[with_sclerosis(frame)]),
    "sclerosis": lambda frame: frame[(frame["label"] == 0) | with_sclerosis(frame)],
}
"""By name: all patients of known side, and those with sclerosis, right against left; HC against sclerosis."""

SIDE_PARTS = {"test": "side", "sclerosis": "side_sclerosis"}
"""Those of sides, by what results.json calls them under its key side."""


def part_of(frame: pd.DataFrame, name: str) -> pd.DataFrame | None:
    """One of PARTS, rows as they are numbered in `frame`; None without two scans of either class."""
    part = PARTS[name](frame)
    return part if part["label"].value_counts().reindex([0, 1], fill_value=0).min() > 1 else None


def threshold_of(name: str, threshold: float) -> float:
    """Where a part is divided: at 0.5 for sides, which nothing was chosen for, else at the run's own threshold."""
    return threshold if name == "sclerosis" else 0.5


@np.errstate(invalid="ignore", divide="ignore")  # a draw without one of the classes
def weighted_part(part: pd.DataFrame, threshold: float, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy and AUC, (R,) each, for many weightings (R, N) of a part's scans."""
    labels, scores = part["label"].to_numpy(), part["probability"].to_numpy()
    right = (scores >= threshold) == (labels == 1)
    return {"accuracy": weights @ right / weights.sum(1), "auc": weighted_auc(labels, scores, weights)}
