"""What a newcomer sees first: what was trained, whether it works, how far, and what not to believe; three pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cohort.atlas import atlas
from cohort.pictures import COLOURS, new_figure
from cohort.scans import Grid, normalise
from cohort.volumes import list_volumes, read_volume
from evaluation.cards import RUNGS
from evaluation.fid import BASELINES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARGIN_VOXELS = 4
"""Around both hippocampi, in the picture of one noise."""


def sentences(fid: dict, arms: pd.DataFrame, results: dict, counts: Mapping[str, int], *, simulated: bool) -> list[str]:
    """Four sentences with the figures of a run.

    Args:
        fid: result of evaluation.evaluate_synth.
        arms: table of classifier.compare, indexed by what a network was trained on: real, synthetic, ...
        results: of the classifier that was trained on real scans.
        counts: scans of each diagnosis that all models were trained on.
        simulated: whether the cohort is.
    """
    trained = ", ".join(f"{count} {name}" for name, count in counts.items())
    side = results["side"].get("test")
    sided = f" and the right side of the epilepsy in {side['accuracy']['value']:.0%} of the patients" if side else ""
    attack = fid["privacy"].get("attacks", {}).get("DiT: loss")
    told = (
        f": the model's loss tells who was trained on with an AUC of {attack['auc']:.2f}"
        if isinstance(attack, dict)
        else ""
    )
    subject = "the scans are simulated" if simulated else "nothing here was measured on another cohort"
    return [
        f"A VAE, a diffusion model and a classifier were trained on {trained}.",
        f"The classifier finds the disease in unseen scans with an AUC of {area(arms.loc['real'])}{sided}; trained on "
        f"synthetic volumes alone it reaches {area(arms.loc['synthetic'])} on the same scans.",
        distance_sentence(fid["results"]["overall"]["held_out"]),
        f"Do not believe that synthetic volumes are private{told}, nor that any of this holds for patients: {subject}.",
    ]


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


def area(row: pd.Series) -> str:
    """An area under the ROC curve with its interval."""
    return f"{row.auc_value:.2f} [{row.auc_low:.2f}, {row.auc_high:.2f}]"


def draw(
    runs: Path, grid: Grid, arms: pd.DataFrame, baselines: Mapping[str, Mapping[str, float]], samples: dict
) -> list[Figure]:
    """One noise as all three diagnoses, where there are such volumes; what classifiers find; the ladder."""
    controls, patients = (runs / f"synthetic_data_pkls_{name}" for name in ("HC", "TLE"))
    found = triples(controls, patients, runs / "synthetic_swap")
    return [*([one_noise(found, grid)] if found else []), areas(arms, baselines), rungs(samples)]


def triples(controls: Path, patients: Path, other_side: Path) -> list[list[np.ndarray]]:
    """Volumes of HC, TLE-L and TLE-R from one noise each, where all three are there; `other_side` holds TLE-R."""
    right = {read_volume(path).seed: path for path in (list_volumes(other_side) if other_side.exists() else [])}
    found = []
    for path in list_volumes(patients) if right else []:
        volume = read_volume(path)
        if volume.side == "L" and volume.seed in right:
            paths = (controls / path.name.replace("TLE", "HC"), path, right[volume.seed])
            found.append([normalise(read_volume(each).image) for each in paths])
    return found


def one_noise(triples: Sequence[Sequence[np.ndarray]], grid: Grid) -> Figure:
    """The same noise as HC, TLE-L and TLE-R: a coronal slice through both hippocampi, enlarged, and what changes.

    Args:
        triples: volumes (D, H, W) in [0, 1] of HC, TLE-L and TLE-R for each noise; the first is shown, and the mean
            difference of all.
    """
    labels = atlas(grid)
    places = labels.mask("Left Hippocampus") | labels.mask("Right Hippocampus")
    row = int(places.sum(axis=(0, 2)).argmax())
    box = tuple(
        slice(max(0, int(at.min()) - MARGIN_VOXELS), int(at.max()) + 1 + MARGIN_VOXELS)
        for at in (axis.nonzero()[0] for axis in (places.any((1, 2)), places.any((0, 1))))
    )
    outlines = np.flipud(places[box[0], row, box[1]].T)
    mean = np.mean([[volume - triple[0] for volume in triple] for triple in triples], axis=0)  # (3, D, H, W)
    limit = float(np.abs(mean[1:, box[0], row, box[1]]).max()) or 1.0
    figure = new_figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots(2, 3)
    for column, name in enumerate(("HC", "TLE-L", "TLE-R")):
        first, change = (np.flipud(volume[column][box[0], row, box[1]].T) for volume in (triples[0], mean))
        _show(axes[0, column], first, outlines, cmap="gray", vmin=0, vmax=1)
        axes[0, column].set_title(name, color=COLOURS[name.split("-")[0]])
        if column:
            _show(axes[1, column], change, outlines, cmap="RdBu_r", vmin=-limit, vmax=limit)
            axes[1, column].set_title(f"{name} minus HC, mean of {len(triples)} noises", fontsize=9)
    axes[1, 0].set_axis_off()
    legend = f"blue: darker, red: brighter\n(to {limit:.2g} of the range)\nyellow: both hippocampi\nleft is left"
    axes[1, 0].text(0, 0.5, legend, fontsize=9, va="center")
    return figure


def _show(axis: Axes, image: np.ndarray, outlines: np.ndarray, **look: object) -> None:
    axis.imshow(image, interpolation="nearest", **look)
    axis.contour(outlines, [0.5], colors="gold", linewidths=1)
    axis.set_axis_off()


def areas(arms: pd.DataFrame, baselines: Mapping[str, Mapping[str, float]]) -> Figure:
    """AUC with interval of each network and baseline, on unseen scans."""
    rows = {f"network, trained on {name}": (row.auc_value, row.auc_low, row.auc_high) for name, row in arms.iterrows()}
    for name, found in baselines.items():
        ends = (found[end] for end in ("value", "low", "high"))
        rows[f"baseline: {name}"] = tuple(np.nan if end is None else end for end in ends)
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
