"""Confounds against closed forms, scikit-learn and scipy, and planted ones against their warnings."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cohort.checking.confounds import confound_warnings, confounds, difference_of_ages, difference_of_sexes, site_auc


def cohort(count=2000, seed=0, sites=(("A", "B", "C"), ("A", "B", "C")), older=0.0, women=(0.5, 0.5)):
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    return pd.DataFrame(
        {
            "subject": [f"s{number}" for number in range(count)],
            "label": labels,
            "site": [draw.choice(sites[label]) for label in labels],
            "age": draw.normal(35, 10, count) + older * labels,
            "sex": np.where(draw.random(count) < np.take(women, labels), "F", "M"),
        }
    )


def kinds(frame):
    return [kind for kind, _ in confound_warnings(confounds(frame))]


def test_a_balanced_cohort_gives_no_finding():
    assert kinds(cohort()) == []


def test_each_planted_confound_gives_its_own_warning():
    assert kinds(cohort(older=6.0)) == ["age"]
    assert kinds(cohort(women=(0.3, 0.6))) == ["sex"]
    alone = cohort(sites=(("A", "B"), ("A", "B", "C")))
    assert kinds(alone) == ["site", "site"]
    text = " ".join(message for _, message in confound_warnings(confounds(alone)))
    assert "one class only at C" in text
    assert "AUC" in text


def test_few_of_a_class_are_said_and_not_judged():
    frame = cohort(60).assign(site="A")
    few = pd.concat([frame[frame["label"] == 0], frame[frame["label"] == 1].head(4).assign(age=90.0)])
    assert confound_warnings(confounds(few)) == [
        ("class", "4 subjects of class TLE; too few to judge its balance by site, age or sex")
    ]


def test_sites_are_counted_by_subject():
    frame = cohort(40)
    frame.loc[:3, "site"] = ""
    table = confounds(frame)["sites"]
    assert sum(sum(counts.values()) for counts in table.values()) == 40
    assert table["?"] == {"HC": 2, "TLE": 2}
    twice = pd.concat([frame, frame], ignore_index=True)
    assert confounds(twice) == confounds(frame)


def test_site_auc_is_a_half_without_and_one_with_full_confounding():
    none = site_auc(cohort(1000))
    assert none["p"] > 0.05
    assert 0.44 < none["auc"] < 0.56
    full = site_auc(cohort(sites=(("A", "B"), ("C", "D"))))
    assert full["auc"] == 1
    assert full["p"] < 1e-300
    assert site_auc(cohort().assign(site="A")) is None


def test_site_auc_of_known_shares():
    """Two sites, TLE at B with probability 0.8 and HC with 0.4: AUC is 1/2 + (0.8 - 0.4) / 2."""
    labels = np.repeat([0, 1], 1000)
    site = np.concatenate([np.where(np.arange(1000) < 400, "B", "A"), np.where(np.arange(1000) < 800, "B", "A")])
    auc = site_auc(pd.DataFrame({"label": labels, "site": site}))
    assert auc["auc"] == pytest.approx(0.7, abs=0.005)
    assert auc["p"] == stats.chi2_contingency([[600, 400], [200, 800]]).pvalue


def test_a_site_that_happens_to_say_a_little_is_no_finding():
    """Too few subjects for their sites to be told from chance, though the AUC is above the limit."""
    measured = confounds(cohort(40))
    measured["site_auc"] = {"auc": 0.62, "p": 0.08}
    assert "the site alone" not in str(confound_warnings(measured))
    measured["site_auc"]["p"] = 0.02
    assert ("site", "the site alone tells the classes apart: AUC 0.62, p 0.02") in confound_warnings(measured)


def test_difference_of_ages():
    draw = np.random.default_rng(0)
    controls, patients = draw.normal(30, 8, 200), draw.normal(34, 12, 150)
    found = difference_of_ages(controls, patients)
    pooled = np.sqrt((controls.std(ddof=1) ** 2 + patients.std(ddof=1) ** 2) / 2)
    assert found["difference"] == pytest.approx((patients.mean() - controls.mean()) / pooled)
    assert found["p"] == stats.ttest_ind(controls, patients, equal_var=False).pvalue
    covered = [
        difference_of_ages(draw.normal(0, 1, 60), draw.normal(0.5, 1, 60)) for _ in range(200)
    ]  # 200 intervals at 95 %: 190 expected, standard deviation 3.1
    assert 178 <= sum(interval["low"] < 0.5 < interval["high"] for interval in covered) <= 199


def test_difference_of_sexes():
    controls, patients = np.arange(100) < 30, np.arange(80) < 48
    found = difference_of_sexes(controls, patients)
    assert (found["HC"], found["TLE"]) == (0.3, 0.6)
    assert found["difference"] == pytest.approx(0.3 / np.sqrt((0.3 * 0.7 + 0.6 * 0.4) / 2))
    assert found["p"] == pytest.approx(stats.fisher_exact([[30, 70], [48, 32]]).pvalue)


def test_groups_without_spread():
    women, men = np.ones(20, bool), np.zeros(20, bool)
    assert difference_of_sexes(women, women)["difference"] == 0
    assert difference_of_sexes(women, men)["difference"] == -10
    same = difference_of_ages(np.full(20, 30.0), np.full(20, 30.0))
    assert (same["difference"], same["p"]) == (0, 1)
    assert difference_of_ages(np.full(20, 30.0), np.full(20, 40.0))["difference"] == 10
