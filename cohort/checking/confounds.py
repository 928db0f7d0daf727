"""What besides the disease tells the classes of a cohort apart: site, age, sex. Numbers, and warnings by stated limits.

One row per subject everywhere: repeated scans of a person are no further evidence.
"""

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from cohort.tables import CLASS_NAMES
from runtime.seeding import address

MAX_DIFFERENCE = 0.25
"""Standardised difference of a covariate above which groups are unbalanced (Rubin 2001, Health Services and Outcomes
Research Methodology 2:169)."""
MAX_SITE_AUC, MAX_P = 0.6, 0.05
"""AUC of a site-only classifier from which a warning is given, if sites and classes are not independent at this p."""
FEW = 10
"""Subjects of a class below which nothing is said about its balance."""
_FOLDS = 5


def confounds(frame: pd.DataFrame) -> dict[str, Any]:
    """Measures how far site, age and sex go with the class in a table.

    Returns:
        Plain values: `subjects` per class; `sites`, per site (``?`` without a name) the subjects of each class;
        `site_auc`, `age` and `sex` (`site_auc`, `difference_of_ages`, `difference_of_sexes`), None where a class has
        fewer than FEW known values.
    """
    people = frame.drop_duplicates("subject")
    known_sex = people[people["sex"] != ""]
    ages = [people["age"][people["label"] == label].dropna().to_numpy(dtype=float) for label in (0, 1)]
    women = [(known_sex["sex"][known_sex["label"] == label] == "F").to_numpy() for label in (0, 1)]
    sites = pd.crosstab(people["site"].where(people["site"] != "", "?"), people["label"])
    sites = sites.reindex(columns=range(len(CLASS_NAMES)), fill_value=0).set_axis(CLASS_NAMES, axis=1)
    return {
        "subjects": {name: int((people["label"] == code).sum()) for code, name in enumerate(CLASS_NAMES)},
        "sites": sites.to_dict("index"),
        "site_auc": site_auc(people),
        "age": difference_of_ages(*ages) if min(map(len, ages)) >= FEW else None,
        "sex": difference_of_sexes(*women) if min(map(len, women)) >= FEW else None,
    }


def site_auc(people: pd.DataFrame, *, seed: int = 0) -> dict[str, float] | None:
    """How well the site alone tells TLE from HC.

    Logistic regression on the site in five-fold cross-validation, so that sites with few subjects earn nothing by
    chance; the AUC is the mean of the folds', since scores of different fits are not to be ranked with one another
    (Airola et al. 2011, Computational Statistics & Data Analysis 55:1828). A site that says nothing comes out at or
    somewhat below 0.5, since whoever is held out is of the class that the rest has less of.

    Returns:
        `auc`, and `p` of the chi-squared test of sites by class; None with one site only, or fewer than FEW subjects of
        a class.
    """
    labels = people["label"].to_numpy(dtype=int)
    if people["site"].nunique() < 2 or np.bincount(labels, minlength=2).min() < FEW:
        return None
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression())
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=address(seed, "site folds") % 2**32)
    auc = cross_val_score(model, people[["site"]].to_numpy(), labels, scoring="roc_auc", cv=folds).mean()
    p = stats.chi2_contingency(pd.crosstab(people["site"], labels)).pvalue
    return {"auc": round(float(auc), 6), "p": float(p)}


def difference_of_ages(controls: np.ndarray, patients: np.ndarray) -> dict[str, float]:
    """Patients' mean age (years) less that of controls, over the pooled standard deviation; p by Welch's test."""
    variances = controls.var(ddof=1), patients.var(ddof=1)
    if any(variances):
        p = float(stats.ttest_ind(patients, controls, equal_var=False).pvalue)
    else:
        p = float(patients[0] == controls[0])
    return _difference(controls, patients, variances, p)


def difference_of_sexes(controls: np.ndarray, patients: np.ndarray) -> dict[str, float]:
    """Patients' share of women (bool) less that of controls, over the pooled standard deviation; p by Fisher's test."""
    shares = float(controls.mean()), float(patients.mean())
    table = [[int(group.sum()), int((~group).sum())] for group in (controls, patients)]
    p = float(stats.fisher_exact(table).pvalue)
    return _difference(controls, patients, tuple(share * (1 - share) for share in shares), p)


def _difference(
    controls: np.ndarray, patients: np.ndarray, variances: tuple[float, float], p: float
) -> dict[str, float]:
    """Means and their standardised difference with its 95 % interval (Hedges and Olkin 1985, equation 5.14)."""
    n, m = len(controls), len(patients)
    apart, pooled = patients.mean() - controls.mean(), np.sqrt(sum(variances) / 2)
    # Two groups without any spread differ beyond measure.
    d = float(np.clip(apart / pooled, -10, 10)) if pooled > 0 else 10 * float(np.sign(apart))
    error = np.sqrt((n + m) / (n * m) + d**2 / (2 * (n + m)))
    interval = {"difference": d, "low": float(d - 1.96 * error), "high": float(d + 1.96 * error)}
    return {"HC": float(controls.mean()), "TLE": float(patients.mean()), **interval, "p": p}


def confound_warnings(measured: dict[str, Any]) -> list[tuple[str, str]]:
    """Kind and message of each warning for what `confounds` measured."""
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
    if auc and auc["auc"] >= MAX_SITE_AUC and auc["p"] < MAX_P:
        found.append(("site", f"the site alone tells the classes apart: AUC {auc['auc']:.2f}, p {auc['p']:.2g}"))
    for kind, unit, digits in (("age", "years", ".1f"), ("sex", "female", ".0%")):
        value = measured[kind]
        if value and abs(value["difference"]) > MAX_DIFFERENCE:
            text = (
                f"HC {value['HC']:{digits}}, TLE {value['TLE']:{digits}} {unit}: standardised difference "
                f"{value['difference']:.2f} ({value['low']:.2f} to {value['high']:.2f}), p {value['p']:.2g}; "
                "a classifier can use it"
            )
            found.append((kind, text))
    return found
