"""Logistic regressions to hold a network against: regional volumes, ours and a tool's, brain size, age and sex, site.

Our volumes are those of a network that labels regions (--labels-from), else tissue inside fixed, dilated regions of the
template, with no registration of the individual. At 4 mm the latter follow a person's true volumes only in part, so
that beating them proves little. The volumes of --volumes, of a tool or of the simulation itself (`known_features`), are
the other end.
"""

import warnings
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from classifier.measures import metrics
from classifier.measures.resampling import interval
from cohort.anatomy.regional_volumes import (
    GREY_MATTER,
    VERSION,
    contrast_of,
    one_contrast,
    region_volumes,
)
from cohort.anatomy.volume_tables import VolumeTable, crossed_sides
from cohort.atlas import HIPPOCAMPI, REGIONS, SIDES, STRUCTURES
from cohort.labelling.reading import Reader
from cohort.scans import head_mask
from cohort.stacks import ScanStack
from runtime import seeding
from runtime.errors import InputWarning

KNOWN = {"known_hippocampus": ("Hippocampus",), "known_regional": STRUCTURES}
"""Baselines on the volumes of a table, and their structures."""


def hippocampal_features(scans: ScanStack, reader: Reader | None = None) -> np.ndarray:
    """Volumes (ml) of the left and right hippocampus, and their absolute asymmetry; (N, 3). Without a network they are
    grey matter in the dilated regions."""
    if reader is not None:
        return with_asymmetry(reader.kept(scans)[:, [REGIONS.index(name) for name in HIPPOCAMPI]])
    return with_asymmetry(tissue_volumes(scans, HIPPOCAMPI, f"hippocampi{VERSION}", unbias=False))


def tissue_volumes(scans: ScanStack, regions: tuple[str, ...], name: str, *, unbias: bool = True) -> np.ndarray:
    """`region_volumes` (N, regions) of scans of one contrast, kept under a name."""

    def measure(volume: np.ndarray) -> list[float]:
        is_map = contrast_of([volume], scans.grid) == GREY_MATTER
        return [is_map, *region_volumes([volume], scans.grid, regions, unbias=unbias)[0]]

    found = scans.measured(name, measure, what="tissue of regions").reshape(len(scans), 1 + len(regions))
    one_contrast(found[:, 0] > 0)
    return found[:, 1:]


def with_asymmetry(volumes: np.ndarray) -> np.ndarray:
    """Volumes (N, 2 S), left before right, and |L - R| / (L + R) of each structure beside them; (N, 3 S)."""
    left, right = volumes[:, 0::2], volumes[:, 1::2]
    return np.hstack([volumes, np.abs(left - right) / np.maximum(left + right, 1e-6)])


def brain_features(scans: ScanStack) -> np.ndarray:
    """Volume (ml) of the mask of brain or head; (N, 1). A cue of preparation rather than of disease."""
    voxel_ml = scans.grid.spacing_mm**3 / 1000
    return scans.measured("brain1", lambda volume: [np.count_nonzero(head_mask(volume)) * voxel_ml], what="heads")


def two_sided(table: VolumeTable) -> list[str]:
    """Those of REGIONS, left before right, that a table has on both sides."""
    names = [name for name in STRUCTURES if all(f"{side} {name}" in table.regions for side in SIDES)]
    return [f"{side} {name}" for name in names for side in SIDES]


def known_features(
    stacks: dict[str, ScanStack], measured: dict[str, np.ndarray], table: VolumeTable
) -> dict[str, str | dict[str, np.ndarray]]:
    """The inputs KNOWN of stacks of scans: volumes (ml) of a table, left and right, and asymmetries, (N, 3 S) each.

    NaN where unknown. Warns of scans that the table does not know, and where left and right seem exchanged against our
    own `measured` volumes (N, 16) of REGIONS.
    """
    regions = two_sided(table)
    everybody = pd.concat([stack.frame for stack in stacks.values()], ignore_index=True)
    ml = table.of(everybody, regions)
    table.warn(everybody, regions)
    own = np.concatenate([volumes[:, [REGIONS.index(name) for name in regions]] for volumes in measured.values()])
    if told := crossed_sides(table, ml, own, regions):
        warnings.warn(told, InputWarning, stacklevel=2)
    ends = np.cumsum([len(stack) for stack in stacks.values()])[:-1]
    found: dict[str, str | dict[str, np.ndarray]] = {}
    for name, structures in KNOWN.items():
        places = [place for place, region in enumerate(regions) if region.partition(" ")[2] in structures]
        parts = np.split(with_asymmetry(ml[:, places]), ends)
        absent = f"{table.name} has none of these volumes on both sides"
        found[name] = dict(zip(stacks, parts, strict=True)) if places else absent
    return found


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


def features(
    train: ScanStack, held_out: dict[str, ScanStack], known: VolumeTable | None = None, reader: Reader | None = None
) -> dict[str, str | dict[str, np.ndarray]]:
    """The inputs of each baseline, {"train": (N, F), and one for each held-out stack}, or why there are none.

    ``hippocampus`` comes from all training scans, synthetic ones too; all others from the real ones alone, in the order
    of the table. KNOWN are of the table `known`. A `reader` measures our volumes; NaN where it cannot. ``permuted`` is
    ``regional`` with the training rows in random order: labels that belong to other people. It can miss an area of 0.5
    by more than its interval over test subjects: see `permutation_null`.
    """
    all_scans = {"train": train, **held_out}
    real = train.take(np.flatnonzero(~train.frame["synthetic"].to_numpy(dtype=bool)))
    stacks, table = {"train": real, **held_out}, real.frame
    found: dict[str, Any] = {
        "hippocampus": {name: hippocampal_features(stack, reader) for name, stack in all_scans.items()}
    }
    if table["label"].nunique() < 2:
        names = ["regional", *KNOWN, "brain_volume", "age_sex", "site", "permuted"]
        return {**found, **dict.fromkeys(names, "no real training scans of both classes")}
    volumes = {
        name: tissue_volumes(stack, REGIONS, f"regions{VERSION}") if reader is None else reader.kept(stack)
        for name, stack in stacks.items()
    }
    found["regional"] = regional = {name: with_asymmetry(ml) for name, ml in volumes.items()}  # (N, 24)
    found |= dict.fromkeys(KNOWN, "no --volumes") if known is None else known_features(stacks, volumes, known)
    found["brain_volume"] = {name: brain_features(stack) for name, stack in stacks.items()}
    found["age_sex"] = "the training table has neither age nor sex"
    if table["age"].notna().any() or table["sex"].ne("").any():
        found["age_sex"] = {name: age_sex_features(stack.frame, table) for name, stack in stacks.items()}
    found["site"] = "the training table has fewer than two sites"
    if table["site"].nunique() > 1:
        found["site"] = {name: site_features(stack.frame, table) for name, stack in stacks.items()}
    order = seeding.rng(0, "permuted labels").permutation(len(real))
    return {**found, "permuted": {**regional, "train": regional["train"][order]}}


def side_scores(inputs_of: dict[str, str | dict[str, np.ndarray]], sides: np.ndarray) -> dict[str, np.ndarray]:
    """Probability of right against left for each test scan, (N,), by a logistic regression on one number.

    ``asymmetry_index`` is (L - R) / (L + R) of the hippocampi as we measure them, ``known_asymmetry_index`` by a table
    of volumes (NaN where unknown); `inputs_of` are all `features`. Fitted to the training patients whose side is known
    (`sides` (N,) of 0, 1 and -1). Nothing where there are none of both sides.
    """
    found = {}
    for name, source in (("asymmetry_index", "regional"), ("known_asymmetry_index", "known_hippocampus")):
        inputs = inputs_of[source]
        if isinstance(inputs, str):
            continue
        left, right = ({part: values[:, place] for part, values in inputs.items()} for place in (0, 1))
        index = {part: (left[part] - right[part]) / np.maximum(left[part] + right[part], 1e-6) for part in inputs}
        learned = (sides >= 0) & np.isfinite(index["train"])
        if {0, 1} <= {*sides[learned].tolist()}:
            known = np.isfinite(index["test"])
            model = fit(index["train"][learned, None], sides[learned])
            found[name] = np.full(len(known), np.nan)
            found[name][known] = model.predict_proba(index["test"][known, None])[:, 1]
    return found


def fit(inputs: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    """A logistic regression on standardised features (N, F), classes weighted equally, ridge penalty 1."""
    return make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced")).fit(inputs, labels)


def fit_closely(inputs: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    """`fit` with the ridge penalty that cross-validation within these subjects prefers (log loss, 5 folds at most).

    For bounds from above: a penalty that leaves noise in would put them too low.
    """
    folds = StratifiedKFold(min(5, int(np.bincount(labels).min())), shuffle=True, random_state=0)
    grid = {"logisticregression__C": np.logspace(-3, 1, 9)}
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    return GridSearchCV(model, grid, scoring="neg_log_loss", cv=folds).fit(inputs, labels).best_estimator_


def permutation_null(
    inputs: dict[str, np.ndarray], labels: np.ndarray, test_labels: np.ndarray, permutations: int, seed: int
) -> dict[str, float]:
    """Mean area on the test subjects of so many baselines fitted to permuted training labels, and 95 % of them.

    One permuted fit is a random direction among the features: where they do tell the classes apart, its area strays
    from 0.5 to either side by more than the sampling of test subjects explains. Over permutations it has mean 0.5.
    """
    areas = []
    for number in range(permutations):
        shuffled = seeding.rng(seed, "permutation null", number).permutation(labels)
        areas.append(metrics.auc(test_labels, fit(inputs["train"], shuffled).predict_proba(inputs["test"])[:, 1]))
    low, high = interval(np.array(areas))
    return {"value": float(np.mean(areas)), "low": low, "high": high}
