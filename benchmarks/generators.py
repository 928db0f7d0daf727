"""What studies of generators share: a recipe is trained, makes volumes of both classes, and is measured; one row each.

Every step is a command of the project that continues where it was stopped, so that a study does, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from benchmarks.timing import expect, print_table
from cohort.tables import CLASS_NAMES
from runtime.cli import run_module
from runtime.config import ScriptConfig
from runtime.device import pick_device
from runtime.errors import InputError
from runtime.files import ROOT, read_json, write_json
from runtime.runs import environment

Words = tuple[object, ...]


class Recipe(NamedTuple):
    """How a generator differs from the demo's own."""

    train: Words = ()
    """More words for diffusion.train; without any it is the demo's generator."""
    sample: Words = ()
    """More words for diffusion.save_synth; ``{latents}`` stands for the folder of the training latents, ``{NAME}`` for
    the checkpoint of the recipe NAME."""
    mirrored: bool = True
    """Train on mirror images too, as the demo does."""


@dataclass(frozen=True)
class StudyConfig(ScriptConfig):
    """What studies of recipes are told."""

    recipes: tuple[str, ...] = ()
    """Which."""
    demo: Path = ROOT / "runs/demo"
    """Folder of the demo's runs; generators and volumes go to a folder of the study in it."""
    tables: Path = ROOT / "data/demo"
    """Folder of train.csv, val.csv and test.csv."""
    preset: str = "demo"
    """Of diffusion.train, and the grid's name."""
    count: int = 54
    """Volumes of each class."""
    steps: int = 15
    """Sampling steps."""
    out: Path = ROOT / "fid_results/demo_generators.json"
    """The result."""


@dataclass(frozen=True)
class Generator:
    """Checkpoints, and what they were trained on."""

    vae: Path
    run_dir: Path
    """Of diffusion.train."""
    latents: Path

    @property
    def diffusion(self) -> Path:
        return self.run_dir / "checkpoints/best.pt"


@dataclass(frozen=True)
class Study:
    """What the recipes of a study have in common."""

    demo: Path
    """Folder of the demo's runs."""
    folder: Path
    """Of what the recipes make, a folder each."""
    tables: Path
    """Folder of train.csv, val.csv and test.csv."""
    preset: str
    """Of trainings, and the grid's name."""
    count: int
    """Volumes of each class."""
    steps: int
    """Sampling steps."""
    recipes: dict[str, Recipe]

    def train(self, name: str) -> Generator:
        """The generator of a recipe; recipes that differ in sampling alone share it."""
        recipe = self.recipes[name]._replace(sample=())
        vae, latents = self.demo / "vae/checkpoints/best.pt", self.demo / "latents"
        if recipe == Recipe():
            own = Generator(vae, self.demo / "diffusion", latents)
            if not own.diffusion.is_file():
                raise InputError(f"{own.diffusion}: no such file; make demo trains it")
            return own
        folder = self.folder / next(
            known for known, other in self.recipes.items() if other._replace(sample=()) == recipe
        )
        if not recipe.mirrored:
            latents = folder / "latents"
            encode(vae, latents, self.tables, self.tables / "cache")
        made = Generator(vae, folder / "diffusion", latents)
        train_dit(self.preset, made, recipe.train)
        return made

    def measure(self, name: str, parts: Words, *words: object) -> tuple[Generator, dict, list[Path]]:
        """A recipe's generator, its evaluation with some parts and further words, and its folders of volumes."""
        generator, folder = self.train(name), self.folder / name
        more = self.recipes[name].sample
        others = {other: self.train(other).diffusion for other in self.recipes if f"{{{other}}}" in more}
        said = [str(word).format(latents=generator.latents, **others) for word in more]
        folders = sample(generator, folder, self.count, "--steps", self.steps, *said)
        result = evaluate(
            generator, folders, folder / "evaluation.json", self.tables / "train.csv", self.tables / "test.csv",
            "--grid", self.preset, "--parts", *parts, "--cache-dir", self.demo / "evaluation", *words,
        )  # fmt: skip
        return generator, result, folders


def run_study(
    config: StudyConfig,
    name: str,
    recipes: dict[str, Recipe],
    parts: Callable[[Recipe], Words],
    figures_of: Callable[[Generator, dict, list[Path]], dict],
) -> None:
    """A row of figures for each recipe that is asked for: written as soon as it is there, printed at the end.

    Args:
        name: of the study's folder in --demo.
        parts: of a recipe's evaluation.
        figures_of: a row, from what `Study.measure` gives.
    """
    refuse_unknown("--recipes", config.recipes, tuple(recipes))
    study = Study(config.demo, config.demo / name, config.tables, config.preset, config.count, config.steps, recipes)
    expect(minutes=10 * len(config.recipes))
    rows = []
    for recipe in config.recipes:
        rows.append({"recipe": recipe, **figures_of(*study.measure(recipe, parts(recipes[recipe])))})
        write_rows(config.out, rows, count=config.count)
    print_rows(rows)


def encode(vae: Path, latents: Path, tables: Path, cache: Path, *words: object) -> None:
    """Latents of train.csv and val.csv."""
    csv = (tables / f"{name}.csv" for name in ("train", "val"))
    run_module("VAE.save_latent", "--checkpoint", vae, "--csv", *csv, "--out", latents, "--cache-dir", cache, *words)


def train_dit(preset: str, generator: Generator, words: Words) -> None:
    places = ("--vae", generator.vae, "--latents", generator.latents, "--run-dir", generator.run_dir)
    run_module("diffusion.train", preset, *places, *words)


def sample(generator: Generator, folder: Path, count: int, *words: object) -> list[Path]:
    """Folders of so many volumes of each class."""
    folders = [folder / label for label in CLASS_NAMES]
    for label, out in zip(CLASS_NAMES, folders, strict=True):
        run_module(
            "diffusion.save_synth", "--vae", generator.vae, "--diffusion", generator.diffusion, "--label", label,
            "--count", count, "--out", out, *words,
        )  # fmt: skip
    return folders


def evaluate(generator: Generator, folders: list[Path], out: Path, train: Path, test: Path, *words: object) -> dict:
    """The result of evaluate_synth."""
    hc, tle = folders
    run_module(
        "evaluation.evaluate_synth", "--real-train", train, "--real-test", test, "--synth-hc", hc, "--synth-tle", tle,
        "--out", out, "--vae", generator.vae, "--diffusion", generator.diffusion, *words,
    )  # fmt: skip
    return read_json(out)


# Figures, each with the interval that its source gives.


def realism(result: dict) -> dict:
    """Frechet and kernel distance to held-out scans, and coverage of these, or why there is none."""
    held_out = result["results"]["overall"]["held_out"]["synthetic"]
    support = result["diversity"]["support"]["support"]["overall"]
    coverage = support["skipped"] if "skipped" in support else support["held_out"]["synthetic"]["coverage"]
    return {"fid": held_out["fid"], "kid": held_out["kid"], "coverage": coverage}


def membership(result: dict) -> dict | str:
    """The attack on the DiT's loss, or why there is none."""
    privacy = result.get("privacy", {"skipped": "not asked for"})
    return privacy["skipped"] if "skipped" in privacy else privacy["attacks"]["DiT: loss"]


def held_out_loss(run_dir: Path) -> float:
    """Of the last validation."""
    return float(pd.read_json(run_dir / "log.jsonl", lines=True)["loss/val"].dropna().iloc[-1])


def manifest(folders: list[Path]) -> pd.DataFrame:
    """The rows of all volumes."""
    return pd.concat(pd.read_csv(folder / "manifest.csv") for folder in folders)


# Tables.


def refuse_unknown(flag: str, asked: Words, known: Words) -> None:
    """InputError that names what is asked for and not known."""
    if unknown := sorted(map(str, set(asked) - set(known))):
        raise InputError(f"{flag} {', '.join(unknown)}: expected some of {', '.join(map(str, known))}")


def write_rows(out: Path, rows: list[dict], **facts: object) -> None:
    """The rows so far, with where they were measured."""
    write_json(out, {"environment": environment(pick_device("float32")), **facts, "rows": rows})


def print_rows(rows: list[dict]) -> None:
    """All rows, estimates with their intervals; of a row that lacks a column, -."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    print_table([{name: cell(row.get(name, "-")) for name in names} for row in rows])


def cell(value: object) -> object:
    """An estimate with its interval, in a table."""
    if not isinstance(value, dict):
        return value
    name = next(key for key in ("mean", "auc", "share", "value") if key in value)
    return "{:.3g} [{:.3g}, {:.3g}]".format(*(value[key] for key in (name, "low", "high")))
