"""What benchmarks share: jobs timed in turns, commands timed as processes, tables, and the best rate of the machine."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from runtime.device import Device, cpu_has_bfloat16, pick_device
from runtime.errors import InputError
from runtime.files import ROOT
from runtime.runs import environment

Jobs = dict[str, Callable[[], object]]
Sizes = list[int]
AS_RUN, SET = "as its users run it", "our settings"
TURNS = 10
"""Of `time_calls`."""


def expect(minutes: float) -> None:
    """Says, before a benchmark starts, how long it takes on two cores of 2026, roughly."""
    count, unit = (minutes, "minute") if minutes < 120 else (minutes / 60, "hour")
    whole = max(1, round(count))
    print(f"about {whole} {unit}{'s' * (whole > 1)} on two cores, with nothing else running", flush=True)


def contest(
    usual: Device,
    as_run: dict[str, Jobs],
    set_up: Callable[[Device], dict[str, Jobs]],
    *,
    repeats: int,
    batch: int,
    references: Sequence[str],
) -> dict[str, dict[str, float]]:
    """Times networks as their users run them, then all with this project's settings, and prints seconds and ratios.

    On a CPU freed memory is kept from `set_up` on, by every network of the process (see runtime.device). `as_run` are
    the first ones' jobs by network, on the device `usual`; `set_up` makes the same jobs of the others on the device
    that runs of this project have. Of `repeats` turns the median counts; a job has `batch` volumes; all are compared
    with the networks `references`. Returns the seconds by job and network.
    """
    jobs = list(next(iter(as_run.values())))
    alone = {job: time_turns({name: own[job] for name, own in as_run.items()}, repeats, usual) for job in jobs}
    device = pick_device()
    tuned = set_up(device)
    together = {job: time_turns({name: own[job] for name, own in tuned.items()}, repeats, device) for job in jobs}
    found = {job: alone[job] | together[job] for job in jobs}
    rate, rows = introduce(device, batch=batch), []
    for job in jobs:
        for name, own in (as_run | tuned).items():
            (seconds, peak), flops = found[job][name], count_flops(own[job])
            row = {"job": job, "network": name, "median s": seconds, "volumes/s": batch / seconds}
            row |= {f"times {reference}": found[job][reference][0] / seconds for reference in references}
            rows.append(row | {"GFLOP": flops / 1e9, "of matrix rate": f"{flops / seconds / rate:.0%}", "peak": peak})
    print_table(rows)
    return {job: {name: seconds for name, (seconds, _) in networks.items()} for job, networks in found.items()}


def time_turns(jobs: Jobs, repeats: int, device: Device, *, warm_ups: int = 2) -> dict[str, tuple[float, str]]:
    """Median seconds of each job, run in alternation after its warm-ups; and peak memory on a GPU.

    After the first turn it says how long the others will take, where that is more than half a minute.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    peaks = dict.fromkeys(jobs, "-")
    turns, began = repeats + warm_ups, now(device)
    for repeat in range(turns):
        if repeat == 1 and (minutes := (now(device) - began) * (turns - 1) / 60) > 0.5:
            print(f"about {minutes:.2g} minutes for {turns - 1} more turns of {', '.join(jobs)}", flush=True)
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


def time_calls(
    job: Callable[[], object], seconds: float, device: Device, *, once: Callable[[], object] | None = None
) -> tuple[float, float, float]:
    """Seconds of one call: the median of TURNS turns, and the 10th and 90th percentile.

    A turn is so many calls, one behind the other without waiting for the device, that all together take `seconds`;
    where one call takes longer than that, it is the only one. Before them it is warmed up, `once` where that is given:
    three times, because a CUDA graph is replayed from the third on.
    """
    for _ in range(3):
        (once or job)()
    started = now(device)
    job()
    each = now(device) - started
    if each > seconds:
        return each, each, each
    calls, turns = max(1, round(seconds / TURNS / each)), []
    for _ in range(TURNS):
        started = now(device)
        for _ in range(calls):
            job()
        turns.append((now(device) - started) / calls)
    low, *_, high = statistics.quantiles(turns, n=10)
    return statistics.median(turns), low, high


def now(device: Device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.kind.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def usual_device() -> Device:
    """The GPU or the CPU and its fastest precision, with nothing of this project's settings made."""
    cuda = torch.cuda.is_available()
    precision = torch.bfloat16 if cuda or cpu_has_bfloat16() else torch.float32
    return Device(torch.device("cuda" if cuda else "cpu"), precision)


def introduce(device: Device, **facts: object) -> float:
    """Prints what is timed where; returns the FLOP per second of a large matrix product on this machine."""
    for name, value in {**environment(device), **facts}.items():
        print(f"{name}: {value}")
    n = 8192 if device.kind.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device.kind, dtype=device.precision) for _ in range(2))
    rate = 2 * n**3 / time_turns({"product": lambda: a @ b}, 9, device)["product"][0]
    print(f"measured matrix rate, {short(device.precision)}: {rate / 1e12:.2f} TFLOP/s\n", flush=True)
    return rate


def count_flops(job: Callable[[], object]) -> int:
    """Floating-point operations of convolutions and products in one call, as PyTorch counts them in eager code."""

    def convolution(x_shape: Sizes, weight_shape: Sizes, *_: object, out_shape: Sizes, **__: object) -> int:
        return conv_flop_count(x_shape, weight_shape, out_shape)

    more = {torch.ops.aten.mkldnn_convolution: convolution}  # of runtime.layers.convolution, unknown to PyTorch
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False, custom_mapping=more) as counter:
        job()
    return counter.get_total_flops()


def short(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def print_table(rows: list[dict[str, object]]) -> None:
    """Prints rows that have the same columns in Markdown, numbers with four digits."""
    print(f"| {' | '.join(rows[0])} |\n{'|---' * len(rows[0])}|")
    for row in rows:
        cells = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values())
        print(f"| {' | '.join(cells)} |")


def time_command(
    module: str, *words: object, expected: tuple[int, ...] = (0,), threads: int | None = None
) -> dict[str, float]:
    """Seconds and peak memory of ``python -m module words``, start-up included.

    Processor time is measured as well: on a machine with other work the wall's says little. InputError with its output
    if it ends with a status that is not `expected`; `threads` are those of the numerical libraries in each process.
    """
    command = [sys.executable, "-m", module, *map(str, words)]
    variables = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        output.seek(0)
        if os.waitstatus_to_exitcode(status) not in expected:
            raise InputError(f"{' '.join(command)} ended otherwise than expected:\n{output.read()}")
    return {
        "wall, s": round(time.perf_counter() - started, 1),
        "processor, s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak, MiB": round(usage.ru_maxrss / 1024),
    }
