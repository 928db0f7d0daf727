"""Makes patients of healthy people: real heads, of which some get a hippocampus smaller by a known amount.

It answers what a cohort can show before there are patients: could an effect of this size be seen in heads like these?
Scans need region labels. Half of the people stay as they are; of the others one hippocampus, left or right, shrinks by
the same share in all, and the temporal horn beside it widens. Nothing else moves, and intensities stay.

    python -m cohort.plant --participants participants.csv --out data/planted --index data/planted/index.csv

Written are the patients' scans, the table of all, truth.csv (and truth.json, which describes it), a picture, and the
list of who was left out. Running the command again makes only what is missing.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from tqdm import tqdm

from cohort.anatomy.volume_readers import volume_column
from cohort.atlas import HIPPOCAMPI, SIDES, native_atlas
from cohort.decoding import read_voxels
from cohort.listing.reading import Reading
from cohort.pictures import gallery
from cohort.preparation.participants import list_scans
from cohort.preparation.placing import read_place
from cohort.scans import normalise, to_ras
from cohort.simulation.effects import LARGEST_PLANTED_D, change_for
from cohort.simulation.planting import NEEDED, HeadMap, find_map
from cohort.simulation.volunteers import (
    BLOCK,
    CONTROLS_PER_SIDE,
    LEFT_OUT,
    diagnoses,
    read_head,
    spread_of,
    usable,
    with_volumes,
)  # fmt: skip
from cohort.tables import write_csv, write_table
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.errors import InputError
from runtime.files import atomic_write, locked, read_json, sha256, write_json

SHOWN = 4
"""Patients in the picture."""
TRUTH_COLUMNS = {
    "Description": "Healthy people; the scans of patients were deformed. No row is a patient.",
    "side": "side of the smaller hippocampus, L or R; empty for HC",
    "change": "relative change of its volume that was asked for; -0.2: a fifth less",
    "effect_size": "the same as Cohen's d against controls, as a loss, of volumes relative to the labelled brain",
    "placebo": "1: the map moved tissue and changed no volume",
    "mri_negative": "0: every patient has the change",
    "brain_mm3": "volume of all labels, before the change",
    "volume_<structure>_mm3": "volume of the label, after the change: integral of the Jacobian determinant over it",
    "min_jacobian": "smallest Jacobian determinant of the map and its inverse; positive: nothing folds",
    "far_mm": "largest displacement more than 10 mm from the hippocampus, mm",
}
"""Description of truth.csv, in the manner of a BIDS data dictionary."""


@dataclass(frozen=True, kw_only=True)
class PlantConfig(Reading, ScriptConfig):
    participants: Path
    """Table of healthy people (or BIDS dataset) with a column labels: a NIfTI of region labels in the voxels of each
    scan, relative to the table."""
    out: Path
    """Folder of the patients' scans, truth.csv, planted.png and left_out.csv."""
    index: Path
    """The table to write: controls with the scans that they had, patients with the new ones."""
    effect_size: float = 1.0
    """Cohen's d of the loss, patients of one side against controls: 0 (patients are controls) to 6. What d = 1 is in ml
    follows from how much hippocampal volume, relative to the brain, varies between these people."""
    placebo: bool = False
    """Move and resample the same tissue as far, but change no volume: what a classifier then sees is the method."""
    prepared: Path | None = None
    """Folder that cohort.prepare wrote of the same people. Patients are then written as it would have prepared them,
    with the registration of the healthy scan, and controls are the prepared ones; who failed there is left out."""
    codes: dict[str, int] | None = None
    """Labels of structures, in pairs, where they are not those of Neuromorphometrics; with FreeSurfer's aseg:
    "Left Hippocampus" 17 "Right Hippocampus" 53 "Left Inf Lat Vent" 5 "Right Inf Lat Vent" 44."""
    partial: bool = False
    """End with status 0 although people were left out (no scan, no or impossible labels, no HC; left_out.csv names
    those with a scan)."""
    seed: int = 0
    """Who becomes a patient, and of which side; the same people at every effect size."""


def main(config: PlantConfig) -> None:
    """Measures labels, chooses patients, deforms their scans, and writes down what is true of them."""
    codes = check(config)
    listed = list_scans(config.participants, config)
    people = listed.there().reset_index(drop=True)
    with locked(config.out):
        claim(config)
        base = config.data_root or config.participants.parent
        people, left_out = usable(with_volumes(people, base, codes, config.prepared))
        people["diagnosis"] = diagnoses(people, config.seed)
        change = change_for(-config.effect_size, spread_of(people), 0.0, 1 / (1 + CONTROLS_PER_SIDE))
        people, unplanted = with_scans(config, codes, people, change)
        left_out = pd.concat([left_out, unplanted])
        truth = truth_table(config, people, change)
        write_csv(config.out / "truth.csv", truth)
        write_json(config.out / "truth.json", TRUTH_COLUMNS)
        write_csv(config.out / "left_out.csv", left_out)
        write_index(config, people)
        draw(config, people[people["diagnosis"] != "HC"])
    say(config, truth, change, left_out)
    if (len(left_out) or listed.differences()) and not config.partial:
        sys.exit(1)


def check(config: PlantConfig) -> dict[str, int]:
    """The label of each structure; InputError for settings that make no cohort."""
    if not 0 <= config.effect_size <= LARGEST_PLANTED_D:
        raise InputError(f"--effect-size {config.effect_size:g}: expected 0 to {LARGEST_PLANTED_D:g}")
    codes = config.codes or {name: code for name, code in native_atlas()[0].codes.items() if code > 0}
    if missing := [name for name in NEEDED if name not in codes]:
        raise InputError(f"--codes: no label for {', '.join(missing)}; expected pairs such as 'Left Hippocampus' 17")
    if low := [name for name, code in codes.items() if code < 1]:
        raise InputError(f"--codes: {low[0]} has {codes[low[0]]}; labels are whole numbers from 1 (0 is no region)")
    return codes


def claim(config: PlantConfig) -> None:
    """Marks the folder with what its scans were made with, or refuses a folder with others."""
    settings = {
        "participants_sha256": sha256(config.participants) if config.participants.is_file() else "",
        "effect_size": config.effect_size, "placebo": config.placebo, "codes": config.codes, "seed": config.seed,
        "prepared": str(config.prepared.resolve()) if config.prepared else "",
    }  # fmt: skip
    path = config.out / "settings.json"
    if not path.exists():
        write_json(path, settings)
    elif (found := read_json(path)) != settings:
        raise InputError(f"{config.out} holds a cohort made with {found}, not {settings}; choose another --out")


def with_scans(
    config: PlantConfig, codes: Mapping[str, int], people: pd.DataFrame, change: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Makes the patients' scans that are missing; the people, and the patients whose scan could not be made."""
    problems = pd.Series("", people.index)
    for person in tqdm(list(people[people["diagnosis"] != "HC"].itertuples()), desc="planting", unit="scan"):
        if not truth_path(config, person.name).exists():
            try:
                make(config, codes, person, change)
            except InputError as error:
                problems[person.Index] = str(error)
    lost = people.assign(problem=problems)[problems != ""]
    return people[problems == ""], lost[[*LEFT_OUT]]


def make(config: PlantConfig, codes: Mapping[str, int], person: Any, change: float) -> None:
    """Writes a patient's scan, then what is true of it: where there is a truth, the scan is there too."""
    image, labels, edges = read_head(person.file, person.labels)
    side = SIDES["LR".index(person.diagnosis[-1])]
    found = find_map(labels, edges, codes, side, change, placebo=config.placebo)
    if found is None:
        raise InputError(
            f"{person.labels}: no map without folds changes the {side.lower()} hippocampus by {change:.0%}; choose a "
            "smaller --effect-size"
        )
    new = found.applied(image)
    source = nib.load(person.file)
    if config.prepared:
        place = read_place(config.prepared, person.name)
        slope, intercept = source.dataobj.slope, source.dataobj.inter  # 1 and 0 where the header has none
        changed = place.after(source.affine, image * slope + intercept, new * slope + intercept)
        place.write(scan_path(config, person.name), changed)
    else:
        write_like(scan_path(config, person.name), source, new)
    write_json(truth_path(config, person.name), facts_of(found, labels, codes))


def facts_of(found: HeadMap, labels: np.ndarray, codes: Mapping[str, int]) -> dict[str, Any]:
    """What is true of a new head, as plain values."""
    volumes = {volume_column(name): round(mm3, 2) for name, mm3 in found.volumes(labels, codes).items()}
    return {"min_jacobian": round(found.min_jacobian, 4), "far_mm": round(found.far_mm(), 4), **volumes}


def write_like(path: Path, source: nib.Nifti1Image, stored: np.ndarray) -> None:
    """Writes stored numbers under the header of another scan, with its scale; atomically."""
    slope, intercept = source.dataobj.slope, source.dataobj.inter
    image = type(source)(stored.reshape(source.shape), None, source.header)
    image.set_data_dtype(stored.dtype)
    image.header.set_slope_inter(slope, intercept)
    with atomic_write(path) as temporary:
        nib.save(image, temporary)


def scan_path(config: PlantConfig, name: str) -> Path:
    """Where a patient's scan lies."""
    return config.out / "scans" / f"{name}.nii.gz"


def truth_path(config: PlantConfig, name: str) -> Path:
    """Where it stands what is true of it."""
    return config.out / "scans" / f"{name}.json"


def truth_table(config: PlantConfig, people: pd.DataFrame, change: float) -> pd.DataFrame:
    """One row per scan; TRUTH_COLUMNS describes the columns."""
    rows = []
    volumes = [column for column in people.columns if column.startswith("volume_")]
    for person in people.to_dict("records"):
        sick = person["diagnosis"] != "HC"
        row = {name: person[name] for name in ("subject", "session", "diagnosis", "age", "sex", "site")}
        row |= {"side": person["diagnosis"][4:], "change": round(change, 5) if sick else 0.0}
        row |= {"effect_size": config.effect_size, "placebo": int(config.placebo), "mri_negative": 0}
        row |= {name: person[name] for name in ("brain_mm3", *volumes)}
        rows.append(row | (read_json(truth_path(config, person["name"])) if sick else {}))
    return pd.DataFrame(rows)


def write_index(config: PlantConfig, people: pd.DataFrame) -> None:
    """The table of all: patients with their new scans, controls with those that they had."""

    def file(person: Any) -> str:
        if person.diagnosis != "HC":
            return str(scan_path(config, person.name).resolve())
        return str(read_place(config.prepared, person.name).scan.resolve()) if config.prepared else person.file

    columns = ["subject", "session", "diagnosis", "age", "sex", "site", "group"]
    files = [file(person) for person in people.itertuples()]
    write_table(config.index, people[columns].assign(file=files, source=people["file"]))


def draw(config: PlantConfig, patients: pd.DataFrame) -> None:
    """planted.png: a few patients, healthy, planted, and the difference, around the hippocampus."""
    before, after = [], []
    for person in patients.head(SHOWN).itertuples():
        healthy = read_place(config.prepared, person.name).scan if config.prepared else Path(person.file)
        pair = []
        for path in (healthy, scan_path(config, person.name)):
            image, affine, _ = read_voxels(path)
            pair.append(normalise(to_ras(image, affine)[0]))
        if not config.prepared:
            _, labels, _ = read_head(person.file, person.labels)
            where = np.argwhere(to_ras(labels, affine)[0] > 0)
            box = tuple(slice(*ends) for ends in zip(where.min(axis=0), where.max(axis=0) + 1, strict=True))
            pair = [volume[box] for volume in pair]
        before.append(pair[0])
        after.append(pair[1])
    differences = [new - old for new, old in zip(after, before, strict=True)]
    rows = [("healthy", before), ("planted", after), ("difference", differences)]
    gallery(config.out / "planted.png", rows, title=f"d = {config.effect_size:g}", error_rows=(2,))


def say(config: PlantConfig, truth: pd.DataFrame, change: float, left_out: pd.DataFrame) -> None:
    """Who there is, what was asked for and reached, and who was left out."""
    counts = truth["diagnosis"].value_counts()
    print(f"{len(truth)} scans: {', '.join(f'{counts.get(name, 0)} {name}' for name in sorted(set(BLOCK)))}")
    print(f"asked for: d {config.effect_size:g}, a loss of {-change:.1%}; reached, volumes over brain against HC:")
    for name, group in zip(HIPPOCAMPI, ("TLE-L", "TLE-R"), strict=True):
        ratio = truth[volume_column(name)] / truth["brain_mm3"]
        sick, well = ratio[truth["diagnosis"] == group], ratio[truth["diagnosis"] == "HC"]
        pooled = np.sqrt(((len(sick) - 1) * sick.var() + (len(well) - 1) * well.var()) / (len(sick) + len(well) - 2))
        reached = f"d {(sick.mean() - well.mean()) / pooled:.2f}" if pooled > 0 else "all alike"
        print(f"  {name}: {reached}")
    print(f"index {config.index}; {config.out / 'truth.csv'}, {config.out / 'planted.png'}")
    if len(left_out):
        hint = "" if config.partial else "; --partial ends with status 0"
        print(f"left out: {len(left_out)} scans, {config.out / 'left_out.csv'}{hint}")
    for person in left_out.itertuples():
        print(f"left out: {person.subject}: {person.problem}")


if __name__ == "__main__":
    run_script(main, PlantConfig, description=describe(__doc__))
