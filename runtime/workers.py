"""Processes among which a script shares its work, and which end when it is interrupted."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


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
