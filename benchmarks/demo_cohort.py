"""Holds simulated cohorts against the statistics they are made to have, at 400 subjects and 4 mm.

The cohort, with the patients of the demo's and those without a visible lesion (``--effect mixed``), is made by its own
command in one process, timed, and checked by truth.csv alone; part of it is made again in two processes and compared
byte for byte.

    python -m benchmarks.demo_cohort --out benchmarks/demo_cohort.json
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.timing import expect, print_table, time_command
from cohort.anatomy.volume_readers import volume_column
from cohort.atlas import REGIONS
from cohort.simulation.effects import effect_targets
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.files import ROOT, sha256, write_json

REPEATED = 24
Check = tuple[str, float, float, float]
"""Name, measured, and the least and the most that it may be."""


@dataclass(frozen=True)
class BenchmarkConfig(ScriptConfig):
    out: Path = ROOT / "benchmarks" / "demo_cohort.json"
    """The JSON file of the figures."""
    subjects: int = 400
    """Size of the cohort."""


def main(config: BenchmarkConfig) -> None:
    expect(minutes=2 * config.subjects / 400)
    with tempfile.TemporaryDirectory() as folder:
        made, again = Path(folder) / "once", Path(folder) / "again"
        seconds = make(made, config.subjects, workers=1)["processor, s"] / config.subjects
        truth = pd.read_csv(made / "truth.csv", keep_default_na=False)
        make(again, REPEATED, workers=2)
        same = all(sha256(scan) == sha256(made / "scans" / scan.name) for scan in (again / "scans").iterdir())
    checks = [
        *effects(truth), *norms(truth), *separations(truth),
        (f"same bytes, {REPEATED} subjects, 1 and 2 processes", float(same), 1, 1),
        ("processor seconds per subject, start-up included", seconds, 0, 0.3),
        ("smallest Jacobian determinant", truth.min_jacobian.min(), 0, np.inf),
        ("least displacement, rms mm", truth.displacement_mm.min(), 1.8, np.inf),
        ("largest displacement, rms mm", truth.displacement_mm.max(), 0, 3.2),
    ]  # fmt: skip
    rows = [
        {"": "ok" if low <= value <= high else "MISS", "check": name, "from": f"{low:g}", "to": f"{high:g}",
         "measured": float(value)}
        for name, value, low, high in checks
    ]  # fmt: skip
    print_table(rows)
    write_json(config.out, {"subjects": config.subjects, "checks": rows})


def make(out: Path, count: int, workers: int) -> dict[str, float]:
    words = ("--out", out, "--index", out / "index.csv", "--effect", "mixed", "--subjects", count, "--workers", workers)
    return time_command("cohort.make_demo", *words, threads=1)


def volumes_of(truth: pd.DataFrame) -> np.ndarray:
    """True volumes (subjects, regions) in mm3; logarithms for the ventricles, as their effect is defined."""
    volumes = truth[[volume_column(region) for region in REGIONS]].to_numpy()
    return np.where(["Ventricle" in region for region in REGIONS], np.log(volumes), volumes)


def effects(truth: pd.DataFrame) -> list[Check]:
    """Cohen's d of every region in every group of patients, within 0.2 of the one aimed at."""
    volumes, checks = volumes_of(truth), []
    controls = volumes[truth.group == "HC"]
    for (group, side), rows in truth[truth.group != "HC"].groupby(["group", "side"]):
        patients = volumes[rows.index]
        pooled = sum((len(a) - 1) * a.var(axis=0, ddof=1) for a in (patients, controls))
        pooled = np.sqrt(pooled / (len(patients) + len(controls) - 2))
        found = (patients.mean(axis=0) - controls.mean(axis=0)) / pooled
        for region, d, target in zip(REGIONS, found, effect_targets(group, side), strict=True):
            checks.append((f"d {group}-{side} (n {len(rows)}) {region}", d, target - 0.2, target + 0.2))
    return checks


def norms(truth: pd.DataFrame) -> list[Check]:
    left, right = volumes_of(truth[truth.group == "HC"])[:, :2].T
    asymmetry = 100 * np.percentile(np.abs(right - left) / np.maximum(left, right), 90)
    return [
        ("HC left hippocampus, CV %", 100 * left.std(ddof=1) / left.mean(), 8, 13),
        ("HC right hippocampus, CV %", 100 * right.std(ddof=1) / right.mean(), 8, 13),
        ("HC hippocampi, left-right correlation", np.corrcoef(left, right)[0, 1], 0.75, 1),
        ("HC hippocampi, mean right over left", right.mean() / left.mean(), 1.02, 1.05),
        ("HC |right - left| / larger, 90th percentile %", asymmetry, 7, 10),
    ]


def separations(truth: pd.DataFrame) -> list[Check]:
    """How well hippocampal volumes tell patients from controls, out of fold; and that sites say nothing of them."""
    patients, hippocampi = truth.group != "HC", volumes_of(truth)[:, :2]
    features = np.column_stack([hippocampi, np.abs(hippocampi[:, 0] - hippocampi[:, 1])])
    model = make_pipeline(StandardScaler(), LogisticRegression())
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    checks = []
    for name, low, high, rows in (
        ("whole cohort", 0.75, 0.90, truth.index),
        ("without MRI-negative", 0.88, 0.99, truth.index[truth.mri_negative == 0]),
    ):
        x, y = features[rows], patients[rows]
        scores = cross_val_predict(model, x, y, cv=folds, method="predict_proba")[:, 1]
        checks.append((f"AUC of hippocampal volumes, {name}", roc_auc_score(y, scores), low, high))
    p = chi2_contingency(pd.crosstab(truth.site, patients)).pvalue
    return [*checks, ("p of independence, site and class", p, 0.05, 1)]


if __name__ == "__main__":
    run_script(main, BenchmarkConfig, description=describe(__doc__))
