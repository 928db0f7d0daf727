"""Times the rows of one part of the table of speed targets, in a process of its own, which `benchmarks.gpu` starts.

A row appends what was measured to a file as soon as it is, and its failure likewise; started again with the same file,
the part goes on behind the row at which it died.
"""

import gc
import json
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_jobs import FULL, OURS, TINY, Part, Row, Setting, Work, rows_of
from benchmarks.timing import count_flops, time_calls
from runtime import memory
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.device import Device, pick_device

LARGEST = 5
"""Kernels of which a row says what share of its time they take."""


@dataclass(frozen=True)
class RowsConfig(ScriptConfig):
    """One part."""

    part: Part
    """Which."""
    data: Path
    """Folder of `benchmarks.gpu.write_data`."""
    out: Path
    """File of rows, one JSON object a line."""
    rate: float = 0.0
    """Matrix rate of the device, FLOP per second; 0: unknown."""
    seconds: float = 2.0
    """Of timing, a row; 0 runs each job once, so that PyTorch's cache has what it compiles, and writes nothing."""
    row_seconds: float = 90.0
    """After which a row is given up."""
    tiny: bool = False
    """Small networks on small volumes."""


def main(config: RowsConfig) -> None:
    """Measures what the file of rows has not yet, and was not being measured when the process before died."""
    device = pick_device()
    begun = {(line["row"], line["network"]) for line in read_rows(config.out)}
    setting = Setting(config.data, TINY if config.tiny else FULL, not config.seconds)
    for row in rows_of(config.part, setting):
        if (row.name, row.network) in begun:
            continue
        if config.seconds:
            note(config.out, {"row": row.name, "network": row.network, "batch": row.cases})
        found = attempt(row, config, device)
        if config.seconds:
            note(config.out, found)
            print(text_of(found), flush=True)


def note(out: Path, line: dict[str, Any]) -> None:
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_rows(out: Path) -> list[dict[str, Any]]:
    """Lines of a file of rows; without a last one that a kill left half."""
    lines = out.read_text(encoding="utf-8").splitlines(keepends=True) if out.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def text_of(found: dict[str, Any]) -> str:
    """A row for people, as soon as it is measured."""
    told = {name: value for name, value in found.items() if name != "largest kernels"}
    largest = [f"{name[:48]} {share:.0%}" for name, share in list(found.get("largest kernels", {}).items())[:3]]
    cells = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in told.items())
    return "; ".join([*cells, *(["largest: " + ", ".join(largest)] if largest else [])])


def attempt(row: Row, config: RowsConfig, device: Device) -> dict[str, Any]:
    """`measure`, or the reason why it could not be."""

    def give_up(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"given up after {config.row_seconds:.0f} s")

    origin = {"row": row.name, "network": row.network, "batch": row.cases}
    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, config.row_seconds)
    try:
        with row.around():
            return {**origin, **measure(row, config, device)}
    except Exception as error:  # whatever it is, the other rows are wanted
        why = "out of memory" if memory.is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        return {**origin, "failed": " ".join(why.split())[:300]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        torch.compiler.reset()  # rows share code, of which PyTorch compiles eight variants and no more
        gc.collect()
        if device.kind.type == "cuda":
            torch.cuda.empty_cache()


def measure(row: Row, config: RowsConfig, device: Device) -> dict[str, Any]:
    """Everything about one row."""
    gpu = device.kind.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    work = row.prepare(device)
    if not config.seconds:
        (work.once or work.job)()
        return {}
    bytes_ = memory.peak_bytes(partial(work.step, memory.imitation(work.networks), row.cases))
    forecast = memory.forecast(bytes_, device, work.layers, work.state)
    one = work.operations or partial(count_flops, partial(work.step, memory.imitation(work.networks), 1))
    flops = row.cases * one()
    seconds, low, high = time_calls(work.job, config.seconds, device, once=work.once)
    found = {
        "per s": row.cases / seconds, "least": row.least, "aim": row.aim,
        "ms": 1000 * seconds, "ms, 10 to 90 %": [round(1000 * low, 3), round(1000 * high, 3)],
        "TFLOP/s": flops / seconds / 1e12, "of matrix rate": flops / seconds / config.rate if config.rate else None,
        "peak GiB": torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
        "forecast GiB": forecast.total / 2**30,
    }  # fmt: skip
    return found | ({"largest kernels": largest_kernels(work, gpu=gpu)} if row.network == OURS else {})


def largest_kernels(work: Work, *, gpu: bool) -> dict[str, float]:
    """Shares of one job's time on the device, of the kernels that take most; none where nothing can be profiled."""
    try:
        with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as found:
            (work.once or work.job)()
            if gpu:
                torch.cuda.synchronize()
    except RuntimeError:
        return {}
    times = {
        entry.key: entry.self_device_time_total if gpu else entry.self_cpu_time_total for entry in found.key_averages()
    }
    ordered = sorted(times.items(), key=lambda item: -item[1])[:LARGEST]
    return {name: round(each / max(1e-9, sum(times.values())), 3) for name, each in ordered}


if __name__ == "__main__":
    run_script(main, RowsConfig, description=describe(__doc__))
