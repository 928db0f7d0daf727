"""What a run's classifiers say of one scan, how far that can be trusted, and where they look.

An answer never stands alone: beside it is how many held-out subjects with such an answer were patients, and what
networks of other training seeds say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit

from classifier.checkpoint import LoadedClassifier, load_classifier
from classifier.measures.intervals import share_interval
from classifier.measures.predictions import by_subject
from classifier.measures.resampling import cell_text
from classifier.measures.runs import FinishedRun, read_run
from classifier.saliency import attribution
from classifier.saliency.figures import over_anatomy
from classifier.saliency.regions import region_means
from cohort.atlas import atlas
from cohort.pictures import COLOURS, new_figure
from runtime.device import pick_device
from runtime.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from notebooks.own_scan import Own

NEAREST_SHARE, FEWEST_NEAREST = 0.2, 10
"""Of the held-out subjects, how many count as having about the same probability; and at least."""


@dataclass(frozen=True)
class Network:
    """One finished classifier and what it says of a scan."""

    name: str
    loaded: LoadedClassifier
    run: FinishedRun
    probability: float
    """Of TLE, after the temperature that validation chose."""
    right: float | None
    """Probability that the side is the right one, were this a patient; None where no side was learned."""


def finished(runs: Path, arm: str) -> dict[str, Path]:
    """Run folders of finished classifiers: the main one first, then those that an arm trained from other seeds."""
    folders = [runs / "classifier", *sorted((runs / "arms" / arm).glob("seed*_fold*"))]
    return {str(folder.relative_to(runs)): folder for folder in folders if (folder / "results.json").is_file()}


@torch.no_grad()
def classified(own: Own, folders: Mapping[str, Path]) -> list[Network]:
    """What each classifier says of a scan, in full precision as of its held-out subjects."""
    networks, device = [], pick_device("float32")
    for name, folder in folders.items():
        loaded = load_classifier(folder / "checkpoints/best.pt")
        if loaded.grid != own.grid:
            raise InputError(f"{folder}: trained on the grid {loaded.grid.name}; this scan is on {own.grid.name}")
        x = device.tensor(torch.from_numpy(own.volume)[None, None])
        logits = device.module(loaded.model).both(x)[0].double().cpu().numpy()
        right = float(expit(logits[1])) if len(logits) > 1 else None
        probability = float(expit(logits[0] / loaded.temperature))
        networks.append(Network(name, loaded, read_run(folder), probability, right))
    return networks


def network_table(networks: Sequence[Network]) -> pd.DataFrame:
    """One row per network: its probability and side, the threshold of validation, and how good it is on others."""
    rows = {
        network.name: {
            "probability of TLE": f"{network.probability:.2f}",
            "threshold": f"{network.loaded.threshold:.2f}",
            "side, were it TLE": "" if network.right is None else side_text(network.right),
            "AUC, held-out": cell_text(network.run.results["metrics"]["test"]["auc"], ".2f"),
        }
        for network in networks
    }
    return pd.DataFrame(rows).T


def side_text(right: float) -> str:
    """A side and its probability."""
    return f"right, {right:.2f}" if right >= 0.5 else f"left, {1 - right:.2f}"


def others_than(own: Own, network: Network) -> pd.DataFrame:
    """A network's held-out subjects with their probabilities, without one of the scan's name."""
    frame = by_subject(network.run.frame)
    return frame[frame["subject"] != own.name]


def nearest(own: Own, network: Network) -> pd.DataFrame:
    """The held-out subjects whose probability is nearest to the scan's: a fifth of them, and ten at least."""
    others = others_than(own, network)
    count = min(len(others), max(FEWEST_NEAREST, round(NEAREST_SHARE * len(others))))
    order = (others["probability"] - network.probability).abs().sort_values(kind="stable").index
    return others.loc[order[:count]]


def statements(own: Own, networks: Sequence[Network]) -> list[str]:
    """What the classifiers say, with how far to trust it, in sentences; the first network's held-out subjects count."""
    first, others = networks[0], networks[1:]
    alike, results = nearest(own, first), first.run.results
    patients = int(alike["label"].sum())
    low, high = share_interval(patients, len(alike))
    over = first.probability >= first.loaded.threshold
    said = [
        f"The network gives TLE a probability of {first.probability:.2f}, {'at or above' if over else 'below'} its "
        f"threshold of {first.loaded.threshold:.2f}.",
        f"Of the {len(alike)} held-out subjects whose probability is nearest ({alike['probability'].min():.2f} to "
        f"{alike['probability'].max():.2f}), {patients} were patients: {patients / len(alike):.0%} "
        f"[{low:.0%}, {high:.0%}]. That holds where {others_than(own, first)['label'].mean():.0%} of all are "
        "patients, as among them; where fewer are, it is less.",
    ]
    if slope := results["metrics"]["test"].get("calibration_slope"):
        said.append(
            f"Calibration slope on held-out subjects: {cell_text(slope, '.2f')}; 1 is good, below it probabilities are "
            "too near to 0 and 1, above it too near to one half."
        )
    if others:
        values = [network.probability for network in others]
        said.append(
            f"{len(values)} networks of other seeds say {min(values):.2f} to {max(values):.2f}, on average "
            f"{np.mean(values):.2f}: what chance in training alone changes."
        )
    if first.right is not None:
        said.append(side_statement(first.right, results.get("side", {})))
    return said


def side_statement(right: float, results: dict[str, Any]) -> str:
    """The side of the epilepsy, and how often it is right in patients."""
    found = results.get("test")
    share = f"it is right in {cell_text(found['accuracy'], '.2f')} of held-out patients" if found else "untested"
    return f"Were this a patient, the side would be {side_text(right)}; {share}."


def among_others(own: Own, networks: Sequence[Network]) -> Figure:
    """Probabilities of held-out subjects of either class by the first network, and those of this scan by all."""
    first = networks[0]
    others, bins = others_than(own, first), np.linspace(0, 1, 21)
    figure = new_figure(figsize=(8, 2.8), layout="constrained")
    axis = figure.subplots()
    for label, (name, colour) in enumerate(COLOURS.items()):
        values = others.loc[others["label"] == label, "probability"]
        axis.hist(values, bins, color=colour, alpha=0.5, label=f"{len(values)} held-out {name}")
    for network in networks[1:]:
        axis.axvline(network.probability, color="0.5", linewidth=1)
    axis.axvline(first.loaded.threshold, color="0.2", linestyle=":", label="threshold")
    axis.axvline(first.probability, color="black", linewidth=2.5, label="this scan")
    axis.set(xlim=(0, 1), xlabel="probability of TLE", ylabel="subjects")
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def attribution_map(own: Own, network: Network, method: str) -> np.ndarray:
    """Which voxels speak for TLE: float32 (D, H, W), by one of `classifier.saliency.attribution.METHODS`."""
    attribution.check_methods([method])
    device = pick_device("float32")  # bfloat16 would round small attributions away
    model = device.module(network.loaded.model)
    context = attribution.context_for(network.loaded, atlas(own.grid), device)
    x = device.tensor(torch.from_numpy(own.volume)[None, None])
    return attribution.attribute(model, x, method, context)[0]


def draw_map(own: Own, network: Network, method: str, map_: np.ndarray, out: Path) -> Path:
    """Writes a map over the scan as a PNG into a folder, three planes through its strongest place; returns its file."""
    kind, path = attribution.METHODS[method], out / f"{own.name}_{method}.png"
    ends = ("speaks for HC", "speaks for TLE") if kind.signed else None
    title = f"{method}, {own.name}, probability of TLE {network.probability:.2f}"
    over_anatomy(path, own.volume, map_, own.grid.affine, title=title, unit=kind.unit, ends=ends)
    return path


def strongest_regions(own: Own, map_: np.ndarray, count: int = 8) -> pd.DataFrame:
    """The regions with the largest mean |attribution|, and the signed mean: above 0 speaks for TLE."""
    regions = atlas(own.grid)
    found = {"mean |attribution|": region_means(np.abs(map_), regions), "mean": region_means(map_, regions)}
    table = pd.DataFrame(found, index=list(regions.names.values())).dropna()
    return table.sort_values("mean |attribution|", ascending=False, kind="stable").head(count)
