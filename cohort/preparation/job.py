"""One scan to prepare as a job: what it depends on, what it writes, whether that is there; and many of them at once."""

import errno
import json
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import SimpleITK as sitk  # noqa: N813, its documentation's own short name
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from cohort.decoding import ending_and_hash
from cohort.grids import Grid
from cohort.preparation.qc_page import draw
from cohort.preparation.steps import PREPARATION, prepare
from cohort.reading.headers import Placement
from cohort.volumes import write_scan
from runtime.errors import InputError
from runtime.files import absence, read_json, sha256, write_json
from runtime.workers import peak_bytes, run_each, start_workers


@dataclass(frozen=True)
class Job:
    """One scan to prepare."""

    name: str
    source: str
    mask: str
    out: Path
    grid: Grid
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

    def settings(self) -> dict[str, Any]:
        """What the output depends on besides the source and its mask."""
        steps = dict.fromkeys(("bias", "register", "warp", "strip", "rescale"), not self.assume_mni)
        settings = {"version": PREPARATION, "grid": self.grid.to_dict(), "steps": steps}
        if self.placement:
            settings["placement"] = asdict(self.placement)
        return json.loads(json.dumps(settings))

    def recipe(self) -> dict[str, Any]:
        """All that the output depends on; raises InputError where the source cannot be read."""
        try:
            hashes = [ending_and_hash(Path(file))[1] if file else None for file in (self.source, self.mask)]
        except OSError as error:
            reason = absence(error.filename) or f"cannot be read: {error.strerror}"
            raise InputError(f"{error.filename}: {reason}") from None
        return self.settings() | {"source_sha256": hashes[0], "mask_sha256": hashes[1]}


class Outcome(NamedTuple):
    """What became of jobs."""

    failures: dict[str, str]
    """The reason, by name."""
    peak_bytes: int
    """The most memory that one process had; 0 where nothing was to be done."""


def prepare_all(jobs: Sequence[Job], workers: int) -> Outcome:
    """Prepares what is not there yet, by so many processes; one that dies costs no other scan (`run_each`).

    Raises:
        OSError: a full disk, which every other scan would meet too.
    """
    with ThreadPoolExecutor(workers) as threads:  # hashing goes on without the interpreter's lock
        desc = {"desc": "what is there", "unit": "scan", "delay": 2}
        there = list(tqdm(threads.map(finished, jobs), total=len(jobs), **desc))
    waiting = [job for job, done in zip(jobs, there, strict=True) if not done]
    with tqdm(total=len(jobs), initial=len(jobs) - len(waiting), desc="preparing", unit="scan") as bar:

        def tell(future: Future) -> None:
            error = future.exception()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise error
            bar.update()

        ended = run_each(work, waiting, workers, start_process, tell)
    errors = {job.name: future.exception() for job, future in zip(waiting, ended, strict=True)}
    failures = {name: reason(error) for name, error in errors.items() if error is not None}
    return Outcome(failures, max((future.result() for future in ended if future.exception() is None), default=0))


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
        return (
            "its process was killed, and again when it ran alone: it needs more memory than there is, or breaks a "
            "library; prepare it on a machine with more memory, or resample the scan to 1 mm first"
        )
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"unexpected {type(error).__name__}: {text}"


def work(job: Job) -> int:
    """Prepares one scan and writes scan, picture and record; returns the most bytes that its process has had."""
    recipe = job.recipe()
    job.record.unlink(missing_ok=True)
    prepared = prepare(job.source, job.grid, job.mask or None, assume_mni=job.assume_mni, placement=job.placement)
    draw(job.picture, prepared.whole, prepared.brain, job.grid)
    write_scan(job.scan, prepared.image, job.grid.affine)
    facts = {"matrix": prepared.matrix.tolist(), "measures": prepared.measures, "notes": list(prepared.notes)}
    facts["sha256"] = sha256(job.scan)
    write_json(job.record, {"source": job.source, "mask": job.mask, "recipe": recipe} | facts)
    return peak_bytes()


def finished(job: Job) -> bool:
    """Whether the outputs of a job are there, whole, and made as they would be now."""
    if not (job.record.exists() and job.scan.exists() and job.picture.exists()):
        return False
    try:
        found, recipe = read_json(job.record), job.recipe()
    except InputError:  # a damaged record is made anew; a source that is gone is reported when it is to be read
        return False
    return found.get("recipe") == recipe and found.get("sha256") == sha256(job.scan)


def is_current(job: Job) -> bool:
    """Whether there is a record of the job, by the settings of now; the files themselves are not read."""
    if not job.record.exists():
        return False
    try:
        recipe = read_json(job.record)["recipe"]
    except InputError:
        return False
    return {name: recipe.get(name) for name in (*job.settings(), "placement")} == {"placement": None} | job.settings()
