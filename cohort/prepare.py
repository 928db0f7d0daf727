"""Brings raw T1-weighted scans onto a grid in template space: bias field, registration, brain, intensities.

Takes a table, a folder or a BIDS dataset. Writes one scan, one picture and one record for each, a quality page
(qc.html, worst first), the index of what was prepared, and the list of what failed. One scan that fails does not stop
the others. The exit status is 1 where a scan failed or was flagged; the last line says which. Outliers of the cohort
are named too, as worth a look. Running the command again makes only what is missing or was made otherwise.

    python -m cohort.prepare --participants bids --out data/mine --index data_csvs/pickle_prep_mine.csv --grid paper
"""

import errno
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import pandas as pd
import SimpleITK as sitk  # noqa: N813, its documentation's own short name
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from cohort.decoding import ending_and_hash
from cohort.listing.bids import Unlisted
from cohort.listing.reading import Reading
from cohort.preparation.participants import list_scans
from cohort.preparation.qc_page import Entry, draw, write_page
from cohort.preparation.quality import Verdict, judge
from cohort.preparation.steps import PREPARATION, prepare
from cohort.reading.headers import Placement
from cohort.reading.intensities import UNSURE
from cohort.scans import GRIDS
from cohort.tables import SHOWN, Listed, write_csv, write_table
from cohort.volumes import write_nifti
from runtime.cli import describe, run_script
from runtime.errors import InputError
from runtime.files import absence, locked, read_json, sha256, write_json
from runtime.workers import start_workers


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
    grid: Literal["paper", "demo", "smoke"] = "paper"
    """Voxels of the output: paper 1.5 mm, demo 4 mm, smoke 8 mm."""
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
    assume_mni: bool
    placement: Placement | None = None

    @property
    def scan(self) -> Path:
        return self.out / "scans" / f"{self.name}.nii.gz"

    @property
    def picture(self) -> Path:
        return self.out / "pictures" / f"{self.name}.png"

    @property
    def record(self) -> Path:
        """How both were made; written last, so that with it everything is there."""
        return self.out / "records" / f"{self.name}.json"

    def recipe(self) -> dict[str, Any]:
        """All that the output depends on; raises InputError where the source cannot be read."""
        try:
            hashes = [ending_and_hash(Path(file))[1] if file else None for file in (self.source, self.mask)]
        except OSError as error:
            reason = absence(error.filename) or f"cannot be read: {error.strerror}"
            raise InputError(f"{error.filename}: {reason}") from None
        steps = dict.fromkeys(("bias", "register", "warp", "strip", "rescale"), not self.assume_mni)
        settings = {"version": PREPARATION, "grid": GRIDS[self.grid].to_dict(), "steps": steps}
        if self.placement:
            settings["placement"] = asdict(self.placement)
        return settings | {"source_sha256": hashes[0], "mask_sha256": hashes[1]}


def main(config: Config) -> None:
    """List, prepare what is missing, flag, write page and index."""
    if config.workers < 0:
        raise InputError(f"--workers {config.workers}: expected 0 (all cores) or more")
    placement = placement_of(config)
    listed = list_scans(config.participants, config, derivatives=config.derivatives)
    jobs = [
        Job(row.name, row.file, row.mask, config.out, config.grid, config.assume_mni, placement)
        for row in listed.there()[["name", "file", "mask"]].itertuples(index=False)
    ]
    config.out.mkdir(parents=True, exist_ok=True)
    with locked(config.out):
        failures = run(jobs, config.workers)
        flagged = report(config, listed, jobs, failures)
    if failures or flagged or (listed.differences() and not config.partial):
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


def run(jobs: Sequence[Job], workers: int) -> dict[str, str]:
    """Prepares all scans in parallel; returns the reason for each name that failed."""
    waiting = [job for job in tqdm(jobs, desc="what is there", unit="scan", delay=2) if not finished(job)]
    with tqdm(total=len(jobs), initial=len(jobs) - len(waiting), desc="preparing", unit="scan") as bar:
        errors = attempt(waiting, workers or len(os.sched_getaffinity(0)), bar)
        # A process dies of too little memory, mostly: its scan is tried again when it has the machine to itself.
        lost = [job for job in waiting if isinstance(errors[job.name], BrokenProcessPool)]
        errors |= attempt(lost, 1, bar)
    return {name: reason(error) for name, error in errors.items() if error is not None}


def attempt(jobs: Sequence[Job], workers: int, bar: tqdm) -> dict[str, BaseException | None]:
    """Prepares scans by several processes; returns what each raised, by name.

    Raises:
        OSError: a full disk, which every other scan would meet too.
    """
    with ThreadPoolExecutor(max(1, min(workers, len(jobs)))) as threads, ExitStack() as started:
        idle: SimpleQueue[Executor] = SimpleQueue()
        for _ in range(min(workers, len(jobs))):
            idle.put(started.enter_context(start_process()))

        def error_of(job: Job) -> BaseException | None:
            process = idle.get()
            try:
                error = process.submit(work, job).exception()
            except BrokenProcessPool as died:  # while it was idle
                error = died
            lost = isinstance(error, BrokenProcessPool)
            idle.put(started.enter_context(start_process()) if lost else process)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise error
            bar.update(not lost)
            return error

        return dict(zip([job.name for job in jobs], threads.map(error_of, jobs), strict=True))


def start_process() -> AbstractContextManager[Executor]:
    """One process of its own: if it dies, it takes no other scan with it."""
    return start_workers(1, _use_one_thread)


def _use_one_thread() -> None:
    import torch  # here, so that --help and a finished folder do not wait for it

    threadpool_limits(1)
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def reason(error: BaseException) -> str:
    """One line for the report; a defect is named as one."""
    if isinstance(error, BrokenProcessPool):
        return "the process that prepared it died; is there enough memory?"
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"unexpected {type(error).__name__}: {text}"


def work(job: Job) -> None:
    """Prepares one scan and writes scan, picture and record."""
    recipe = job.recipe()
    job.record.unlink(missing_ok=True)
    grid = GRIDS[job.grid]
    prepared = prepare(job.source, grid, job.mask or None, assume_mni=job.assume_mni, placement=job.placement)
    draw(job.picture, prepared.whole, prepared.brain, grid)
    write_nifti(job.scan, prepared.image, grid.affine)
    facts = {"matrix": prepared.matrix.tolist(), "measures": prepared.measures, "notes": list(prepared.notes)}
    facts["sha256"] = sha256(job.scan)
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
    verdicts = verdicts_on(records)
    entries = [
        Entry(job.name, job.picture, record["measures"], verdict)
        for job, record, verdict in zip(good, records, verdicts, strict=True)
    ]
    write_page(config.out / "qc.html", f"Quality of {config.participants.name}", entries, failed)
    write_csv(config.out / "failures.csv", failed)
    if good:
        index = frame[~lost].assign(
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


def verdicts_on(records: Sequence[dict[str, Any]]) -> list[Verdict]:
    """What is odd about each scan, by its measures and its notes."""
    verdicts = judge([record["measures"] for record in records])
    unsure = [[note for note in record["notes"] if note.endswith(UNSURE)] for record in records]
    return [verdict._replace(look=verdict.look + notes) for verdict, notes in zip(verdicts, unsure, strict=True)]


def shortened(names: Sequence[str]) -> str:
    """The first SHOWN names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


if __name__ == "__main__":
    run_script(main, Config, description=describe(__doc__))
