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
    Study,
    held_out_loss,
    manifest,
    membership,
    print_rows,
    realism,
    refuse_unknown,
    write_rows,
)
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
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
}


@dataclass(frozen=True)
class RecipesConfig(ScriptConfig):
    recipes: tuple[str, ...] = tuple(RECIPES)
    """Which."""
    demo: Path = ROOT / "runs/demo"
    """Folder of the demo's runs; generators and volumes go to recipes in it."""
    tables: Path = ROOT / "data/demo"
    """Folder of train.csv, val.csv and test.csv."""
    preset: str = "demo"
    """Of diffusion.train, and the grid's name."""
    count: int = 54
    """Volumes of each class."""
    steps: int = 15
    """Sampling steps."""
    privacy: bool = True
    """Attack generators, too; most of an evaluation's time."""
    out: Path = ROOT / "fid_results/demo_recipes.json"
    """The result."""


def main(config: RecipesConfig) -> None:
    refuse_unknown("--recipes", config.recipes, tuple(RECIPES))
    folder = config.demo / "recipes"
    study = Study(config.demo, folder, config.tables, config.preset, config.count, config.steps, RECIPES)
    rows = []
    for name in config.recipes:
        attacked = ("privacy",) if config.privacy and not RECIPES[name].sample else ()
        rows.append({"recipe": name, **figures_of(*study.measure(name, ("diversity", "anatomy", *attacked)))})
        write_rows(config.out, rows, count=config.count)
    print_rows(rows)


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
