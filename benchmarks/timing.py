"""What benchmarks share: jobs timed in turns, commands timed as processes, and what the machine gives at best."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from runtime.device import Device, cpu_has_bfloat16
from runtime.errors import InputError
from runtime.files import ROOT
from runtime.runs import environment


def time_turns(
    jobs: dict[str, Callable[[], object]], repeats: int, device: Device, *, warm_ups: int = 2
) -> dict[str, tuple[float, str]]:
    """Median seconds of each job, run in alternation after its warm-ups; and peak memory on a GPU."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    peaks = dict.fromkeys(jobs, "-")
    for repeat in range(repeats + warm_ups):
        for name, job in jobs.items():
            if device.kind.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = now(device)
            job()
            passed = now(device) - started
            if device.kind.type == "cuda":
                peaks[name] = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
            if repeat >= warm_ups:
                seconds[name].append(passed)
    return {name: (statistics.median(times), peaks[name]) for name, times in seconds.items()}


def now(device: Device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.kind.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def usual_device(threads: int | None) -> Device:
    """The GPU or the CPU and its fastest precision, with nothing of this project's settings made."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    cuda = torch.cuda.is_available()
    precision = torch.bfloat16 if cuda or cpu_has_bfloat16() else torch.float32
    return Device(torch.device("cuda" if cuda else "cpu"), precision)


def introduce(device: Device, **facts: object) -> float:
    """Prints what is timed where; returns the FLOP per second of a large matrix product on this machine."""
    for name, value in {**environment(device), "cores": len(os.sched_getaffinity(0)), **facts}.items():
        print(f"{name}: {value}")
    n = 8192 if device.kind.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device.kind, dtype=device.precision) for _ in range(2))
    rate = 2 * n**3 / time_turns({"product": lambda: a @ b}, 9, device)["product"][0]
    print(f"measured matrix rate, {short(device.precision)}: {rate / 1e12:.2f} TFLOP/s")
    return rate


def count_flops(job: Callable[[], object]) -> int:
    """Floating-point operations of convolutions and products in one call of eager code, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops()


def vol2col_kernels(job: Callable[[], object]) -> int:
    """How many launched kernels are of the slow fall-back for 3D convolutions."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        job()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if "vol2col" in event.key)


def short(precision: torch.dtype) -> str:
    """float32 or bfloat16."""
    return str(precision).removeprefix("torch.")


def time_command(module: str, *words: object, expected: int = 0, threads: int | None = None) -> dict[str, float]:
    """Seconds and peak memory of ``python -m module words``, start-up included.

    Processor time is measured as well: on a machine with other work the wall's says little.

    Args:
        module, words: of the command.
        expected: its exit status.
        threads: of the numerical libraries in each of its processes; by default theirs.

    Raises:
        InputError: it ended otherwise, with its output.
    """
    command = [sys.executable, "-m", module, *map(str, words)]
    variables = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        output.seek(0)
        if os.waitstatus_to_exitcode(status) != expected:
            raise InputError(f"{' '.join(command)} ended otherwise than expected:\n{output.read()}")
    return {
        "wall, s": round(time.perf_counter() - started, 1),
        "processor, s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak, MiB": round(usage.ru_maxrss / 1024),
    }
