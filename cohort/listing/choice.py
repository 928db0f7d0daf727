"""Which of a session's T1-weighted images is taken: a BIDS participant may have repeats, reconstructions, echoes.

A name's entities are its parts between participant and suffix, such as ``acq-mprage`` and ``run-2``
(https://bids-specification.readthedocs.io/en/stable/appendices/entities.html).
"""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from runtime.errors import InputError
from runtime.files import absence

ALL = "all"
SHOWN = 8
"""Kinds of images that a note names; it counts the others."""


class Image(NamedTuple):
    """One T1-weighted image of a participant."""

    file: Path
    text: str
    """What the name says between participant and ``_T1w``, such as ``ses-01_run-2``, often nothing."""
    visit: str
    """Its session, such as ``ses-01``; empty where there is none."""
    absent: str = ""
    """Why it cannot be taken; empty where it can."""

    @property
    def entities(self) -> dict[str, str]:
        pairs = (part.partition("-") for part in self.text.split("_") if "-" in part)
        return {key: value for key, _, value in pairs if key != "ses"}


def t1_images(folder: Path) -> list[Image]:
    """The T1-weighted images of a BIDS participant's folder and of its sessions, sorted by name; no hidden files."""
    images = sorted([*folder.glob("anat/*_T1w.nii*"), *folder.glob("ses-*/anat/*_T1w.nii*")])
    return [
        _image(image, folder.name)
        for image in images
        if image.name.endswith((".nii", ".nii.gz")) and not image.name.startswith(".")
    ]


def _image(file: Path, participant: str) -> Image:
    text = file.name.split("_T1w.nii")[0].removeprefix(participant).removeprefix("_")
    visit = next((part for part in text.split("_") if part.startswith("ses-")), "")
    folder = file.parent.parent.name
    return Image(file, text, visit or (folder if folder.startswith("ses-") else ""), absence(file))


class Choice:
    """Chooses in one participant after the other, and counts what was left out."""

    def __init__(self, prefer: Sequence[str] = ()) -> None:
        self.prefer = tuple(prefer)
        self.unmatched = set(prefer) - {ALL}
        self.found: set[str] = set()
        self.left_out: Counter[str] = Counter()
        self.seen = 0

    def of(self, images: Sequence[Image]) -> list[Image]:
        """One image per session, in order; all of them with ``all``.

        Where a session has nothing but images with a contrast agent, or phase images, the first of them, as absent.
        """
        self.seen += len(images)
        self.found |= {f"{key}-{value}" for image in images for key, value in image.entities.items()}
        self.unmatched -= {wish for wish in self.unmatched for image in images if _matches(image, wish)}
        if ALL in self.prefer:
            return list(images)
        taken = []
        for _, group in groupby(sorted(images, key=lambda image: image.visit), key=lambda image: image.visit):
            first, *others = sorted(group, key=self._rank)
            taken.append(first._replace(absent=self._unfit(first) or first.absent))
            self.left_out.update(_kind(image) for image in others)
        return taken

    def note(self) -> str:
        """What was left out, in words; empty where there was nothing to choose."""
        if not self.left_out:
            return ""
        kinds = [f"{count} {kind}" for kind, count in self.left_out.most_common(SHOWN)]
        kinds += [f"{len(self.left_out) - SHOWN} other kinds"] if len(self.left_out) > SHOWN else []
        number = sum(self.left_out.values())
        return (
            f"one T1-weighted image per session, {self.seen - number} of {self.seen}, none with a contrast agent "
            f"unless asked for; left out: {', '.join(kinds)}; --prefer (acq-..., rec-..., run-..., ce, all) chooses"
        )

    def refuse_unmatched(self) -> None:
        """InputError where a wish fits no image of the dataset."""
        if self.unmatched:
            raise InputError(
                f"--prefer {' '.join(sorted(self.unmatched))}: no T1-weighted image has that in its name; there are "
                f"{', '.join(sorted(self.found)) or 'no entities'}"
            )

    def _rank(self, image: Image) -> tuple:
        """Smaller is better: fit at all, the wishes in turn, no entity besides the run, the lowest run, the name."""
        found = image.entities
        wishes = tuple(not _matches(image, wish) for wish in self.prefer)
        run = found.get("run", "0")
        return (
            bool(self._unfit(image)),
            *wishes,
            len(found.keys() - {"run"}),
            int(run) if run.isdigit() else 0,
            image.file,
        )

    def _unfit(self, image: Image) -> str:
        """Why an image is no plain T1-weighted scan, unless a wish names just that."""
        found = image.entities
        asked = {wish.partition("-")[0] for wish in self.prefer}
        if "ce" in found and "ce" not in asked:
            return f"only with a contrast agent ({_kind(image)}); --prefer ce takes it"
        if found.get("part", "mag") != "mag" and "part" not in asked:
            return f"only {_kind(image)}, which is no magnitude image; --prefer part-{found['part']} takes it"
        return ""


def _kind(image: Image) -> str:
    """The entities of a name, without the session."""
    return "_".join(f"{key}-{value}" for key, value in image.entities.items()) or "plain"


def _matches(image: Image, wish: str) -> bool:
    """Whether a name has an entity, ``ce``, or an entity's value, ``run-2``, which is ``run-02`` too."""
    key, _, value = wish.partition("-")
    found = image.entities.get(key)
    if found is None:
        return False
    return not value or found == value or (found.isdigit() and value.isdigit() and int(found) == int(value))
