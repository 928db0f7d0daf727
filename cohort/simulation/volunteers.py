"""Healthy people with region labels: who can become a patient of a planted cohort, and who does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from tqdm import tqdm

from cohort.anatomy.volume_readers import volume_column
from cohort.atlas import HIPPOCAMPI
from cohort.decoding import RefusedError, naming, read_voxels
from cohort.preparation.placing import read_place
from cohort.preparation.quality import FEWEST, ROBUST_Z
from cohort.scans import edges_mm
from cohort.simulation.planting import label_volumes
from runtime.errors import InputError
from runtime.seeding import rng

BLOCK = ("HC", "TLE-L", "HC", "TLE-R")
"""Diagnoses of four neighbours in site, sex and age, in an order drawn for each four."""
LEFT_OUT = ("subject", "session", "file", "problem")
"""Columns of left_out.csv."""
LEAST_SPREAD = 0.1
"""Of a logarithm: what lies within a factor of 1.4 of the median is a person, however alike the others are."""
CONTROLS_PER_SIDE = 2
"""Controls for each patient of one side."""


def with_volumes(
    people: pd.DataFrame, base: Path, codes: Mapping[str, int], prepared: Path | None = None
) -> pd.DataFrame:
    """Measures the labels of all scans of a table (`cohort.preparation.participants.list_scans`).

    Args:
        people: with a column `labels`, files relative to `base`.
        codes: label of each structure.
        prepared: folder of `cohort.prepare`, where each scan must have come out well; None if none is needed.

    Returns:
        The table with absolute labels, brain_mm3 (all labels), a column of mm3 per structure, and `problem`: why a row
        is of no use, empty where nothing is wrong so far.
    """
    if "labels" not in people.columns:
        raise InputError(
            "the table has no column labels: it names, for each scan, a NIfTI of region labels in the same voxels "
            "(docs/your_own_data.md)"
        )
    rows = []
    for person in tqdm(list(people.itertuples()), desc="labels", unit="scan", delay=2):
        row: dict[str, Any] = {"labels": str((base / person.labels).resolve()), "problem": ""}
        try:
            if person.diagnosis != "HC":
                raise InputError(f"{person.file}: {person.diagnosis or 'no diagnosis'}; only HC can become patients")
            if prepared:
                read_place(prepared, person.name)
            _, labels, edges = read_head(person.file, row["labels"])
            row |= {volume_column(name): volume for name, volume in label_volumes(labels, codes, edges).items()}
            row["brain_mm3"] = float((labels > 0).sum() * np.prod(edges))
        except InputError as error:
            row["problem"] = str(error)
        rows.append(row)
    return pd.concat([people.drop(columns="labels"), pd.DataFrame(rows, index=people.index)], axis=1)


def usable(people: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows whose hippocampi can be true, and the others with the reason.

    Failed segmentations are found among the others: the logarithms of both volumes over the brain and of their ratio
    lie within ROBUST_Z robust standard deviations of the median (as in `cohort.preparation.quality`), of LEAST_SPREAD
    or more.
    """
    people = people.copy()
    left, right = (people.get(volume_column(name), pd.Series(np.nan, people.index)) for name in HIPPOCAMPI)
    for index in people.index[(people["problem"] == "") & ~((left > 0) & (right > 0))]:
        people.loc[index, "problem"] = f"{people['labels'][index]}: a hippocampus has no voxel; are --codes needed?"
    good = people["problem"] == ""
    measures = {
        f"{HIPPOCAMPI[0]} over brain": left / people["brain_mm3"],
        f"{HIPPOCAMPI[1]} over brain": right / people["brain_mm3"],
        "left over right hippocampus": left / right,
    } if good.any() else {}  # fmt: skip
    for name, values in measures.items():
        logs = np.log(values[good].astype(float))
        middle = logs.median()
        away = (logs - middle) / max(1.4826 * (logs - middle).abs().median(), LEAST_SPREAD)
        for index in logs.index[away.abs() > ROBUST_Z]:
            found = f"{people['labels'][index]}: {name} is {np.exp(logs[index] - middle):.2f} of the median"
            people.loc[index, "problem"] = f"{found}; a failed segmentation?"
    good = people["problem"] == ""
    if good.sum() < FEWEST:
        reasons = [f"{row.name}: {row.problem}" for row in people[~good].itertuples(index=False)]
        title = f"{good.sum()} healthy people with labels that can be right; {FEWEST} are needed"
        raise InputError.of(title, reasons or ["the table has no more rows"])
    left_out = people[~good][[*LEFT_OUT]]
    return people[good].drop(columns="problem").reset_index(drop=True), left_out


def diagnoses(people: pd.DataFrame, seed: int) -> list[str]:
    """HC, TLE-L or TLE-R for each row: one for all scans of a person, alike in site, sex and age."""
    ordered = people.drop_duplicates("subject").sort_values(["site", "sex", "age", "subject"])["subject"]
    chosen = {}
    for start in range(0, len(ordered), len(BLOCK)):
        names = ordered[start : start + len(BLOCK)]  # the last may be fewer than a block
        order = rng(seed, "plant.order", start).permutation(len(BLOCK))[: len(names)]
        chosen |= {name: BLOCK[i] for name, i in zip(names, order, strict=True)}
    return [chosen[subject] for subject in people["subject"]]


def spread_of(people: pd.DataFrame) -> float:
    """Standard deviation of the logarithm of a hippocampus' volume over the brain's, root mean square of the sides."""
    ratios = [np.log(people[volume_column(name)] / people["brain_mm3"]) for name in HIPPOCAMPI]
    return float(np.sqrt(np.mean([ratio.var(ddof=1) for ratio in ratios])))


def read_head(scan: str, labels: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A scan's stored numbers and its labels, (D, H, W) each in the order of the files, and the edges of a voxel (mm).

    InputError where either cannot be read, or they do not lie in the same voxels.
    """
    with naming(scan):
        image, affine, header = read_voxels(Path(scan))
        if header is None:
            raise RefusedError("a pickle; cohort.plant takes .nii and .nii.gz")
    with naming(labels):
        regions, other, _ = read_voxels(Path(labels))
        if regions.shape != image.shape or other is None or not np.allclose(other, affine, atol=1e-2):
            expected = f"shape {image.shape} and the same affine"
            raise RefusedError(f"not in the voxels of {scan}: got shape {regions.shape}, expected {expected}")
        codes = np.rint(regions).astype(np.int32)
        if codes.min() < 0 or not np.array_equal(codes, regions):
            raise RefusedError("labels are whole numbers from 0; these are not (probabilities, or interpolated?)")
    stored = np.asarray(nib.load(scan).dataobj.get_unscaled()).reshape(image.shape)
    return stored, codes, edges_mm(affine)
