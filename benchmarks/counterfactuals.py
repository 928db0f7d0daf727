"""How exact inversions are, and whether counterfactuals of the demo's scans hold what is asked of them.

    python -m benchmarks.counterfactuals --diffusion runs/demo/diffusion/checkpoints/best.pt

First the latent's round trip (root mean square, positions vary by about 1) by number of steps and guidance: DDIM run
backwards, two coupled latents (EDICT) and ours, with evaluations of the network, and how far ours is from the change of
the most steps. Then `diffusion.counterfactual` to each label, as a command, with its measures and what the demo's
classifier says of scans, reconstructions and counterfactuals. Writes fid_results/demo_counterfactuals.json and prints
tables. About 13 s a scan on one core.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from benchmarks.timing import print_table
from classifier.checkpoint import load_classifier
from classifier.dataset import Volumes
from classifier.evaluation import predict
from cohort.stacks import load_scans
from cohort.tables import DIAGNOSES, SIDES, read_table
from diffusion.checkpoint import LoadedDiffusion, load_diffusion
from diffusion.config import SIDE_CODES
from diffusion.intervention.inversion import generate, invert
from diffusion.process import Process
from diffusion.sampler import CLEAN, Denoise, guided, transitions
from runtime.cli import describe, run_module, run_script
from runtime.config import ScriptConfig
from runtime.device import pick_device
from runtime.files import ROOT, read_json, write_json
from runtime.runs import environment
from VAE.checkpoint import load_vae

REQUESTS = {"TLE-L": ("HC",), "TLE-R": ("HC",), "HC": ("TLE-L", "TLE-R")}
"""Labels asked for, and own labels of the scans."""
MIXING = 0.93
"""Of EDICT, the paper's choice."""


@dataclass(frozen=True)
class CounterfactualsConfig(ScriptConfig):
    runs: Path = ROOT / "runs/demo"
    """Folder of the runs vae and classifier; counterfactuals go to --folder in it."""
    diffusion: Path = ROOT / "runs/demo/diffusion/checkpoints/best.pt"
    """The generator."""
    folder: str = "counterfactuals"
    """Name of the folder, for generators side by side."""
    csv: Path = ROOT / "data/demo/test.csv"
    """Scans that no checkpoint was trained on."""
    scans: int = 40
    """Scans to each label."""
    inverted: int = 3
    """Scans of the first part; 0 leaves it out."""
    steps: tuple[int, ...] = (5, 10, 25, 50)
    """Of the first part."""
    guidances: tuple[float, ...] = (2.0, 4.0)
    """Of the first part, at 10 steps, besides none."""
    guidance: float = 1.0
    """Of the second part: above 1 the label changes more."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    out: Path = ROOT / "fid_results/demo_counterfactuals.json"
    """The result."""


class Trip(NamedTuple):
    """To noise and back."""

    back: torch.Tensor
    noise: torch.Tensor
    apart: float
    """What the two coupled latents differ by at the noisy end; 0 where there is one."""


def main(config: CounterfactualsConfig) -> None:
    device = pick_device("float32", config.threads)
    result = {"environment": environment(device), "diffusion": str(config.diffusion)}
    if config.inverted:
        result["inversion"] = inversions(config)
        print_table(result["inversion"])
    result["requests"] = {to: request(config, to, own) for to, own in REQUESTS.items()}
    write_json(config.out, result)
    rows = [row for found in result["requests"].values() for row in found["classifier"]]
    print_table(rows)


def inversions(config: CounterfactualsConfig) -> list[dict]:
    """Rows by steps and guidance."""
    vae, diffusion = load_vae(config.runs / "vae/checkpoints/best.pt"), load_diffusion(config.diffusion)
    frame = read_table(config.csv).groupby("diagnosis", sort=False).head(1).head(config.inverted)
    x = torch.from_numpy(load_scans(frame, vae.grid).volumes[:])[:, None]
    with torch.no_grad():
        z = diffusion.space.enter(vae.model.encode(x)[0])
    labels, asked = frame["diagnosis"].tolist(), ["HC" if name != "HC" else "TLE-L" for name in frame["diagnosis"]]
    settings = [(steps, 1.0) for steps in sorted(config.steps, reverse=True)] + [(10, w) for w in config.guidances]
    rows, best = [], None
    for steps, guidance in settings:
        process, count = diffusion.process, [0]
        own, other = (counted(denoiser(diffusion, names, guidance), count) for names in (labels, asked))
        row = {"steps": steps, "guidance": guidance}
        for name, trip in (("backwards", backwards), ("coupled", coupled), ("ours", ours)):
            count[0] = 0
            found = trip(own, z, process, steps)
            row |= {f"{name}_rms": rms(found.back - z), f"{name}_evaluations": count[0]}
            row |= {"coupled_apart": found.apart} if name == "coupled" else {}
        change = generate(other, found.noise, process, steps) - z
        best = change if best is None else best
        row |= {"change_rms": rms(change)}
        row |= {"to_most_steps": rms(change - best)} if guidance == 1 else {}
        rows.append(row)
    return rows


def denoiser(diffusion: LoadedDiffusion, labels: list[str], guidance: float) -> Denoise:
    """The network, each latent under its own label."""
    y = torch.tensor([DIAGNOSES[label] for label in labels])
    side = torch.tensor([SIDE_CODES[SIDES.get(label, "")] for label in labels])
    return guided(diffusion.model, diffusion.process, y, side=side, guidance=guidance)


def counted(denoise: Denoise, count: list[int]) -> Denoise:
    """Adds each evaluation to `count`."""

    def counting(z: torch.Tensor, t: float) -> torch.Tensor:
        count[0] += 1
        return denoise(z, t)

    return counting


def rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def ours(denoise: Denoise, z: torch.Tensor, process: Process, steps: int) -> Trip:
    noise = invert(denoise, z, process, steps)
    return Trip(generate(denoise, noise, process, steps), noise, 0.0)


@torch.no_grad()
def backwards(denoise: Denoise, z: torch.Tensor, process: Process, steps: int) -> Trip:
    """DDIM's steps with the time reversed: the network is asked at the end of the step where there is less noise."""
    noise, earlier = z, None
    for t, now, after in reversed(list(transitions(process, process.multistep_times(steps)))):
        z_hat = noise if after == CLEAN else denoise(noise, earlier)
        eps = (noise - after[0] * z_hat) / after[1] if after[1] else (z - now[0] * denoise(z, t)) / now[1]
        noise, earlier = now[0] * z_hat + now[1] * eps, t
    return Trip(generate(denoise, noise, process, steps), noise, 0.0)


@torch.no_grad()
def coupled(denoise: Denoise, z: torch.Tensor, process: Process, steps: int) -> Trip:
    """EDICT (Wallace et al. 2023, equations 13 to 15), with steps that hold the velocity fixed."""
    path = []
    for t, now, after in transitions(process, process.multistep_times(steps)):
        kept = after[1] / now[1]
        pull, weight = after[0] - kept * now[0], 1.0 if process.is_flow else now[0]
        path.append((t, kept + pull * weight, pull, weight))

    def moved(of: torch.Tensor, t: float, pull: float, weight: float) -> torch.Tensor:
        return pull * (weight * of - denoise(of, t))

    x = y = z
    for t, keep, *rest in reversed(path):
        y = (y - (1 - MIXING) * x) / MIXING
        x = (x - (1 - MIXING) * y) / MIXING
        y = (y + moved(x, t, *rest)) / keep
        x = (x + moved(y, t, *rest)) / keep
    noise, apart = x, rms(x - y)
    for t, keep, *rest in path:
        x = keep * x - moved(y, t, *rest)
        y = keep * y - moved(x, t, *rest)
        x = MIXING * x + (1 - MIXING) * y
        y = MIXING * y + (1 - MIXING) * x
    return Trip(x, noise, apart)


def request(config: CounterfactualsConfig, to: str, own: tuple[str, ...]) -> dict:
    """Counterfactuals to a label, their measures, and the classifier's opinion of them."""
    out = config.runs / config.folder / to
    threads = () if config.threads is None else ("--threads", config.threads)
    run_module(
        "diffusion.counterfactual", "--vae", config.runs / "vae/checkpoints/best.pt", "--checkpoint", config.diffusion,
        "--csv", config.csv, "--to", to, "--own", *own, "--limit", config.scans // len(own), "--out", out,
        "--guidance", config.guidance, *threads,
    )  # fmt: skip
    return {"measures": read_json(out / "measures.json"), "classifier": opinions(config, out)}


def opinions(config: CounterfactualsConfig, folder: Path) -> list[dict]:
    """What the classifier says of scans, reconstructions and counterfactuals, by their own label: the share that it
    calls TLE, the mean logit, and where it knows sides the share of right ones."""
    loaded = load_classifier(config.runs / "classifier/checkpoints/best.pt")
    table, device, rows = read_table(folder / "manifest.csv"), pick_device("float32", config.threads), []
    both: Callable[[torch.Tensor], torch.Tensor] = device.module(loaded.model).both
    for kind in ("scan", "reconstruction", "counterfactual"):
        frame = table.assign(file=[str(folder / name) for name in table[kind]])
        logits = predict(both, Volumes(load_scans(frame, loaded.grid), device))
        probability = 1 / (1 + np.exp(-logits[:, 0] / loaded.temperature))
        found = pd.DataFrame({"own": table["own"], "tle": probability >= loaded.threshold, "logit": logits[:, 0]})
        if logits.shape[1] > 1:
            found["right"] = logits[:, 1] > 0
        for own, part in found.groupby("own"):
            means = part.drop(columns="own").astype(float).mean().round(3).to_dict()
            rows.append({"to": table["diagnosis"].iloc[0], "own": own, "of": kind, "scans": len(part), **means})
    return rows


if __name__ == "__main__":
    run_script(main, CounterfactualsConfig, description=describe(__doc__))
