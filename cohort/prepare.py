"""Brings raw T1-weighted scans onto a grid in template space: bias field, registration, brain, intensities.

Takes a table, a folder or a BIDS dataset. Writes one scan, one picture and one record for each, a quality page
(qc.html, worst first), the index of what was prepared, and the list of what failed. One scan that fails does not stop
the others. The exit status is 1 where a scan failed or was flagged (--keep-flagged: 0); the last line says which.
Outliers of the cohort are named too, as worth a look. Running the command again makes only what is missing or was made
otherwise.

    python -m cohort.prepare --participants bids --out data/mine --index data_csvs/pickle_prep_mine.csv --grid paper
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cohort.grids import GridName, parse_grid
from cohort.listing.bids import Unlisted
from cohort.listing.reading import Reading
from cohort.preparation.job import Job, prepare_all
from cohort.preparation.participants import list_scans
from cohort.preparation.parts import read_part
from cohort.preparation.qc_page import Entry, write_page
from cohort.preparation.quality import Verdict, judge
from cohort.reading.headers import Placement
from cohort.reading.intensities import UNSURE
from cohort.tables import SHOWN, Listed, write_csv, write_table
from runtime.cli import describe, run_script
from runtime.errors import InputError
from runtime.files import read_json


@dataclass(frozen=True)
class Config(Reading):
    """What to prepare, and how."""

    participants: Path
    """Table of scans (columns: data_csvs/README.md; a column `mask` names brain masks), folder, or BIDS dataset."""
    out: Path
    """Folder for scans, pictures, records, qc.html and failures.csv."""
    index: Path
    """The table to write, such as data_csvs/pickle_prep_mine.csv: all scans that were prepared. Its column qc says
    ok, why a scan was flagged, or after "look:" why it is worth a look."""
    grid: GridName = "paper"
    """Voxels of the output: paper 1.5 mm, demo 4 mm, smoke 8 mm, 1mm, 2mm, a spacing in mm such as 3 or 3@160x192x160
    with the sides of its field of view, or a JSON file (cohort/grids.py)."""
    assume_mni: bool = False
    """The scans are prepared and in MNI space already (T1 or grey-matter maps): only check and resample them."""
    reset_affine: str | None = None
    """Where the three axes of the files point, such as RAS or LAS: instead of what the files say, for files that say
    nothing (Analyze, some converters) or have lost it. You must know it: left and right follow from it. Their middle is
    taken for the brain's, and registration finds the rest; with --assume-mni it must be the middle of the grid."""
    reset_spacing_mm: float | None = None
    """With --reset-affine: edge of a voxel in mm, where the files have that wrong too."""
    derivatives: str | None = None
    """BIDS: the folder in derivatives/ that holds the brain masks (*_desc-brain_mask.nii.gz), where several do."""
    workers: int = 0
    """Processes; 0 takes one per available processor core. Each needs about 1.5 GB for a scan at 1 mm."""
    part: str = ""
    """k/n, such as 2/8: every n-th scan from the k-th on. Parts may run at once, on machines that share --out and
    --index; the one that finds all scans done writes page and index, as the same command without --part does."""
    keep_flagged: bool = False
    """End with status 0 where scans were flagged or failed, too: you looked, and go on with those and without these."""
    dry_run: bool = False
    """Print the configuration and stop."""


def main(config: Config) -> None:
    """List, prepare what is missing, flag, write page and index."""
    if config.workers < 0:
        raise InputError(f"--workers {config.workers}: expected 0 (all cores) or more")
    grid, placement, part = parse_grid(config.grid), placement_of(config), read_part(config.part)
    listed = list_scans(config.participants, config, derivatives=config.derivatives)
    jobs = [
        Job(row.name, row.file, row.mask, config.out, grid, config.assume_mni, placement)
        for row in listed.there()[["name", "file", "mask"]].itertuples(index=False)
    ]
    with part.running(config.out):
        outcome = prepare_all(part.share(jobs), config.workers or len(os.sched_getaffinity(0)))
        failures = part.end(config.out, jobs, outcome.failures)
        if outcome.peak_bytes:
            print(f"a process had at most {outcome.peak_bytes / 1e9:.2f} GB of memory")
        if failures is None:
            report_part(config, len(part.share(jobs)), outcome.failures)
            sys.exit(bool(outcome.failures) and not config.keep_flagged)
        flagged = report(config, listed, jobs, failures)
    told = (failures or flagged) and not config.keep_flagged
    if told or len(failures) == len(jobs) or (listed.differences() and not config.partial):
        sys.exit(1)


def placement_of(config: Config) -> Placement | None:
    """What --reset-affine asks for."""
    if config.reset_affine is None:
        if config.reset_spacing_mm is not None:
            raise InputError("--reset-spacing-mm needs --reset-affine")
        return None
    try:
        return Placement(config.reset_affine, config.reset_spacing_mm)
    except ValueError as error:
        raise InputError(f"--reset-affine: {error}") from None


def report_part(config: Config, scans: int, failures: dict[str, str]) -> None:
    """Says what became of one part, where others are not done."""
    for name, why in failures.items():
        print(f"failed: {name}: {why}")
    print(
        f"part {config.part}: {scans - len(failures)} of its {scans} scans prepared; other parts are not done: the one "
        "that ends last writes the index, as does this command without --part"
    )


def report(config: Config, listed: Listed, jobs: Sequence[Job], failures: dict[str, str]) -> list[str]:
    """Writes failures.csv, qc.html and the index, prints what a user has to know, and returns who was flagged."""
    frame = listed.frame[listed.absent == ""]
    lost = frame["name"].isin(list(failures))
    failed = pd.concat(
        [
            frame[["name", "file"]].assign(reason=frame["name"].map(failures))[lost],
            listed.frame[["name", "file"]].assign(reason=listed.absent)[listed.absent != ""],
            pd.DataFrame(listed.unlisted, columns=Unlisted._fields)
            .rename(columns={"subject": "name"})
            .drop(columns="session"),
        ],
        ignore_index=True,
    )
    good = [job for job in jobs if job.name not in failures]
    records = [read_json(job.record) for job in good]
    kept = frame[~lost]
    verdicts = verdicts_on(records, kept["site"].tolist() if "site" in kept else ())
    entries = [
        Entry(job.name, job.picture, record["measures"], verdict)
        for job, record, verdict in zip(good, records, verdicts, strict=True)
    ]
    write_page(config.out / "qc.html", f"Quality of {config.participants.name}", entries, failed)
    write_csv(config.out / "failures.csv", failed)
    if good:
        index = kept.assign(
            file=[str(job.scan.resolve()) for job in good],
            qc=[verdict.text for verdict in verdicts],
            sha256=[record["sha256"] for record in records],
            source=[job.source for job in good],
            source_sha256=[record["recipe"]["source_sha256"] for record in records],
        )
        write_table(config.index, index.drop(columns=["mask", "name"]))
    flagged = [entry.name for entry in entries if entry.verdict.flagged]
    look = [entry.name for entry in entries if entry.verdict.look and not entry.verdict.flagged]
    counts = f"{len(flagged)} flagged, {len(look)} worth a look, {len(failures)} failed"
    print(f"{len(good)} scans in {config.out / 'scans'}, {counts}; {config.out / 'qc.html'}")
    if differing := len(listed.differences()):
        advice = "accepted by --partial" if config.partial else "complete them, or accept it by --partial"
        print(f"{differing} left out, without a scan or without a row ({config.out / 'failures.csv'}): {advice}")
    told = [
        f"{job.name}: {'; '.join(record['notes'])}"
        for job, record in zip(good, records, strict=True)
        if record["notes"]
    ]
    if told:
        print(f"intensities of {len(told)} scans were not as expected (notes in records/*.json); the first: {told[0]}")
    for name, why in failures.items():
        print(f"failed: {name}: {why}")
    unnamed = int((frame["diagnosis"] == "").sum())
    if unnamed and good:
        print(f"{config.index}: fill in the column diagnosis of {unnamed} scans before cohort.split; no table named it")
    if look:
        page = config.out / "qc.html"
        print(f"worth a look (outliers of this cohort, odd intensities), and kept: {shortened(look)}; see {page}")
    if flagged:
        print(f"flagged: {', '.join(flagged)}; look at {config.out / 'qc.html'}: cohort.split takes them only as told")
    return flagged


def verdicts_on(records: Sequence[dict[str, Any]], sites: Sequence[str] = ()) -> list[Verdict]:
    """What is odd about each scan, by its measures beside those of its site or of all, and by its notes."""
    verdicts = judge([record["measures"] for record in records], sites)
    unsure = [[note for note in record["notes"] if note.endswith(UNSURE)] for record in records]
    return [verdict._replace(look=verdict.look + notes) for verdict, notes in zip(verdicts, unsure, strict=True)]


def shortened(names: Sequence[str]) -> str:
    """The first SHOWN names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


if __name__ == "__main__":
    run_script(main, Config, description=describe(__doc__))
