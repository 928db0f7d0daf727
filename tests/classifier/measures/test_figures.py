"""What the figures show, read back from matplotlib's objects."""

import numpy as np
import pytest

from classifier.measures import bands, figures
from classifier.measures.comparison import compare_arms
from classifier.measures.nested_bootstrap import draws_of
from classifier.measures.runs import arms_of
from tests.support.arm_folders import write_arms

ARMS = {
    "real": (1.0, {}), "both": (1.5, {"synth_percent": 100.0}), "synthetic": (0.5, {"real": 0, "synth_count": 40}),
    "strong": (1.0, {"augmentation": "strong"}), "null": (0.0, {"shuffle": "all"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    runs = arms_of(write_arms(tmp_path_factory.mktemp("arms"), ARMS), "real", "test")
    draws = draws_of(runs, 60, seed=0)
    return runs, draws, compare_arms(runs, draws, pairs="reference", margin=0.05)


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


def test_roc_and_precision(experiment, drawn):
    runs, draws, _ = experiment
    found = bands.all_bands(runs, draws)
    found["both"]["leak"] = True
    figure = drawn(figures.roc_and_precision, found)
    axes = used(figure)
    assert len(axes) == 2 * len(ARMS)
    titles = [axis.get_title() for axis in axes if axis.get_title()]
    assert titles == ["real", "both (LEAK ALLOWED)", "null", "strong", "synthetic"]
    both = next(axis for axis in axes if axis.get_title().startswith("both"))
    np.testing.assert_allclose(both.lines[0].get_ydata(), found["real"]["roc"][0])
    np.testing.assert_allclose(both.lines[1].get_ydata(), found["both"]["roc"][0])


def test_reliability_shows_slope_and_intercept(experiment, drawn):
    runs, _, found = experiment
    figure = drawn(figures.reliability, bands.reliabilities(runs), found.rows)
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
    figure = drawn(figures.reliability, bands.reliabilities(runs), rows)
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


def test_auc_by_real(experiment, drawn):
    _, _, found = experiment
    figure = drawn(figures.auc_by_real, found.rows)
    (axis,) = figure.axes
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(labels) == {row["recipe"] for row in found.rows}
    by_recipe = {line.get_label(): line for line in axis.lines}
    synthetic = next(row for row in found.rows if row["run"] == "synthetic")["metrics"]["auc"]["value"]
    assert set(by_recipe["40 synthetic"].get_ydata()) == {synthetic}
    assert by_recipe["40 synthetic"].get_linestyle() == "--"
    both = next(row for row in found.rows if row["run"] == "both")
    assert by_recipe["real + 100 % synthetic"].get_ydata()[0] == pytest.approx(both["metrics"]["auc"]["value"])
    seeds = [line.get_ydata() for line in axis.lines if line.get_linestyle() == "None" and len(line.get_ydata()) == 2]
    assert sorted(map(tuple, seeds)) == sorted(
        tuple(row["auc_by_seed"].values()) for row in found.rows if row["run"] != "synthetic"
    )


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
