"""What one preset's runs have left: the files that each section of the report shows, and what makes them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Image, Markdown, display

from cohort.grids import Grid, parse_grid
from cohort.splitting.folds import SPLITS
from cohort.tables import read_table
from runtime.errors import InputError
from runtime.files import ROOT, read_json

STAGES = {"vae": "a VAE", "diffusion": "a diffusion model", "classifier": "a classifier"}
"""Run folders of the three stages, and what is trained in them."""
NETWORKS = {
    "classifier": "real",
    "classifier_real_synthetic": "real + synthetic",
    "classifier_synthetic": "synthetic",
}
"""Run folders of single classifiers, by what they were trained on."""


def rule(name: str) -> str:
    """Says that a rule of the workflow makes what a section lacks."""
    return f"`.venv/bin/snakemake {name} --configfile {{configuration}}` makes them"


@dataclass(frozen=True)
class Section:
    """The files of a section of visualize.ipynb; names begin with {runs}, {data}, {tables} or {fid}: `Results.path`."""

    made_by: str
    """Says, in Markdown, what makes the files; {configuration} is the workflow's."""
    needs: tuple[str, ...] = ()
    """Without one of these the section is left out."""
    one_of: tuple[str, ...] = ()
    """And without all of these."""
    shows: tuple[str, ...] = ()
    """What it shows besides, where it is there."""


ASKED = ("TLE-L", "TLE-R", "HC")
"""Labels that counterfactuals were asked for, and their folders."""


def of_runs(runs: dict[str, str], *names: str) -> tuple[str, ...]:
    """These files of each run folder."""
    return tuple(f"{{runs}}/{run}/{name}" for run in runs for name in names)


TABLES = tuple(f"{{tables}}/{split}.csv" for split in SPLITS)
GRID_NAMES = ("{runs}/vae/config.json", "{runs}/classifier/config.json", "{runs}/workflow.json")
"""What names the grid of the scans."""
SECTIONS = {
    "In brief": Section("", shows=("{data}/settings.json", "{data}/truth.json", "{runs}/synthetic_swap/manifest.csv")),
    "Cohort": Section(rule("split"), needs=TABLES, one_of=GRID_NAMES),
    "True hippocampal volumes": Section("only of a simulated cohort are they known", needs=("{data}/truth.csv",)),
    "Training": Section(rule("vae"), one_of=of_runs(STAGES, "log.jsonl")),
    "Reconstructions by the VAE": Section(
        rule("infer"), needs=("{runs}/infer/summary.json", "{runs}/infer/worst_and_best.png")
    ),
    "Real next to synthetic": Section(
        rule("synthetic"),
        needs=(*TABLES, *(f"{{runs}}/synthetic_data_pkls_{label}/manifest.csv" for label in ("HC", "TLE"))),
        one_of=GRID_NAMES,
        shows=("{fid}_nearest.png",),
    ),
    "Distance to real scans": Section(rule("evaluation"), needs=("{fid}.json", "{fid}_fid.png")),
    "How many sampling steps": Section(
        "`python -m benchmarks.sampling_steps` makes it for the demo (half an hour on two cores)",
        needs=("{fid}_steps.json",),
    ),
    "Other eyes, and variety": Section(rule("evaluation"), needs=("{fid}.json",), shows=("{fid}_sharpness.png",)),
    "Anatomy": Section(rule("evaluation"), needs=("{fid}.json", "{fid}_effects.png")),
    "Privacy": Section(rule("evaluation"), needs=("{fid}.json",), shows=("{fid}_closest.png",)),
    "Classifiers": Section(
        rule("classifiers"),
        needs=("{runs}/classifier/results.json", "{runs}/classifier/predictions.csv"),
        shows=of_runs(NETWORKS, "results.json", "predictions.csv"),
    ),
    "Calibration, and one network against another": Section(
        rule("classifiers"),
        needs=("{runs}/comparison/reliability.png", "{runs}/comparison/confusion.png"),
        shows=("{runs}/arms_tests.csv", "{runs}/arms_volumes.csv"),
    ),
    "Arms over training seeds": Section(
        rule("arms"), needs=("{runs}/arms_study.json", "{runs}/arms_study_tests.csv")
    ),
    "Where the classifier looks": Section(
        rule("maps"), needs=("{runs}/saliency/maps.json", "{runs}/saliency/region_ranking.csv")
    ),
    "Are the maps true, and is the whole chain?": Section(
        "`make maps` and `make controls` make them for the demo",
        one_of=(
            "{runs}/validate_saliency/validation.json", "{runs}/validate_saliency_doses/validation.json",
            "{runs}/controls/controls.json",
        ),
    ),
    "What another label changes": Section(
        "`make counterfactuals` makes them for the demo (three quarters of an hour on two cores)",
        one_of=tuple(f"{{runs}}/counterfactuals/{to}/measures.json" for to in ASKED),
        shows=("{fid}_counterfactuals.json",),
    ),
    "Volumes that were asked for": Section(
        "`make wanted-volumes` makes it for the demo (ten minutes on two cores)", needs=("{fid}_wanted_volumes.json",)
    ),
    "Regions labelled by our own network": Section(
        "`make labels` makes it for the demo (three quarters of an hour on two cores)", needs=("{fid}_labels.json",)
    ),
    "A synthetic volume over the template": Section(
        rule("synthetic"), needs=("{runs}/synthetic_data_pkls_TLE/manifest.csv",)
    ),
    "How this was made": Section(
        rule("vae"),
        one_of=of_runs(STAGES, "environment.json"),
        shows=of_runs(STAGES | NETWORKS, "environment.json", "config.json"),
    ),
}  # fmt: skip
"""By title, in the order of visualize.ipynb."""


@dataclass(frozen=True)
class Results:
    """The results of one preset, or of a configuration of the workflow of that name."""

    preset: str
    tables: Path
    """Folder of train.csv, val.csv and test.csv."""
    root: Path = ROOT
    """Holds runs/PRESET, data/PRESET and fid_results/PRESET.json."""

    def path(self, name: str) -> Path:
        """A file of a `Section`, there or not."""
        places = {"runs": f"runs/{self.preset}", "data": f"data/{self.preset}", "fid": f"fid_results/{self.preset}"}
        whole = {place: self.root / folder for place, folder in places.items()}
        return Path(name.format(tables=self.tables, **whole))

    def read(self, name: str) -> Any:
        """A JSON file's content; None where it is not there."""
        path = self.path(name)
        return read_json(path) if path.is_file() else None

    def images(self, *names: str) -> list[Image]:
        """Those pictures that are there."""
        return [Image(path) for path in map(self.path, names) if path.is_file()]

    def files(self) -> list[Path]:
        """All that is there of what the sections show, each file once."""
        names = [name for section in SECTIONS.values() for name in (*section.needs, *section.one_of, *section.shows)]
        return [path for path in map(self.path, dict.fromkeys(names)) if path.is_file()]

    def refuse_nothing(self) -> None:
        """Raises InputError where not one section can be shown, but for the first, which needs nothing."""
        if all(self.left_out(title) for title, section in SECTIONS.items() if section.made_by):
            places = ", ".join(str(self.path(name)) for name in ("{runs}", "{fid}.json", "{tables}/train.csv"))
            made = f"`make demo` makes a demo's, `.venv/bin/snakemake --configfile {self.configuration}` these"
            raise InputError(f"nothing to report of {self.preset!r}: no results in {places}; {made}")

    @property
    def configuration(self) -> str:
        """The workflow's configuration file of this name: one that is shipped, or one's own."""
        shipped = f"workflow/config/{self.preset}.yaml"
        return shipped if (ROOT / shipped).is_file() else f"{self.preset}.yaml"

    def left_out(self, title: str) -> str:
        """Why a section cannot be shown, and what makes its files, as a line of Markdown; empty where it can."""
        section = SECTIONS[title]
        needed, one_of = ([self.path(name) for name in names] for names in (section.needs, section.one_of))
        missing = [path for path in needed if not path.is_file()]
        if one_of and not any(path.is_file() for path in one_of):
            missing += one_of
        if not missing:
            return ""
        first = missing[0].relative_to(self.root) if missing[0].is_relative_to(self.root) else missing[0]
        more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        made_by = section.made_by.format(configuration=self.configuration)
        return f"**{title}**: left out. `{first}`{more} not there; {made_by}."

    def has(self, title: str) -> bool:
        """Whether a section can be shown; shows the line of `left_out` where not."""
        if line := self.left_out(title):
            display(Markdown(line))
        return not line

    @property
    def simulated(self) -> bool:
        """Whether the cohort is."""
        return bool((self.read("{data}/settings.json") or {}).get("simulation"))

    def trained(self) -> list[str]:
        """Run folders of `STAGES` that hold a training."""
        return [stage for stage in STAGES if self.path(f"{{runs}}/{stage}/log.jsonl").is_file()]

    def networks(self) -> dict[str, dict]:
        """results.json of each finished classifier, by what it was trained on."""
        found = {name: self.read(f"{{runs}}/{run}/results.json") for run, name in NETWORKS.items()}
        return {name: results for name, results in found.items() if results}

    def baselines(self) -> dict[str, dict]:
        """Measures of the regressions beside the classifier of real scans, by name."""
        found = (self.read("{runs}/classifier/results.json") or {"baselines": {}})["baselines"]
        return {name.replace("_", " "): row["test"] for name, row in found.items() if "test" in row}

    def grid(self) -> Grid | None:
        """Of the scans; None where no run names it."""
        found = next(filter(None, map(self.read, GRID_NAMES)), None)
        return found and parse_grid(found["grid"])

    def splits(self) -> dict[str, pd.DataFrame]:
        """The tables of training, validation and test that are there."""
        paths = {name: self.tables / f"{name}.csv" for name in SPLITS}
        return {name: read_table(path) for name, path in paths.items() if path.is_file()}
