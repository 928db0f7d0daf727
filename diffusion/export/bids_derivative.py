"""Synthetic volumes as a BIDS derivative dataset, which other tools can read without knowing this project.

    dataset_description.json, participants.tsv, participants.json
    sub-synHC0001/anat/sub-synHC0001_space-MNI152NLin2009aSym_desc-synthetic_T1w.nii.gz and .json

The participant's number is the seed + 1. The sidecar (.json) holds everything that made the volume; it is written after
the image, so that an image with a sidecar is complete. Both classes may go into one dataset.
Source: Brain Imaging Data Structure 1.10.0 (https://bids-specification.readthedocs.io), derivatives.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from cohort.grids import Grid
from cohort.tables import CLASS_NAMES
from cohort.volumes import Volume, write_nifti
from diffusion.synthetic_folder import Settings, Wanted
from runtime.checkpoints import git_commit
from runtime.errors import InputError, differences
from runtime.files import atomic_write, read_json, write_json

SPACE = "MNI152NLin2009aSym"
"""BIDS name of the template in whose space all grids are (`cohort.grids`)."""
GENERATOR = "synthetic-tle-mri"
LABELS = "desc-regions_dseg"
"""What files of region labels end in."""
PARTICIPANTS = {
    "participant_id": {"Description": "syn, the class, and the seed + 1"},
    "diagnosis": {
        "Description": "Class that the volume was generated for",
        "Levels": {"HC": "healthy control", "TLE": "temporal lobe epilepsy"},
    },
    "side": {
        "Description": "Side of the epilepsy that the volume was generated for; n/a: unknown to the model, or HC",
        "Levels": {"L": "left", "R": "right"},
    },
    "age": {"Description": "Age that the volume was generated for; n/a: unknown to the model", "Units": "year"},
    "sex": {
        "Description": "Sex that the volume was generated for; n/a: unknown to the model",
        "Levels": {"F": "female", "M": "male"},
    },
    "synthetic": {"Description": "Whether a model generated the volume", "Levels": {"true": "no person was scanned"}},
    "seed": {"Description": "Seed of the volume's random numbers, unique within its class"},
}
"""Columns of participants.tsv."""


def image_path(folder: Path, wanted: Wanted) -> Path:
    """Where a volume's NIfTI file goes."""
    name = f"sub-syn{CLASS_NAMES[wanted.label]}{wanted.seed + 1:04d}"
    return folder / name / "anat" / f"{name}_space-{SPACE}_desc-synthetic_T1w.nii.gz"


def labels_path(folder: Path, wanted: Wanted) -> Path:
    """Where the region labels of a volume go (`diffusion.export.labelled`)."""
    path = image_path(folder, wanted)
    return path.with_name(path.name.replace("desc-synthetic_T1w", LABELS))


def sidecar_path(folder: Path, wanted: Wanted) -> Path:
    """The JSON file that says what made a volume."""
    return image_path(folder, wanted).with_suffix("").with_suffix(".json")


def sidecar(wanted: Wanted, settings: Settings, grid: Grid) -> dict[str, Any]:
    """Everything a volume depends on, as its sidecar holds it; `Commit` is that of the code that writes the sidecar."""
    return {
        "Description": "Synthetic T1-weighted volume: made by a generative model, not scanned from a person",
        "Synthetic": True,
        "Diagnosis": CLASS_NAMES[wanted.label],
        "Side": wanted.side or None,
        "Age": wanted.age,
        "Sex": wanted.sex or None,
        **({"VolumesMl": dict(wanted.volumes)} if wanted.volumes else {}),
        "Seed": wanted.seed,
        "VAE": settings.vae,
        "Diffusion": settings.diffusion,
        "Weights": settings.weights,
        "Sampler": settings.sampler,
        "Steps": settings.steps,
        "Guidance": settings.guidance,
        "GuidanceInterval": list(settings.guidance_interval),
        **({"GuideCheckpoint": settings.guide} if settings.guide else {}),
        **({"RefuseLevel": settings.refuse_level} if settings.refuse_level else {}),
        "Grid": grid.to_dict(),
        "Commit": git_commit(),
    }


def refuse_others(folder: Path, wanted: list[Wanted], settings: Settings, grid: Grid) -> None:
    """Refuses a dataset of another program, and one that has other volumes under the wanted names."""
    description = folder / "dataset_description.json"
    if description.exists():
        made_by = [program.get("Name") for program in read_json(description).get("GeneratedBy", [])]
        if GENERATOR not in made_by:
            raise InputError(f"{description}: a dataset that {GENERATOR} did not make; choose another --bids")
    problems = []
    for item in wanted:
        path, mine = sidecar_path(folder, item), sidecar(item, settings, grid)
        theirs = read_json(path) if path.exists() else mine
        fixed = {name: value for name, value in mine.items() if name != "Commit"}
        problems += [f"{path.name}: {line}" for line in differences("dataset", theirs, fixed)]
    if problems:
        raise InputError.of(f"{folder}: holds other volumes; choose another --bids", problems)


def add(folder: Path, volume: Volume, wanted: Wanted, settings: Settings, grid: Grid) -> None:
    """Writes one volume's image, then its sidecar."""
    write_nifti(image_path(folder, wanted), volume.image, grid.affine)
    write_json(sidecar_path(folder, wanted), sidecar(wanted, settings, grid))


def describe(folder: Path) -> None:
    """Writes what the dataset is, and the participants it has by now, of whichever runs."""
    description = {
        "Name": "Synthetic T1-weighted brain MRI: healthy controls and temporal lobe epilepsy",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": GENERATOR, "Version": git_commit()}],
    }
    write_json(folder / "dataset_description.json", description)
    write_json(folder / "participants.json", PARTICIPANTS)
    paths = sorted(folder.glob(f"sub-syn*/anat/*_space-{SPACE}_desc-synthetic_T1w.json"))
    made = {path.parents[1].name: read_json(path) for path in paths}
    rows = [
        [name, own["Diagnosis"], own.get("Side"), own["Age"], own["Sex"], "true", own["Seed"]]
        for name, own in made.items()
    ]
    table = pd.DataFrame(rows, columns=list(PARTICIPANTS), dtype=object)
    with atomic_write(folder / "participants.tsv") as temporary:
        table.to_csv(temporary, sep="\t", index=False, na_rep="n/a", lineterminator="\n")
