"""What the figures show, read back from matplotlib's objects."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from classifier.measures import figures
from classifier.measures.comparison import compare_arms
from classifier.measures.figures import GRID, reliability_bins, roc_rows
from classifier.measures.resampling import draws_of
from classifier.measures.runs import arms_of
from tests.support.arm_folders import write_arms

ARMS = {
    "real": (1.0, {}), "both": (1.5, {"synth_percent": 100.0}), "synthetic": (0.5, {"real": 0, "synth_count": 40}),
    "strong": (1.0, {"augmentation": "strong"}), "null": (0.0, {"shuffle": "all"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    runs = arms_of(write_arms(tmp_path_factory.mktemp("arms"), ARMS), "real")
    draws = draws_of(runs, 60, seed=0)
    return runs, draws, compare_arms(runs, draws, margin=0.05)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Calls a figure's function and returns its figure, the PNG written as well."""
    kept = []

    def keep(figure, path, save=figures.save):
        kept.append(figure)
        save(figure, path)

    monkeypatch.setattr(figures, "save", keep)

    def call(function, *arguments, **named):
        path = tmp_path / "figure.png"
        function(path, *arguments, **named)
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        return kept[-1]

    return call


def used(figure):
    return [axis for axis in figure.axes if axis.axison]


def texts(axis):
    return " ".join([axis.get_title(), *(text.get_text() for text in axis.texts)])


def test_training_curves(drawn):
    log = [{"step": 1, "loss/train": 0.7}, {"step": 2, "loss/train": 0.6, "loss/val": 0.65, "auc/val": 0.6}]
    scores = {"network": (np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4]))}
    figure = drawn(figures.curves, scores, log, title="a run")
    left, right = figure.axes
    np.testing.assert_allclose(left.lines[0].get_xydata()[-1], [1, 1])
    assert [line.get_label() for line in right.lines] == ["loss/train", "loss/val", "auc/val"]


def test_roc(experiment, drawn):
    runs, draws, found = experiment
    bands = figures.roc_bands(runs, draws)
    rows = [{**row, "leak": row["run"] == "both"} for row in found.rows]
    figure = drawn(figures.roc, bands, rows)
    axes = used(figure)
    assert [axis.get_title() for axis in axes] == ["real", "both (LEAK ALLOWED)", "null", "strong", "synthetic"]
    np.testing.assert_allclose(axes[1].lines[0].get_ydata(), bands["real"][0])
    np.testing.assert_allclose(axes[1].lines[1].get_ydata(), bands["both"][0])


def test_roc_bands_of_arms(experiment):
    runs, draws, _ = experiment
    found = figures.roc_bands(runs, draws)
    assert list(found) == list(runs.arms)
    for line, low, high in found.values():
        assert (low <= line + 0.1).all()
        assert (high >= line - 0.1).all()
        assert (high > low).any()
    assert found["both"][0].mean() > found["null"][0].mean()


def test_reliability_shows_slope_and_intercept(experiment, drawn):
    runs, _, found = experiment
    figure = drawn(figures.reliability, figures.reliabilities(runs), found.rows)
    axes = {axis.get_title().splitlines()[0]: axis for axis in used(figure)}
    assert set(axes) == set(ARMS)
    for row in found.rows:
        slope = row["metrics"]["calibration_slope"]["value"]
        assert f"slope {slope:.2f} [" in axes[row["run"]].get_title()
        assert "intercept" in axes[row["run"]].get_title()


def test_a_slope_that_cannot_be_estimated_is_said(experiment, drawn):
    runs, _, found = experiment
    none = {"value": None, "low": None, "high": None, "not_estimable": 1.0}
    rows = [{**row, "metrics": {**row["metrics"], "calibration_slope": none}} for row in found.rows]
    figure = drawn(figures.reliability, figures.reliabilities(runs), rows)
    assert all("slope not estimable" in axis.get_title() for axis in used(figure))


def test_confusion_adds_up(experiment, drawn):
    _, _, found = experiment
    figure = drawn(figures.confusion, found.rows)
    for axis, row in zip(used(figure), found.rows, strict=True):
        assert axis.get_title() == row["run"]
        shown = axis.images[0].get_array()
        np.testing.assert_allclose(shown.sum(1), 1)
        assert shown[1, 1] == pytest.approx(row["metrics"]["sensitivity"]["value"])
        assert shown[0, 0] == pytest.approx(row["metrics"]["specificity"]["value"])


def test_differences_and_their_verdicts(experiment, drawn):
    _, _, found = experiment
    figure = drawn(figures.differences, found.tests)
    (axis,) = figure.axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == [f"{test['b']} minus real" for test in reversed(found.tests)]
    for height, test in enumerate(reversed(found.tests)):
        assert test["verdict"] in axis.texts[height].get_text()
        drawn_at = [
            line.get_xdata()[0] for line in axis.lines if line.get_ydata()[0] == height and line.get_marker() == "o"
        ]
        assert drawn_at == [pytest.approx(test["auc_difference"])]


def sample(seed=0, decimals=2):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(60) % 3 == 0).astype(int)
    return labels, np.round(rng.normal(size=60) + labels, decimals), rng


def test_roc_agrees_with_scikit_learn():
    labels, scores, _ = sample(decimals=1)
    fpr, tpr, _ = reference.roc_curve(labels, scores, drop_intermediate=False)
    row = roc_rows(labels, scores, np.ones((1, 60)))[0]
    for x, y in zip(GRID, row, strict=True):
        right = np.flatnonzero(fpr <= x + 1e-12)[-1]
        if np.isclose(fpr[right], x):
            assert y == pytest.approx(tpr[right])
    assert np.trapezoid(row, GRID) == pytest.approx(reference.roc_auc_score(labels, scores), abs=0.01)


def test_weights_equal_drawing_again():
    labels, scores, rng = sample()
    weights = rng.multinomial(60, np.full(60, 1 / 60), size=1)
    drawn = np.repeat(np.arange(60), weights[0])
    np.testing.assert_allclose(
        roc_rows(labels, scores, weights), roc_rows(labels[drawn], scores[drawn], np.ones((1, 60)))
    )


def test_reliability_averages_over_seeds(experiment):
    runs, _, _ = experiment
    bins = figures.reliabilities(runs)["real"]
    assert bins["count"].sum() == 60
    mean = np.mean([run.frame["probability"].mean() for run in runs.arms["real"].values()])
    assert np.average(bins["promised"], weights=bins["count"]) == pytest.approx(mean)


def test_bins_of_equal_mass():
    labels = np.array([0, 0, 1, 0, 1, 1, 1])
    p = np.array([0.1, 0.9, 0.8, 0.2, 0.3, 0.4, 0.5])
    bins = reliability_bins(labels, p, 3)
    assert bins["count"].tolist() == [3, 2, 2]
    assert bins["promised"].tolist() == pytest.approx([0.2, 0.45, 0.85])
    assert bins["observed"].tolist() == pytest.approx([1 / 3, 1.0, 0.5])
    wilson = stats.binomtest(1, 3).proportion_ci(method="wilson")
    assert (bins["low"][0], bins["high"][0]) == pytest.approx((wilson.low, wilson.high))
    assert len(reliability_bins(labels, p, 50)) == 7
