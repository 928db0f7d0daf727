"""Three logistic regressions that a network has to beat: hippocampal grey matter, age and sex, site."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cohort.atlas import SIDES, atlas, tissue
from cohort.grey_matter import dilated, soft_grey_matter
from cohort.scans import Grid, ScanStack


def hippocampal_masks(grid: Grid) -> dict[str, np.ndarray]:
    """The atlas's left and right hippocampus, dilated; bool (D, H, W) each."""
    labels = atlas(grid)
    return {side: dilated(labels.mask(f"{side} Hippocampus"), grid) for side in SIDES}


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
