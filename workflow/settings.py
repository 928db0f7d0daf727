"""What a configuration of the workflow says, checked before anything runs."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from classifier.arms import read_arms
from cohort.grids import kept_name, parse_grid, preset_of
from cohort.tables import read_table, sides_of
from runtime.errors import InputError, differences
from runtime.files import ROOT, absence, read_json, write_json

SCHEMA = Path(__file__).parent / "config" / "schema.yaml"
EVALUATED = 4
"""`evaluation.fid.MINIMUM_PER_CLASS`, without the seconds that its import takes."""
SOURCES = ("simulate", "participants", "tables")
"""Where scans come from; a configuration has one of these."""
OF_ONE_CLASS = ("cohort", "check", "split", "vae", "infer", "latents", "report")
"""What can be made of healthy people alone; a report, beside others."""
TRAININGS = ("VAE.train", "diffusion.train", "classifier.train")
"""Scripts that begin with a preset."""
IDENTITY = (*SOURCES, "grid", "presets")
"""What may not change under one name: data/NAME and runs/NAME hold the scans and models of it."""


def checked(check: Callable[..., Any], *arguments: Any) -> Any:
    """What `check` returns; an InputError of its ends the program with its message and no traceback."""
    try:
        return check(*arguments)
    except InputError as error:
        sys.exit(f"error: {error}")


def read_settings(config: dict[str, Any], files: list[str]) -> dict[str, Any]:
    """A configuration with its defaults.

    Args:
        config: What Snakemake has read from the `files`, and from its --config.
        files: Its configuration files, for messages.

    Raises:
        InputError: a key, a value, a path or a table of arms is wrong; all of them at once.
    """
    name = " ".join(map(str, files)) or "--config"
    if not config:
        advice = (
            "workflow/config/demo.yaml, or your own file, which begins as a copy of workflow/config/mine.example.yaml"
        )
        raise InputError(f"no configuration: give --configfile {advice}")
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    problems = [explained(error) for error in Draft202012Validator(schema).iter_errors(config)]
    grid, refused = _grid(config.get("grid", "paper"))
    problems += refused
    given = [source for source in SOURCES if source in config]
    if len(given) != 1:
        problems.append(f"give one of {', '.join(SOURCES)}; found {' and '.join(given) or 'none'}")
    if problems:
        raise InputError.of(f"{name}: the configuration was refused", problems)
    settings = with_defaults(config | {"grid": grid}, schema)
    if problems := path_problems(settings):
        raise InputError.of(f"{name}: what it names is not there", problems)
    return settings


def _grid(text: Any) -> tuple[str, list[str]]:
    """The name of the grid that a configuration says, as a command line keeps it; and why it is none."""
    try:
        return kept_name(str(text)), []
    except InputError as error:
        return "", [" ".join(str(error).split())]


def explained(error: ValidationError) -> str:
    """One line for what the schema refuses."""
    where = ".".join(map(str, error.path))
    place = f"{where}: " if where else ""
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        unknown = ", ".join(repr(key) for key in error.instance if key not in known)
        return f"{place}unknown key {unknown}; known: {', '.join(known)}"
    if error.validator == "enum":
        return f"{place}{error.instance!r}: expected one of {', '.join(map(str, error.validator_value))}"
    return f"{place}{error.message}"


def with_defaults(values: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The values, and the schema's defaults for what they do not say, nested ones too."""
    filled = dict(values)
    for name, part in schema["properties"].items():
        if name not in filled and "default" in part:
            filled[name] = part["default"]
        if "properties" in part and name in filled:
            filled[name] = with_defaults(filled[name], part)
    return filled


def preset(settings: dict[str, Any], script: str) -> str:
    """The preset that a training script begins with."""
    return settings["presets"].get(script) or preset_of(parse_grid(settings["grid"]))


def path_problems(settings: dict[str, Any]) -> list[str]:
    """Files and folders that are not there; a table of arms that is none, or asks for what there will not be."""
    problems = []
    source = settings.get("participants")
    if source is not None and not Path(source).exists():
        problems.append(f"participants: {source}: no such folder or table")
    known = settings.get("known_volumes")
    if known is not None and not Path(known).exists():
        problems.append(f"known_volumes: {known}: no such folder or table")
    if "tables" in settings:
        paths = [Path(settings["tables"]) / f"{split}.csv" for split in ("train", "val", "test")]
        absent = [f"tables: {path}: {why}" for path in paths if (why := absence(path, "table"))]
        problems += absent or side_problems(settings, paths[0])
    problems += class_problems(settings)
    return problems + study_problems(settings["arms"], 2 * settings["volumes"]["each"], "arms" in settings["run"])


def class_problems(settings: dict[str, Any]) -> list[str]:
    """What is wanted of both classes where all people are said to be healthy."""
    if not one_class(settings):
        return []
    beyond = [name for name in settings["run"] if name not in OF_ONE_CLASS]
    if settings["run"] == ["report"]:
        beyond = ["report of everything"]
    why = "takes everybody for healthy, and these need patients, too; say run: [infer, report]"
    return [f"run: {', '.join(beyond)}: --all-hc of cohort.prepare {why}"] if beyond else []


def one_class(settings: dict[str, Any]) -> str:
    """A flag for cohort.split and VAE.train, where cohort.prepare takes everybody for healthy."""
    return "--allow-one-class" if "--all-hc" in settings["options"].get("cohort.prepare", "").split() else ""


def study_problems(study: dict[str, Any], made: int, wanted: bool) -> list[str]:
    """What is wrong with a table of arms; where they are wanted, also arms that need more than the volumes `made`."""
    table = study["table"]
    try:
        arms = read_arms(ROOT / table)
    except InputError as error:
        return [f"arms.table: {error}"]
    problems = [f"arms.references: {table} has no arm {arm}" for arm in sorted({*study["references"]} - {*arms})]
    for arm, cells in arms.items() if wanted else ():
        count = cells.get("synth_count", "")
        if count.isdigit() and int(count) > made and not {"synth_hc", "synth_tle"} & {*cells}:
            needs = f"arm {arm} needs {count} synthetic volumes, and volumes.each makes {made} of both classes"
            problems.append(f"arms.table: {table}: {needs}")
    return problems


def side_problems(settings: dict[str, Any], train: Path) -> list[str]:
    """That a training table names too few sides for the volumes of the other side."""
    if not (needed := least_sides(settings)):
        return []
    try:
        named = sides_of(read_table(train))
    except InputError as error:
        return [f"tables: {error}"]
    if len(named) >= needed:
        return []
    why = f"diagnoses of {train} name fewer than {needed} of TLE-L and TLE-R ({', '.join(named) or 'none'})"
    return [f"volumes.swap: {settings['volumes']['swap']}: {why}; say swap: 0, or name the sides there"]


def least_sides(settings: dict[str, Any]) -> int:
    """How many sides of the epilepsy the training table has to name, so that volumes of either can be made."""
    wanted = {*settings["run"]}
    if not settings["volumes"]["swap"] or not ({"synthetic", "evaluation"} & wanted or wanted == {"report"}):
        return 0
    return 1 if "--mirrored" in settings["options"].get("VAE.save_latent", "").split() else 2


def least(settings: dict[str, Any]) -> str:
    """Flags for cohort.split, so that it refuses a cohort that is too small for what comes after all trainings: an
    evaluation, volumes of either side.
    """
    evaluated = "evaluation" in settings["run"] or {*settings["run"]} == {"report"}
    people = f"--least {EVALUATED}" if evaluated else ""
    sides = f"--least-sides {least}" if (least := least_sides(settings)) else ""
    return f"{people} {sides}".strip()


def claim(settings: dict[str, Any], folder: Path) -> None:
    """Writes what `folder` (runs/NAME) is made of; InputError where it holds something else."""
    path, mine = folder / "workflow.json", {name: settings.get(name) for name in IDENTITY}
    if path.exists() and (problems := differences("folder", read_json(path), mine)):
        advice = f"choose another name; or delete {path}, where it is the same data at another place"
        raise InputError.of(f"{folder}: holds another run; {advice}", problems)
    write_json(path, mine)
