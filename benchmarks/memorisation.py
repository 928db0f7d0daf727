"""What each switch against memorisation costs in realism and brings in privacy, alone and together, in one table.

    python -m benchmarks.memorisation --recipes plain unmirrored mixed early refused

Each recipe trains a generator on the demo's latents by diffusion.train (refusal alone has the plain one's), samples by
diffusion.save_synth and is measured by evaluation.evaluate_synth, all as commands that continue where they were
stopped. Plain is the demo's own, of people and their mirror images; unmirrored has people alone. Writes
fid_results/demo_memorisation.json and prints it: the Frechet distance beside the full-rank Gaussian's and the
ceiling's, coverage, the attack on the DiT's loss, and how often a volume is nearer to training than to held-out people.
Ten minutes a recipe on two cores.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from benchmarks.timing import print_table
from cohort.tables import CLASS_NAMES
from runtime.cli import describe, run_module, run_script
from runtime.config import ScriptConfig
from runtime.device import pick_device
from runtime.errors import InputError
from runtime.files import ROOT, read_json, write_json
from runtime.runs import environment


class Recipe(NamedTuple):
    """Flags of training, and of sampling."""

    train: tuple[str, ...] = ()
    refuse: float = 0.0
    """`--refuse-level`; 0 refuses nothing."""
    mirrored: bool = True
    """Train on mirror images too, as the demo does."""


MIXED = ("--mix-mm", "64")
EARLY = ("--steps", "200", "--model.linear-rank", "64")
"""Capacity and length by held-out loss and membership: fewer axes and steps, until the attack's area falls."""
RECIPES = {
    "plain": Recipe(),
    "unmirrored": Recipe(("--model.linear-rank", "256"), mirrored=False),
    "mixed": Recipe(MIXED),
    "early": Recipe(EARLY),
    "refused": Recipe(refuse=0.2),
    "mixed+early": Recipe((*MIXED, *EARLY)),
    "mixed+refused": Recipe(MIXED, 0.2),
    "all": Recipe((*MIXED, *EARLY), 0.2),
}


@dataclass(frozen=True)
class MemorisationConfig(ScriptConfig):
    recipes: tuple[str, ...] = tuple(RECIPES)
    """Which; of `plain`, `unmirrored`, `mixed`, `early`, `refused` and combinations of the last three."""
    demo: Path = ROOT / "runs/demo"
    """Folder of the demo's runs; generators and volumes go to memorisation in it."""
    tables: Path = ROOT / "data/demo"
    """Folder of train.csv and test.csv."""
    preset: str = "demo"
    """Of diffusion.train, and the grid's name."""
    count: int = 108
    """Volumes of each class."""
    steps: int = 15
    """Sampling steps."""
    out: Path = ROOT / "fid_results/demo_memorisation.json"
    """The result."""


def main(config: MemorisationConfig) -> None:
    rows, device = [], pick_device("float32", None)
    if unknown := sorted(set(config.recipes) - set(RECIPES)):
        raise InputError(f"--recipes {', '.join(unknown)}: expected some of {', '.join(RECIPES)}")
    for name in config.recipes:
        rows.append({"recipe": name, **measure(config, name)})
        write_json(config.out, {"environment": environment(device), "count": config.count, "rows": rows})
    print_table([{key: cell(value) for key, value in row.items()} for row in rows])


def cell(value: object) -> object:
    """An estimate with its interval, in a table."""
    if not isinstance(value, dict):
        return value
    name = next(key for key in ("mean", "auc", "share") if key in value)
    figures = [value[name], value["low"], value["high"]]
    return "{:.3g} [{:.3g}, {:.3g}]".format(*figures)


def measure(config: MemorisationConfig, name: str) -> dict:
    """Trains, samples and evaluates one recipe; the figures of its row."""
    recipe, vae = RECIPES[name], config.demo / "vae/checkpoints/best.pt"
    # Recipes that differ in sampling alone share a generator.
    trained = next(
        known for known, other in RECIPES.items() if other._replace(refuse=0.0) == recipe._replace(refuse=0.0)
    )
    folder, run_dir = config.demo / "memorisation" / name, config.demo / "memorisation" / trained / "diffusion"
    if not recipe.train:
        run_dir = config.demo / "diffusion"  # the demo's own
    latents = config.demo / "latents"
    if not recipe.mirrored:
        latents = folder / "latents"
        tables = (config.tables / f"{name}.csv" for name in ("train", "val"))
        run_module(
            "VAE.save_latent", "--checkpoint", vae, "--csv", *tables, "--out", latents,
            "--cache-dir", config.tables / "cache",
        )  # fmt: skip
    run_module(
        "diffusion.train", config.preset, "--vae", vae, "--latents", latents, "--run-dir", run_dir, *recipe.train
    )
    checkpoint = run_dir / "checkpoints/best.pt"
    refuse = ("--refuse-near", latents, "--refuse-level", recipe.refuse) if recipe.refuse else ()
    for label in CLASS_NAMES:
        run_module(
            "diffusion.save_synth", "--vae", vae, "--diffusion", checkpoint, "--label", label, "--count", config.count,
            "--steps", config.steps, "--out", folder / label, *refuse,
        )  # fmt: skip
    result = folder / "evaluation.json"
    run_module(
        "evaluation.evaluate_synth", "--real-train", config.tables / "train.csv",
        "--real-test", config.tables / "test.csv", "--synth-hc", folder / "HC", "--synth-tle", folder / "TLE",
        "--grid", config.preset, "--parts", "diversity", "privacy", "--out", result, "--vae", vae,
        "--diffusion", checkpoint, "--cache-dir", config.demo / "evaluation",
    )  # fmt: skip
    return figures_of(read_json(result), run_dir, [folder / label for label in CLASS_NAMES])


def figures_of(result: dict, run_dir: Path, folders: list[Path]) -> dict:
    """The row's figures, each with the interval that its source gives."""
    held_out = result["results"]["overall"]["held_out"]
    spaces = {name: space["synthetic"] for name, space in result["privacy"]["audit"]["spaces"].items()}
    manifest = pd.concat(pd.read_csv(folder / "manifest.csv") for folder in folders)
    log = pd.read_json(run_dir / "log.jsonl", lines=True)
    refused = manifest["refused"].fillna(0).sum()
    return {
        "val_loss": float(log["loss/val"].dropna().iloc[-1]),
        "fid": held_out["synthetic"]["fid"],
        "gaussian": held_out["gaussian"]["fid"],
        "ceiling": held_out["reconstructed"]["fid"],
        "coverage": result["diversity"]["support"]["support"]["overall"]["held_out"]["synthetic"]["coverage"],
        "dit_auc": result["privacy"]["attacks"]["DiT: loss"],
        **{f"near_{name}": space["closer_to_training"] for name, space in spaces.items()},
        **{f"copies_{name}": space["copies"]["copies"] for name, space in spaces.items()},
        "refused": float(refused / (len(manifest) + refused)),
    }


if __name__ == "__main__":
    run_script(main, MemorisationConfig, description=describe(__doc__))
