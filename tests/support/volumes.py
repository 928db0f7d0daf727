"""Volumes of a few people as each tool writes them, in the layout of its source."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cohort.anatomy.volume_readers import names_and_regions, volume_column
from cohort.anatomy.volume_tables import atlas_ml
from cohort.atlas import REGIONS

SUBJECTS = [f"s{k}" for k in range(6)]
ASEG, FASTSURFER = "aseg.stats", "aseg+DKT.stats"
HEADS_ML = np.linspace(1300, 1700, len(SUBJECTS))
_FIELDS = ("Sub", "CA1", "CA2", "CA3", "CA4", "DG", "SRLM")

Written = tuple[Path, tuple[str, ...]]
"""A file or folder, and the regions that are in it."""


def volumes_ml(people: int = len(SUBJECTS)) -> np.ndarray:
    """Volumes (N, 16) of REGIONS, as large as in the atlas, give or take a tenth, as much again between the sides."""
    usual = np.array([atlas_ml()[region] for region in REGIONS])
    draw = np.random.default_rng(0)
    return usual * (
        1 + 0.1 * draw.normal(size=(people, 16)) + np.repeat(0.1 * draw.normal(size=(people, 8)), 2, axis=1)
    )


def names_of(tool: str) -> dict[str, str]:
    """The first of a tool's names for each region, and for the head."""
    found: dict[str, str] = {}
    for other, name, region in names_and_regions():
        if other == tool:
            found.setdefault(region, name)
    return found


def _table(tool: str, ml: np.ndarray) -> pd.DataFrame:
    """mm^3 by the tool's names."""
    names = names_of(tool)
    return pd.DataFrame(1000 * ml, columns=[names[region] for region in REGIONS])


def write_synthseg(
    folder: Path, ml: np.ndarray | None = None, names: Sequence[str] = SUBJECTS, drop: str | None = None
) -> Path:
    folder.mkdir(exist_ok=True)
    table = _table("synthseg", volumes_ml() if ml is None else ml)
    table.insert(0, "total intracranial", 1000 * HEADS_ML if len(table) == len(HEADS_ML) else 1.5e6)
    table.insert(0, "subject", list(names))
    table.drop(columns=[drop] if drop else []).to_csv(folder / "volumes.csv", index=False)
    return folder / "volumes.csv"


def write_stats(folder: Path, name: str, names: Sequence[str] = SUBJECTS) -> Path:
    """aseg.stats with eTIV, aseg+DKT.stats without."""
    rows = _table("freesurfer", volumes_ml()).to_dict("records")[: len(names)]
    for subject, row, head in zip(names, rows, HEADS_ML[: len(names)], strict=True):
        lines = [
            "# Title Segmentation Statistics",
            "# Measure BrainSeg, BrainSegVol, Brain Segmentation Volume, 1187285.000000, mm^3",
            f"# Measure EstimatedTotalIntraCranialVol, eTIV, Estimated Total Intracranial Volume, {head * 1e3:f}, mm^3",
            "# TableCol  4 ColHeader Volume_mm3",
            "# TableCol  4 Units     mm^3",
            "# ColHeaders  Index SegId NVoxels Volume_mm3 StructName normMean normStdDev normMin normMax normRange",
            "  1  24   1000    1100.5  CSF   50.0  10.0  20.0  90.0  70.0",
            *(
                f" {index:2d} {index:4d} {round(mm3):6d} {mm3:10.2f}  {structure:30s} 80.0 9.0 40.0 110.0 70.0"
                for index, (structure, mm3) in enumerate(row.items(), start=2)
            ),
        ]
        lines = [line for line in lines if name == ASEG or "eTIV" not in line]
        (folder / subject / "stats").mkdir(parents=True)
        (folder / subject / "stats" / name).write_text("\n".join(lines) + "\n")
    return folder


def write_asegstats2table(folder: Path) -> Path:
    table = _table("freesurfer", volumes_ml()).assign(EstimatedTotalIntraCranialVol=1000 * HEADS_ML)
    table.insert(0, "Measure:volume", SUBJECTS)
    table.to_csv(folder / "aseg.tsv", sep="\t", index=False)
    return folder / "aseg.tsv"


def write_muse(folder: Path) -> Path:
    table = _table("muse", volumes_ml()).assign(**{"702": 1000 * HEADS_ML, "601": 6e5})
    table.insert(0, "MRID", SUBJECTS)
    table.to_csv(folder / "DLMUSE_Volumes.csv", index=False)
    return folder / "DLMUSE_Volumes.csv"


def write_own(folder: Path) -> Path:
    table = pd.DataFrame(1000 * volumes_ml(), columns=list(map(volume_column, REGIONS)))
    table.assign(subject=SUBJECTS, head_mm3=1000 * HEADS_ML).to_csv(folder / "truth.csv", index=False)
    return folder / "truth.csv"


def write_hippunfold(folder: Path) -> Path:
    for subject, sides in zip(SUBJECTS, volumes_ml()[:, :2], strict=True):
        shares = np.array([0.2, 0.25, 0.1, 0.1, 0.1, 0.05, 0.2])
        rows = [[subject, hemi, *(1000 * ml * shares), 12.5] for hemi, ml in zip("LR", sides, strict=True)]
        name = f"sub-{subject}_space-cropT1w_desc-subfields_atlas-bigbrain_volumes.tsv"
        (folder / f"sub-{subject}/anat").mkdir(parents=True)
        table = pd.DataFrame(rows, columns=["subject", "hemi", *_FIELDS, "Cyst"])
        table.assign(subject=f"sub-{subject}").to_csv(folder / f"sub-{subject}/anat" / name, sep="\t", index=False)
    return folder


def write_deepmriprep(folder: Path, layout: str = "sub") -> Path:
    """In the layout of one of its dir_formats, sub or mod."""
    names = names_of("deepmriprep")
    for subject, row, head in zip(SUBJECTS, volumes_ml(), HEADS_ML, strict=True):
        lines = ["ROIid,ROIname,gmv_mm3,wmv_mm3,csfv_mm3,region_mm3"]
        for code, (region, ml) in enumerate(zip(REGIONS, row, strict=True)):
            structure, _, tissue = names[region].rpartition(" ")
            tissues = {"gmv_mm3": 7.0, "wmv_mm3": 7.0, "csfv_mm3": 7.0, tissue: 1000 * ml}
            lines.append(f"{code},{structure},{','.join(map(str, tissues.values()))},{1100 * ml}")
        volumes, tiv = (
            folder / (f"{subject}/{output}{subject}.csv" if layout == "sub" else f"{output}/{subject}.csv")
            for output in ("neuromorphometrics_volumes", "tiv")
        )
        for place, text in ((volumes, "\n".join(lines)), (tiv, f"tiv_cm3\n{head}")):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text + "\n")
    return folder


WRITERS: dict[str, Callable[[Path], Written]] = {
    "freesurfer": lambda folder: (write_stats(folder, ASEG), REGIONS),
    "fastsurfer": lambda folder: (write_stats(folder, FASTSURFER), REGIONS),
    "asegstats2table": lambda folder: (write_asegstats2table(folder), REGIONS),
    "synthseg": lambda folder: (write_synthseg(folder), REGIONS),
    "muse": lambda folder: (write_muse(folder), REGIONS),
    "own": lambda folder: (write_own(folder), REGIONS),
    "hippunfold": lambda folder: (write_hippunfold(folder), REGIONS[:2]),
    "deepmriprep": lambda folder: (write_deepmriprep(folder), REGIONS),
    "deepmriprep by output": lambda folder: (write_deepmriprep(folder, "mod"), REGIONS),
}
"""By tool, what writes the volumes of SUBJECTS into a folder."""
