"""Pictures of predictions: of one run (ROC and training curves), and of arms of an experiment side by side."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from classifier.measures.metrics import cumulative
from classifier.measures.resampling import Draws, cell_text
from classifier.measures.runs import ArmRuns
from cohort.pictures import save
from cohort.tables import CLASS_NAMES

GRID = np.linspace(0, 1, 101)  # false positive rates at which curves are read
RESAMPLES = 400  # that a band is drawn from; more change nothing that can be seen
PER_BIN = 20  # scans per bin of a reliability diagram, about; 3 to 10 bins
LEAK = " (LEAK ALLOWED)"
COLUMNS = 4  # arms side by side; more go to further rows
COLOUR, REFERENCE_COLOUR = "#2f6aa8", "0.55"
VERDICT_COLOURS = {"equivalent": "#2c7a4b", "not inferior": "#2f6aa8", "undecided": "0.45", "inferior": "#b3402e"}
SIZES = {
    "axes.titlesize": 8, "axes.labelsize": 8, "figure.labelsize": 8, "figure.titlesize": 8, "legend.fontsize": 7,
    "xtick.labelsize": 7, "ytick.labelsize": 7,
}  # fmt: skip
Row = dict[str, Any]  # of classifier.measures.comparison


def curves(
    path: Path, scores: dict[str, tuple[np.ndarray, np.ndarray]], log: list[dict[str, float]], *, title: str
) -> None:
    """ROC curves, by name {legend: (labels, probabilities)}, beside the numbers of log.jsonl."""
    figure = Figure(figsize=(9, 4))
    left, right = figure.subplots(1, 2)
    for name, (labels, probabilities) in scores.items():
        left.plot(*roc_curve(labels, probabilities, drop_intermediate=False)[:2], label=name)
    left.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    left.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal", title="real held-out subjects")
    left.legend(fontsize=7, loc="lower right")
    for name in ("loss/train", "loss/val", "auc/val"):
        points = [(line["step"], line[name]) for line in log if name in line]
        if points:
            right.plot(*zip(*points, strict=True), label=name, linewidth=1)
    right.set(xlabel="step", title="training", ylim=(0, None))
    right.legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    save(figure, path)


def _panels(rows: list[Row], figure: Figure, width: float, height: float) -> Iterator[tuple[Axes, Row]]:
    """An axis of so many inches for each arm, titled with its name."""
    columns = min(COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    figure.set_size_inches(0.5 + width * columns, 0.4 + height * lines)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes[len(rows) :]:
        axis.set_axis_off()
    for axis, row in zip(axes[: len(rows)], rows, strict=True):
        axis.set_title(row["run"] + row["leak"] * LEAK)
        yield axis, row


def _unit_square(axis: Axes) -> None:
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=0.8, zorder=0)
    axis.set(xlim=(0, 1), ylim=(-0.02, 1.02), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))


def roc_rows(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sensitivity at each false positive rate of GRID, for weightings (R, N) of the subjects; (R, 101).

    Linear between the points of the curve, as the area is; at a vertical step its upper end.
    """
    rates = cumulative(scores, weights * (labels == 1), weights * (labels == 0))
    tpr, fpr = (np.pad(rate / rate[:, -1:], ((0, 0), (1, 0))) for rate in rates)
    return np.stack([np.interp(GRID, x, y) for x, y in zip(fpr, tpr, strict=True)])


def roc_bands(runs: ArmRuns, draws: Draws) -> dict[str, np.ndarray]:
    """arm -> (3, 101): its curve averaged over folds and seeds, and the pointwise 95 % interval, on GRID."""
    shares = draws.seeds[: RESAMPLES + 1] / len(runs.folds)
    found = {}
    for arm in runs.arms:
        rows = sum(
            shares[:, place, None] * roc_rows(runs.labels(fold), scores, draws.subjects[fold][: RESAMPLES + 1])
            for fold in runs.folds
            for place, scores in enumerate(runs.probabilities(arm, fold))
        )
        found[arm] = np.vstack([rows[:1], np.quantile(rows[1:], [0.025, 0.975], axis=0)])
    return found


@rc_context(SIZES)
def roc(path: Path, bands: dict[str, np.ndarray], rows: list[Row]) -> None:
    """ROC curve of every arm, from `roc_bands`; that of the first, the reference, in grey beside each."""
    figure = Figure(layout="constrained")
    reference = rows[0]["run"]
    for axis, row in _panels(rows, figure, 2.5, 2.6):
        line, low, high = bands[row["run"]]
        colour = REFERENCE_COLOUR if row["run"] == reference else COLOUR
        axis.fill_between(GRID, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.plot(GRID, bands[reference][0], color=REFERENCE_COLOUR, linewidth=1)
        axis.plot(GRID, line, color=colour, linewidth=1.5)
        _unit_square(axis)
    figure.supxlabel("1 - specificity")
    figure.supylabel("sensitivity")
    figure.suptitle("means over folds and training seeds; bands: 95 % of resamples, point by point")
    save(figure, path)


def reliabilities(runs: ArmRuns) -> dict[str, pd.DataFrame]:
    """arm -> `reliability_bins`: all folds together, probabilities averaged over training seeds."""
    labels = np.concatenate([runs.labels(fold) for fold in runs.folds])
    means = {arm: [runs.probabilities(arm, fold).mean(0) for fold in runs.folds] for arm in runs.arms}
    bins = int(np.clip(len(labels) // PER_BIN, 3, 10))
    return {arm: reliability_bins(labels, np.concatenate(parts), bins) for arm, parts in means.items()}


def reliability_bins(labels: np.ndarray, probabilities: np.ndarray, bins: int) -> pd.DataFrame:
    """Bins of equally many subjects, by rising probability (equal ones may lie in two): the mean probability
    ``promised``, the share of TLE ``observed``, its 95 % Wilson interval ``low``, ``high``, and ``count``.
    """
    from statsmodels.stats.proportion import proportion_confint  # slow to import

    parts = np.array_split(np.argsort(probabilities, kind="stable"), min(bins, len(labels)))
    means = [(probabilities[part].mean(), labels[part].mean(), len(part)) for part in parts]
    table = pd.DataFrame(means, columns=["promised", "observed", "count"])
    low, high = proportion_confint([labels[part].sum() for part in parts], table["count"], method="wilson")
    return table.assign(low=np.asarray(low), high=np.asarray(high))


@rc_context({**SIZES, "axes.titlesize": 7})
def reliability(path: Path, bins: dict[str, pd.DataFrame], rows: list[Row]) -> None:
    """Observed share of TLE against the promised probability, in the bins of `reliabilities`."""
    figure = Figure(layout="constrained")
    for axis, row in _panels(rows, figure, 2.6, 2.8):
        table = bins[row["run"]]
        axis.vlines(table["promised"], table["low"], table["high"], color=COLOUR, linewidth=1)
        axis.plot(table["promised"], table["observed"], "o-", color=COLOUR, markersize=3.5, linewidth=0.8)
        _unit_square(axis)
        texts = [f"{key} {cell_text(row['metrics'][f'calibration_{key}'], '.2f')}" for key in ("slope", "intercept")]
        axis.set(title="\n".join([axis.get_title(), *texts]), xlabel="probability of TLE")
    figure.supylabel("share of TLE (lines: 95 %, Wilson)")
    save(figure, path)


@rc_context(SIZES)
def confusion(path: Path, rows: list[Row]) -> None:
    """Scans by class and call, for each arm: share of the class, and count averaged over training seeds."""
    figure = Figure(layout="constrained")
    for axis, row in _panels(rows, figure, 2.3, 2.4):
        counts = np.reshape(list(row["confusion"].values()), (2, 2))  # class, call
        shares = counts / counts.sum(1, keepdims=True)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (label, call), share in np.ndenumerate(shares):
            text, colour = f"{share:.0%}\n({counts[label, call]:.3g})", "white" if share > 0.6 else "black"
            axis.text(call, label, text, ha="center", va="center", fontsize=9, color=colour)
        axis.set_xticks((0, 1), [f"called {name}" for name in CLASS_NAMES])
        axis.set_yticks((0, 1), CLASS_NAMES)
    save(figure, path)


@rc_context({**SIZES, "ytick.labelsize": 8})
def differences(path: Path, tests: list[Row]) -> None:
    """Forest plot of the differences of areas; thick lines are the 90 % intervals that decide at the margin."""
    figure = Figure(figsize=(7.5, 1.3 + 0.34 * len(tests)), layout="constrained")
    axis = figure.add_subplot()
    margin, upwards = tests[0]["margin"], tests[::-1]
    axis.axvspan(-margin, margin, color="0.93", zorder=0)
    axis.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    for height, test in enumerate(upwards):
        colour = VERDICT_COLOURS[test["verdict"]]
        axis.hlines(height, test["auc_difference_low"], test["auc_difference_high"], color=colour, linewidth=1)
        axis.hlines(height, test["auc_difference_low90"], test["auc_difference_high90"], color=colour, linewidth=3)
        axis.plot(test["auc_difference"], height, "o", color=colour, markersize=5)
        text = "{auc_difference:+.3f} [{auc_difference_low:+.3f}, {auc_difference_high:+.3f}]  {verdict}".format(**test)
        axis.annotate(
            text, (1.01, height), xycoords=("axes fraction", "data"), fontsize=7.5, va="center", color=colour,
            annotation_clip=False,
        )  # fmt: skip
    axis.set_yticks(range(len(tests)), [f"{test['b']} minus {test['a']}{test['leak'] * LEAK}" for test in upwards])
    axis.set_ylim(-0.6, len(tests) - 0.4)
    axis.set_xlabel(f"difference of AUC (95 %; thick: 90 %; grey: within the margin of {margin:g})")
    save(figure, path)


@rc_context(SIZES)
def power(path: Path, rows: list[Row], panels: dict[str, str]) -> None:
    """Each measure (name in the rows: title) against the effect size, a curve for each number of training scans.

    The placebo's point is hollow, at the effect whose displacements it has.
    """
    figure = Figure(figsize=(3.6 * len(panels), 3.2), layout="constrained")
    for axis, (key, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        table = pd.DataFrame(rows).reindex(
            columns=["effect_size", "placebo", "arm", "trained", key, f"{key}_low", f"{key}_high"]
        )
        for place, (_, arm) in enumerate(table.dropna(subset=[key]).groupby("arm", sort=False)):
            curve, placebo = arm[arm["placebo"] == 0], arm[arm["placebo"] == 1]
            x, colour = curve["effect_size"], f"C{place}"
            axis.fill_between(
                x, *(curve[f"{key}_{end}"].astype(float) for end in ("low", "high")), color=colour, alpha=0.15
            )
            axis.plot(
                x, curve[key], "o-", color=colour, markersize=4, label=f"{arm['trained'].iloc[0]:g} scans trained"
            )
            axis.plot(placebo["effect_size"], placebo[key], "o", color=colour, markersize=6, fillstyle="none")
        axis.axhline(0.5, color="0.7", linewidth=0.8, zorder=0)
        axis.set(xlabel="planted effect, Cohen's d", title=title, ylim=(0, 1.02))
    axis.legend(loc="lower right")
    save(figure, path)
