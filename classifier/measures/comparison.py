"""Arms of an experiment against a reference: measures with intervals, paired tests, and the check for shortcuts."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from classifier import baselines
from classifier.measures import paired_tests, resampling
from classifier.measures.intervals import Z90, extreme_difference_interval, mean_of_shares_interval
from classifier.measures.metrics import CALIBRATION
from classifier.measures.predictions import by_subject
from classifier.measures.resampling import Draws, cell, closed_form, interval, two_sided_p, without_width_zero
from classifier.measures.runs import ArmRuns, FinishedRun
from classifier.measures.side import PARTS, SIDE_PARTS, part_of, threshold_of
from cohort.anatomy.volume_tables import VolumeTable
from cohort.tables import CLASS_NAMES, read_table
from runtime.errors import InputError


class Comparison(NamedTuple):
    """A row for each arm and a test for each but the reference, ready for JSON; areas by seed, the resamples below."""

    rows: list[dict[str, Any]]
    tests: list[dict[str, Any]]
    areas: dict[str, np.ndarray]  # (1 + R, S)


def compare_arms(runs: ArmRuns, draws: Draws, *, margin: float) -> Comparison:
    """Measures every arm and tests it against the first one; Holm corrects the p-values of each kind of test."""
    from statsmodels.stats.multitest import multipletests  # slow to import

    rows, areas = [], {}
    for arm in tqdm(runs.arms, desc="arms", unit="arm", disable=None):
        measured = resampling.by_seed(runs, arm, draws)
        areas[arm] = measured["auc"]
        rows.append(_row(runs, arm, measured, draws))
    reference, *others = runs.arms
    differences = {arm: resampling.spread_over_seeds(areas[arm] - areas[reference], draws) for arm in others}
    tests = [_test(runs, reference, arm, difference, margin) for arm, difference in differences.items()]
    for kind in ("bootstrap", "delong", "mcnemar"):
        _, corrected, *_ = multipletests([test[f"{kind}_p"] for test in tests], method="holm")
        for test, p in zip(tests, corrected, strict=True):
            test[f"{kind}_p_holm"] = float(p)
    return Comparison(rows, tests, areas)


def _row(runs: ArmRuns, arm: str, measured: dict[str, np.ndarray], draws: Draws) -> dict[str, Any]:
    cells = list(runs.arms[arm].values())
    one_seed = [runs.cells(arm, fold)[0] for fold in runs.folds]
    means = {name: resampling.spread_over_seeds(values, draws) for name, values in measured.items()}
    baseline_areas = [  # of one seed: they have none to speak of
        {name: found["test"]["auc"]["value"] for name, found in run.results["baselines"].items() if "test" in found}
        for run in one_seed
    ]
    counts = pd.DataFrame([run.results["counts"]["train"] for run in cells]).fillna(0).mean()
    return {
        "run": arm, "leak": runs.leak(arm),
        # Whole numbers stay whole.
        "counts": {name: int(value) if value.is_integer() else round(value, 1) for name, value in counts.items()},
        "metrics": _cells(means, [(run.frame, run.results["threshold"]) for run in one_seed], len(runs.seeds)),
        "auc_by_seed": dict(zip(map(str, runs.seeds), measured["auc"][0].tolist(), strict=True)),
        "parts": _parts(runs, arm, draws),
        "asymmetry_index": _asymmetry_index(one_seed),
        "confusion": _confusion(runs, arm),
        "baselines": pd.DataFrame(baseline_areas).dropna(axis=1).mean().to_dict(),
    }  # fmt: skip


def _cells(
    means: dict[str, np.ndarray], folds: list[tuple[pd.DataFrame, float]], seeds: int
) -> dict[str, dict[str, Any]]:
    """A cell for each measure from its means (1 + R,), none of width zero, with ends in [0, 1] but for the calibration.

    `folds` are predictions and threshold of one seed's runs. Of a single run they give the intervals in closed form, as
    in the run's own results; of several runs those of what is the same in every draw, such as perfect answers.
    """
    found = {name: cell(float(mean[0]), mean[1:]) for name, mean in means.items()}
    for name in found.keys() - set(CALIBRATION):
        ends = {end: found[name][end] for end in ("low", "high") if found[name][end] is not None}
        found[name] |= {end: min(1.0, max(0.0, value)) for end, value in ends.items()}
    exact = [closed_form(frame, threshold) for frame, threshold in folds]
    for name, own in found.items():
        each = [ends[name] for ends in exact if name in ends]
        if len(each) == len(folds) and (len(folds) == seeds == 1 or own["low"] == own["high"] is not None):
            ends = each[0] if len(each) == 1 else mean_of_shares_interval([own["value"]] * len(each), each)
            found[name] = {**own, "low": ends[0], "high": ends[1]}
    return {name: without_width_zero(own) for name, own in found.items()}


def _parts(runs: ArmRuns, arm: str, draws: Draws) -> dict[str, dict[str, Any]]:
    """Accuracy and AUC of PARTS: right against left, where the arm says it, and HC against sclerosis."""
    found, one_seed = {}, [runs.cells(arm, fold)[0] for fold in runs.folds]
    for part in PARTS:
        by_seed = resampling.part_by_seed(runs, arm, part, draws)
        if by_seed:
            means = {name: resampling.spread_over_seeds(values, draws) for name, values in by_seed.items()}
            folds = [(part_of(run.frame, part), threshold_of(part, run.results["threshold"])) for run in one_seed]
            found |= {f"{part}_{name}": own for name, own in _cells(means, folds, len(runs.seeds)).items()}
    return found


def _asymmetry_index(cells: list[FinishedRun]) -> dict[str, float]:
    """Accuracy and AUC of the asymmetry index for the side, averaged over these runs; nothing where one has none."""
    measured = [run.results.get("side", {}).get("baselines", {}).get("asymmetry_index", {}) for run in cells]
    names = [(key, part, name) for key, part in SIDE_PARTS.items() for name in ("accuracy", "auc")]
    values = [
        {f"{part}_{name}": parts[key][name]["value"] for key, part, name in names if key in parts} for parts in measured
    ]
    return pd.DataFrame(values).dropna(axis=1).mean().to_dict()


def _confusion(runs: ArmRuns, arm: str) -> dict[str, float]:
    """Scans by class and call, over all folds, averaged over seeds; each run at its own threshold."""
    total = np.zeros((2, 2))
    for run in runs.arms[arm].values():
        called = (run.frame["probability"] >= run.results["threshold"]).astype(int)
        np.add.at(total, (run.frame["label"], called), 1 / len(runs.seeds))
    names = [f"{label}_called_{call}" for label in CLASS_NAMES for call in CLASS_NAMES]
    return dict(zip(names, total.round(6).ravel().tolist(), strict=True))


def _test(runs: ArmRuns, a: str, b: str, difference: np.ndarray, margin: float) -> dict[str, Any]:
    """One pair: difference of areas (1 + R,) b minus a, DeLong on seed-averaged probabilities, McNemar."""
    draws = difference[1:]
    frames = {arm: [_seed_averaged(runs, arm, fold) for fold in runs.folds] for arm in (a, b)}
    labels = [frame["label"].to_numpy() for frame in frames[a]]
    scores = [[frame["probability"].to_numpy() for frame in frames[arm]] for arm in (a, b)]
    (low, high), narrow = interval(draws), interval(draws, level=0.9)
    delong = paired_tests.delong_test(labels, *scores)
    perfect = (delong["auc_a"], delong["auc_b"])
    if high == low and set(perfect) <= {0.0, 1.0}:  # the same in every draw, which says nothing of other subjects
        sizes = [np.bincount(own) for own in labels]
        low, high = extreme_difference_interval(perfect, sizes)
        narrow = extreme_difference_interval(perfect, sizes, Z90)
    right = [pd.concat(frames[arm]).eval("call == (label == 1)").to_numpy() for arm in (a, b)]
    only_a, only_b, p = paired_tests.mcnemar(*right)
    return {
        "a": a, "b": b, "leak": runs.leak(a) or runs.leak(b),
        "auc_difference": float(difference[0]), "auc_difference_low": low, "auc_difference_high": high,
        "auc_difference_low90": narrow[0], "auc_difference_high90": narrow[1], "bootstrap_p": two_sided_p(draws),
        "margin": margin, "verdict": paired_tests.verdict(*narrow, margin),
        **{f"delong_{name}": value for name, value in delong.items()},
        "only_a_right": only_a, "only_b_right": only_b, "mcnemar_p": p,
    }  # fmt: skip


def _seed_averaged(runs: ArmRuns, arm: str, fold: int) -> pd.DataFrame:
    """One row per subject: label, probability averaged over seeds and scans, and the call at the averaged threshold."""
    threshold = np.mean([run.results["threshold"] for run in runs.cells(arm, fold)])
    frame = by_subject(runs.frame(fold).assign(probability=runs.probabilities(arm, fold).mean(0)))
    return frame.assign(call=frame["probability"] >= threshold)


def against_volumes(
    runs: ArmRuns, draws: Draws, areas: dict[str, np.ndarray], known: VolumeTable, tables: tuple[Path, ...]
) -> dict[str, Any]:
    """Areas of the arms beside that of a logistic regression on the volumes of a table, left and right.

    In a simulated cohort the classes differ by these volumes and nothing else, so the regression is close to what a
    scan can tell; its ridge penalty is chosen within the training subjects. An arm above it by more than chance raises
    the question of a shortcut. It is no proof: the regression is fitted to few subjects, which costs it some area, a
    network may use volumes in a way that no linear model can, and patients differ by more than volumes.

    `tables` are the training tables of the runs; subjects that a fold holds out are left out of that fold's fit, and
    all scans whose volumes are not known of the areas of either.
    Differences of ``arms`` are their area minus the regression's, ``above`` where the interval lies above 0.
    """
    table = pd.concat([read_table(path) for path in tables], ignore_index=True)
    regions = baselines.two_sided(known)
    if not regions:
        raise InputError(
            f"{known.name}: has no structure of the atlas on both sides; it has {', '.join(known.regions)}"
        )
    frames = {fold: runs.frame(fold) for fold in runs.folds}
    everybody = pd.concat([table, *frames.values()], ignore_index=True).drop_duplicates(["subject", "session"])
    known.warn(everybody, regions)
    inputs, scores, sizes, weights = baselines.with_asymmetry(known.of(table, regions)), {}, [], {}
    for fold, frame in frames.items():
        held_out = frozenset().union(*(run.held_out for arm in runs.arms for run in runs.cells(arm, fold)))
        learned = ~table["subject"].isin(held_out).to_numpy() & np.isfinite(inputs).all(axis=1)
        if np.bincount(table.loc[learned, "label"], minlength=2).min() < 2:
            raise InputError(f"fold {fold}: the tables hold too few training subjects, two of each class are needed")
        model = baselines.fit_closely(inputs[learned], table.loc[learned, "label"].to_numpy())
        tested = baselines.with_asymmetry(known.of(frame, regions))
        there = np.isfinite(tested).all(axis=1)
        scores[fold] = model.decision_function(np.where(there[:, None], tested, 0.0))
        weights[fold] = draws.subjects[fold] * there
        sizes.append(int(table.loc[learned, "subject"].nunique()))
    some = replace(draws, subjects=weights)
    if any((weights[fold] != draws.subjects[fold]).any() for fold in frames):  # all areas on the same scans
        areas = {arm: resampling.by_seed(runs, arm, some)["auc"] for arm in runs.arms}
    reached = resampling.auc_of_scores(runs, scores, some)
    arms = []
    for arm, area in areas.items():
        difference = resampling.spread_over_seeds(area - reached[:, None], draws)
        low, high = interval(difference[1:])
        row = {"run": arm, "difference": float(difference[0]), "low": low, "high": high}
        arms.append({**row, "p": two_sided_p(difference[1:]), "above": low > 0})
    about = {"tool": known.tool, "regions": regions, "training_subjects": sizes}
    return {"auc": cell(float(reached[0]), reached[1:]), **about, "arms": arms}
