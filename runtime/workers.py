"""Processes among which a script shares its work, and which end when it is interrupted."""

import multiprocessing
import re
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from runtime.errors import InputWarning

Job = TypeVar("Job")
Result = TypeVar("Result")


@contextmanager
def start_workers(count: int, initializer: Callable[..., None], *arguments: object) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes, each of which first calls `initializer`.

    Ctrl-C, which a terminal sends to all of them, is left to this process. After it, as after any error, they end at
    once and without a word. What they had begun is lost, so they write files that are whole or absent
    (`runtime.files.atomic_write`). Do not cancel tasks: Python 3.11 breaks where both happen (as in ``pool.map``).
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=spawn, initializer=initializer, initargs=arguments) as pool:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what is started now inherits it
        try:
            for _ in range(count):
                pool.submit(int)  # any task: a process starts with its first
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            yield pool
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


@contextmanager
def begun(work: Callable[..., Result], *arguments: object, apart: bool) -> Iterator[Callable[[], Result]]:
    """Yields what gives the result of `work(*arguments)`: of a process of its own, where it has begun by now, or, not
    `apart`, of this one, once it is asked for.

    An error of `work` is raised where its result is asked for; one of the block ends the process. Where the process was
    killed, as where memory ends, the work is done again by this one.
    """
    if not apart:
        yield partial(work, *arguments)
        return
    with start_workers(1, int) as pool:
        future = pool.submit(work, *arguments)

        def result() -> Result:
            try:
                return future.result()
            except BrokenProcessPool:
                words = "a process was killed, as where memory ends: its work is done again, after the other's"
                warnings.warn(words, InputWarning, stacklevel=2)
                return work(*arguments)

        yield result


def run_each(
    work: Callable[[Job], object],
    jobs: Sequence[Job],
    count: int,
    start: Callable[[], AbstractContextManager[Executor]],
    tell: Callable[[Future], None],
) -> list[Future]:
    """Does `work` for each job by `count` processes. One that is killed, as where memory ends, costs no other job.

    After a death nothing is begun, what is under way ends, and what was lost is tried alone. If its process dies again,
    the job is at fault. If it comes through, there were too many for the memory: should that happen twice, the others
    go on by half as many, and so on.

    Args:
        work: called in a process.
        jobs: what it is called with.
        count: processes, 1 or more.
        start: starts one of them. Each job has one to itself, so that it is known whose death it was.
        tell: called for each job that has ended, from several threads. What it raises ends the others, and is raised.

    Returns:
        A future for each job, done: the value or the error of `work`, or BrokenProcessPool where it died alone.
    """
    futures: dict[int, Future] = {}

    def attempt(numbers: deque[int], count: int) -> list[int]:
        """Does the jobs of these numbers until a process dies; takes out what it has begun, returns what was lost."""
        stop = threading.Event()

        def serve(process: Executor) -> int | None:
            try:
                while not stop.is_set():
                    try:
                        number = numbers.popleft()
                    except IndexError:
                        return None
                    futures[number] = _outcome(process, work, jobs[number])
                    if isinstance(futures[number].exception(), BrokenProcessPool):
                        stop.set()
                        return number
                    tell(futures[number])
            except BaseException:
                stop.set()
                raise
            return None

        with ThreadPoolExecutor(count) as threads, ExitStack() as started:
            processes = [started.enter_context(start()) for _ in range(min(count, len(numbers)))]
            serving = [threads.submit(serve, process) for process in processes]
            try:
                return [number for thread in serving if (number := thread.result()) is not None]
            finally:
                stop.set()

    waiting, shortages = deque(range(len(jobs))), 0
    while waiting:
        lost = attempt(waiting, count)
        guilty = [number for number in lost if attempt(deque([number]), 1)]
        for number in guilty:
            tell(futures[number])
        shortages += len(guilty) < len(lost)
        if len(guilty) < len(lost) and shortages > 1 < count:
            count //= 2
            words = f"memory was short again: the rest is done by {count} processes at once"
            warnings.warn(words, InputWarning, stacklevel=2)
    return [futures[number] for number in range(len(jobs))]


def _outcome(process: Executor, work: Callable[[Job], object], job: Job) -> Future:
    """What became of one job; a process that is dead already takes none."""
    try:
        future = process.submit(work, job)
    except BrokenProcessPool as died:
        future = Future()
        future.set_exception(died)
    future.exception()  # waits
    return future


def peak_bytes() -> int:
    """The most memory that this process has had (its resident set's high-water mark)."""
    # Not getrusage's: that begins with what the parent had when it forked.
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
