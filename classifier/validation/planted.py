"""What is planted before maps are judged: a change of one hippocampus, in strengths down to none, or a mark beside it.

Every condition is data and a way of training on them. There are two kinds of change, of the hippocampus of one side:

- `signal`: it is darker by a share of its intensity, and nothing else differs. The change is known to the voxel.
- `dose`: it is smaller by Cohen's d against controls, through the simulator. That is the disease's own change, and hard
  to learn on a coarse grid.

All cohorts have one seed, and with it the same people; a patient differs from condition to condition in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from cohort.scans import Grid
from cohort.tables import read_table, write_table
from runtime.files import atomic_write

MARK_MM = 12.0
"""Edge of the mark, a cube."""


@dataclass(frozen=True)
class Condition:
    """One network whose maps are judged, and what there was for it to learn."""

    name: str
    dose: float = 0.0
    """Cohen's d of the planted loss of hippocampal volume."""
    signal: float = 0.0
    """Share of its intensity that the hippocampus of the changed side loses."""
    mark: bool = False
    """Patients' scans carry a bright cube in a corner."""
    shuffle: bool = False
    """Train on permuted labels: nothing is to be learned."""

    @property
    def cohort(self) -> str:
        """Name of the simulated cohort that its scans come from."""
        return f"dose_{self.dose:g}"

    @property
    def data(self) -> str:
        """Name of its scans and tables; conditions share them when they can."""
        return "marked" if self.mark else f"signal_{self.signal:g}" if self.signal else self.cohort


def conditions(signals: Sequence[float], doses: Sequence[float]) -> list[Condition]:
    """The condition that methods are judged on first, then the others.

    That is the strongest signal, or without signals the strongest dose. Its permuted-label run and the mark, where
    there is nothing else to learn, come last.
    """
    plain = [Condition(f"signal_{signal:g}", signal=signal) for signal in sorted(signals, reverse=True)]
    plain += [Condition(f"dose_{dose:g}", dose=dose) for dose in sorted(doses, reverse=True)]
    permuted = Condition("permuted", dose=plain[0].dose, signal=plain[0].signal, shuffle=True)
    return [*plain, permuted, Condition("shortcut", mark=True)]


def levels(chosen: Sequence[Condition]) -> dict[str, dict[str, float]]:
    """The series of plain conditions that differ in strength only, weakest included: {kind: {condition: strength}}."""
    plain = [one for one in chosen if not one.mark and not one.shuffle]
    none = [one for one in plain if one.dose == one.signal == 0]
    return {
        kind: {one.name: getattr(one, kind) for one in [*members, *none]}
        for kind in ("signal", "dose")
        if (members := [one for one in plain if getattr(one, kind) > 0]) and none
    }


def mark_of(grid: Grid) -> np.ndarray:
    """The voxels of the mark, bool (D, H, W): a cube near the corner at the right, the front and the head."""
    edge = max(1, round(MARK_MM / grid.spacing_mm))
    mask = np.zeros(grid.shape, bool)
    mask[-1 - edge : -1, -1 - edge : -1, -1 - edge : -1] = True
    return mask


def mark(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of a scan (D, H, W) with the marked voxels at the median of its non-zero ones.

    At the median the mark is as bright as brain, and the percentiles that intensities are scaled by hardly move.
    """
    marked = image.copy()
    marked[mask] = np.median(image[image > 0])
    return marked


def darken(image: np.ndarray, share: np.ndarray, loss: float) -> np.ndarray:
    """A scan (D, H, W) whose voxels lose `loss` of their intensity times their `share` in the region; same type."""
    return np.rint(image * (1 - loss * share)).astype(image.dtype)


def editor(condition: Condition, grid: Grid, regions: Path) -> Callable[[str, np.ndarray], np.ndarray] | None:
    """How a patient's scan (name, voxels) is changed beyond what the simulator does; None for not at all.

    Args:
        condition: what is planted.
        grid: the scans'.
        regions: folder in which the cohort's patients have their changed region.
    """
    if condition.mark:
        mask = mark_of(grid)
        return lambda name, image: mark(image, mask)
    if condition.signal:
        return lambda name, image: darken(image, region_share(regions, name), condition.signal)
    return None


def region_share(regions: Path, name: str) -> np.ndarray:
    """The share of each voxel of a patient's scan in the changed region, float32 (D, H, W), by `cohort.make_demo`."""
    return nib.load(regions / f"{name}.nii.gz").get_fdata(dtype=np.float32)


def write_edited(index: Path, edit: Callable[[str, np.ndarray], np.ndarray], out: Path, edited: Path) -> None:
    """Writes edited copies of all patients' scans of a table, and a table with them in place of the originals.

    Args:
        index: table of NIfTI scans.
        edit: from `editor`.
        out: folder for the copies; those that are there stay.
        edited: the table to write.
    """
    frame = read_table(index)
    for row in frame.index[frame["label"] == 1]:
        path = out / Path(frame.loc[row, "file"]).name
        if not path.exists():
            image = nib.load(frame.loc[row, "file"])
            copy = nib.Nifti1Image(edit(frame.loc[row, "subject"], np.asarray(image.dataobj)), None, image.header)
            with atomic_write(path) as temporary:
                nib.save(copy, temporary)
        frame.loc[row, "file"] = str(path.resolve())
    write_table(edited, frame)
