"""One list of scans prepared by several calls, which may run at once on machines that share a file system.

Each writes scans, pictures and records of its own share, and then ``parts/<k>_of_<n>/failures.json``. The one that
finds every scan prepared or failed writes what is about all of them; where two end together, both write the same.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from cohort.preparation.job import Job, is_current
from runtime.errors import InputError
from runtime.files import locked, read_json, write_json


class Part(NamedTuple):
    """Every `of`-th scan of a list, from the `number`-th on, which counts from 1; all of them where `of` is 1."""

    number: int = 1
    of: int = 1

    def share(self, jobs: Sequence[Job]) -> Sequence[Job]:
        return jobs[self.number - 1 :: self.of]

    @contextmanager
    def running(self, out: Path) -> Iterator[None]:
        """Holds the folder beside other parts, alone for the whole list; what failed before is to be tried again."""
        whole = self.of == 1
        with locked(out, shared=not whole), nullcontext() if whole else locked(self._failures(out).parent):
            for path in _told(out) if whole else [self._failures(out)]:
                path.unlink(missing_ok=True)
            yield

    def end(self, out: Path, jobs: Sequence[Job], failures: dict[str, str]) -> dict[str, str] | None:
        """Leaves behind what failed of this part, by name, and why; returns that of all parts, where all are done."""
        if self.of == 1:
            return failures
        write_json(self._failures(out), failures)
        told: dict[str, str] = {}
        for path in _told(out, self.of):
            told |= read_json(path)
        # Parts go through the list side by side: what is missing is at its end.
        done = all(job.name in told or is_current(job) for job in reversed(jobs))
        return {job.name: told[job.name] for job in jobs if job.name in told} if done else None

    def _failures(self, out: Path) -> Path:
        return out / "parts" / f"{self.number}_of_{self.of}" / "failures.json"


def read_part(text: str) -> Part:
    """``2/8`` is the second part of eight; an empty text is the whole."""
    if not text:
        return Part()
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--part {text}: expected k/n with k from 1 to n, such as 1/8")
    return Part(int(found[1]), int(found[2]))


def _told(out: Path, of: int | str = "*") -> list[Path]:
    """The files of failures that parts have left."""
    return sorted((out / "parts").glob(f"*_of_{of}/failures.json"))
