"""The first screen says what the figures say, both ways, and shows a planted change where it is."""

import numpy as np
import pytest

from cohort.atlas import atlas
from cohort.grids import GRIDS
from notebooks import opening, tables

GRID = GRIDS["demo"]


def distances(**means):
    return {name: {"fid": {"mean": mean, "low": mean - 1, "high": mean + 1}} for name, mean in means.items()}


def result(synthetic, attack):
    held_out = distances(floor=10.0, synthetic=synthetic, gaussian=30.0, gaussian_64=50.0, reconstructed=25.0)
    privacy = {"attacks": {"DiT: loss": attack}} if attack else {"skipped": "too few volumes"}
    return {"results": {"overall": {"held_out": held_out}}, "privacy": privacy}


def network(value, low, high, side=None):
    return {"metrics": {"test": {"auc": {"value": value, "low": low, "high": high}}}, "side": side or {"skipped": ""}}


SIDE = {"test": {"accuracy": {"value": 0.875}}}
NETWORKS = {"real": network(0.81, 0.7, 0.9, SIDE), "synthetic": network(0.74, 0.6, 0.85)}
ALL = ("vae", "diffusion", "classifier")


def test_four_sentences_hold_the_figures():
    fid = result(40.0, {"auc": 0.97})
    found = opening.sentences(ALL, {"HC": 20, "TLE-L": 9}, NETWORKS, None, fid, simulated=True)
    assert len(found) == 4
    text = " ".join(found)
    for part in (
        "A VAE, a diffusion model and a classifier were trained on 20 HC, 9 TLE-L.",
        "finds the disease in unseen scans, AUC 0.81 [0.70, 0.90], and names the right side of the epilepsy in 88% of",
        "it finds the disease there, AUC 0.74 [0.60, 0.85]", "; further than a Gaussian of all latent axes (30)",
        "; closer than a Gaussian of 64 latent axes (50)", "of reconstructed scans 25", "with an AUC of 0.97",
        "the scans are simulated",
    ):  # fmt: skip
        assert part in text


def test_what_was_not_measured_is_not_said():
    alone = {"real": network(0.81, 0.7, 0.9), "synthetic": NETWORKS["synthetic"]}
    found = opening.sentences(ALL, {"HC": 2}, alone, None, result(20.0, None), simulated=False)
    assert "side of the epilepsy" not in found[1]
    assert "; closer than a Gaussian of all latent axes" in found[2]
    assert "AUC" not in found[3]
    assert "simulated" not in found[3]
    overlapping = opening.distance_sentence(result(28.5, None)["results"]["overall"]["held_out"])
    assert "; about as close as a Gaussian of all latent axes" in overlapping


def test_of_part_of_a_run_only_that_part_is_said():
    vae = {"scans": 8, "mean": {"psnr_head": 31.14, "ssim_head": 0.988}}
    found = opening.sentences(["vae"], {"HC": 2}, {}, vae, None, simulated=True)
    assert found == [
        "A VAE was trained on 2 HC.",
        "The VAE reconstructs 8 unseen scans with a PSNR of 31.1 dB and an SSIM of 0.988 inside the head.",
        "Do not believe that any of this holds for patients: the scans are simulated.",
    ]
    real = opening.sentences(["classifier"], {}, {"real": NETWORKS["real"]}, None, None, simulated=False)
    assert real[0] == "A classifier was trained."
    assert "synthetic" not in " ".join(real)
    synthetic = opening.classifier_sentence({"synthetic": NETWORKS["synthetic"]})
    assert "trained on synthetic volumes alone finds the disease in unseen scans, AUC 0.74" in synthetic
    chance = opening.classifier_sentence({"real": network(0.62, 0.49, 0.73), "synthetic": NETWORKS["synthetic"]})
    assert "The classifier cannot be told from chance in unseen scans, AUC 0.62 [0.49, 0.73]" in chance
    assert "alone it finds the disease" in chance
    assert "no model" in opening.sentences([], {"HC": 2}, {}, None, None, simulated=True)[0]
    assert opening.draw([], None, {}, {}) == []


def test_one_noise_shows_the_change_on_its_side():
    draw = np.random.default_rng(0)
    triples = []
    for _ in range(2):
        head = draw.uniform(0.4, 0.6, GRID.shape).astype(np.float32)
        triples.append([head, *(head - 0.2 * atlas(GRID).mask(f"{side} Hippocampus") for side in ("Left", "Right"))])
    figure = opening.one_noise(triples, GRID)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:3] == ["HC", "TLE-L", "TLE-R"]
    left, right = (figure.axes[place].images[0].get_array() for place in (4, 5))
    middle = left.shape[1] // 2
    assert left[:, :middle].min() == pytest.approx(-0.2, abs=1e-6)
    assert np.abs(left[:, middle:]).max() == 0
    assert right[:, middle:].min() == pytest.approx(-0.2, abs=1e-6)


def test_bars_and_dots_are_the_figures():
    samples = distances(floor=10.0, synthetic=40.0, gaussian=30.0)
    bars = opening.rungs(samples).axes[0].patches
    assert sorted(bar.get_width() for bar in bars) == [10.0, 30.0, 40.0]
    scores = {name: found["metrics"]["test"]["auc"] for name, found in NETWORKS.items()}
    axis = opening.areas(scores | {"age": {"value": 0.5, "low": 0.4, "high": None}}).axes[0]
    assert sorted(line.get_xdata()[0] for line in axis.lines if line.get_marker() == "o") == [0.5, 0.74, 0.81]


def test_controls_are_shown_beside_what_they_have_to_be():
    area = {"value": 0.97, "low": 0.9, "high": None}
    rows = [{"control": "positive", "figure": "AUC", "measured": area, "expected": "at least 0.95", "holds": "yes"}]
    shown = tables.controls({"figures": rows})
    assert shown.loc[("positive", "AUC")].tolist() == ["0.97 [0.90, no bound]", "at least 0.95", "yes"]
