"""How the cost of the project's work grows with its amount: voxels, tokens, steps, subjects, processes.

    python -m benchmarks.curves

Each curve does the same work in several amounts, by the networks of the preset demo and by commands, on one thread.
Processor time counts, so that other work on the machine matters little; of processes the wall's. To each curve
seconds = fixed + each x amount^exponent is fitted, in relative error. Writes a JSON file and prints a row a curve.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import least_squares

from benchmarks.check import BenchmarkConfig as CohortConfig
from benchmarks.check import make_cohort
from benchmarks.timing import expect, introduce, print_table, time_command
from diffusion.config import PRESETS as DIFFUSION
from diffusion.model import DiT
from diffusion.process import build_process
from diffusion.sampler import dpmpp, guided
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.device import Device, pick_device
from runtime.errors import InputError
from runtime.files import ROOT, write_json
from VAE.config import PRESETS as VAES
from VAE.losses import LossNetworks, objective
from VAE.model import Autoencoder

Curve = dict[int, float]
"""Seconds by amount of work."""
THREADS = 1
PATCH, CHANNELS = 4, 6
"""Of the preset demo: positions along an edge of a token, and numbers at each."""


@dataclass(frozen=True)
class CurvesConfig(ScriptConfig):
    """The amounts of work; three or more of each, for a fit of three numbers."""

    sides: tuple[int, ...] = (16, 24, 32, 48, 64)
    """Voxels along each edge of a cube, for the VAE."""
    latent_sides: tuple[int, ...] = (8, 16, 24, 32, 40)
    """Positions along each edge of a latent cube, for the DiT; a token is 4x4x4 of them."""
    steps: tuple[int, ...] = (5, 10, 20, 40)
    """Sampling steps."""
    subjects: tuple[int, ...] = (8, 16, 32, 64)
    """Subjects that are simulated."""
    scans: tuple[int, ...] = (500, 1000, 2000, 4000)
    """Small scans that are checked."""
    processes: tuple[int, ...] = (1, 2)
    """Processes that simulate; two or more are fitted without a fixed part."""
    repeats: int = 3
    """Times that work in this process is done; the median counts."""
    out: Path = ROOT / "benchmarks" / "curves.json"
    """The JSON file of the figures."""


def main(config: CurvesConfig) -> None:
    for name in ("sides", "latent_sides", "steps", "subjects", "scans"):
        if len(set(getattr(config, name))) < 3:
            raise InputError(f"--{name.replace('_', '-')}: expected three or more amounts; three numbers are fitted")
    expect(minutes=9)
    introduce(pick_device(threads=THREADS), threads=THREADS)
    curves = {
        ("VAE, a training step of 2 volumes", "voxels"): vae_steps(config),
        ("VAE, encoding and decoding a volume", "voxels"): vae_passes(config),
        ("DiT, a training step of 2 latents", "tokens"): dit_steps(config),
        ("sampling a latent", "steps"): sampled(config),
        ("cohort.make_demo", "subjects"): simulated(config),
        ("cohort.check, nothing cached", "scans"): checked(config),
        ("cohort.make_demo, wall", "processes"): in_parallel(config),
    }
    rows = [row(name, unit, curve) for (name, unit), curve in curves.items()]
    write_json(config.out, {"curves": rows})
    print_table([{key: " ".join(value) if key == "seconds" else value for key, value in each.items()} for each in rows])


def row(name: str, unit: str, curve: Curve) -> dict[str, object]:
    """A curve's points and what was fitted to them."""
    amounts = sorted(curve)
    last = np.log(curve[amounts[-1]] / curve[amounts[-2]]) / np.log(amounts[-1] / amounts[-2])
    fixed, exponent, error = fit(curve)
    return {
        "work": name, "amount": unit, "seconds": [f"{amount}: {curve[amount]:.3g}" for amount in amounts],
        "fixed, s": fixed, "exponent": exponent, "largest error": f"{error:.0%}", "between the last two": float(last),
    }  # fmt: skip


def fit(curve: Curve) -> tuple[float, float, float]:
    """Fixed seconds, exponent and largest relative error of seconds = fixed + each x amount^exponent.

    With two points there is no fixed part.
    """
    amounts, seconds = (np.array(values, float) for values in zip(*sorted(curve.items()), strict=True))
    if len(amounts) < 3:
        slope, start = np.polyfit(np.log(amounts), np.log(seconds), 1)
        return 0.0, float(slope), float(np.abs(np.exp(start + slope * np.log(amounts)) / seconds - 1).max())

    def predicted(parameters: np.ndarray) -> np.ndarray:
        fixed, each, exponent = parameters
        return fixed + each * (amounts / amounts[-1]) ** exponent

    found = least_squares(
        lambda parameters: predicted(parameters) / seconds - 1,
        (seconds[0] / 2, seconds[-1], 1.0), bounds=((0, 0, -3), (seconds[0], np.inf, 4)),
    ).x  # fmt: skip
    return float(found[0]), float(found[2]), float(np.abs(predicted(found) / seconds - 1).max())


def measured(work: Callable[[], object], repeats: int) -> float:
    """Median processor seconds, after one turn that does not count."""
    work()
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds)


def vae_steps(config: CurvesConfig) -> Curve:
    """Forward pass, losses and backward pass of the demo's VAE; noise in place of scans."""
    device, curve = pick_device(threads=THREADS), {}
    model = device.module(Autoencoder(VAES["demo"].model))
    for side in config.sides:
        x, eps = device.tensor(cube(2, 1, side)), torch.randn(2, *model.latent_shape((side,) * 3))
        curve[side**3] = measured(partial(vae_step, model, device, x, eps), config.repeats)
    return curve


def vae_step(model: Autoencoder, device: Device, x: torch.Tensor, eps: torch.Tensor) -> None:
    with device.autocast():
        loss, _ = objective(model(x, eps), x, LossNetworks(), VAES["demo"].loss, 1, 0)
    model.zero_grad(set_to_none=True)
    loss.backward()


def vae_passes(config: CurvesConfig) -> Curve:
    device, curve = pick_device(threads=THREADS), {}
    model = device.module(Autoencoder(VAES["demo"].model)).eval()
    for side in config.sides:
        x = device.tensor(cube(1, 1, side))
        curve[side**3] = measured(partial(vae_pass, model, device, x), config.repeats)
    return curve


@torch.no_grad()
def vae_pass(model: Autoencoder, device: Device, x: torch.Tensor) -> None:
    with device.autocast():
        model.decode(model.encode(x)[0], tuple(x.shape[2:]))


def dit_steps(config: CurvesConfig) -> Curve:
    """The demo's DiT without its linear start, whose cost is that of its axes."""
    device, curve = pick_device(threads=THREADS), {}
    for side in config.latent_sides:
        work = partial(dit_step, network(side), device, cube(2, CHANNELS, side))
        curve[(side // PATCH) ** 3] = measured(work, config.repeats)
    return curve


def dit_step(model: DiT, device: Device, z: torch.Tensor) -> None:
    with device.autocast():
        loss = F.mse_loss(model(z, torch.tensor([100, 900]), torch.tensor([0, 1])).float(), z)
    model.zero_grad(set_to_none=True)
    loss.backward()


def sampled(config: CurvesConfig) -> Curve:
    device, side = pick_device(threads=THREADS), max(config.latent_sides[:3])
    model, z = network(side).eval(), cube(1, CHANNELS, side)
    process = build_process(DIFFUSION["demo"].process)
    denoise = guided(model, process, torch.ones(1, dtype=torch.long))

    def sample(steps: int) -> None:
        with device.autocast():
            dpmpp(denoise, z, process, steps, lambda: torch.randn_like(z))

    return {steps: measured(lambda steps=steps: sample(steps), config.repeats) for steps in config.steps}


def cube(cases: int, channels: int, side: int) -> torch.Tensor:
    return torch.rand(cases, channels, side, side, side)


def network(side: int) -> DiT:
    return DiT(replace(DIFFUSION["demo"].model, linear_rank=0), (CHANNELS, side, side, side))


def simulated(config: CurvesConfig) -> Curve:
    return {count: simulation(count, 1)["processor, s"] for count in config.subjects}


def in_parallel(config: CurvesConfig) -> Curve:
    count = max(config.subjects)
    return {processes: simulation(count, processes)["wall, s"] for processes in config.processes}


def simulation(count: int, processes: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        words = ("--out", out, "--index", out / "index.csv", "--subjects", count, "--workers", processes)
        return time_command("cohort.make_demo", *words, threads=1)


def checked(config: CurvesConfig) -> Curve:
    """`cohort.check` of cohorts of different sizes, which find the copies planted in them (status 1)."""
    curve = {}
    with tempfile.TemporaryDirectory() as folder:
        for scans in config.scans:
            index = make_cohort(CohortConfig(folder=Path(folder), scans=scans))
            words = ("--csv", index, "--out", Path(folder) / "report", "--cache-dir", Path(folder) / f"cache{scans}")
            curve[scans] = time_command("cohort.check", *words, expected=(1,), threads=1)["processor, s"]
    return curve


if __name__ == "__main__":
    run_script(main, CurvesConfig, description=describe(__doc__))
