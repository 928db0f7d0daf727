"""What besides the disease tells the classes of a cohort apart: site, age, sex. Numbers, and warnings by stated limits.

One row per subject everywhere: repeated scans of a person are no further evidence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from cohort.checking.findings import Finding
from cohort.tables import CLASS_NAMES
from runtime.seeding import address, rng

MAX_DIFFERENCE = 0.25
"""Standardised difference of a covariate above which groups are unbalanced (Rubin 2001, Health Services and Outcomes
Research Methodology 2:169)."""
MAX_SITE_AUC = 0.6
"""AUC of a site-only classifier from which a warning is given, if its interval excludes 0.5."""
FEW = 10
"""Subjects of a class below which nothing is said about its balance."""
BOOTSTRAPS = 1000
_FOLDS = 5


def confounds(frame: pd.DataFrame) -> dict[str, Any]:
    """Measures how far site, age and sex go with the class in a table.

    Returns:
        Plain values: `subjects` per class; `sites`, per site the subjects of each class; `site_auc`, `age` and `sex`
        (`site_auc`, `difference_of_ages`, `difference_of_sexes`), None where a class has fewer than FEW known values.
    """
    people = frame.drop_duplicates("subject")
    known_sex = people[people["sex"] != ""]
    ages = [people["age"][people["label"] == label].dropna().to_numpy(dtype=float) for label in (0, 1)]
    women = [(known_sex["sex"][known_sex["label"] == label] == "F").to_numpy() for label in (0, 1)]
    return {
        "subjects": {name: int((people["label"] == code).sum()) for code, name in enumerate(CLASS_NAMES)},
        "sites": site_table(people),
        "site_auc": site_auc(people),
        "age": difference_of_ages(*ages) if min(map(len, ages)) >= FEW else None,
        "sex": difference_of_sexes(*women) if min(map(len, women)) >= FEW else None,
    }


def site_table(people: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Subjects by site and class; a site without a name is ``?``."""
    counts = pd.crosstab(people["site"].where(people["site"] != "", "?"), people["label"])
    counts = counts.reindex(columns=range(len(CLASS_NAMES)), fill_value=0)
    return counts.set_axis(CLASS_NAMES, axis=1).to_dict("index")


def site_auc(people: pd.DataFrame, *, seed: int = 0) -> dict[str, float] | None:
    """How well the site alone tells TLE from HC.

    Logistic regression on the site in five-fold cross-validation, so that sites with few subjects earn nothing by
    chance; the AUC is the mean of the folds', since scores of different fits are not to be ranked with one another
    (Airola et al. 2011, Computational Statistics & Data Analysis 55:1828). The interval is the 2.5 to 97.5 percentile
    over subjects bootstrapped within fold and class. A site that says nothing comes out at or somewhat below 0.5, since
    whoever is held out is of the class that the rest has less of.

    Returns:
        `auc`, `low`, `high`; None with one site only, or fewer than FEW subjects of a class.
    """
    labels = people["label"].to_numpy(dtype=int)
    if people["site"].nunique() < 2 or np.bincount(labels, minlength=2).min() < FEW:
        return None
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression())
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=address(seed, "site folds") % 2**32)
    site, draw = people[["site"]].to_numpy(), rng(seed, "site auc")
    aucs, resampled = [], []
    for train, test in folds.split(site, labels):
        scores = model.fit(site[train], labels[train]).predict_proba(site[test])[:, 1]
        aucs.append(roc_auc_score(labels[test], scores))
        resampled.append(_bootstrapped_auc(scores, labels[test], draw))
    low, high = np.percentile(np.mean(resampled, axis=0), (2.5, 97.5))
    return {name: round(float(value), 6) for name, value in (("auc", np.mean(aucs)), ("low", low), ("high", high))}


def _bootstrapped_auc(scores: np.ndarray, labels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """AUC over BOOTSTRAPS resamples within each class, ties counted half; float (BOOTSTRAPS,).

    Sites leave few distinct scores, so that a resample is its counts of each (multinomial), whatever the cohort's size.
    """
    values, places = np.unique(scores, return_inverse=True)
    counts = [np.bincount(places[labels == label], minlength=len(values)) for label in (0, 1)]
    drawn = [draw.multinomial(count.sum(), count / count.sum(), size=BOOTSTRAPS) / count.sum() for count in counts]
    below = np.cumsum(drawn[0], axis=1) - drawn[0] / 2
    return (drawn[1] * below).sum(axis=1)


def difference_of_ages(controls: np.ndarray, patients: np.ndarray) -> dict[str, float]:
    """Patients' mean age (years) less that of controls, over the pooled standard deviation; p by Welch's test."""
    pooled = np.sqrt((controls.var(ddof=1) + patients.var(ddof=1)) / 2)
    apart = patients.mean() - controls.mean()
    d = _standardised(apart, pooled)
    p = float(stats.ttest_ind(patients, controls, equal_var=False).pvalue) if pooled > 0 else float(apart == 0)
    return _with_interval(controls, patients, d, p)


def difference_of_sexes(controls: np.ndarray, patients: np.ndarray) -> dict[str, float]:
    """Patients' share of women (bool) less that of controls, over the pooled standard deviation; p by Fisher's test."""
    shares = float(controls.mean()), float(patients.mean())
    pooled = np.sqrt(sum(share * (1 - share) for share in shares) / 2)
    table = [[int(group.sum()), int((~group).sum())] for group in (controls, patients)]
    p = float(stats.fisher_exact(table).pvalue)
    return _with_interval(controls, patients, _standardised(shares[1] - shares[0], pooled), p)


def _standardised(apart: float, pooled: float) -> float:
    """A difference over its spread, within 10 either way: two groups without any spread differ beyond measure."""
    return float(np.clip(apart / pooled, -10, 10)) if pooled > 0 else 10 * float(np.sign(apart))


def _with_interval(controls: np.ndarray, patients: np.ndarray, d: float, p: float) -> dict[str, float]:
    """Means and a standardised difference with its 95 % interval (Hedges and Olkin 1985, equation 5.14)."""
    n, m = len(controls), len(patients)
    error = np.sqrt((n + m) / (n * m) + d**2 / (2 * (n + m)))
    interval = {"difference": d, "low": float(d - 1.96 * error), "high": float(d + 1.96 * error)}
    return {"HC": float(controls.mean()), "TLE": float(patients.mean()), **interval, "p": p}


def confound_findings(measured: dict[str, Any], table: str) -> list[Finding]:
    """Warnings for what `confounds` measured, by MAX_DIFFERENCE and MAX_SITE_AUC."""
    found = [
        ("class", f"{count} subjects of class {name}; too few to judge its balance by site, age or sex")
        for name, count in measured["subjects"].items()
        if count < FEW
    ]
    alone = [site for site, counts in measured["sites"].items() if min(counts.values()) == 0]
    if len(measured["sites"]) > 1 and alone:
        text = f"one class only at {', '.join(alone)}: there, scanner and disease cannot be told apart"
        found.append(("site", text))
    auc = measured["site_auc"]
    if auc and auc["auc"] >= MAX_SITE_AUC and auc["low"] > 0.5:
        interval = f"AUC {auc['auc']:.2f} ({auc['low']:.2f} to {auc['high']:.2f})"
        found.append(("site", f"the site alone tells the classes apart: {interval}"))
    for kind, unit, digits in (("age", "years", ".1f"), ("sex", "female", ".0%")):
        value = measured[kind]
        if value and abs(value["difference"]) > MAX_DIFFERENCE:
            text = (
                f"HC {value['HC']:{digits}}, TLE {value['TLE']:{digits}} {unit}: standardised difference "
                f"{value['difference']:.2f} ({value['low']:.2f} to {value['high']:.2f}), p {value['p']:.2g}; "
                "a classifier can use it"
            )
            found.append((kind, text))
    return [Finding("warning", kind, text, file=table) for kind, text in found]
