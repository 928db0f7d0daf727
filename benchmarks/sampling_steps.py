"""How many steps each sampler needs: distance to held-out scans, time and convergence, from the same noises.

    python -m benchmarks.sampling_steps --vae runs/demo/vae/checkpoints/best.pt \\
        --diffusion runs/demo/diffusion/checkpoints/best.pt

Every sampler at every number of steps generates the same seeds of both classes; FID and KID to the held-out scans are
those of evaluation.evaluate_synth (same features, same draws of subjects), the floor being real against real. For
deterministic samplers the table also says how far the volumes still are from those of the most steps. Prints a table in
Markdown and writes a JSON, one setting at a time, so that it can be stopped and continued; the report draws it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cohort.scans import normalise
from cohort.stacks import load_scans
from cohort.tables import CLASS_NAMES, read_table
from diffusion.checkpoint import LoadedDiffusion, load_diffusion
from diffusion.sampler import SAMPLERS, evaluations, guided, samplers_for
from evaluation import fid
from evaluation.features import AXES, SliceProtocol, efficientnet, features_of
from runtime import seeding
from runtime.cli import describe, run_script
from runtime.device import Device, pick_device
from runtime.files import ROOT, atomic_write, read_json, write_json
from runtime.runs import environment
from VAE.checkpoint import LoadedVAE, load_vae

STOCHASTIC = ("ddpm",)


@dataclass(frozen=True)
class StepsConfig:
    """Which generator, and how long to let it sample."""

    vae: Path = ROOT / "runs/demo/vae/checkpoints/best.pt"
    """VAE checkpoint."""
    diffusion: Path = ROOT / "runs/demo/diffusion/checkpoints/best.pt"
    """Diffusion checkpoint."""
    real_train: Path = ROOT / "data_csvs/train.csv"
    """Scans that fix the principal axes."""
    real_test: Path = ROOT / "data_csvs/test.csv"
    """Held-out scans."""
    steps: tuple[int, ...] = (5, 10, 15, 25, 50, 100, 1000)
    """Numbers of steps, ascending."""
    samplers: tuple[str, ...] = ()
    """Samplers; by default all that suit the checkpoint's process."""
    per_class: int = 18
    """Volumes of each class at every setting."""
    batch_size: int = 8
    """Volumes generated at once."""
    repeats: int = 40
    """Draws of subjects for the intervals."""
    out: Path = ROOT / "fid_results/demo_steps.json"
    """The result."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


def main(config: StepsConfig) -> None:
    """Generates, measures, writes and prints, setting by setting."""
    device = pick_device("auto", config.threads)
    vae, diffusion = load_vae(config.vae), load_diffusion(config.diffusion)
    device.module(vae.model), device.module(diffusion.model)
    realism = Realism(config, vae, device)
    identity = {
        "vae": vae.hash, "diffusion": diffusion.hash, "schedule": diffusion.process_config.schedule,
        "target": diffusion.process_config.target, "per_class": config.per_class, "floor": realism.floor,
    }  # fmt: skip
    result = {**identity, "environment": environment(device), "rows": []}
    if config.out.exists():
        before = read_json(config.out)
        if {name: before.get(name) for name in identity} == identity:
            result = before
    done = {(row["sampler"], row["steps"]) for row in result["rows"]}
    for name in config.samplers or samplers_for(diffusion.process):
        for steps in sorted(config.steps, reverse=True):
            if (name, steps) in done:
                continue
            volumes, labels, seconds = generate(name, steps, vae, diffusion, device, config)
            row = {
                "sampler": name, "steps": steps, "evaluations": evaluations(name, steps),
                "seconds_per_volume": seconds / len(volumes),
                "rms_to_most_steps": None if name in STOCHASTIC else gap(config, name, steps, volumes),
                **realism(volumes, labels),
            }  # fmt: skip
            result["rows"].append(row)
            write_json(config.out, result)
    print(table(result))


class Realism:
    """FID and KID of synthetic volumes to the held-out scans, in the protocol of evaluation.evaluate_synth."""

    def __init__(self, config: StepsConfig, vae: LoadedVAE, device: Device) -> None:
        # float32, so that figures of different machines can be compared.
        self._device = Device(device.kind, torch.float32)
        self._network = efficientnet(SliceProtocol.for_grid(vae.grid.shape))
        self._repeats, self._sets = config.repeats, {}
        for name, path in (("train", config.real_train), ("test", config.real_test)):
            scans = load_scans(read_table(path).drop_duplicates("subject"), vae.grid)
            features = features_of(scans.volumes, self._network, self._device)
            self._sets[name] = fid.FeatureSet.of(features, scans.labels, AXES)
        labels = np.repeat(np.arange(len(CLASS_NAMES)), config.per_class)
        self._n = fid.per_draw(self._sets["train"].labels, self._sets["test"].labels, labels)
        self.floor = self._measure(self._sets["test"])["floor"]

    def _measure(self, synthetic: fid.FeatureSet) -> dict:
        sets = {**self._sets, "synthetic": synthetic}
        dimensions = fid.dimensions_for(self._n * len(CLASS_NAMES))
        return fid.compare(sets, dimensions=dimensions, n=self._n, repeats=self._repeats, seed=0)["overall"]["held_out"]

    def __call__(self, volumes: np.ndarray, labels: np.ndarray) -> dict:
        """``fid`` and ``kid``, each with mean, low and high."""
        scaled = np.stack([normalise(volume) for volume in volumes])
        features = self._network.features(scaled, self._device)
        return self._measure(fid.FeatureSet.of(features, labels, AXES))["synthetic"]


@torch.no_grad()
def generate(
    name: str, steps: int, vae: LoadedVAE, diffusion: LoadedDiffusion, device: Device, config: StepsConfig
) -> tuple[np.ndarray, np.ndarray, float]:
    """Volumes (N, D, H, W) in [0, 1] of seeds 0 ... per_class - 1 of each class, their labels, and the seconds."""
    process, shape = diffusion.process, diffusion.model.latent_shape
    size = config.batch_size
    cases = [(label, seed) for label in range(len(CLASS_NAMES)) for seed in range(config.per_class)]
    volumes = []
    started = time.perf_counter()
    for start in tqdm(range(0, len(cases), size), desc=f"{name}, {steps} steps", unit="batch"):
        batch = cases[start : start + size]
        draws = [seeding.generator(seed, "synthetic", device=device.kind) for _, seed in batch]

        def draw(draws: list[torch.Generator] = draws) -> torch.Tensor:
            return torch.stack([torch.randn(shape, generator=one, device=device.kind) for one in draws])

        y = torch.tensor([label for label, _ in batch], device=device.kind)
        with device.autocast():
            denoise = guided(diffusion.model, process, y)
            z = SAMPLERS[name](denoise, draw(), process, steps, draw)
            x = vae.model.decode(device.tensor(diffusion.space.leave(z)))
        volumes.append(x.clamp(0, 1)[:, 0].float().cpu().numpy())
    return np.concatenate(volumes), np.array([label for label, _ in cases]), time.perf_counter() - started


def gap(config: StepsConfig, name: str, steps: int, volumes: np.ndarray) -> float:
    """Root mean square difference to the volumes of the most steps, which are kept in a file beside the result."""
    path = config.out.with_name(f"{config.out.stem}_{name}.npy")
    if steps == max(config.steps):
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.save(file, volumes)
    return float(np.sqrt(np.mean((volumes - np.load(path, allow_pickle=False)) ** 2)))


def table(result: dict) -> str:
    """The rows in Markdown, by sampler and steps."""
    floor = result["floor"]
    lines = [
        f"floor (real against real): FID {interval(floor['fid'])}, KID {interval(floor['kid'], 4)}\n",
        "| sampler | steps | network evaluations | FID | KID | s per volume | RMS to its most steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(result["rows"], key=lambda row: (row["sampler"], row["steps"])):
        gap = "-" if row["rms_to_most_steps"] is None else f"{row['rms_to_most_steps']:.4f}"
        lines.append(
            f"| {row['sampler']} | {row['steps']} | {row['evaluations']} | {interval(row['fid'])} | "
            f"{interval(row['kid'], 3)} | {row['seconds_per_volume']:.3f} | {gap} |"
        )
    return "\n".join(lines)


def interval(summary: dict[str, float], digits: int = 1) -> str:
    """Mean and 95 % range over draws of subjects."""
    return f"{summary['mean']:.{digits}f} [{summary['low']:.{digits}f}, {summary['high']:.{digits}f}]"


if __name__ == "__main__":
    run_script(main, StepsConfig, description=describe(__doc__))
