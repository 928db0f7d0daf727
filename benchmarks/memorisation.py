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

from benchmarks.generators import (
    Generator,
    Recipe,
    StudyConfig,
    held_out_loss,
    manifest,
    membership,
    realism,
    run_study,
)
from runtime.cli import describe, run_script
from runtime.files import ROOT

MIXED = ("--mix-mm", "64")
EARLY = ("--steps", "200", "--model.linear-rank", "64")
"""Capacity and length by held-out loss and membership: fewer axes and steps, until the attack's area falls."""
REFUSED = ("--refuse-near", "{latents}", "--refuse-level", "0.2")
RECIPES = {
    "plain": Recipe(),
    "unmirrored": Recipe(("--model.linear-rank", "256"), mirrored=False),
    "mixed": Recipe(MIXED),
    "early": Recipe(EARLY),
    "refused": Recipe(sample=REFUSED),
    "mixed+early": Recipe((*MIXED, *EARLY)),
    "mixed+refused": Recipe(MIXED, REFUSED),
    "all": Recipe((*MIXED, *EARLY), REFUSED),
}


@dataclass(frozen=True)
class MemorisationConfig(StudyConfig):
    recipes: tuple[str, ...] = tuple(RECIPES)
    """Which; of `plain`, `unmirrored`, `mixed`, `early`, `refused` and combinations of the last three."""
    count: int = 108
    """Volumes of each class."""
    out: Path = ROOT / "fid_results/demo_memorisation.json"
    """The result."""


def main(config: MemorisationConfig) -> None:
    run_study(config, "memorisation", RECIPES, lambda _: ("diversity", "privacy"), figures_of)


def figures_of(generator: Generator, result: dict, folders: list[Path]) -> dict:
    """The figures of a row."""
    held_out = result["results"]["overall"]["held_out"]
    spaces = {name: space["synthetic"] for name, space in result["privacy"]["audit"]["spaces"].items()}
    volumes = manifest(folders)
    refused = volumes["refused"].fillna(0).sum()
    own = realism(result)
    return {
        "val_loss": held_out_loss(generator.run_dir),
        "fid": own["fid"],
        "gaussian": held_out["gaussian"]["fid"],
        "ceiling": held_out["reconstructed"]["fid"],
        "coverage": own["coverage"],
        "dit_auc": membership(result),
        **{f"near_{name}": space["closer_to_training"] for name, space in spaces.items()},
        **{f"copies_{name}": space["copies"]["copies"] for name, space in spaces.items()},
        "refused": float(refused / (len(volumes) + refused)),
    }


if __name__ == "__main__":
    run_script(main, MemorisationConfig, description=describe(__doc__))
