"""your_scan.ipynb holds one scan against a run: what it shows is of that scan, and what the scripts say of it."""

from __future__ import annotations

import base64
import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from classifier.checkpoint import load_classifier
from classifier.measures.intervals import share_interval
from classifier.saliency import attribution
from cohort.anatomy.regional_volumes import region_table
from cohort.atlas import atlas
from cohort.grids import GRIDS
from cohort.ledger import ledger_of_subjects
from cohort.scans import load_scan
from notebooks import classifying, own_scan
from notebooks.report import execute
from runtime.device import pick_device
from runtime.errors import InputError
from runtime.files import ROOT, write_json
from tests.support import small_results
from tests.support.processes import run_here
from tests.support.small_results import volumes_in

GRID = GRIDS["smoke"]
pytestmark = pytest.mark.slow  # a scan is prepared in a process of its own


@pytest.fixture(scope="module")
def results(random_vae, tmp_path_factory) -> Path:
    """Folder with tables and scans, and in runs a VAE, a classifier and two more of other seeds."""
    folder = small_results.brains(tmp_path_factory.mktemp("yours"), {"train": 12, "test": 4})
    vae = small_results.autoencoder(folder / "runs", random_vae)
    for number, name in enumerate(("classifier", "arms/real/seed1_fold0", "arms/real/seed2_fold0")):
        small_results.network(folder / "runs" / name, number, ledger_of_subjects(["train00"]))
    words = ("--checkpoint", vae, "--csv", folder / "test.csv", "--out", folder / "runs/infer")
    run_here("VAE.infer", *words, "--cache-dir", folder / "cache")
    return folder


@pytest.fixture(scope="module")
def own(results, tmp_path_factory) -> own_scan.Own:
    return own_scan.prepared(results / "test02.nii.gz", tmp_path_factory.mktemp("own"), GRID, assume_mni=True)


@pytest.fixture(scope="module")
def networks(results, own) -> list[classifying.Network]:
    return classifying.classified(own, classifying.finished(results / "runs", "real"))


def text_of(notebook) -> str:
    """All that a notebook prints or shows as text or as a table."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.get("data", {}) for output in outputs]
    parts = [output.get("text", "") for output in outputs] + [data.get("text/html", "") for data in shown]
    return "\n".join(parts + [data.get("text/markdown", "") for data in shown])


def row_of(html: str, name: str) -> list[str]:
    """The cells of a row of a table."""
    found = re.search(rf"<th>{re.escape(name)}</th>(.*?)</tr>", html, re.DOTALL)
    return re.findall(r"<td>(.*?)</td>", found[1])


def test_notebook_shows_what_the_scripts_say_of_this_scan(results, own, networks, tmp_path):
    parameters = {
        "REPORT_PRESET": "smoke", "REPORT_TABLES": str(results), "EXPLORE_RUNS": str(results / "runs"),
        "YOUR_SCAN": str(results / "test02.nii.gz"), "YOUR_SCAN_OUT": str(tmp_path),
    }  # fmt: skip
    done = execute(ROOT / "notebooks/your_scan.ipynb", parameters)
    text = text_of(done)
    assert "no diagnosis" in done.cells[0].source
    measured = pd.read_csv(results / "runs/infer/metrics.csv", index_col="subject")["psnr_head"]
    others = measured.drop("test02")
    psnr, median, place = row_of(text, "PSNR, dB")
    assert float(psnr) == pytest.approx(measured["test02"], abs=2e-3)
    assert float(median) == pytest.approx(others.median(), abs=2e-3)
    assert float(place) == pytest.approx(100 * (others < measured["test02"]).mean(), abs=2e-3)
    first, *others = [network.probability for network in networks]
    assert f"a probability of {first:.2f}" in text
    assert f"2 networks of other seeds say {min(others):.2f} to {max(others):.2f}" in text
    assert row_of(text, "arms/real/seed2_fold0")[0] == f"{others[1]:.2f}"
    map_ = classifying.attribution_map(own, networks[0], "integrated_gradients_hc")
    strongest = classifying.strongest_regions(own, map_).index[0]
    assert f"<th>{strongest}</th>" in text
    pictures = {
        output["data"]["image/png"].strip().replace("\n", "")
        for cell in done.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    }
    assert len(pictures) == 5  # preparation, reconstruction, probabilities, map, volumes
    for name in ("pictures/test02.png", "test02_integrated_gradients_hc.png"):
        assert base64.b64encode((tmp_path / name).read_bytes()).decode() in pictures
    held = volumes_in(done)
    assert np.allclose(held["scan"], load_scan(results / "test02.nii.gz", GRID), atol=0.6 / 255)
    assert np.allclose(held["map"], map_, atol=1e-4 * np.abs(map_).max())


def test_networks_say_of_it_what_they_say_of_the_file(results, networks):
    """And something else of another scan."""
    for network, name in zip(networks, ("classifier", "arms/real/seed1_fold0", "arms/real/seed2_fold0"), strict=True):
        loaded = load_classifier(results / "runs" / name / "checkpoints/best.pt")
        logits = [loaded.model.both(as_batch(load_scan(results / f"test{k:02d}.nii.gz", GRID)))[0] for k in (2, 3)]
        chances = [float(torch.sigmoid(logit[0] / loaded.temperature)) for logit in logits]
        assert network.name == name
        assert network.probability == pytest.approx(chances[0], abs=1e-4)
        assert network.right == pytest.approx(float(torch.sigmoid(logits[0][1])), abs=1e-4)
        assert abs(chances[0] - chances[1]) > 1e-3


def as_batch(volume: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(volume)[None, None]


def test_subjects_with_such_a_probability_are_counted_without_the_scan_itself(own, networks):
    frame = networks[0].run.frame
    frame = pd.concat([frame, frame.head(1).assign(subject=own.name, probability=networks[0].probability)])
    network = dataclasses.replace(networks[0], run=dataclasses.replace(networks[0].run, frame=frame))
    alike = classifying.nearest(own, network)
    assert len(alike) == classifying.FEWEST_NEAREST
    assert own.name not in set(alike["subject"])
    others = frame[frame["subject"] != own.name]
    farthest = (alike["probability"] - network.probability).abs().max()
    assert ((others["probability"] - network.probability).abs() < farthest).sum() == len(alike) - 1
    low, high = share_interval(int(alike["label"].sum()), len(alike))
    said = " ".join(classifying.statements(own, [network]))
    assert f"{int(alike['label'].sum())} were patients" in said
    assert f"[{low:.0%}, {high:.0%}]" in said
    assert "0.80 [0.70, 0.90] of held-out patients" in said


def test_map_is_that_of_the_prepared_scan(own, networks):
    loaded = networks[0].loaded
    context = attribution.context_for(loaded, atlas(GRID), pick_device("float32"))
    x = as_batch(own.volume)
    map_ = classifying.attribution_map(own, networks[0], "integrated_gradients_hc")
    assert np.allclose(map_, attribution.attribute(loaded.model, x, "integrated_gradients_hc", context)[0], atol=1e-6)
    logits = loaded.model(torch.cat([x, context.mean_hc]))
    assert map_.sum() == pytest.approx(float(logits[0] - logits[1]), rel=0.05)


def test_volumes_stand_among_the_controls_of_the_training_table(results, own, tmp_path):
    controls = own_scan.healthy(results / "train.csv", GRID, tmp_path)
    assert controls.frame["subject"].tolist() == [f"train{k:02d}" for k in range(0, 12, 2)]
    table = own_scan.volumes_beside(own, controls)
    names, others = region_table(controls.volumes, GRID)
    values = region_table([own.volume], GRID)[1][0]
    for name in ("Left Hippocampus", "asymmetry of Hippocampus"):
        column = names.index(name)
        below = (others[:, column] < values[column]).mean()
        assert table.loc[name, "this scan"] == values[column]
        assert table.loc[name, "percentile"] == pytest.approx(100 * below)
    beyond = (values < np.percentile(others, 2.5, axis=0)) | (values > np.percentile(others, 97.5, axis=0))
    assert own_scan.outside(table, len(controls)).startswith(f"{beyond.sum()} of {len(names)} measures")


def test_a_model_that_knows_the_name_is_named(own):
    ledgers = {"the VAE": ledger_of_subjects(["test02"]), "the classifier": ledger_of_subjects(["test01"])}
    assert own_scan.known_to(own, ledgers) == ["the VAE was trained on a subject called test02"]


def test_a_scan_beyond_a_limit_is_flagged_and_an_unusual_one_named(own, tmp_path):
    for k in range(10):
        write_json(tmp_path / f"{k}.json", {"measures": own.measures | {"snr": 100.0 + k}})
    assert "signal-to-noise" in own_scan.verdict_on(dataclasses.replace(own, measures=own.measures | {"snr": 1.0}),
                                                    tmp_path).text  # fmt: skip
    small = dataclasses.replace(own, measures=own.measures | {"brain_ml": 300.0})
    assert "brain mask, ml: 300" in own_scan.verdict_on(small, tmp_path).text
    assert own_scan.quality_table(small).loc["brain mask, ml"].tolist() == ["300", "800 to 2050"]


def test_what_cannot_be_prepared_is_refused_in_a_sentence(results, tmp_path):
    (tmp_path / "page_T1w.nii.gz").write_text("<html>please log in</html>")
    with pytest.raises(InputError, match=r"could not be prepared: .*web page") as refused:
        own_scan.prepared(tmp_path / "page_T1w.nii.gz", tmp_path / "out", GRID, assume_mni=True)
    assert str(refused.value).count("page_T1w.nii.gz") == 1
    with pytest.raises(InputError, match="no run of a VAE or a classifier"):
        own_scan.grid_of(tmp_path)
    assert own_scan.grid_of(results / "runs") == GRID
    assert own_scan.chosen("", results).name == "test00.nii.gz"


def test_a_scan_beyond_a_fixed_limit_gets_no_answer_unless_it_is_kept(own):
    poor = own_scan.judge([own.measures | {"template_correlation": 0.2}])[0]
    with pytest.raises(
        InputError, match=r"head.nii: .*needs RAW = True .*; KEEP_FLAGGED = True goes on \(\d\):\n  - cor"
    ):
        own_scan.refuse_flagged(Path("head.nii"), poor, raw=False, keep=False)
    with pytest.raises(InputError, match=r"would answer all the same; KEEP_FLAGGED"):
        own_scan.refuse_flagged(Path("head.nii"), poor, raw=True, keep=False)
    own_scan.refuse_flagged(Path("head.nii"), poor, raw=False, keep=True)


def test_a_scan_that_is_reconstructed_as_hardly_any_other_is_said_to_be_unlike_them(results, own):
    held_out = results / "runs/infer/metrics.csv"
    assert own_scan.unlike(own_scan.reconstruction_rows(own, own.volume, held_out)) == []
    (said,) = own_scan.unlike(own_scan.reconstruction_rows(own, np.zeros_like(own.volume), held_out))
    assert said.startswith("0.0 % of the held-out scans are reconstructed as badly")
    assert own_scan.unlike(own_scan.reconstruction_rows(own, own.volume, results / "none.csv")) == []
