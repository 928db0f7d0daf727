"""What a newcomer sees first: what was trained, whether it works, how far, and what not to believe; and pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from classifier.measures.predictions import read_predictions
from classifier.measures.resampling import cell_text
from cohort.atlas import atlas
from cohort.grids import Grid
from cohort.pictures import COLOURS, new_figure
from cohort.scans import normalise
from cohort.volumes import list_volumes, read_volume
from evaluation.cards import RUNGS
from evaluation.fid import BASELINES
from notebooks.results import NETWORKS, STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARGIN_VOXELS = 4
"""Around both hippocampi, in the picture of one noise."""
NOISE_CAPTION = (
    "One noise, decoded as a control and as a patient of either side: the hippocampus (yellow) of the side of the "
    "epilepsy should shrink, so that white matter takes its place (red), and the horn beside it widen (blue). What "
    "the sides share, such as wider ventricles, cancels in TLE-L minus TLE-R."
)
LADDER_CAPTION = (
    "A good generator beats the Gaussians and comes near the reconstructions; bars hold the range of 95 % of the draws "
    "of subjects, on the leading axes of EfficientNet features."
)


def sentences(
    trained: Sequence[str], counts: Mapping[str, int], networks: Mapping[str, dict], reconstructed: dict | None,
    fid: dict | None, *, simulated: bool,
) -> list[str]:  # fmt: skip
    """What is known of a run, in four sentences at most.

    Args:
        trained: those of `notebooks.results.STAGES` that were.
        counts: scans of each diagnosis to train on.
        networks: results.json of each classifier, by what it was trained on: real, synthetic, ...
        reconstructed: summary.json of VAE.infer.
        fid: result of evaluation.evaluate_synth.
        simulated: whether the cohort is.
    """
    realism = reconstruction_sentence(reconstructed)
    if fid:
        realism = distance_sentence(fid["results"]["overall"]["held_out"])
    found = [training_sentence(trained, counts), classifier_sentence(networks), realism]
    return [*filter(None, found), belief_sentence(fid, simulated=simulated)]


def training_sentence(trained: Sequence[str], counts: Mapping[str, int]) -> str:
    """Which models there are, and the scans they had."""
    scans = ", ".join(f"{count} {name}" for name, count in counts.items())
    if not trained:
        return f"There are scans to train on, of {scans}, and no model." if scans else ""
    *others, last = [STAGES[stage] for stage in trained]
    models = f"{', '.join(others)} and {last}" if others else last
    verb = "were" if others else "was"
    return f"{models[0].upper()}{models[1:]} {verb} trained{f' on {scans}' if scans else ''}."


def classifier_sentence(networks: Mapping[str, dict]) -> str:
    """How well classifiers of real and of synthetic scans do; empty where there is neither."""
    areas = {name: found["metrics"]["test"]["auc"] for name, found in networks.items()}
    texts = {name: cell_text(area, ".2f") for name, area in areas.items()}
    verbs = {
        name: "finds the disease" if area["low"] > 0.5 else "cannot be told from chance" for name, area in areas.items()
    }
    if "real" not in areas:
        what = "A classifier trained on synthetic volumes alone"
        return f"{what} {verbs['synthetic']} in unseen scans, AUC {texts['synthetic']}." if "synthetic" in areas else ""
    side = networks["real"]["side"].get("test")
    share = (
        f", and names the right side of the epilepsy in {side['accuracy']['value']:.0%} of the patients" if side else ""
    )
    found = f"The classifier {verbs['real']} in unseen scans, AUC {texts['real']}{share}"
    if "synthetic" in areas:
        found += f"; trained on synthetic volumes alone it {verbs['synthetic']} there, AUC {texts['synthetic']}"
    return f"{found}."


def reconstruction_sentence(reconstructed: dict | None) -> str:
    """How far the VAE's reconstructions are from scans it has not seen; empty where that was not measured."""
    if reconstructed is None:
        return ""
    mean = reconstructed["mean"]
    return (
        f"The VAE reconstructs {reconstructed['scans']} unseen scans with a PSNR of {mean['psnr_head']:.1f} dB and an "
        f"SSIM of {mean['ssim_head']:.3f} inside the head."
    )


def belief_sentence(fid: dict | None, *, simulated: bool) -> str:
    """What not to believe."""
    subject = "the scans are simulated" if simulated else "nothing here was measured on another cohort"
    holds = f"that any of this holds for {'patients' if simulated else 'other patients'}: {subject}"
    if fid is None:
        return f"Do not believe {holds}."
    attack = fid.get("privacy", {}).get("attacks", {}).get("DiT: loss")
    told = (
        f": the model's loss tells who was trained on with an AUC of {attack['auc']:.2f}"
        if isinstance(attack, dict)
        else ""
    )
    return f"Do not believe that synthetic volumes are private{told}, nor {holds}."


def distance_sentence(samples: dict) -> str:
    """How near the generator comes, and which Gaussians it beats: by ranges of draws that do not overlap."""
    found = {name: sample["fid"]["mean"] for name, sample in samples.items()}
    made = samples["synthetic"]["fid"]

    def verdict(other: dict[str, float]) -> str:
        if made["high"] < other["low"]:
            return "closer than"
        return "further than" if made["low"] > other["high"] else "about as close as"

    verdicts = [
        f"{verdict(samples[name]['fid'])} a {RUNGS[name]} ({found[name]:.3g})" for name in BASELINES if name in found
    ]
    ceiling = f", of reconstructed scans {found['reconstructed']:.3g}" if "reconstructed" in found else ""
    return (
        f"The Frechet distance of synthetic volumes to unseen scans is {found['synthetic']:.3g}, of other scans "
        f"{found['floor']:.3g}{ceiling}" + "".join(f"; {verdict}" for verdict in verdicts) + "."
    )


def draw(
    triples: Sequence[Sequence[np.ndarray]], grid: Grid | None, scores: Mapping[str, dict], samples: Mapping[str, dict]
) -> list[tuple[Figure, str]]:
    """Figures and how to read them: one noise as all diagnoses, what classifiers find, the ladder; of what is there.

    Args:
        triples: see `one_noise`.
        scores: cells of areas under the curve, by network or baseline.
        samples: distances to held-out scans, by sample.
    """
    drawn = []
    if triples and grid:
        drawn.append((one_noise(triples, grid), NOISE_CAPTION))
    if scores:
        drawn.append((areas(scores), "Brackets are 95 % intervals over subjects; 0.5 is guessing."))
    if samples:
        drawn.append((rungs(samples), LADDER_CAPTION))
    return drawn


def triples(runs: Path) -> list[list[np.ndarray]]:
    """Volumes of HC, TLE-L and TLE-R from one noise each, where a preset's runs have made all three."""
    controls, patients, other_side = (runs / f"synthetic_{name}" for name in ("data_pkls_HC", "data_pkls_TLE", "swap"))
    if not all(folder.is_dir() for folder in (controls, patients, other_side)):
        return []
    right = {read_volume(path).seed: path for path in list_volumes(other_side)}
    found = []
    for path in list_volumes(patients) if right else []:
        volume = read_volume(path)
        if volume.side == "L" and volume.seed in right:
            paths = (controls / path.name.replace("TLE", "HC"), path, right[volume.seed])
            found.append([normalise(read_volume(each).image) for each in paths])
    return found


def one_noise(triples: Sequence[Sequence[np.ndarray]], grid: Grid) -> Figure:
    """The same noise as HC, TLE-L and TLE-R: a coronal slice through the middle of both hippocampi, enlarged, and
    what changes.

    Args:
        triples: volumes (D, H, W) in [0, 1] of HC, TLE-L and TLE-R for each noise; the first is shown, and the mean
            difference of all.
    """
    labels = atlas(grid)
    places = labels.mask("Left Hippocampus") | labels.mask("Right Hippocampus")
    row = round(places.nonzero()[1].mean())  # their bodies; the head, in front, is where they change least
    box = tuple(
        slice(max(0, int(at.min()) - MARGIN_VOXELS), int(at.max()) + 1 + MARGIN_VOXELS)
        for at in (axis.nonzero()[0] for axis in (places.any((1, 2)), places.any((0, 1))))
    )
    outlines = np.flipud(places[box[0], row, box[1]].T)
    mean = np.mean([[volume - triple[0] for volume in triple] for triple in triples], axis=0)  # (3, D, H, W)
    changes = {"TLE-L minus TLE-R": mean[1] - mean[2], "TLE-L minus HC": mean[1], "TLE-R minus HC": mean[2]}
    limit = max(float(np.abs(change[box[0], row, box[1]]).max()) for change in changes.values()) or 1.0
    figure = new_figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis, name, volume in zip(axes[0], ("HC", "TLE-L", "TLE-R"), triples[0], strict=True):
        _show(axis, np.flipud(volume[box[0], row, box[1]].T), outlines, cmap="gray", vmin=0, vmax=1)
        axis.set_title(name, color=COLOURS[name.split("-")[0]])
    for axis, (name, change) in zip(axes[1], changes.items(), strict=True):
        _show(axis, np.flipud(change[box[0], row, box[1]].T), outlines, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set_title(f"{name}, mean of {len(triples)} noises", fontsize=9)
    legend = f"blue: darker, red: brighter (to {limit:.2g} of the range); yellow: both hippocampi; left is left"
    figure.supxlabel(legend, fontsize=9)
    return figure


def _show(axis: Axes, image: np.ndarray, outlines: np.ndarray, **look: object) -> None:
    axis.imshow(image, interpolation="nearest", **look)
    axis.contour(outlines, [0.5], colors="gold", linewidths=1)
    axis.set_axis_off()


def areas(scores: Mapping[str, dict[str, Any]]) -> Figure:
    """Cells of AUC with interval, by name: networks black, what they have to beat grey, on unseen scans."""
    rows = {
        name: [np.nan if found[end] is None else found[end] for end in ("value", "low", "high")]
        for name, found in scores.items()
    }
    figure = new_figure(figsize=(9, 0.32 * len(rows) + 0.9), layout="constrained")
    axis = figure.subplots()
    for place, (name, (value, low, high)) in enumerate(reversed(rows.items())):
        colour = "0.15" if name.startswith("network") else "0.6"
        axis.errorbar(value, place, xerr=[[value - low], [high - value]], color=colour, fmt="o", capsize=2)
    axis.axvline(0.5, color="0.8", linewidth=1)
    axis.set(yticks=range(len(rows)), yticklabels=list(reversed(rows)), xlabel="AUC on unseen scans, 0.5 is guessing")
    return figure


def rungs(samples: dict) -> Figure:
    """The ladder: distances to unseen scans of what a generator has to beat, and cannot beat; ranges over draws."""
    shown = {meaning: samples[name]["fid"] for name, meaning in RUNGS.items() if name in samples}
    figure = new_figure(figsize=(9, 0.32 * len(shown) + 0.9), layout="constrained")
    axis = figure.subplots()
    for place, (meaning, found) in enumerate(reversed(shown.items())):
        colour = COLOURS["TLE"] if meaning == RUNGS["synthetic"] else "0.7"
        reach = [[found["mean"] - found["low"]], [found["high"] - found["mean"]]]
        axis.barh(place, found["mean"], xerr=reach, color=colour, ecolor="0.3", capsize=2)
    axis.set(yticks=range(len(shown)), yticklabels=list(reversed(shown)), xlabel="Frechet distance to unseen scans")
    return figure


def roc_figure(runs: Path, trained_on: Collection[str]) -> Figure:
    """Receiver operating characteristics of `NETWORKS` on unseen scans, of those that are there."""
    from sklearn.metrics import roc_curve  # slow to import

    figure = new_figure(figsize=(5, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    for (run, name), style in zip(NETWORKS.items(), ("-", "--", ":"), strict=True):
        if name in trained_on:
            test = read_predictions(runs / run / "predictions.csv").query("split == 'test'")
            axis.plot(*roc_curve(test["label"], test["probability"])[:2], style, color="0.2", label=name)
    axis.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal", title="ROC, real held-out subjects")
    axis.legend(title="trained on", loc="lower right")
    return figure
