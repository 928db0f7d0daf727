"""Recipes of training and sampling on the demo's ladder, in one table: each is kept only where it wins.

    python -m benchmarks.recipes --recipes plain guidance interval autoguidance

A recipe trains a generator on the demo's latents (one of sampling has the demo's own), makes volumes of both classes
and is measured against held-out scans, by commands that continue where they were stopped. Writes
fid_results/demo_recipes.json and prints it: held-out loss of the generator, Frechet and kernel distance, coverage, the
attack on the DiT's loss (one of sampling has its generator's), the size of the disease's effects in the volumes over
that in training scans, and seconds. Five to ten minutes a recipe of sampling on two cores, ten more one of training.
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
from runtime.runs import read_log

GUIDANCE = ("--guidance", "2")
RECIPES = {
    "plain": Recipe(),
    "guidance": Recipe(sample=GUIDANCE),
    "interval": Recipe(sample=(*GUIDANCE, "--guidance-interval", "0.2", "0.8")),
    "early": Recipe(("--steps", "150")),
    "autoguidance": Recipe(sample=(*GUIDANCE, "--guide-by", "{early}")),
    "autoguidance_interval": Recipe(sample=(*GUIDANCE, "--guide-by", "{early}", "--guidance-interval", "0.2", "0.8")),
    "raw_weights": Recipe(sample=("--weights", "raw")),
    "rotary": Recipe(("--model.positions", "rotary")),
    "min_snr": Recipe(("--process.min-snr", "5")),
    "long_average": Recipe(("--ema-shares", "0.3")),
    "narrow": Recipe(("--model.dim", "128")),
    "wide_patches": Recipe(("--model.patch", "5", "6", "5")),
    "large_batches": Recipe(("--batch-size", "16", "--steps", "300")),
}


@dataclass(frozen=True)
class RecipesConfig(StudyConfig):
    recipes: tuple[str, ...] = tuple(RECIPES)
    """Which."""
    privacy: bool = True
    """Attack generators, too; most of an evaluation's time."""
    out: Path = ROOT / "fid_results/demo_recipes.json"
    """The result."""


def main(config: RecipesConfig) -> None:
    def parts(recipe: Recipe) -> tuple[str, ...]:
        return ("diversity", "anatomy", *(("privacy",) if config.privacy and not recipe.sample else ()))

    run_study(config, "recipes", RECIPES, parts, figures_of)


def figures_of(generator: Generator, result: dict, folders: list[Path]) -> dict:
    """The figures of a row."""
    return {
        "held-out loss": held_out_loss(generator.run_dir),
        **realism(result),
        "membership": membership(result),
        "effect slope": result["anatomy"]["agreement"]["synthetic with train"].get("slope", "-"),
        "training, s": read_log(generator.run_dir)[-1]["time/run_s"],
        "a volume, s": float(manifest(folders)["seconds"].mean()),
    }


if __name__ == "__main__":
    run_script(main, RecipesConfig, description=describe(__doc__))
