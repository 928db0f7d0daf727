"""How few scans are enough: generators of the demo trained from nothing, and from earlier weights, on N subjects.

    python -m benchmarks.small_cohorts demo --counts 25 100

Earlier weights are what a user is most likely to have: a VAE and a DiT of the same presets, trained on another, larger
cohort. Here that is another simulation, of other people, a third of whose patients have no visible lesion
(cohort.make_demo --seed 1 --effect mixed). At each N the first subjects of the demo's training table, those of a
smaller N among those of a larger one and the classes in proportion, train a generator from nothing (the preset) and one
that goes on from the earlier weights (VAE and DiT by --init, fewer steps at a lower rate); a fifth of the N chooses the
checkpoints. The row of 0 subjects is the earlier generator as it is. All are measured against the demo's held-out
scans: Frechet and kernel distance and coverage, the attack on the DiT's loss, and a classifier trained on the synthetic
volumes alone. Every step is a command that continues where it was stopped. Writes small_cohorts.json in --out and
prints it. On two cores with nothing else running: 15 minutes for the earlier generator, then 10 to 15 for each
generator.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.generators import (
    Generator,
    Words,
    encode,
    evaluate,
    membership,
    print_rows,
    realism,
    sample,
    train_dit,
    write_rows,
)
from benchmarks.timing import expect
from classifier.selection import choose_real
from cohort.tables import read_table, write_table
from runtime.cli import describe, run_module, run_script
from runtime.config import ScriptConfig
from runtime.errors import InputError
from runtime.files import ROOT, read_json

Start = Literal["nothing", "earlier"]
VALIDATED = 0.2
"""Share of N subjects that chooses checkpoints."""
LEAST = 12
"""Subjects with which every step still runs."""


@dataclass(frozen=True)
class SmallCohortsConfig(ScriptConfig):
    """What is trained on how many, and for how long."""

    counts: tuple[int, ...] = (25, 50, 100, 200, 400)
    """N: subjects that a user has, the validated ones among them."""
    starts: tuple[Start, ...] = ("nothing", "earlier")
    """Where trainings start."""
    preset: str = "demo"
    """Of the trainings; also the grid's name."""
    tables: Path = ROOT / "data/demo"
    """Folder of train.csv and test.csv."""
    out: Path = ROOT / "runs/demo/small_cohorts"
    """Folder of everything that is made, and of small_cohorts.json."""
    earlier_subjects: int = 600
    """Of the earlier cohort; a tenth of them is held out."""
    rank: int = 256
    """Most axes of the DiT's linear start; of few latents it takes a quarter as many. From earlier weights they are
    those of the earlier cohort."""
    vae_steps: int = 500
    """Of VAEs from nothing."""
    diffusion_steps: int = 600
    """Of DiTs from nothing."""
    on_steps: int = 200
    """Of either that goes on."""
    vae_lr: float = 5e-4
    """Rate at which VAEs go on."""
    diffusion_lr: float = 3e-4
    """Rate at which DiTs go on."""
    classifier_steps: int = 200
    """Of classifiers."""
    each: int = 54
    """Synthetic volumes of each class."""
    steps: int = 15
    """Sampling steps."""
    guidance: float = 2.0
    """As the demo samples: without, a start whose means have a window shows half of the disease."""


PRESETS = {
    # A minute or two; nothing is learned in so few steps.
    "smoke": SmallCohortsConfig(
        counts=(15,), preset="smoke", tables=ROOT / "data/smoke", out=ROOT / "runs/smoke/small_cohorts",
        earlier_subjects=24, rank=4, vae_steps=10, diffusion_steps=10, on_steps=5, classifier_steps=10, each=8, steps=3,
    ),
    "demo": SmallCohortsConfig(),
}  # fmt: skip


def main(config: SmallCohortsConfig) -> None:
    """Makes what is missing, generator by generator; the table is written after each."""
    known = read_table(config.tables / "train.csv")
    if many := [count for count in config.counts if not LEAST <= count <= len(known)]:
        raise InputError(f"--counts {', '.join(map(str, many))}: expected {LEAST} to {len(known)} training subjects")
    generators = ("earlier" in config.starts) + len(config.counts) * len(config.starts)
    expect(minutes=13 * generators * config.diffusion_steps / 600)
    rows, before = [], earlier(config) if "earlier" in config.starts else None
    if before is not None:
        rows.append({"subjects": 0, "from": "earlier", **as_it_is(config, before)})
    for count in sorted(config.counts):
        tables = write_tables(config, count)
        for start in config.starts:
            origin = before if start == "earlier" else None
            rows.append({"subjects": count, "from": start, **measure(config, tables, tables / start, origin)})
            write_rows(config.out / "small_cohorts.json", rows, each=config.each)
    print_rows(rows)


def write_tables(config: SmallCohortsConfig, count: int) -> Path:
    """The folder of train.csv and val.csv of the first `count` subjects."""
    folder = config.out / f"n{count}"
    chosen = choose_real(read_table(config.tables / "train.csv"), count, seed=0)
    val = choose_real(chosen, round(VALIDATED * count), seed=1)
    for name, rows in (("val", val), ("train", chosen[~chosen["subject"].isin(val["subject"])])):
        write_table(folder / f"{name}.csv", rows)
    return folder


def earlier(config: SmallCohortsConfig) -> Generator:
    """The generator of the earlier cohort."""
    folder = config.out / "earlier"
    index = folder / "index.csv"
    run_module(
        "cohort.make_demo", "--out", folder / "cohort", "--index", index, "--seed", 1, "--effect", "mixed",
        "--subjects", config.earlier_subjects, "--grid", config.preset,
    )  # fmt: skip
    run_module(
        "cohort.split", "--index", index, "--out", folder, "--val-percent", 10, "--test-percent", 10, "--no-check",
        "--no-figure",
    )  # fmt: skip
    return trained(config, folder, folder, ("--steps", config.vae_steps), ("--steps", config.diffusion_steps))


def measure(config: SmallCohortsConfig, tables: Path, folder: Path, before: Generator | None) -> dict:
    """The figures of a row, whose generator goes on from an earlier one where there is one."""
    vae, diffusion = ("--steps", config.vae_steps), ("--steps", config.diffusion_steps)
    if before is not None:
        vae = ("--steps", config.on_steps, "--lr", config.vae_lr, "--init", before.vae)
        diffusion = ("--steps", config.on_steps, "--lr", config.diffusion_lr, "--init", before.diffusion)
    generator = trained(config, folder, tables, vae, diffusion)
    folders = sample(generator, folder, config.each, "--steps", config.steps, "--guidance", config.guidance)
    attacked = evaluate(
        generator, folders, folder / "privacy.json", tables / "train.csv", config.tables / "test.csv", "--grid",
        config.preset, "--parts", "privacy", "--repeats", 4, "--cache-dir", config.out / "features",
    )  # fmt: skip
    row = {**judged(config, generator, folders, folder), "membership": membership(attacked)}
    return {**row, "AUC, synthetic only": classified(config, tables, folders, folder)}


def as_it_is(config: SmallCohortsConfig, generator: Generator) -> dict:
    """The figures of the earlier generator, which has seen none of the demo's subjects."""
    folder = config.out / "earlier"
    folders = sample(generator, folder, config.each, "--steps", config.steps, "--guidance", config.guidance)
    return judged(config, generator, folders, folder)


def trained(config: SmallCohortsConfig, folder: Path, tables: Path, vae: Words, diffusion: Words) -> Generator:
    """VAE, latents with mirror images, and DiT of the tables in a folder."""
    cache = config.out / "cache"
    made = Generator(folder / "vae/checkpoints/best.pt", folder / "diffusion", folder / "latents")
    run_module(
        "VAE.train", config.preset, "--train-csv", tables / "train.csv", "--val-csv", tables / "val.csv",
        "--run-dir", folder / "vae", "--cache-dir", cache, *vae,
    )  # fmt: skip
    encode(made.vae, made.latents, tables, cache, "--mirrored")
    train_dit(config.preset, made, ("--model.linear-rank", config.rank, *diffusion))
    return made


def judged(config: SmallCohortsConfig, generator: Generator, folders: list[Path], folder: Path) -> dict:
    """Distances and coverage; axes and references are those of all the demo's scans, alike for every row."""
    return realism(
        evaluate(
            generator, folders, folder / "evaluation.json", config.tables / "train.csv", config.tables / "test.csv",
            "--grid", config.preset, "--parts", "diversity", "--cache-dir", config.out / "features",
        )
    )  # fmt: skip


def classified(config: SmallCohortsConfig, tables: Path, folders: list[Path], folder: Path) -> dict:
    """AUC on the demo's test subjects of a classifier that was trained on the synthetic volumes alone."""
    hc, tle = folders
    run_dir = folder / "classifier"
    run_module(
        "classifier.train", config.preset, "--run-dir", run_dir, "--train-csv", tables / "train.csv",
        "--val-csv", tables / "val.csv", "--test-csv", config.tables / "test.csv", "--synth-hc", hc, "--synth-tle", tle,
        "--real", 0, "--synth-count", 2 * config.each, "--cache-dir", config.out / "cache",
        "--steps", config.classifier_steps, "--volumes", "None", "--volumes-weight", 0,
    )  # fmt: skip
    return read_json(run_dir / "results.json")["metrics"]["test"]["auc"]


if __name__ == "__main__":
    run_script(main, PRESETS, description=describe(__doc__))
