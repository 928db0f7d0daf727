"""Measures how realistic synthetic volumes are: Frechet and kernel distances to real scans, with floor and controls.

    python -m diffusion.evaluate_synth --real-train data_csvs/train.csv --real-test data_csvs/test.csv \\
        --synth-hc synthetic_data_pkls_HC --synth-tle synthetic_data_pkls_TLE --out fid_results/demo.json

Reads scans and volumes, writes one JSON (its fields: fid_results/README.md) and two figures beside it: NAME_fid.png and
NAME_nearest.png. Run again with the same inputs it has nothing to do. One process does all the work.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cohort.ledger import ledger_of, refuse_overlap
from cohort.scans import GRIDS, Grid, ScanStack, load_scans, normalise
from cohort.tables import CLASS_NAMES, LABELS, read_table
from cohort.volumes import Volume, list_volumes, read_volume
from diffusion import charts, controls, fid
from diffusion.features import CACHE, WEIGHTS_SHA256, FeatureNetwork, SliceProtocol, extract_cached, pool
from runtime import distributed
from runtime.checkpoints import git_commit
from runtime.cli import describe, run_script
from runtime.device import Precision, pick_device
from runtime.errors import InputError
from runtime.files import ROOT, read_json, sha256, write_json

FORMAT = 1
PERMUTATIONS = 999


@dataclass(frozen=True)
class EvaluateConfig:
    """What is compared with what, and where the figures go."""

    real_train: Path = ROOT / "data_csvs" / "train.csv"
    """Table of the scans the generator was trained on; they also fix the principal axes."""
    real_test: Path = ROOT / "data_csvs" / "test.csv"
    """Table of held-out scans, used neither for training nor for choosing a model."""
    synth_hc: Path = ROOT / "synthetic_data_pkls_HC"
    """Folder of synthetic volumes of controls."""
    synth_tle: Path = ROOT / "synthetic_data_pkls_TLE"
    """Folder of synthetic volumes of patients."""
    out: Path = ROOT / "fid_results" / "demo.json"
    """The result."""
    figures: Path | None = None
    """Folder for the figures; by default that of the result."""
    grid: str = "demo"
    """Grid on which all volumes are compared: paper, demo or smoke."""
    slices: int = 4
    """Slices per volume and axis."""
    repeats: int = 40
    """Draws of subjects, over which figures are averaged."""
    seed: int = 0
    """Of draws, controls and permutations."""
    allow_leak: bool = False
    """Evaluate even on subjects that the volumes' checkpoints were trained on; the result then says so."""
    precision: Precision = "float32"
    """Of the feature network. float32 makes figures of different machines comparable."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    cache_dir: Path = CACHE
    """Where features are kept; may be deleted at any time."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


@dataclass(frozen=True)
class Synthetic:
    """The synthetic volumes of both folders."""

    volumes: np.ndarray
    """float32 (N, D, H, W) in [0, 1], normalised like scans."""
    labels: np.ndarray
    """(N,) class codes."""
    checkpoints: dict[str, list[str]]
    """Hashes of the checkpoints that the volumes name, by stage."""


def main(config: EvaluateConfig) -> None:
    """Checks, extracts features, compares, draws, writes."""
    if not distributed.is_main():
        return
    grid = grid_of(config)
    folders = folders_of(config)
    protocol = SliceProtocol.for_grid(grid.shape, config.slices)
    tables = {"train": read_table(config.real_train), "test": read_table(config.real_test)}
    leak, warnings = check_ledgers(config, tables, folders)
    scans = {name: load_scans(table.drop_duplicates("subject"), grid) for name, table in tables.items()}
    inputs = fingerprint(config, scans, folders, protocol)
    if is_done(config, inputs):
        print(f"{config.out}: done already, for the same inputs")
        return
    synthetic = read_synthetic(folders, grid)
    warnings += check_counts(scans, synthetic)
    sets = feature_sets(config, scans, synthetic, protocol)
    n = fid.per_draw(sets["train"].labels, sets["test"].labels, sets["synthetic"].labels)
    dimensions = fid.dimensions_for(n * len(CLASS_NAMES))
    result = {
        "format": FORMAT,
        "inputs": inputs,
        "commit": git_commit(),
        "leak": leak,
        "warnings": warnings,
        "checkpoints": synthetic.checkpoints,
        "n": counts(sets) | {"per_draw": {"overall": n * len(CLASS_NAMES)} | dict.fromkeys(CLASS_NAMES, n)},
        "protocol": protocol_of(config, grid, protocol, dimensions),
        "controls": controls.describe(),
        "results": fid.compare(sets, dimensions=dimensions, n=n, repeats=config.repeats, seed=config.seed),
        "all_volumes": fid.compare_all(sets, dimensions=dimensions, permutations=PERMUTATIONS, seed=config.seed),
    }
    chart, nearest = figure_paths(config)
    charts.draw_chart(chart, result)
    charts.draw_nearest(nearest, scans["train"], synthetic.volumes, synthetic.labels)
    write_json(config.out, result)
    print(report(result))


def grid_of(config: EvaluateConfig) -> Grid:
    """The grid by name, and the other settings checked."""
    problems = [
        f"--{name} {value}: expected at least {least}"
        for name, value, least in (("slices", config.slices, 1), ("repeats", config.repeats, 2))
        if value < least
    ]
    if config.grid not in GRIDS:
        problems.append(f"--grid {config.grid}: expected one of {', '.join(GRIDS)}")
    if problems:
        raise InputError.of("settings refused", problems)
    return GRIDS[config.grid]


def folders_of(config: EvaluateConfig) -> dict[str, list[Path]]:
    """The volume pickles of each class's folder.

    Raises:
        InputError: a folder is missing, given twice, or holds too few volumes.
    """
    if config.synth_hc.resolve() == config.synth_tle.resolve():
        raise InputError(f"--synth-hc and --synth-tle are the same folder, {config.synth_hc}; each class has its own")
    problems, found = [], {}
    for name, folder in (("HC", config.synth_hc), ("TLE", config.synth_tle)):
        try:
            found[name] = list_volumes(folder)
        except InputError as error:
            problems.append(str(error))
            continue
        if len(found[name]) < fid.MINIMUM_PER_CLASS:
            problems.append(
                f"{folder}: {len(found[name])} {name} volumes, at least {fid.MINIMUM_PER_CLASS} are needed "
                f"(and {fid.TRUSTED_PER_SIDE} for a figure to trust)"
            )
    if problems:
        raise InputError.of("synthetic volumes refused", problems)
    return found


def check_ledgers(
    config: EvaluateConfig, tables: dict[str, pd.DataFrame], folders: dict[str, list[Path]]
) -> tuple[bool, list[str]]:
    """Whether held-out subjects were seen in training (and that was allowed), and which folders do not say.

    Raises:
        InputError: held-out subjects in the training table or in a folder's ledger, without ``--allow-leak``.
    """
    test, warnings = tables["test"], []
    allowed = {"allow_leak": config.allow_leak}
    leaks = [refuse_overlap(test, ledger_of(tables["train"]), what=f"a model of {config.real_train}", **allowed)]
    for files in folders.values():
        path = files[0].parent / "ledger.json"
        if not path.is_file():
            warnings.append(f"{path}: missing, so whether held-out subjects were trained on is not known")
            continue
        record = read_json(path)
        entries = record.get("ledger") if isinstance(record, dict) else None
        if not isinstance(entries, list):
            raise InputError(f"{path}: not a ledger: expected an object with a list `ledger`")
        leaks.append(refuse_overlap(test, entries, what=f"what generated {path.parent}", **allowed))
    if any(leaks):
        warnings.append("LEAK: held-out subjects were trained on (allowed by --allow-leak); these figures flatter")
    return any(leaks), warnings


def fingerprint(
    config: EvaluateConfig, scans: dict[str, ScanStack], folders: dict[str, list[Path]], protocol: SliceProtocol
) -> dict[str, str]:
    """Hash of each input's content: whoever has the same ones gets the same result."""
    parts: dict[str, object] = {
        f"real_{name}": list(zip(stack.hashes, stack.labels.tolist(), strict=True)) for name, stack in scans.items()
    }
    parts |= {f"synth_{name.lower()}": [sha256(path) for path in files] for name, files in folders.items()}
    settings = (FORMAT, config.grid, asdict(protocol), config.repeats, config.seed, config.precision, config.allow_leak)
    parts["settings"] = [*settings, WEIGHTS_SHA256, controls.describe()]
    return {name: hashlib.sha256(json.dumps(part).encode()).hexdigest()[:16] for name, part in parts.items()}


def is_done(config: EvaluateConfig, inputs: dict[str, str]) -> bool:
    """Whether the result is there already, with its figures.

    Raises:
        InputError: the file holds a result of other inputs.
    """
    if not config.out.exists():
        return False
    old = read_json(config.out)
    before = old.get("inputs") if isinstance(old, dict) else None
    if before != inputs:
        known = before if isinstance(before, dict) else {}
        differing = [f"{name}: {known.get(name)} there, {inputs[name]} now" for name in inputs]
        differing = [line for name, line in zip(inputs, differing, strict=True) if known.get(name) != inputs[name]]
        raise InputError.of(
            f"{config.out}: holds a result of other inputs; choose another --out or delete it", differing
        )
    return all(path.exists() for path in figure_paths(config))


def read_synthetic(folders: dict[str, list[Path]], grid: Grid) -> Synthetic:
    """Reads all volumes onto [0, 1] by the scaling of scans; all that are refused are named in one InputError."""
    volumes, labels, origins, problems = [], [], {"vae": set(), "diffusion": set()}, []
    for name, files in folders.items():
        for path in files:
            try:
                volume = read_volume(path)
            except InputError as error:
                problems.append(str(error))
                continue
            faults = [f"{path}: {fault}" for fault in faults_of(volume, LABELS[name], grid)]
            problems += faults
            if not faults:
                volumes.append(normalise(volume.image))
                labels.append(volume.label)
                for stage, hashes in origins.items():
                    hashes.add(getattr(volume, stage) or "not stated")
    if problems:
        raise InputError.of("synthetic volumes refused", problems)
    return Synthetic(np.stack(volumes), np.array(labels), {stage: sorted(hashes) for stage, hashes in origins.items()})


def faults_of(volume: Volume, label: int, grid: Grid) -> list[str]:
    """What speaks against comparing a volume, got and expected; its reader has checked that it is finite."""
    faults = []
    if volume.label != label:
        faults.append(f"class {CLASS_NAMES[volume.label]} in the folder for {CLASS_NAMES[label]}")
    if volume.image.shape != grid.shape:
        faults.append(f"shape {volume.image.shape}, the grid {grid.name} has {grid.shape}")
    elif volume.affine is not None and not np.allclose(volume.affine, grid.affine, atol=1e-3):
        faults.append(f"its affine is not that of the grid {grid.name}")
    elif volume.image.min() == volume.image.max():
        faults.append("constant")
    return faults


def check_counts(scans: dict[str, ScanStack], synthetic: Synthetic) -> list[str]:
    """Warnings about samples too small to trust and about repeated volumes; too small to compute is refused."""
    sides = {
        "--real-train": scans["train"].labels,
        "--real-test": scans["test"].labels,
        "synthetic volumes": synthetic.labels,
    }
    problems = [
        f"{side}: {np.sum(labels == code)} of class {name}, at least {fid.MINIMUM_PER_CLASS} are needed"
        for side, labels in sides.items()
        for code, name in enumerate(CLASS_NAMES)
        if np.sum(labels == code) < fid.MINIMUM_PER_CLASS
    ]
    if problems:
        raise InputError.of("too few volumes", problems)
    warnings = [
        f"TOO FEW FOR A TRUSTWORTHY FIGURE: {side} has {len(labels)} volumes, fewer than {fid.TRUSTED_PER_SIDE}"
        for side, labels in sides.items()
        if len(labels) < fid.TRUSTED_PER_SIDE
    ]
    distinct = len({hashlib.sha256(volume).digest() for volume in synthetic.volumes})
    if distinct < len(synthetic.volumes):
        warnings.append(f"only {distinct} of {len(synthetic.volumes)} synthetic volumes are distinct")
    return warnings


def feature_sets(
    config: EvaluateConfig, scans: dict[str, ScanStack], synthetic: Synthetic, protocol: SliceProtocol
) -> dict[str, fid.FeatureSet]:
    """Features of all sets and of the controls."""
    device = pick_device(config.precision, config.threads)
    network = FeatureNetwork()
    volumes = {name: stack.resident() for name, stack in scans.items()}
    labels = {name: stack.labels for name, stack in scans.items()}
    spoiled = controls.make_controls(volumes["test"], config.seed)
    volumes |= {"synthetic": synthetic.volumes, **spoiled}
    labels |= {"synthetic": synthetic.labels, **dict.fromkeys(spoiled, labels["test"])}
    return {
        name: fid.FeatureSet(pool(extract_cached(stack, network, protocol, device, config.cache_dir)), labels[name])
        for name, stack in volumes.items()
    }


def counts(sets: dict[str, fid.FeatureSet]) -> dict[str, dict[str, int]]:
    """Volumes of each class in each set."""
    return {
        key: {name: int(np.sum(sets[one].labels == code)) for code, name in enumerate(CLASS_NAMES)}
        for key, one in (("real_train", "train"), ("real_test", "test"), ("synthetic", "synthetic"))
    }


def protocol_of(config: EvaluateConfig, grid: Grid, protocol: SliceProtocol, dimensions: int) -> dict:
    """How the figures came about, in full."""
    return {
        "network": FeatureNetwork.name,
        "weights_sha256": WEIGHTS_SHA256,
        "features": "last convolution, averaged over each slice, then over slices: one vector per volume and axis",
        "fid_dimensions": dimensions,
        "fid_projection": "principal axes of the training reals, per axis",
        "kid": "polynomial kernel (a.b/F + 1)^3 on all features, unbiased",
        "permutations": PERMUTATIONS,
        "scans": "one per subject, the first in its table",
        "grid": grid.to_dict(),
        "slices": asdict(protocol),
        "slice_positions": [protocol.positions(extent) for extent in grid.shape],
        "preprocessing": "cohort.scans.normalise on both sides (0.5 and 99.5 percentiles of non-zero voxels to [0, 1])",
        "repeats": config.repeats,
        "seed": config.seed,
        "precision": config.precision,
    }


def figure_paths(config: EvaluateConfig) -> tuple[Path, Path]:
    """The bar chart and the picture of nearest scans."""
    folder = config.figures or config.out.parent
    return folder / f"{config.out.stem}_fid.png", folder / f"{config.out.stem}_nearest.png"


def report(result: dict) -> str:
    """A few lines for people."""
    size = result["n"]["per_draw"]
    lines = [
        f"{'':9}{'N':>5} {'floor':>9} {'synthetic':>10} {'blurred':>9} {'shuffled':>9} {'KID synth.':>11} {'p':>7}"
    ]
    for group, one in result["results"].items():
        shown = {name: f"{sample['fid']['mean']:.3g}" for name, sample in one["held_out"].items()}
        kid, p = one["held_out"]["synthetic"]["kid"]["mean"], result["all_volumes"][group]["kid_p_value"]
        lines.append(
            f"{group:9}{size[group]:5d} {shown['floor']:>9} {shown['synthetic']:>10} {shown['blurred']:>9} "
            f"{shown['shuffled']:>9} {kid:11.3g} {p:7.3f}"
        )
    return "\n".join([*lines, *result["warnings"]])


if __name__ == "__main__":
    run_script(main, EvaluateConfig, description=describe(__doc__))
