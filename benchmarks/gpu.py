"""Every speed target of this project on one GPU, beside references, in one run of less than eight minutes.

    python -m benchmarks.gpu            # make bench-gpu
    python -m benchmarks.gpu --tiny     # the same code on a CPU, in sizes that say nothing about speed

First the scripts of the preset `paper` take a few steps on random data (trainings through torchrun, as one process),
some at once, beside processes that compile what is timed later into PyTorch's cache: none of this is timed. Then the
rows of `benchmarks.gpu_rows` are, one after another, each part in a process of its own, so that what one leaves behind
or breaks is not the others' business. A row is printed as soon as it is measured, with its reason where it could not
be; gpu.json in --out has all of them, and beside it is what the scripts said.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch

from benchmarks.gpu_jobs import FULL, PARTS, TINY, Part
from benchmarks.gpu_rows import read_rows
from benchmarks.timing import introduce, print_table
from cohort.grids import GRIDS, Grid
from diffusion.checkpoint import save_diffusion
from diffusion.config import PRESETS as DIFFUSION
from diffusion.dataset import LatentSpace
from diffusion.model import DiT
from diffusion.process import build_process
from runtime.checkpoints import checkpoint_hash
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.device import pick_device
from runtime.errors import InputError
from runtime.files import ROOT, write_json
from runtime.runs import environment
from tests.support.scans import brains
from VAE.checkpoint import save_vae
from VAE.config import PRESETS as VAES
from VAE.latents import Latent, compute_statistics, write_latent, write_ledger, write_statistics
from VAE.model import Autoencoder

Command = list[object]
AT_ONCE = 4
"""Processes beside each other, of scripts and of compiling; the largest take 50 GiB of a GPU."""
SCRIPTS = ("VAE.train", "diffusion.train", "flow", "classifier.train", "VAE.save_latent", "diffusion.save_synth")
COUNTS = {"train": 16, "val": 4, "test": 4}
"""Scans; latents are four times as many."""


@dataclass(frozen=True)
class GpuConfig(ScriptConfig):
    """What is run, and for how long."""

    scripts: tuple[str, ...] = SCRIPTS
    """Scripts that run first, of the preset paper; flow is diffusion.train's."""
    compile_first: bool = True
    """Compile side by side what is timed later; without it, each row compiles its own."""
    parts: tuple[Part, ...] = tuple(PARTS)
    """Parts of the table."""
    seconds: float = 2.0
    """Of timing, a row, without compiling and warming up."""
    minutes: float = 7.5
    """For everything; rows for which no time is left say so."""
    tiny: bool = False
    """Small networks on small volumes, on a CPU, too; nothing is compiled there."""
    out: Path = ROOT / "runs/bench_gpu"
    """Folder of random data, logs and gpu.json."""


@dataclass
class Clock:
    """What is left of the minutes."""

    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)


def main(config: GpuConfig) -> None:
    """Checks the device, makes data, runs scripts, times rows."""
    if not torch.cuda.is_available() and not config.tiny:
        raise InputError("PyTorch sees no GPU here (torch.cuda.is_available() is False); --tiny tries all on a CPU")
    print(f"at most about {config.minutes:g} minutes", flush=True)
    clock, data = Clock(60 * config.minutes), config.out / "data"
    device = pick_device()
    rate, result = introduce(device), {"environment": environment(device), "scripts": [], "rows": []}
    result["matrix rate, TFLOP/s"] = rate / 1e12
    if device.kind.type == "cuda":
        torch.cuda.empty_cache()
    for made in (data, config.out / "runs"):
        shutil.rmtree(made, ignore_errors=True)
    for made in config.out.glob("*.jsonl"):
        made.unlink()
    write_data(data, config)
    for name, found in side_by_side(config, data, clock):
        result["scripts"] += [{"script": name, **found}]
        print(f"{name}: {found['ended']}, {found['seconds']:.0f} s", flush=True)
    for place, part in enumerate(config.parts):
        share = PARTS[part] / sum(PARTS[other] for other in config.parts[place:])
        result["rows"] += time_part(config, part, data, rate, share * clock.left)
        write_json(config.out / "gpu.json", result)
    if result["rows"]:
        print_table([cells(row) for row in result["rows"]])
    write_json(config.out / "gpu.json", result)
    if bad := [row["script"] for row in result["scripts"] if row["ended"] != "well"]:
        raise InputError(f"ended with an error: {', '.join(bad)}; the reasons are in {config.out / 'logs'}")


def cells(row: dict[str, Any]) -> dict[str, object]:
    """A row of the printed table."""
    names = ("row", "network", "batch", "per s", "least", "aim", "ms", "TFLOP/s", "of matrix rate", "peak GiB",
             "forecast GiB")  # fmt: skip
    shown = {name: "-" if row.get(name) is None else row[name] for name in names}
    if isinstance(shown["of matrix rate"], float):
        shown["of matrix rate"] = f"{shown['of matrix rate']:.0%}"
    return shown | ({"per s": row["failed"]} if "failed" in row else {})


# What runs first.


def side_by_side(config: GpuConfig, data: Path, clock: Clock) -> Iterator[tuple[str, dict[str, Any]]]:
    """Runs scripts, and what compiles for the rows, a few at once; how each of them ended, as it does."""
    commands: dict[str, Command] = {}
    if config.compile_first and torch.cuda.is_available():
        for part in config.parts:  # they take longest
            commands[f"compiling for {part}"] = part_command(config, part, data, 0.0, seconds=0.0)
    commands |= {name: command for name, command in scripts(config, data) if name in config.scripts}
    limit, logs = clock.left / 2, config.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0))
    threads = {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, cores // AT_ONCE)), "TORCHINDUCTOR_AUTOGRAD_CACHE": "0"}

    def run(name: str) -> dict[str, Any]:
        started, log = time.monotonic(), logs / f"{name.replace(' ', '_')}.txt"
        with log.open("w") as file:
            status = wait(commands[name], max(1.0, limit - (started - began)), file, os.environ | threads)
        last = next((line for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), "")
        ended = "well" if status == 0 else f"with status {status}: {last}"
        return {"ended": ended, "seconds": round(time.monotonic() - started, 1)}

    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE if torch.cuda.is_available() else 1) as pool:
        running = {pool.submit(run, name): name for name in commands}
        for done in as_completed(running):
            yield running[done], done.result()


def wait(command: Command, seconds: float, output: Any, variables: dict[str, str]) -> int | str:
    """Runs a command and all that it starts; its status, or that it took too long."""
    process = subprocess.Popen(
        [*map(str, command)], cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    finally:
        stop(process)


def stop(process: subprocess.Popen) -> None:
    """Ends a process that still runs, and its own; torchrun's are in sessions of their own, which it ends if asked."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def scripts(config: GpuConfig, data: Path) -> Iterator[tuple[str, Command]]:
    """Commands by name."""
    grid, runs = (TINY if config.tiny else FULL).grid, config.out / "runs"
    tables = {name: data / f"{name}.csv" for name in COUNTS}
    shared = ["--grid", grid, "--cache-dir", data / "cache", "--train-csv", tables["train"], "--val-csv", tables["val"]]
    few = ["--steps", 4, "--warmup-steps", 1, "--val-every-steps", 2, "--save-every-steps", 2, "--log-every-steps", 1]
    plain = [sys.executable, "-m"]
    torchrun = [*plain, "torch.distributed.run", "--standalone", "--nproc-per-node", 1, "-m"]
    small = ["--batch-size", 2] if config.tiny else []
    dit = ["--model.dim", 32, "--model.depth", 2, "--model.heads", 1] if config.tiny else []
    yield "VAE.train", [
        *torchrun, "VAE.train", "paper", *shared, *few, *small, "--run-dir", runs / "vae", "--loss.perceptual", 0.1,
    ]  # fmt: skip
    for name, preset in (("diffusion.train", "paper"), ("flow", "flow")):
        yield name, [
            *torchrun, "diffusion.train", preset, "--latents", data / "latents", "--vae", data / "vae.pt",
            "--run-dir", runs / preset, "--sample-every-steps", 3, *few, *small, *dit,
        ]  # fmt: skip
    yield "classifier.train", [
        *torchrun, "classifier.train", "paper", *shared, *few, *small, "--test-csv", tables["test"],
        "--run-dir", runs / "classifier", "--resamples", 100, *(["--model.widths", 8, 16] if config.tiny else []),
    ]  # fmt: skip
    yield "VAE.save_latent", [
        *plain, "VAE.save_latent", "--checkpoint", data / "vae.pt", "--csv", tables["train"], tables["val"],
        "--out", runs / "latents", "--cache-dir", data / "cache",
    ]  # fmt: skip
    yield "diffusion.save_synth", [
        *plain, "diffusion.save_synth", "--vae", data / "vae.pt", "--diffusion", data / "diffusion.pt",
        "--label", "TLE", "--count", 3 if config.tiny else 17, "--steps", 5, "--guidance", 2, "--guidance-interval",
        0.2, 0.8, "--out", runs / "synthetic",
    ]  # fmt: skip


# What is timed.


def part_command(config: GpuConfig, part: Part, data: Path, rate: float, seconds: float) -> Command:
    tiny = ["--tiny"] if config.tiny else []
    return [
        sys.executable, "-m", "benchmarks.gpu_rows", "--part", part, "--data", data, "--rate", rate,
        "--seconds", seconds, "--out", config.out / f"{part}.jsonl", *tiny,
    ]  # fmt: skip


def time_part(config: GpuConfig, part: Part, data: Path, rate: float, seconds: float) -> list[dict[str, Any]]:
    """The rows of a part; its process is started again where it died, behind the row at which it did."""
    out, clock = config.out / f"{part}.jsonl", Clock(seconds)
    command, status = part_command(config, part, data, rate, config.seconds), -1
    variables = os.environ | {"TORCHINDUCTOR_AUTOGRAD_CACHE": "0"}
    seen = -1
    while status != 0 and len(lines := read_rows(out)) > seen and clock.left > 1:
        seen = len(lines)
        status = wait(command, clock.left, None, variables)
    found = {(row["row"], row["network"]): row for row in read_rows(out)}  # what was measured comes after its name
    died = f"not measured: the process ended with status {status}" if isinstance(status, int) else str(status)
    rows = [row if len(row) > 3 else {**row, "failed": died} for row in found.values()]
    if status != 0:
        rows.append({"row": f"{part}: all others", "network": "-", "batch": 0, "failed": died})
    return rows


# Random data.


def write_data(folder: Path, config: GpuConfig) -> None:
    """Scans in tables, latents in two splits, and a checkpoint of either stage with random weights."""
    grid = GRIDS[(TINY if config.tiny else FULL).grid]
    vae = Autoencoder(VAES["paper"].model)
    save_vae(folder / "vae.pt", vae, grid=grid, ledger=[], step=1, ema=vae.state_dict())
    latent, origin = vae.latent_shape(grid.shape), checkpoint_hash(folder / "vae.pt")
    draw = np.random.default_rng(0)
    for place, (name, count) in enumerate(COUNTS.items()):
        write_scans(folder, name, grid, brains(place, count, grid.shape))
        if name != "test":
            made = [random_latent(name, k, latent, origin, grid, draw) for k in range(4 * count)]
            for each in made:
                write_latent(folder / "latents" / name / f"{each.subject}.pkl", each)
            write_ledger(folder / "latents", name, [])
        if name == "train":
            statistics = compute_statistics(made, split=name, ledger=[])
            write_statistics(folder / "latents", statistics)
    preset = DIFFUSION["paper"]
    architecture = (TINY if config.tiny else FULL).dits["S/4"][0]
    dit = DiT(architecture, latent, build_process(preset.process))
    space = LatentSpace(statistics, torch.zeros(latent), torch.ones(latent))
    save_diffusion(
        folder / "diffusion.pt", dit, preset.process, space, ema={"0.05": dit.state_dict()}, track="0.05", step=1,
        ledger=[], label_dropout=0.1, covariates={},
    )  # fmt: skip


def write_scans(folder: Path, name: str, grid: Grid, images: np.ndarray) -> None:
    """A table and its scans, HC and TLE of either side in turn."""
    rows = []
    for k, image in enumerate(images):
        subject = f"{name}{k:02d}"
        nib.save(nib.Nifti1Image(image, grid.affine), folder / f"{subject}.nii")
        rows.append({"subject": subject, "file": f"{subject}.nii", "diagnosis": ("HC", "TLE-L", "HC", "TLE-R")[k % 4]})
    pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)


def random_latent(
    split: str, k: int, shape: tuple[int, ...], origin: str, grid: Grid, draw: np.random.Generator
) -> Latent:
    mu, logvar = draw.normal(size=shape).astype(np.float32), np.full(shape, -6.0, np.float32)
    return Latent(mu, logvar, k % 2, f"{split}{k:03d}", origin, grid.to_dict(), side=("", "L", "", "R")[k % 4])


if __name__ == "__main__":
    run_script(main, GpuConfig, description=describe(__doc__))
