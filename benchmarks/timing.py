"""Timing of jobs in turns, and what the machine gives at best: what every benchmark of networks needs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from runtime.device import Device


def time_turns(
    jobs: list[Callable[[], object]], repeats: int, device: Device, *, warm_ups: int = 2
) -> tuple[list[float], list[str]]:
    """Median seconds of each job, run in alternation after its warm-ups; and peak memory on a GPU."""
    seconds: list[list[float]] = [[] for _ in jobs]
    peaks = ["-"] * len(jobs)
    for repeat in range(repeats + warm_ups):
        for place, job in enumerate(jobs):
            if device.kind.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = now(device)
            job()
            passed = now(device) - started
            if device.kind.type == "cuda":
                peaks[place] = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
            if repeat >= warm_ups:
                seconds[place].append(passed)
    return [statistics.median(times) for times in seconds], peaks


def now(device: Device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.kind.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def matrix_rate(device: Device) -> float:
    """FLOP per second of a large matrix product: what this machine gives in practice."""
    n = 8192 if device.kind.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device.kind, dtype=device.precision) for _ in range(2))
    (median,), _ = time_turns([lambda: a @ b], 9, device)
    return 2 * n**3 / median


def count_flops(job: Callable[[], None]) -> int:
    """Floating-point operations of convolutions and products in one call, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops()


def vol2col_kernels(job: Callable[[], None]) -> int:
    """How many launched kernels are of the slow fall-back for 3D convolutions."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        job()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if "vol2col" in event.key)


def short(precision: torch.dtype) -> str:
    """float32 or bfloat16."""
    return str(precision).removeprefix("torch.")
