"""Checks the demo cohort against the statistics it is made to have, at 400 subjects and 4 mm.

The cohort is made by its own command in one process, timed, and checked by truth.csv alone; part of it is made again in
two processes and compared byte for byte.

    python -m benchmarks.demo_cohort --out benchmarks/demo_cohort.json
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks.timing import time_command
from cohort.anatomy.truth import volume_column
from cohort.atlas import REGIONS
from cohort.simulation.effects import effect_targets
from runtime.cli import describe, run_script
from runtime.files import ROOT, sha256, write_json
from runtime.seeding import rng

GROUPS = (("HS", "L"), ("HS", "R"), ("MRI-negative", "L"), ("MRI-negative", "R"))
REPEATED = 24
BOOTSTRAPS = 500


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to check."""

    out: Path = ROOT / "benchmarks" / "demo_cohort.json"
    """The JSON file of the figures."""
    subjects: int = 400
    """Size of the cohort."""
    seed: int = 0
    """Its seed."""
    spacing_mm: float = 4.0
    """Voxel size."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


class Check(NamedTuple):
    """One line of the table."""

    name: str
    target: str
    measured: float | list[float]
    passed: bool


def main(config: BenchmarkConfig) -> None:
    """Makes the cohort, measures it, prints the table and writes it."""
    with tempfile.TemporaryDirectory() as folder:
        made, again = Path(folder) / "once", Path(folder) / "again"
        spent = make(made, config, config.subjects, workers=1)
        truth = pd.read_csv(made / "truth.csv", keep_default_na=False)
        make(again, config, REPEATED, workers=2)
        same = all(sha256(scan) == sha256(made / "scans" / scan.name) for scan in sorted((again / "scans").iterdir()))
    seconds, wall = (spent[name] / config.subjects for name in ("processor, s", "wall, s"))
    smallest = float(truth.min_jacobian.min())
    length = [float(truth.displacement_mm.min()), float(truth.displacement_mm.max())]
    checks = [
        *effects(truth), *norms(truth), *separations(truth, config.seed),
        Check(f"same bytes, {REPEATED} subjects, 1 and 2 processes", "yes", float(same), same),
        Check("processor seconds per subject, one process, start-up included", "< 0.3", seconds, seconds < 0.3),
        Check("the same by the clock (the machine may be shared)", "", wall, True),
        Check("smallest Jacobian determinant", "> 0", smallest, smallest > 0),
        Check("displacement, rms mm, least and most", "about 2 to 3", length, length[0] > 1.8 and length[1] < 3.2),
    ]  # fmt: skip
    for check in checks:
        print(f"{'ok  ' if check.passed else 'MISS'} {check.name:62s} {check.target:>16s}  {shown(check.measured)}")
    write_json(config.out, {"subjects": config.subjects, "seed": config.seed, "checks": [c._asdict() for c in checks]})


def make(out: Path, config: BenchmarkConfig, count: int, workers: int) -> dict[str, float]:
    """Runs the command that makes a cohort; returns what it took."""
    return time_command(
        "cohort.make_demo", "--out", out, "--index", out / "index.csv", "--subjects", count, "--seed", config.seed,
        "--workers", workers, "--spacing-mm", config.spacing_mm, threads=1,
    )  # fmt: skip


def volumes_of(truth: pd.DataFrame) -> np.ndarray:
    """True volumes (subjects, regions) in mm3; logarithms for the ventricles, as their effect is defined."""
    volumes = truth[[volume_column(region) for region in REGIONS]].to_numpy()
    return np.where(["Ventricle" in region for region in REGIONS], np.log(volumes), volumes)


def cohens_d(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Difference of means over the pooled standard deviation, per column."""
    pooled = (len(a) - 1) * a.var(axis=0, ddof=1) + (len(b) - 1) * b.var(axis=0, ddof=1)
    return (a.mean(axis=0) - b.mean(axis=0)) / np.sqrt(pooled / (len(a) + len(b) - 2))


def effects(truth: pd.DataFrame) -> list[Check]:
    """Cohen's d of every region in every patient group."""
    volumes = volumes_of(truth)
    controls = volumes[truth.group == "HC"]
    checks = []
    for group, side in GROUPS:
        patients = volumes[(truth.group == group) & (truth.side == side)]
        targets = effect_targets(group, side)
        for region, d, target in zip(REGIONS, cohens_d(patients, controls), targets, strict=True):
            name = f"d {group}-{side} (n {len(patients)}) {region}"
            checks.append(Check(name, f"{target:+.3f} +- 0.2", float(d), bool(abs(d - target) < 0.2)))
    return checks


def norms(truth: pd.DataFrame) -> list[Check]:
    """Variation of the hippocampus in controls."""
    left, right = volumes_of(truth[truth.group == "HC"])[:, :2].T
    cvs = {side: float(100 * own.std(ddof=1) / own.mean()) for side, own in (("left", left), ("right", right))}
    r = float(np.corrcoef(left, right)[0, 1])
    ratio = float(right.mean() / left.mean())
    asymmetry = float(100 * np.percentile(np.abs(right - left) / np.maximum(left, right), 90))
    return [
        *(Check(f"HC {side} hippocampus, CV %", "8 to 13", cv, 8 <= cv <= 13) for side, cv in cvs.items()),
        Check("HC hippocampi, left-right correlation", "> 0.75", r, r > 0.75),
        Check("HC hippocampi, mean right over left", "1.02 to 1.05", ratio, 1.02 <= ratio <= 1.05),
        Check("HC |right - left| / larger, 90th percentile %", "8.5 +- 1.5", asymmetry, abs(asymmetry - 8.5) <= 1.5),
    ]


def separations(truth: pd.DataFrame, seed: int) -> list[Check]:
    """How well hippocampal volumes, and the site alone, tell patients from controls."""
    patients = (truth.group != "HC").to_numpy()
    hippocampi = volumes_of(truth)[:, :2]
    features = np.column_stack([hippocampi, np.abs(hippocampi[:, 0] - hippocampi[:, 1])])
    visible = (truth.mri_negative == 0).to_numpy()
    scaled = make_pipeline(StandardScaler(), LogisticRegression())
    everyone = auc(scaled, features, patients, seed)
    lesional = auc(scaled, features[visible], patients[visible], seed)
    interval = site_interval(truth[["site"]].to_numpy(), patients, seed)
    contained = interval[0] <= 0.5 <= interval[1]
    return [
        Check("AUC hippocampal volumes, whole cohort", "0.75 to 0.90", everyone, 0.75 <= everyone <= 0.90),
        Check("AUC hippocampal volumes, without MRI-negative", "> 0.88, < 0.99", lesional, 0.88 < lesional < 0.99),
        Check("AUC site alone, 95 % interval", "contains 0.5", interval, contained),
    ]


def auc(model: Pipeline, features: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Out-of-fold AUC, five folds."""
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    scores = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(labels, scores))


def site_interval(site: np.ndarray, labels: np.ndarray, seed: int) -> list[float]:
    """95 % interval of the AUC of a classifier that knows the site alone.

    It is fitted to each bootstrap sample and scored on the subjects left out. Pooled cross-validation would not do: in
    a balanced cohort the class that a fold's test part has more of, its training part has less of, so that a
    classifier without information scores below 0.5.
    """
    model = make_pipeline(OneHotEncoder(), LogisticRegression())
    draw = rng(seed, "benchmark.bootstrap")
    values = []
    for _ in range(BOOTSTRAPS):
        sample = draw.integers(len(labels), size=len(labels))
        left_out = np.setdiff1d(np.arange(len(labels)), sample)
        scores = model.fit(site[sample], labels[sample]).predict_proba(site[left_out])[:, 1]
        values.append(roc_auc_score(labels[left_out], scores))
    return [float(v) for v in np.percentile(values, [2.5, 97.5])]


def shown(value: float | list[float]) -> str:
    """A figure, or several, with three decimals."""
    return " to ".join(f"{v:.3f}" for v in value) if isinstance(value, list) else f"{value:.3f}"


if __name__ == "__main__":
    run_script(main, BenchmarkConfig, description=describe(__doc__))
