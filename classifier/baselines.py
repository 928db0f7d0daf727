"""Three logistic regressions that a network has to beat: hippocampal grey matter, age and sex, site."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cohort.atlas import SIDES, atlas, tissue
from cohort.scans import Grid, ScanStack

DILATE_MM = 3.0
"""Residual misalignment that the hippocampal mask makes room for, in mm: at least one voxel on coarse grids."""


def hippocampal_masks(grid: Grid) -> dict[str, np.ndarray]:
    """The atlas's left and right hippocampus, dilated; bool (D, H, W) each."""
    labels = atlas(grid)
    rounds = max(1, round(DILATE_MM / grid.spacing_mm))
    masks = {side: labels.mask(f"{side} Hippocampus") for side in SIDES}
    return {side: ndimage.binary_dilation(mask, iterations=rounds) for side, mask in masks.items()}


def soft_grey_matter(volume: np.ndarray, tissues: dict[str, np.ndarray]) -> np.ndarray:
    """How much each voxel looks like grey matter, in [0, 1]: a tent between the scan's own CSF, grey and white levels.

    Each tissue's level is the scan's median where the template is at least half that tissue.

    Args:
        volume: (D, H, W) in [0, 1].
        tissues: ``gm``, ``wm``, ``csf`` probabilities (D, H, W).
    """
    sure = {name: probability >= min(0.5, probability.max()) for name, probability in tissues.items()}
    levels = [float(np.median(volume[sure[name]])) for name in ("csf", "gm", "wm")]
    levels = np.maximum.accumulate(levels) + np.array([0.0, 1e-6, 2e-6])  # np.interp wants them to rise
    return np.interp(volume, levels, [0.0, 1.0, 0.0])


def hippocampal_features(scans: ScanStack) -> np.ndarray:
    """Soft grey-matter volume (ml) in the left and right hippocampal mask, and their absolute asymmetry; (N, 3)."""
    masks, tissues = hippocampal_masks(scans.grid), tissue(scans.grid)
    rows = []
    for volume in scans.volumes:
        grey = soft_grey_matter(volume, tissues)
        left, right = (float(grey[masks[side]].sum()) * scans.grid.spacing_mm**3 / 1000 for side in SIDES)
        rows.append((left, right, abs(left - right) / max(left + right, 1e-6)))
    return np.array(rows)


def age_sex_features(frame: pd.DataFrame, reference: pd.DataFrame) -> np.ndarray:
    """Age (the reference table's median where absent), whether it is absent, and two flags for sex; (N, 4)."""
    age = frame["age"].astype(float)
    middle = reference["age"].astype(float).median()
    columns = [age.fillna(0.0 if np.isnan(middle) else middle), age.isna(), frame["sex"] == "F", frame["sex"] == "M"]
    return np.stack([column.to_numpy(dtype=float) for column in columns], axis=1)


def site_features(frame: pd.DataFrame, reference: pd.DataFrame) -> np.ndarray:
    """One flag for each site of the reference table; (N, sites)."""
    sites = sorted(reference["site"].unique())
    return np.stack([(frame["site"] == site).to_numpy(dtype=float) for site in sites], axis=1)


def features(train: ScanStack, held_out: dict[str, ScanStack]) -> dict[str, str | dict[str, np.ndarray]]:
    """The inputs of each baseline for the training scans and every held-out stack, or why there are none.

    Hippocampal features come from all training scans, synthetic ones too; age, sex and site only real rows have.
    """
    real = train.frame[~train.frame["synthetic"]]
    stacks = {"train": train, **held_out}
    found: dict[str, str | dict[str, np.ndarray]] = {
        "hippocampus": {name: hippocampal_features(stack) for name, stack in stacks.items()}
    }
    if real["label"].nunique() < 2:
        reason = "skipped: no real training scans of both classes"
        return {**found, "age_sex": reason, "site": reason}
    frames = {"train": real, **{name: stack.frame for name, stack in held_out.items()}}
    if real["age"].notna().any() or real["sex"].ne("").any():
        found["age_sex"] = {name: age_sex_features(frame, real) for name, frame in frames.items()}
    else:
        found["age_sex"] = "skipped: the training table has neither age nor sex"
    if real["site"].nunique() > 1:
        found["site"] = {name: site_features(frame, real) for name, frame in frames.items()}
    else:
        found["site"] = "skipped: the training table has fewer than two sites"
    return found


def fit(inputs: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    """A logistic regression on standardised features (N, F), classes weighted equally, ridge penalty 1."""
    return make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced")).fit(inputs, labels)
