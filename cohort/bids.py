"""Where a BIDS folder keeps a participant's T1-weighted images."""

from __future__ import annotations

import re
from pathlib import Path


def participant_folder(root: Path, participant: str) -> Path:
    """The folder of a participant, whose name may come with or without ``sub-``."""
    # A name is one folder's name: separators in it could lead anywhere.
    plain = re.sub(r"[/\\\0]", "_", participant)
    return root / (plain if plain.startswith("sub-") else f"sub-{plain}")


def t1_images(folder: Path) -> list[Path]:
    """All ``anat/*_T1w.nii`` and ``.nii.gz`` of a participant's folder and of its sessions, sorted."""
    found = [*folder.glob("anat/*_T1w.nii*"), *folder.glob("ses-*/anat/*_T1w.nii*")]
    return sorted(path for path in found if path.name.endswith((".nii", ".nii.gz")))


def entities(image: Path, folder: Path) -> str:
    """What an image's name says between the participant and ``_T1w``, such as ``ses-01_run-2``, often nothing."""
    return image.name.split("_T1w.nii")[0].removeprefix(folder.name).removeprefix("_")
