"""Holds the whole chain against cohorts of known answer: one hippocampus plainly darker, and nothing changed at all.

    python -m benchmarks.controls demo

Both cohorts are the same simulated people (cohort.make_demo --effect hippocampus). Each is taken through VAE, diffusion
model, synthetic volumes, arms of the classifier, maps and privacy audit by the project's own commands, anew with every
training seed; what is finished is kept, so the same command goes on where it was stopped. Writes controls.json and
prints every figure beside what it has to be. Intervals of areas are over test subjects and training seeds, all others
over training seeds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks.timing import expect, print_table, time_command
from classifier.measures.intervals import mean_interval
from classifier.measures.resampling import cell_text
from cohort.grids import GridName, parse_grid, preset_of
from cohort.scans import normalise
from cohort.stacks import load_scans
from cohort.tables import CLASS_NAMES, read_table, write_csv
from cohort.volumes import list_volumes, read_volume
from evaluation.references.planted import HIPPOCAMPI, brightness, ipsilateral_change
from runtime.checkpoints import git_commit
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.errors import InputError
from runtime.files import ROOT, read_json, write_json

FORMAT = 1
CONTROLS = ("null", "positive")
METHOD = "occlusion"
"""Of the maps; the rank of a region is that of its difference between patients and controls."""
Command = tuple[str, list[object]]
"""A module and its words."""


@dataclass(frozen=True)
class ControlsConfig(ScriptConfig):
    """What is planted, how often everything is trained, and for how long."""

    grid: GridName = "smoke"
    """Voxel grid; the preset of every command is that of the nearest voxel size."""
    out: Path = ROOT / "runs/demo/controls"
    """Folder of both controls and of controls.json."""
    subjects: int = 240
    """Simulated subjects of each cohort; half are controls."""
    darker: float = 0.25
    """Share of its intensity that one hippocampus of every patient of the positive control has lost."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds: of the VAE, the diffusion model and the classifiers."""
    vae_steps: int = 300
    """Optimiser steps of the VAE."""
    diffusion_steps: int = 600
    """Optimiser steps of the diffusion model."""
    classifier_steps: int = 200
    """Optimiser steps of each classifier."""
    count: int = 120
    """Synthetic volumes of each class."""
    explained: int = 32
    """Test subjects whose maps are made."""
    threads: int = 1
    """CPU threads of every command."""


PRESETS = {
    # A minute or two: continuous integration. Nothing is learned in so few steps: what holds and what not says nothing.
    "smoke": ControlsConfig(
        out=ROOT / "runs/smoke/controls", subjects=48, seeds=(0,), vae_steps=20, diffusion_steps=20,
        classifier_steps=20, count=8, explained=4,
    ),
    "demo": ControlsConfig(),
}  # fmt: skip


def main(config: ControlsConfig) -> None:
    """Makes what is missing, measures, writes, prints."""
    check(config)
    expect(minutes=6 * len(config.seeds) * config.diffusion_steps / 600)
    times = run(config, [command for control in CONTROLS for command in commands_of(config, control)])
    found = {control: measure(config, control) for control in CONTROLS}
    rows = [{"control": control, **row} for control in CONTROLS for row in judged(found[control], control)]
    write_json(config.out / "controls.json", {
        "format": FORMAT, "commit": git_commit(), "seeds": list(config.seeds), "subjects": config.subjects,
        "darker": config.darker, "grid": config.grid, "seconds": times, "figures": rows, **found,
    })  # fmt: skip
    print_table([{**row, "measured": cell_text(row["measured"], ".3g")} for row in rows])
    print(f"{times['processor']:.0f} processor seconds of all commands together: {config.out / 'controls.json'}")


def check(config: ControlsConfig) -> None:
    """Refuses settings that answer nothing."""
    problems = [] if config.seeds else ["--seeds: at least one"]
    if len(set(config.seeds)) < len(config.seeds):
        problems.append(f"--seeds {config.seeds}: different ones")
    if not 0 < config.darker <= 1:
        problems.append(f"--darker {config.darker:g}: above 0, at most 1")
    if problems:
        raise InputError.of("settings refused", problems)


# What is run.


def run(config: ControlsConfig, commands: list[Command]) -> dict[str, float]:
    """Runs what has not been run; returns ``wall`` and ``processor`` seconds of all. From the first command that has
    changed on, all are run, and those whose results do not change have nothing to do."""
    path = config.out / "finished.json"
    texts = [[module, *map(str, words)] for module, words in commands]
    before = read_json(path) if path.exists() else []
    same = next((k for k, row in enumerate(before) if row["command"] != texts[k]), len(before))
    finished = before[:same]
    for command in tqdm(texts[same:], desc="controls", unit="command", total=len(texts), initial=same):
        spent = time_command(*command, threads=config.threads)
        finished.append({"command": command, "wall": spent["wall, s"], "processor": spent["processor, s"]})
        write_json(path, finished)
    return {kind: sum(row[kind] for row in finished) for kind in ("wall", "processor")}


def commands_of(config: ControlsConfig, control: str) -> Iterator[Command]:
    """Everything that one control is made of, in order."""
    folder = config.out / control
    index = folder / "index.csv"
    planted = ["--darker", config.darker] if control == "positive" else []
    yield "cohort.make_demo", [
        "--out", folder / "cohort", "--index", index, "--subjects", config.subjects,
        "--grid", config.grid, "--effect", "hippocampus", "--effect-size", 0, *planted,
    ]  # fmt: skip
    yield "cohort.split", [
        "--index", index, "--out", folder, "--val-percent", 15, "--test-percent", 35, "--no-figure",
        "--cache-dir", config.out / "checked",
    ]  # fmt: skip
    for seed in config.seeds:
        yield from generator(config, folder, seed)
    yield from arms(config, folder)
    for seed in config.seeds:
        yield "classifier.generate_saliency_maps", [
            "--checkpoint", folder / f"arms/real/seed{seed}_fold0/checkpoints/best.pt", "--csv", folder / "test.csv",
            "--methods", METHOD, "--out", folder / f"seed{seed}/maps", "--limit", config.explained, "--pictures", 0,
            "--threads", config.threads, "--cache-dir", config.out / "cache",
        ]  # fmt: skip


def generator(config: ControlsConfig, folder: Path, seed: int) -> Iterator[Command]:
    """VAE, latents, diffusion model, volumes of both classes and their evaluation, with one training seed."""
    here = folder / f"seed{seed}"
    vae, diffusion = (here / f"{stage}/checkpoints/best.pt" for stage in ("vae", "diffusion"))
    tables = {name: folder / f"{name}.csv" for name in ("train", "val", "test")}
    shared, preset = ["--threads", config.threads], preset_of(parse_grid(config.grid))
    cached = ["--cache-dir", config.out / "cache", *shared]
    yield "VAE.train", [
        preset, "--grid", config.grid, "--train-csv", tables["train"], "--val-csv", tables["val"],
        "--run-dir", here / "vae", "--steps", config.vae_steps, "--seed", seed, *cached,
    ]  # fmt: skip
    yield "VAE.save_latent", [
        "--checkpoint", vae, "--csv", tables["train"], tables["val"], "--out", here / "latents", *cached,
    ]  # fmt: skip
    yield "diffusion.train", [
        preset, "--latents", here / "latents", "--vae", vae, "--run-dir", here / "diffusion",
        "--steps", config.diffusion_steps, "--seed", seed, *shared,
    ]  # fmt: skip
    for label in CLASS_NAMES:
        yield "diffusion.save_synth", [
            "--vae", vae, "--diffusion", diffusion, "--label", label, "--count", config.count,
            "--first-seed", seed * config.count, "--out", here / f"synthetic_{label}", *shared,
        ]  # fmt: skip
    yield "evaluation.evaluate_synth", [
        "--real-train", tables["train"], "--real-test", tables["test"], "--synth-hc", here / "synthetic_HC",
        "--synth-tle", here / "synthetic_TLE", "--vae", vae, "--diffusion", diffusion, "--grid", config.grid,
        "--parts", "privacy", "--repeats", 10, "--out", here / "evaluation.json", "--cache-dir", here / "features",
        *shared,
    ]  # fmt: skip


def arms(config: ControlsConfig, folder: Path) -> Iterator[Command]:
    """Classifiers trained on real scans, on both, on synthetic volumes alone and on permuted labels; compared."""
    both = {"synth_hc": "seed{seed}/synthetic_HC", "synth_tle": "seed{seed}/synthetic_TLE"}
    table = pd.DataFrame([
        {"arm": "real"},
        {"arm": "real_synthetic", "synth_count": 2 * config.count, **both},
        {"arm": "synthetic", "real": 0, "synth_count": 2 * config.count, **both},
        {"arm": "permuted", "shuffle": "all"},
    ], dtype=object).fillna("")  # fmt: skip
    write_csv(folder / "arms.csv", table)
    tables = [word for name in ("train", "val", "test") for word in (f"--train.{name}-csv", folder / f"{name}.csv")]
    yield "classifier.run_arms", [
        preset_of(parse_grid(config.grid)), folder / "arms.csv", "--out", folder / "arms", "--seeds", *config.seeds,
        *tables, "--train.grid", config.grid, "--train.volumes", "None", "--train.volumes-weight", 0,
        "--train.steps", config.classifier_steps, "--train.threads", config.threads,
        "--train.cache-dir", config.out / "cache",
    ]  # fmt: skip
    yield "classifier.compare", ["--arms", folder / "arms", "--reference", "real", "--out", folder / "arms.json"]


# What is measured.


def measure(config: ControlsConfig, control: str) -> dict[str, Any]:
    """All figures of one control.

    Returns:
        ``auc`` (arm -> cell); ``planted``, what distinguishes the training patients from themselves in the null cohort
        (`ipsilateral_change`, in standard deviations of training controls); and, cells with ``by_seed``: ``swap``, what
        the label changes on the same noise, in the same unit; ``region_rank``, the better rank of the two hippocampi in
        the maps, by patients minus controls; ``nearer_to_training``, the share of synthetic volumes nearer to training
        than to held-out scans, in voxels; ``dit_loss``, AUC of the attack on the DiT's loss, where subjects suffice.
    """
    folder, grid = config.out / control, parse_grid(config.grid)
    train, null = (read_table(path) for path in (folder / "train.csv", config.out / "null" / "index.csv"))
    null = null.set_index("subject", drop=False).loc[train["subject"]].reset_index(drop=True)
    after, before = (
        brightness(load_scans(table, grid, cache_dir=config.out / "cache").volumes, grid) for table in (train, null)
    )
    patients = (train["label"] == 1).to_numpy()
    spread = after[~patients].std(axis=0, ddof=1)
    by_seed: dict[str, list[float]] = {"swap": [], "region_rank": [], "nearer_to_training": [], "dit_loss": []}
    for seed in config.seeds:
        here = folder / f"seed{seed}"
        privacy = read_json(here / "evaluation.json")["privacy"]
        voxels, attack = privacy["audit"]["spaces"]["voxels"]["synthetic"], privacy["attacks"]["DiT: loss"]
        by_seed["swap"].append(swap(here, config.grid, spread))
        by_seed["region_rank"].append(rank_of_planted(here / "maps" / "region_ranking.csv"))
        by_seed["nearer_to_training"].append(voxels["closer_to_training"]["share"])
        by_seed["dit_loss"] += [] if isinstance(attack, str) else [attack["auc"]]
    runs = read_json(folder / "arms.json")["runs"]
    return {
        "auc": {row["run"]: row["metrics"]["auc"] | {"by_seed": list(row["auc_by_seed"].values())} for row in runs},
        "planted": ipsilateral_change(before[patients], after[patients], train["side"][patients].tolist(), spread),
        **{name: over_seeds(values) for name, values in by_seed.items() if values},
    }


def swap(here: Path, grid: str, spread: np.ndarray) -> float:
    """`ipsilateral_change` from HC to TLE on the same noise, on the side that the TLE was made for."""
    made = {
        label: {volume.seed: volume for volume in map(read_volume, list_volumes(here / f"synthetic_{label}"))}
        for label in CLASS_NAMES
    }
    seeds = sorted(made["HC"].keys() & made["TLE"].keys())
    hc, tle = (brightness([normalise(made[label][k].image) for k in seeds], parse_grid(grid)) for label in CLASS_NAMES)
    return ipsilateral_change(hc, tle, [made["TLE"][seed].side for seed in seeds], spread)


def rank_of_planted(path: Path) -> float:
    """The better rank of the two hippocampi by patients minus controls; 1 is the first of all regions."""
    table = pd.read_csv(path)
    table = table[(table["method"] == METHOD) & (table["origin"] == "real")]
    return float(table.set_index("region")["TLE_minus_HC"].rank(ascending=False)[list(HIPPOCAMPI.values())].min())


def over_seeds(values: list[float]) -> dict[str, Any]:
    """Mean of a figure over training seeds with its 95 % interval, ``low`` and ``high``, None where nothing is known of
    other seeds; ``by_seed``."""
    low, high = mean_interval(values) or (None, None)
    return {"value": float(np.mean(values)), "low": low, "high": high, "by_seed": values}


def judged(found: dict[str, Any], control: str) -> list[dict[str, Any]]:
    """A row per figure: ``figure``, ``measured`` (cell), ``expected`` in words, and ``holds``, empty where nothing is
    expected."""
    rows = []

    def row(figure: str, measured: dict[str, Any], expected: str = "", holds: bool | None = None) -> None:
        rows.append({"figure": figure, "measured": measured, "expected": expected,
                     "holds": "" if holds is None else "yes" if holds else "NO"})  # fmt: skip

    least = {"real": 0.95, "synthetic": 0.90} if control == "positive" else {}
    for arm, auc in found["auc"].items():
        name = f"AUC, trained on {arm.replace('_', ' and ')}" if arm != "permuted" else "AUC, permuted labels"
        if arm in least:
            row(name, auc, f"at least {least[arm]:g}", auc["value"] >= least[arm])
        elif control == "null" or arm == "permuted":
            row(name, auc, "interval holds 0.5", (auc["low"] or 0.0) <= 0.5 <= (auc["high"] or 1.0))
        else:
            row(name, auc)
    away = abs(found["swap"]["value"] - found["planted"])
    row("HC to TLE on the same noise, d", found["swap"], f"within 0.3 of {found['planted']:.2f}", away <= 0.3)
    first = found["region_rank"]["value"] == 1
    row("rank of the hippocampi in the maps", found["region_rank"], *(("1", first) if control == "positive" else ()))
    row("volumes nearer to training than to held-out scans", found["nearer_to_training"])
    if "dit_loss" in found:
        row("AUC of the attack on the DiT's loss", found["dit_loss"])
    return rows


if __name__ == "__main__":
    run_script(main, PRESETS, description=describe(__doc__))
