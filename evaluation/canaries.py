"""Plants canaries, trains a generator on them, samples from it, and asks the audit what it finds.

    python -m evaluation.canaries demo --latents runs/demo/latents --vae runs/demo/vae/checkpoints/best.pt

Training subjects are repeated 1, 4 and 16 times (`privacy.canary_plan`); diffusion.train and diffusion.save_synth do
the rest as for any generator. Real scans are taken through the VAE, so that they are as smooth as what it decodes.
Beside the canaries stands how many of the subjects that occur once are found, with the range without a leak, and how
many are found by what nobody generated: half of the held-out scans in place of volumes.
Writes canaries.json into the run folder; the same command continues a stopped run.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cohort.scans import normalise
from cohort.tables import CLASS_NAMES
from cohort.volumes import list_volumes, read_volume
from diffusion.checkpoint import load_diffusion
from evaluation.posteriors import Codec
from evaluation.privacy import membership
from evaluation.privacy.audit import latent_space, spaces_of
from evaluation.privacy.canary_plan import (
    PLAN,
    REPEATS,
    can_find,
    plan_canaries,
    read_canaries,
    require_held_out,
    write_canaries,
)
from evaluation.privacy.copying import audit_spaces
from evaluation.privacy.embedding import EncoderConfig
from runtime import distributed
from runtime.checkpoints import git_commit
from runtime.cli import describe, run_module, run_script
from runtime.device import pick_device
from runtime.errors import InputError
from runtime.files import ROOT, read_json, write_json
from VAE.checkpoint import load_vae
from VAE.latents import Latent, read_split

FORMAT = 3


@dataclass(frozen=True)
class CanaryConfig:
    """What is planted, how the generator is trained, and how many volumes are searched."""

    latents: Path = ROOT / "runs/demo/latents"
    """Folder of VAE.save_latent."""
    vae: Path = ROOT / "runs/demo/vae/checkpoints/best.pt"
    """The VAE checkpoint that the latents came from."""
    run_dir: Path = ROOT / "runs/demo/canaries"
    """Folder for the repeated latents, the generator, its volumes and canaries.json."""
    preset: str = "demo"
    """Preset of diffusion.train."""
    steps: int | None = None
    """Optimiser steps; by default the preset's."""
    held_out: tuple[str, ...] = ("val",)
    """Subfolders of subjects that are not trained on. A split of its own is better than the one that chooses the
    checkpoint, and the more subjects the better: they decide which p-values there can be."""
    each: int = 4
    """Canaries for every number of occurrences."""
    repeats: tuple[int, ...] = REPEATS
    """Occurrences."""
    count: int = 100
    """Synthetic volumes of each class."""
    encoder: EncoderConfig = EncoderConfig()
    """The learned embedding."""
    seed: int = 0
    """Of the choice of canaries, the training, the embedding and the tests."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


PRESETS = {
    "smoke": CanaryConfig(
        latents=ROOT / "runs/smoke/latents", vae=ROOT / "runs/smoke/vae/checkpoints/best.pt",
        run_dir=ROOT / "runs/smoke/canaries", preset="smoke", each=1, count=8, encoder=EncoderConfig(steps=4),
    ),
    "demo": CanaryConfig(),
}  # fmt: skip


def main(config: CanaryConfig) -> None:
    """Plants, trains, samples, audits, writes."""
    if not distributed.dismiss():
        return
    train = read_split(config.latents, "train")
    held_out = [latent for split in config.held_out for latent in read_split(config.latents, split)]
    require_held_out(len({latent.subject for latent in held_out}))
    plan = plan_canaries(
        [latent.subject for latent in train], [latent.label for latent in train],
        each=config.each, seed=config.seed, repeats=config.repeats,
    )  # fmt: skip
    plant(config, plan)
    checkpoint = generate(config)
    device = pick_device("float32", config.threads)
    codec = Codec(load_vae(config.vae), pick_device(threads=config.threads))
    synthetic = read_synthetic(config)
    sides = {"train": train, "test": held_out}
    reals = {side: decoded(own, codec) for side, own in sides.items()}
    names = {side: np.array([latent.subject for latent in own]) for side, own in sides.items()}
    spacing = codec.vae.grid.spacing_mm
    spaces = spaces_of(reals, names, synthetic, spacing, device, seed=config.seed, config=config.encoder)
    mus = {side: np.stack([latent.mu for latent in own]) for side, own in sides.items()}
    spaces["latents"] = latent_space(mus, names, synthetic, codec)
    audit = audit_spaces(spaces, seed=config.seed)
    once = [latent for latent in train if plan.get(latent.subject, 1) == 1]
    result = {
        "format": FORMAT,
        "commit": git_commit(),
        "n": {"training": len(train), "held_out": len(held_out), "synthetic": len(synthetic)},
        "plan": plan,
        "canaries": {
            name: read_canaries(plan, space["synthetic"]["exposure"]) | {"control_alarms": control_alarms(space)}
            for name, space in audit["spaces"].items()
        },
        "audit": audit,
        "membership": membership.dit_attack(
            load_diffusion(checkpoint), stacked(once), stacked(held_out), codec.device, seed=config.seed
        ),
    }
    write_json(config.run_dir / "canaries.json", result)
    print(report(result))


def plant(config: CanaryConfig, plan: dict[str, int]) -> None:
    """Writes the repeated latents once; InputError where the folder holds those of another plan."""
    folder = config.run_dir / "latents"
    if not folder.exists():
        write_canaries(config.latents, folder, plan)
    elif read_json(folder / PLAN) != plan:
        raise InputError(f"{folder}: other canaries than these settings plan; choose another --run-dir")


def generate(config: CanaryConfig) -> Path:
    """Trains and samples by the scripts themselves; both continue where they were stopped. Returns the checkpoint."""
    run_dir = config.run_dir / "diffusion"
    threads = [] if config.threads is None else ["--threads", config.threads]
    steps = [] if config.steps is None else ["--steps", config.steps]
    run_module(
        "diffusion.train", config.preset, "--latents", config.run_dir / "latents", "--vae", config.vae,
        "--run-dir", run_dir, "--seed", config.seed, *steps, *threads,
    )  # fmt: skip
    checkpoint = run_dir / "checkpoints" / "best.pt"
    for label in CLASS_NAMES:
        run_module(
            "diffusion.save_synth", "--vae", config.vae, "--diffusion", checkpoint, "--label", label,
            "--count", config.count, "--out", config.run_dir / f"synthetic_{label}", *threads,
        )  # fmt: skip
    return checkpoint


def read_synthetic(config: CanaryConfig) -> np.ndarray:
    """The volumes of both classes, normalised like scans, (Q, D, H, W)."""
    folders = [config.run_dir / f"synthetic_{label}" for label in CLASS_NAMES]
    return np.stack([normalise(read_volume(path).image) for folder in folders for path in list_volumes(folder)])


@torch.no_grad()
def decoded(latents: list[Latent], codec: Codec) -> np.ndarray:
    """Real scans as the VAE gives them back, normalised like scans, (N, D, H, W)."""
    return np.stack([normalise(codec.decode(latent.mu)) for latent in latents])


def control_alarms(space: dict) -> dict[str, float] | None:
    """`canary_plan.alarms_of` all training subjects where held-out scans stand for volumes; None of too few scans."""
    exposure = space["controls"].get("held_out", {}).get("exposure", {"held_out": {}})
    return read_canaries({}, exposure)["alarms"] if can_find(len(exposure["held_out"])) else None


def stacked(latents: list[Latent]) -> membership.Known:
    """What the loss attack needs of some subjects."""
    return np.stack([latent.mu for latent in latents]), np.array([latent.label for latent in latents])


def report(result: dict) -> str:
    """A few lines for people."""
    lines = [f"{'space':10}{'occurrences':>12}{'canaries':>10}{'found':>7}{'median rank':>13}"]
    for space, found in result["canaries"].items():
        for count, row in found["by_occurrences"].items():
            lines.append(f"{space:10}{count:>12}{row['n']:10d}{row['found']:7d}{row['median_rank']:13.1f}")
        for who, alarms in (("of subjects not repeated", found["alarms"]), ("by scans", found["control_alarms"])):
            if alarms is not None:
                without = f"{alarms['expected']:.1%} [{alarms['low']:.1%}, {alarms['high']:.1%}] without a leak"
                lines.append(f"{space:10}found {who}: {alarms['share']:.1%} ({without}; p {alarms['p']:.2g})")
    return "\n".join([*lines, *result["audit"]["finding"]["text"]])


if __name__ == "__main__":
    run_script(main, PRESETS, description=describe(__doc__))
