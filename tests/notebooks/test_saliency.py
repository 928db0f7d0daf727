"""One subject's maps: who erred how, through which place, beside whom; and the notebook that shows it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from classifier.measures.predictions import write_predictions
from cohort.atlas import atlas
from cohort.grids import GRIDS
from cohort.volumes import write_nifti
from notebooks import report, saliency
from notebooks.saliency_explorer import Explorer
from runtime.errors import InputError
from runtime.files import ROOT, write_json

GRID = GRIDS["smoke"]
REGIONS = ("Left Hippocampus", "Right Hippocampus", "Left Thalamus Proper")
PEOPLE = {  # subject: label, side, outcome, probability of the right side
    "a": (1, "L", "TP", 0.2), "b": (1, "L", "TP", 0.9), "c": (1, "R", "FN", 0.7), "d": (0, "", "FP", 0.5),
    "e": (0, "", "TN", 0.4), "f": (1, "", "TP", 0.4),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps and a run, made up: the method `up` is 1 in the left hippocampus of a, `abs` 2 in the right of everyone."""
    root = tmp_path_factory.mktemp("maps")
    maps, labels = root / "saliency", atlas(GRID)
    rows, rng = [], np.random.default_rng(0)
    for name, (label, side, outcome, _) in PEOPLE.items():
        left, right = (labels.mask(f"{side} Hippocampus") for side in ("Left", "Right"))
        head = np.where(labels.labels > 0, rng.uniform(0.3, 0.9, GRID.shape), 0)
        scan, up, strong = root / f"{name}.nii.gz", maps / f"up/real/{name}.nii.gz", maps / f"abs/real/{name}.nii.gz"
        for path, image in ((scan, head), (up, left * (1.0 if name == "a" else -0.1)), (strong, right * 2.0)):
            write_nifti(path, image.astype(np.float32), GRID.affine)
        diagnosis = f"TLE-{side}" if side else ("HC", "TLE")[label]
        rows.append({"origin": "real", "stem": name, "subject": name, "session": "", "group": name, "label": label,
                     "side": side, "diagnosis": diagnosis, "logit": 0.1, "probability": 0.6, "outcome": outcome,
                     "file": str(scan)})  # fmt: skip
    pd.DataFrame(rows).to_csv(maps / "cases.csv", index=False)
    ranking = [
        {"method": method, "origin": "real", "rank": rank, "region": region, "voxels": 3, "mean_abs": 0.5,
         "mean_abs_HC": 0.25, "mean_abs_TLE": 0.75}
        for method in ("up", "abs") for rank, region in enumerate(REGIONS, start=1)
    ]  # fmt: skip
    pd.DataFrame(ranking).to_csv(maps / "region_ranking.csv", index=False)
    units = {"up": "logits per unit", "abs": "share"}
    about = {"checkpoint": "c0", "grid": GRID.to_dict(), "threshold": 0.5, "methods": list(units), "units": units,
             "not_signed": ["abs"], "volumes": {"real": {"HC": 2, "TLE": 4}}}  # fmt: skip
    write_json(maps / "maps.json", about)
    run = pd.DataFrame(rows).assign(split="test", side_probability=[row[3] for row in PEOPLE.values()])
    write_predictions(root / "classifier/predictions.csv", run)
    write_json(root / "classifier/results.json", {"checkpoint": "c0"})
    return root


@pytest.fixture(scope="module")
def maps(folder: Path) -> saliency.Maps:
    return saliency.read_maps(folder / "saliency", folder / "classifier")


def test_errors_are_told_apart_by_outcome_and_side(maps: saliency.Maps) -> None:
    assert dict(zip(maps.cases["subject"], maps.cases["kind"], strict=True)) == {
        "a": "true positive, side right", "b": "true positive, side wrong", "c": "false negative, side right",
        "d": "false positive", "e": "true negative", "f": "true positive",
    }  # fmt: skip
    table = saliency.kinds(maps)["real"]
    assert [kind.split(",")[0] for kind in table.index] == [
        "true positive", "true positive", "true positive", "false negative", "false positive", "true negative",
    ]  # fmt: skip
    assert table.sum() == len(PEOPLE)
    assert list(maps.of("real", "false positive")["subject"]) == ["d"]


def test_sides_of_another_classifier_are_not_taken(folder: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", {"checkpoint": "c1"})
    (tmp_path / "predictions.csv").symlink_to(folder / "classifier/predictions.csv")
    for run in (tmp_path, tmp_path / "none"):
        cases = saliency.read_maps(folder / "saliency", run).cases
        assert cases["called_right"].isna().all()
        assert "true positive" in set(cases["kind"])


def test_the_table_ranks_the_subject_beside_its_class(maps: saliency.Maps) -> None:
    table = saliency.region_table(maps, maps.cases.iloc[0], "up")
    assert table.index[0] == "Left Hippocampus"
    assert set(table.index) == set(REGIONS)
    assert table.loc["Left Hippocampus", ["this subject", "signed"]].tolist() == pytest.approx([1, 1])
    assert table["mean of TLE"].eq(0.75).all()
    control = saliency.region_table(maps, maps.cases.iloc[3], "up")
    assert control.loc["Left Hippocampus", ["this subject", "signed"]].tolist() == pytest.approx([0.1, -0.1])
    assert list(control.columns).index("mean of HC") < list(control.columns).index("mean of TLE")


def test_the_picture_has_a_row_for_each_method_through_the_place(maps: saliency.Maps) -> None:
    def where(region: str) -> list[str]:
        axes = saliency.case_figure(maps, maps.cases.iloc[0], region).axes
        return [axis.get_title() for axis in axes if axis.get_title().startswith("sagittal")]

    left, right = where("")
    assert "(left side)" in left
    assert "(right side)" in right
    assert all("(right side)" in title for title in where("Right Hippocampus"))


def test_choices_narrow_and_the_picture_follows(maps: saliency.Maps) -> None:
    view = Explorer(maps)
    first = bytes(view.picture.value)
    assert first.startswith(b"\x89PNG")
    assert view.kind.options[0] == ("all (6)", "")
    view.kind.value = "false negative, side right"
    assert [name for name, _ in view.subject.options] == ["c, TLE-R, p = 0.60"]
    assert view.picture.value != first
    assert "c is TLE-R; TLE with p = 0.60, threshold 0.50: false negative, side right; right side" in view.text.value
    through = bytes(view.picture.value)
    view.place.value = "Right Hippocampus"
    assert view.picture.value != through
    assert "up: mean" in view.table.value
    view.method.value = "abs"
    assert "abs: mean" in view.table.value
    view.kind.value = ""
    assert len(view.subject.options) == len(PEOPLE)


def test_each_choice_draws_once(maps: saliency.Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    view, drawn = Explorer(maps), []
    monkeypatch.setattr(Explorer, "draw", lambda self: drawn.append(self.subject.label))
    view = Explorer(maps)
    drawn.clear()
    view.kind.value = "false positive"
    assert drawn == ["d, HC, p = 0.60"]


def test_what_cannot_be_read_is_said(maps: saliency.Maps, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no attribution maps \(no maps.json, .*snakemake maps"):
        saliency.read_maps(tmp_path, tmp_path)
    lost = saliency.Maps(tmp_path, maps.about, maps.cases, maps.ranking, maps.grid, maps.regions)
    assert "not a whole map" in Explorer(lost).text.value


def test_maps_are_read_as_they_were_written(maps: saliency.Maps) -> None:
    case = maps.cases.iloc[0]
    expected = nib.load(maps.folder / "up/real/a.nii.gz").get_fdata()
    np.testing.assert_array_equal(maps.read("up", case), expected)


@pytest.mark.slow
def test_the_notebook_executes_on_a_run(home: Path) -> None:
    parameters = {"REPORT_ROOT": str(home), "REPORT_PRESET": "tiny"}
    done = report.execute(ROOT / "notebooks/explore_saliency.ipynb", parameters)
    states = [
        model["state"]
        for model in done.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
    ]
    texts = [state["value"] for state in states if state.get("_model_name") == "HTMLModel"]
    assert any("TLE with p =" in text for text in texts)
    assert any("Left Hippocampus" in text and "mean of" in text for text in texts)
    lists = [state["_options_labels"] for state in states if state.get("_model_name") == "DropdownModel"]
    assert ["saliency", "occlusion"] in lists
    assert "all (8)" in lists[1]
    table = done.cells[3].outputs[0]["data"]["text/html"]
    assert "true" in table or "false" in table
