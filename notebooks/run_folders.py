"""Run folders of any stage, side by side: training curves, measures, configurations, machines."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from classifier.measures.comparison import compare_arms
from classifier.measures.resampling import cell_text, draws_of
from classifier.measures.runs import single_runs
from cohort.pictures import new_figure
from notebooks.tables import tests_of_arms
from runtime.checkpoints import checkpoint_hash
from runtime.errors import InputError
from runtime.files import ROOT, read_json
from runtime.runs import FREE_FIELDS, read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    "VAE.train": {
        "VAE: reconstruction loss": ("loss/reconstruction",),
        "VAE: PSNR in the head (dB)": ("val/psnr_head",),
    },
    "diffusion.train": {"diffusion: loss": ("loss/train", "loss/val")},
    "classifier.train": {
        "classifier: loss": ("loss/train", "loss/val_calibrated"),
        "classifier: AUC": ("auc/val",),
    },
}
"""By stage, the panels of its training curves and the columns of the log in each."""
MEASURES = ("auc", "balanced_accuracy", "sensitivity", "specificity", "brier", "calibration_slope")
"""Of a classifier."""


@dataclass(frozen=True)
class RunFolder:
    """One training run."""

    name: str
    """Where its path parts from the others'."""
    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    log: pd.DataFrame
    """One row for each line of log.jsonl."""

    @property
    def stage(self) -> str:
        """The script that trained it, such as ``VAE.train``."""
        return self.config["stage"]


def inside(folder: Path) -> list[Path]:
    """The run folders that lie in a folder, by name."""
    return sorted(path.parent for path in folder.glob("*/log.jsonl") if (path.parent / "config.json").is_file())


def read_runs(paths: Iterable[Path]) -> list[RunFolder]:
    """Reads run folders, those of one stage behind one another; InputError where one is none, or there is none."""
    folders = list(dict.fromkeys(Path(path).resolve() for path in paths))
    files = ("config.json", "environment.json", "log.jsonl")
    problems = [f"{path}: no {name}" for path in folders for name in files if not (path / name).is_file()]
    if problems or not folders:
        title = "a run folder is what VAE.train, diffusion.train or classifier.train leaves"
        raise InputError.of(title, problems or ["there is none; `make demo` makes some"])
    parent = os.path.commonpath([folder.parent for folder in folders])
    runs = [
        RunFolder(
            name=os.path.relpath(folder, parent), path=folder, config=read_json(folder / "config.json"),
            environment=read_json(folder / "environment.json"), log=pd.DataFrame(read_log(folder)),
        )
        for folder in folders
    ]  # fmt: skip
    if unknown := [f"{run.path}: {run.stage}" for run in runs if run.stage not in PANELS]:
        raise InputError.of(f"runs of another stage than {', '.join(PANELS)}", unknown)
    return [run for stage in PANELS for run in runs if run.stage == stage]


def curves_figure(runs: Sequence[RunFolder]) -> Figure:
    """A panel for each of PANELS, with the runs of its stage; a colour for each run, and one legend for all."""
    panels = [(stage, title, names) for stage in PANELS for title, names in PANELS[stage].items()]
    panels = [panel for panel in panels if any(run.stage == panel[0] for run in runs)]
    figure = new_figure(figsize=(max(6.5, 2.7 * len(panels)), 3.1 + 0.2 * len(runs) / 3), layout="constrained")
    for axis, (stage, title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for place, run in enumerate(runs):
            for name in run.log.columns.intersection(names) if run.stage == stage else ():
                look = {"linewidth": 2.0} if "val" in name else {"linewidth": 0.9, "alpha": 0.6}
                line = run.log.set_index("step")[name].dropna()
                marker = "o" if len(line) < 3 else ""
                axis.plot(line, marker=marker, markersize=4, color=colour(place), **look)
        axis.set(xlabel="step")
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    lines = [axis.plot([], color=colour(place), label=run.name)[0] for place, run in enumerate(runs)]
    figure.legend(handles=lines, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle("thick: validation, thin: training", fontsize=9)
    return figure


def colour(place: int) -> str:
    """Of a run by its place among all, the same in each figure."""
    return f"C{place}" if place < 10 else f"{0.75 * (place % 10) / 10:.2f}"


def overview(runs: Sequence[RunFolder]) -> pd.DataFrame:
    """One column per run: stage, seed, steps, minutes of training, and what its environment.json says."""
    columns = {}
    for run in runs:
        clock = run.log["time/run_s"]
        passed = clock.diff().where(clock.diff() >= 0, clock).sum()  # the clock starts anew when a run is continued
        about = {
            "stage": run.stage, "seed": run.config["seed"], "minutes": f"{passed / 60:.1f}",
            "steps": f"{run.log['step'].max()} of {run.config['steps']}",
        }  # fmt: skip
        columns[run.name] = about | run.environment
    return pd.DataFrame(columns)


def differences(runs: Sequence[RunFolder], stage: str) -> pd.DataFrame:
    """Fields of the configuration in which runs of a stage differ, one column per run; settings before places."""
    table = pd.DataFrame({run.name: flat(run.config) for run in runs if run.stage == stage}, dtype=object)
    texts = table.map(lambda value: "" if isinstance(value, float) and np.isnan(value) else str(value))
    differ = texts[texts.nunique(axis=1) > 1]
    places = differ.index.isin(FREE_FIELDS) | differ.map(lambda text: "/" in text).any(axis=1)
    return pd.concat([differ[~places], differ[places]])


def flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by the name that their flags have, such as ``model.depth``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, dict)
        found |= flat(value, f"{before}{name}.") if nested else {f"{before}{name}": value}
    return found


def measures(runs: Sequence[RunFolder], stage: str, root: Path = ROOT) -> pd.DataFrame:
    """What is known of how good the runs of a stage are, one row per run, intervals (95 %) in brackets.

    Classifiers: results.json, on test subjects. Others: what VAE.infer, in a folder beside the run, and
    evaluation.evaluate_synth, in fid_results of `root`, have measured of this very checkpoint, and from the log the
    best value in validation, which has no interval.
    """
    rows = {}
    for run in runs:
        if run.stage == stage:
            rows[run.name] = _MEASURED[stage](run, root)
    return pd.DataFrame(rows).T.fillna("")


def of_classifier(run: RunFolder, _root: Path) -> dict[str, str]:
    path = run.path / "results.json"
    if not path.is_file():
        return {"note": "has not finished"}
    results = read_json(path)
    cells = {name.replace("_", " "): results["metrics"]["test"][name] for name in MEASURES}
    if side := results["side"].get("test"):
        cells["side, accuracy"] = side["accuracy"]
    trained = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in results["counts"]["train"].items() if n)
    note = {"note": "LEAK ALLOWED"} if results["leak"] else {}
    return {"trained on": trained, **{name: cell_text(found, ".2f") for name, found in cells.items()}, **note}


def of_vae(run: RunFolder, _root: Path) -> dict[str, str]:
    found = {"validation: PSNR in the head (dB)": best(run, "val/psnr_head", max)}
    for summary in measured(run.path.parent.glob("*/summary.json"), lambda found: found["vae"], run):
        n = summary["scans"]
        reach = stats.t.ppf(0.975, n - 1) / np.sqrt(n) if n > 1 else np.nan
        for name, title in (("psnr_head", "PSNR in the head (dB)"), ("ssim_head", "SSIM in the head")):
            mean, half = summary["mean"][name], reach * summary["std"][name]
            found[f"{n} held-out scans: {title}"] = f"{mean:.4g} [{mean - half:.4g}, {mean + half:.4g}]"
    return found


def of_diffusion(run: RunFolder, root: Path) -> dict[str, str]:
    found = {"validation: loss": best(run, "loss/val", min)}
    results = (root / "fid_results").glob("*.json")
    for result in measured(results, lambda found: found["checkpoints"]["diffusion"], run):
        sample = result["results"]["overall"]["held_out"]["synthetic"]
        for name in ("fid", "kid"):
            found[f"{name.upper()} to held-out scans"] = "{mean:.3g} [{low:.3g}, {high:.3g}]".format(**sample[name])
    return found


_MEASURED = {"VAE.train": of_vae, "diffusion.train": of_diffusion, "classifier.train": of_classifier}


def best(run: RunFolder, column: str, which: Any) -> str:
    """The best value of a column of the log, and its step."""
    line = run.log.set_index("step").get(column, pd.Series(dtype=float)).dropna()
    if line.empty:
        return ""
    value = which(line)
    return f"{value:.4g} at step {line.index[line == value][0]}"


def measured(paths: Iterable[Path], checkpoint_of: Any, run: RunFolder) -> list[dict]:
    """The JSON files that are of the run's best checkpoint, by its hash."""
    checkpoint = run.path / "checkpoints" / "best.pt"
    if not checkpoint.is_file():
        return []
    own, found = checkpoint_hash(checkpoint), []
    for path in sorted(paths):
        content = read_json(path)
        try:
            stated = checkpoint_of(content)
        except (KeyError, TypeError):  # a file of something else
            continue
        if stated in (own, [own]):
            found.append(content)
    return found


def paired_tests(runs: Sequence[RunFolder]) -> pd.DataFrame | str:
    """Finished classifiers against the first of them, as classifier.compare does it; why not, where they cannot be."""
    finished = [run.path for run in runs if (run.path / "results.json").is_file() and run.stage == "classifier.train"]
    try:
        arms = single_runs(tuple(finished))
    except InputError as refusal:
        return str(refusal)
    return tests_of_arms(pd.DataFrame(compare_arms(arms, draws_of(arms, 2000, 0), margin=0.05).tests))
