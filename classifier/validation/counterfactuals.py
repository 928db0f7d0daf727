"""Counterfactuals as an attribution: how much of a scan changes when a generator is asked for it without the disease.

They come as the folder that `diffusion.counterfactual --to HC` wrote: manifest.csv, a table of scans whose column
`difference` names counterfactual minus reconstruction. No network that is judged took part: the map says what the
generator has learned of the disease, and is measured as maps of networks are where that makes sense.
"""

from pathlib import Path

import nibabel as nib
import numpy as np

from cohort.grids import Grid
from cohort.tables import read_table
from runtime.errors import InputError

NAME = "counterfactual"
"""Of the method, beside those of `classifier.saliency.attribution`."""


def read_maps(folder: Path, subjects: list[str], grid: Grid) -> np.ndarray:
    """Sizes of the differences, float32 (N, D, H, W), of the subjects; InputError where some are not there."""
    frame = read_table(folder / "manifest.csv")
    if missing := {"difference", "own"} - set(frame):
        raise InputError(
            f"{folder}: no folder of diffusion.counterfactual: its table lacks {', '.join(sorted(missing))}"
        )
    if (asked := set(frame["diagnosis"])) != {"HC"}:
        raise InputError(f"{folder}: made for --to {', '.join(sorted(asked))}; the map of a disease needs --to HC")
    files = dict(zip(frame["subject"], frame["difference"], strict=True))
    if absent := [subject for subject in subjects if subject not in files]:
        raise InputError.of(f"{folder}: no counterfactuals of these test subjects", absent)
    maps = np.stack([np.abs(nib.load(folder / files[subject]).get_fdata(dtype=np.float32)) for subject in subjects])
    if maps.shape[1:] != grid.shape:
        raise InputError(f"{folder}: volumes of shape {maps.shape[1:]}, those of the study have {grid.shape}")
    return maps
