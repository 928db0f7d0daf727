"""Brings raw T1-weighted scans onto a grid in template space: bias field, registration, brain, intensities.

Takes a table, a folder or a BIDS dataset. Writes one scan, one picture and one record for each, a quality page
(qc.html, worst first), the index of what was prepared, and the list of what failed. One scan that fails does not stop
the others; then the exit status is 1. Running the command again makes only what is missing or was made otherwise.

    python -m cohort.prepare --participants bids --out data/mine --index data_csvs/pickle_prep_mine.csv --grid paper
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import SimpleITK as sitk  # noqa: N813, its documentation's own short name
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from cohort.preparation.participants import list_scans
from cohort.preparation.qc_page import Entry, Failure, draw, write_page
from cohort.preparation.quality import judge
from cohort.preparation.steps import AS_IT_IS, PREPARATION, Steps, prepare
from cohort.scans import GRIDS
from cohort.tables import write_table
from cohort.volumes import write_nifti
from runtime.cli import describe, run_script
from runtime.errors import InputError
from runtime.files import atomic_write, locked, read_json, sha256, write_json


@dataclass(frozen=True)
class Config:
    """What to prepare, and how."""

    participants: Path
    """Table of scans (columns: data_csvs/README.md; a column `mask` names brain masks), folder, or BIDS dataset."""
    out: Path
    """Folder for scans, pictures, records, qc.html and failures.csv."""
    index: Path
    """The table to write, such as data_csvs/pickle_prep_mine.csv: all scans that were prepared, with a column qc."""
    grid: Literal["paper", "demo", "smoke"] = "paper"
    """Voxels of the output: paper 1.5 mm, demo 4 mm, smoke 8 mm."""
    assume_mni: bool = False
    """The scans are prepared and in MNI space already (T1 or grey-matter maps): only check and resample them."""
    bias: bool = True
    """Correct the bias field (N4)."""
    register: bool = True
    """Register to the template. Without it the scan has to lie on the template already."""
    warp: bool = True
    """Find the brain by a deformable step. Without it the template's brain mask is laid on as it is, faster and
    coarser. A brain mask given for a scan replaces both."""
    strip: bool = True
    """Remove what is outside the brain."""
    rescale: bool = True
    """Scale intensities by the 99.5th percentile inside the brain, to 1000."""
    derivatives: str | None = None
    """BIDS: the folder in derivatives/ that holds the brain masks (*_desc-brain_mask.nii.gz), where several do."""
    data_root: Path | None = None
    """Folder that the table's files are relative to and must not leave."""
    label_column: str = "diagnosis"
    """Column of the table that holds the diagnosis."""
    label_map: dict[str, str] | None = None
    """Meaning of that column's values, in pairs: HC HC left TLE-L right TLE-R."""
    workers: int = 0
    """Processes; 0 takes one per available processor core. Each needs about 1 GB for a scan at 1 mm."""
    dry_run: bool = False
    """Print the configuration and stop."""


@dataclass(frozen=True)
class Job:
    """One scan to prepare."""

    name: str
    source: str
    mask: str
    out: Path
    grid: str
    steps: Steps

    @property
    def scan(self) -> Path:
        """Where the prepared scan goes."""
        return self.out / "scans" / f"{self.name}.nii.gz"

    @property
    def picture(self) -> Path:
        """Where its picture goes."""
        return self.out / "pictures" / f"{self.name}.png"

    @property
    def record(self) -> Path:
        """Where it is written how both were made; there last, so that with it everything is there."""
        return self.out / "records" / f"{self.name}.json"

    def recipe(self) -> dict[str, Any]:
        """All that the output depends on; raises InputError where the source cannot be read."""
        try:
            hashes = [sha256(file) if file else None for file in (self.source, self.mask)]
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from None
        settings = {"version": PREPARATION, "grid": GRIDS[self.grid].to_dict(), "steps": asdict(self.steps)}
        return settings | {"source_sha256": hashes[0], "mask_sha256": hashes[1]}


def main(config: Config) -> None:
    """List, prepare what is missing, judge, write page and index."""
    steps = steps_of(config)
    frame = list_scans(
        config.participants, data_root=config.data_root, label_column=config.label_column,
        label_map=config.label_map, derivatives=config.derivatives,
    )  # fmt: skip
    jobs = [
        Job(row.name, row.file, row.mask, config.out, config.grid, steps)
        for row in frame[["name", "file", "mask"]].itertuples(index=False)
    ]
    config.out.mkdir(parents=True, exist_ok=True)
    with locked(config.out):
        failures = run(jobs, config.workers)
        report(config, frame, jobs, failures)
    if failures:
        sys.exit(1)


def steps_of(config: Config) -> Steps:
    """The steps of a configuration; InputError for settings that mean nothing."""
    if config.workers < 0:
        raise InputError(f"--workers {config.workers}: expected 0 (all cores) or more")
    chosen = Steps(config.bias, config.register, config.warp, config.strip, config.rescale)
    if config.assume_mni and chosen != Steps():
        raise InputError("--assume-mni does nothing but check and resample; leave the flags of single steps away")
    return AS_IT_IS if config.assume_mni else chosen


def run(jobs: list[Job], workers: int) -> dict[str, str]:
    """Prepares all scans in parallel; returns the reason for each name that failed.

    A process that dies (of memory, mostly) takes its pool with it: what was lost is then tried again one by one.
    """
    workers = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    failures: dict[str, str] = {}
    waiting = [job for job in tqdm(jobs, desc="what is there", unit="scan", delay=2) if not finished(job)]
    with tqdm(total=len(jobs), initial=len(jobs) - len(waiting), desc="preparing", unit="scan") as bar:
        while waiting:
            lost = []
            for job, error in _pool(waiting, workers):
                if isinstance(error, BrokenProcessPool):
                    lost.append(job)
                    continue
                if error is not None:
                    failures[job.name] = reason(error)
                bar.update()
            waiting = [job for job in waiting if job in lost]
            if waiting and workers == 1:
                failures[waiting.pop(0).name] = "the process that prepared it died; is there enough memory?"
                bar.update()
            workers = 1
    return failures


def _pool(jobs: list[Job], workers: int) -> Iterator[tuple[Job, BaseException | None]]:
    """Each job as it ends, and what it raised."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker) as pool:
        futures: dict[Future, Job] = {pool.submit(work, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                error = future.exception()
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise error  # every other scan would meet the same full disk
                yield futures[future], error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    threadpool_limits(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def reason(error: BaseException) -> str:
    """One line for the report; a defect is named as one."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"unexpected {type(error).__name__}: {text}"


def work(job: Job) -> None:
    """Prepares one scan and writes scan, picture and record."""
    recipe = job.recipe()
    job.record.unlink(missing_ok=True)
    grid = GRIDS[job.grid]
    prepared = prepare(job.source, grid, job.steps, job.mask or None)
    draw(job.picture, prepared.whole, prepared.brain, grid)
    write_nifti(job.scan, prepared.image, grid.affine)
    facts = {"matrix": prepared.matrix.tolist(), "measures": prepared.measures, "sha256": sha256(job.scan)}
    write_json(job.record, {"source": job.source, "mask": job.mask, "recipe": recipe} | facts)


def finished(job: Job) -> bool:
    """Whether the outputs of a job are there, whole, and made as they would be now."""
    if not (job.record.exists() and job.scan.exists() and job.picture.exists()):
        return False
    try:
        found, recipe = read_json(job.record), job.recipe()
    except InputError:  # a damaged record is made anew; a source that is gone is reported when it is to be read
        return False
    return found.get("recipe") == json.loads(json.dumps(recipe)) and found.get("sha256") == sha256(job.scan)


def report(config: Config, frame: pd.DataFrame, jobs: list[Job], failures: dict[str, str]) -> None:
    """Writes failures.csv, qc.html and the index, and prints what a user has to know."""
    good = [job for job in jobs if job.name not in failures]
    records = [read_json(job.record) for job in good]
    verdicts = judge([record["measures"] for record in records])
    failed = [Failure(job.name, job.source, failures[job.name]) for job in jobs if job.name in failures]
    entries = [
        Entry(job.name, job.picture, record["measures"], verdict.reasons, verdict.score)
        for job, record, verdict in zip(good, records, verdicts, strict=True)
    ]
    write_page(config.out / "qc.html", f"Quality of {config.participants.name}", entries, failed)
    with atomic_write(config.out / "failures.csv") as temporary:
        pd.DataFrame([vars(one) for one in failed], columns=["name", "file", "reason"]).to_csv(temporary, index=False)
    if good:
        write_table(config.index, index_of(frame, good, records, [verdict.reasons for verdict in verdicts]))
    odd = sum(bool(entry.reasons) for entry in entries)
    print(f"{len(good)} scans in {config.out / 'scans'}, {odd} flagged, {len(failed)} failed; {config.out / 'qc.html'}")
    for one in failed:
        print(f"failed: {one.name}: {one.reason}")
    unnamed = int((frame["diagnosis"] == "").sum())
    if unnamed and good:
        print(f"{config.index}: fill in the column diagnosis of {unnamed} scans before cohort.split; no table named it")


def index_of(
    frame: pd.DataFrame, jobs: list[Job], records: list[dict[str, Any]], reasons: list[tuple[str, ...]]
) -> pd.DataFrame:
    """The rows that were prepared, pointing to the prepared scans, with qc, hashes and where they came from."""
    place = {job.name: number for number, job in enumerate(jobs)}
    kept = frame[frame["name"].isin(place)]
    order = [place[name] for name in kept["name"]]
    return kept.drop(columns=["mask", "name"]).assign(
        file=[str(jobs[i].scan.resolve()) for i in order],
        qc=["; ".join(reasons[i]) or "ok" for i in order],
        sha256=[records[i]["sha256"] for i in order],
        source=[jobs[i].source for i in order],
        source_sha256=[records[i]["recipe"]["source_sha256"] for i in order],
    )


if __name__ == "__main__":
    run_script(main, Config, description=describe(__doc__))
