"""Where `cohort.prepare` has put a scan, and how another one in the same voxels would have come out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cohort.decoding import naming, read_voxels
from cohort.grids import Grid
from cohort.preparation.quality import judge
from cohort.scans import onto_grid, to_ras
from cohort.volumes import write_scan
from runtime.errors import InputError
from runtime.files import read_json


@dataclass(frozen=True)
class Place:
    """A prepared scan and its way onto the grid."""

    scan: Path
    """The prepared scan."""
    grid: Grid
    matrix: np.ndarray
    """(4, 4), from template millimetres to millimetres of the raw scan."""

    def after(self, affine: np.ndarray, before: np.ndarray, now: np.ndarray) -> np.ndarray:
        """The prepared scan, float32 (D, H, W) on the grid, were the raw scan's voxels `now` and not `before`.

        Both are (D, H, W) with the raw scan's `affine`, in the units of its header's scale.

        Preparation multiplies intensities by a smooth factor, resamples linearly and cuts out the brain. With bias
        field, registration and brain as they are, the prepared scan changes by the ratio of both raw ones on the grid.
        """
        with naming(self.scan):
            prepared = read_voxels(self.scan)[0]
        old, new = (self._onto(image, affine) for image in (before, now))
        ratio = np.divide(new, old, out=np.ones_like(old), where=(old > 0) & (new != old))
        return np.where(prepared != 0, np.maximum(np.rint(prepared * ratio), 1), 0).astype(np.float32)

    def write(self, path: Path, image: np.ndarray) -> None:
        """Writes a volume on the grid as prepared scans are."""
        write_scan(path, image, self.grid.affine)

    def _onto(self, image: np.ndarray, affine: np.ndarray) -> np.ndarray:
        return onto_grid(*to_ras(image.astype(np.float32), affine), self.matrix @ self.grid.affine, self.grid)


def read_place(folder: Path, name: str) -> Place:
    """The place of a scan by its name in a folder that `cohort.prepare` wrote; InputError where it has failed there, or
    a fixed limit of quality says that it lies elsewhere."""
    path = folder / "records" / f"{name}.json"
    if not path.exists():
        raise InputError(f"{path}: no such record; cohort.prepare has not prepared this scan (see failures.csv)")
    record = read_json(path)
    if reasons := judge([record["measures"]])[0].flagged:
        raise InputError(f"{folder / 'scans' / name}.nii.gz: flagged: {'; '.join(reasons)}")
    grid = Grid.from_dict(record["recipe"]["grid"])
    return Place(folder / "scans" / f"{name}.nii.gz", grid, np.array(record["matrix"]))
