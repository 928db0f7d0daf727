"""Which device, which precision, which memory format: decided once per run, in one place."""

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits
from torch import nn

from runtime import distributed
from runtime.config import Precision
from runtime.errors import InputError
from runtime.memory import USABLE, free_bytes, is_out_of_memory

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Device:
    """Where and how networks run: a torch device and the precision of matrix work (weights stay float32)."""

    kind: torch.device
    precision: torch.dtype

    def autocast(self) -> contextlib.AbstractContextManager:
        """Matrix work in `precision`; nothing changes for float32."""
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.kind.type, dtype=self.precision)

    def module(self, network: nn.Module) -> nn.Module:
        """Moves a network here, with 5-D weights in channels_last_3d: the layout in which tensor cores and oneDNN run
        3D convolutions without reordering (contiguous bfloat16 conv3d leaves cuDNN altogether in versions 9.8 to 9.14).

        Filters of one channel, or of one voxel, are in both layouts at once, and so is a volume of one channel: `to`
        gives them the strides by which a convolution knows what to return, and `contiguous` would not. A contiguous
        feature map in the first block costs a reordering and a sum across layouts at full resolution.
        """
        network = network.to(self.kind)
        for parameter in network.parameters():
            if parameter.dim() == 5:
                parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
        return network

    def tensor(self, value: torch.Tensor) -> torch.Tensor:
        """Moves a tensor here; volumes (5-D) become channels_last_3d."""
        layout = torch.channels_last_3d if value.dim() == 5 else torch.preserve_format
        return value.to(self.kind, non_blocking=True, memory_format=layout)

    def compiles(self, asked: bool) -> bool:
        """Whether networks are compiled: on a GPU, where it is `asked` for. A CPU gains too little for the minutes."""
        return asked and self.kind.type == "cuda"

    def inference_batch(self, asked: int | None, bytes_each: int) -> int:
        """How many cases, of so many bytes of activations, to run at once without gradients, unless `asked` says it.

        On a CPU one: a batch of scans is hardly faster there, and kernels round differently for other batch sizes, so
        that cases come out the same to the bit whatever else is computed (with as many threads).
        """
        if asked or self.kind.type == "cpu":
            return asked or 1
        return max(1, min(16, int(USABLE["cuda"] * free_bytes(self.kind) / bytes_each)))

    def describe(self) -> dict[str, str]:
        """Name, precision and library versions, for environment.json."""
        gpu = self.kind.type == "cuda"
        name = torch.cuda.get_device_name(self.kind) if gpu else f"cpu, {torch.get_num_threads()} threads"
        cudnn = str(torch.backends.cudnn.version()) if gpu else "none"
        return {"device": name, "precision": str(self.precision).removeprefix("torch."), "cudnn": cudnn}


def in_batches(
    items: Sequence[Item], size: int, work: Callable[[list[Item], int], Result]
) -> Iterator[tuple[list[Item], Result]]:
    """Yields consecutive batches of at most `size` items and what `work(batch, size)` makes of each.

    Where memory does not suffice, the batch is tried again at half the size, and the rest goes on with that; InputError
    when it does not suffice for one item.
    """
    start = 0
    while start < len(items):
        batch, result = list(items[start : start + size]), None
        try:
            result = work(batch, size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if result is not None:
            yield batch, result
            start += len(batch)
            continue
        if size == 1:
            raise InputError("out of memory: the device has no room for a single case; use one with more memory")
        size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"out of memory; going on with batches of {size}")


def pick_device(precision: Precision = "auto", threads: int | None = None) -> Device:
    """The GPU of this process when there is one, else the CPU.

    Args:
        precision: ``auto`` is bfloat16 on a GPU that has it and on a CPU with AVX512-BF16 or AMX, else float32.
        threads: CPU threads; by default OMP_NUM_THREADS, else all cores the process may use. Under torchrun, which sets
            that variable to 1 by itself, the cores are shared among the processes of this machine.
    """
    if torch.cuda.is_available():
        return _cuda(precision)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    asked = int(os.environ.get("OMP_NUM_THREADS", "0")) if processes == 1 else 0
    count = threads or asked or max(1, cores // processes)
    torch.set_num_threads(count)
    threadpool_limits(count, user_api="blas")  # numpy's and scipy's
    keep_freed_memory()
    fast = cpu_has_bfloat16()
    if precision == "bfloat16" and not fast:
        raise InputError("--precision bfloat16: this CPU has neither AVX512-BF16 nor AMX; float32 is faster on it")
    return Device(torch.device("cpu"), torch.bfloat16 if fast and precision != "float32" else torch.float32)


def keep_freed_memory() -> None:
    """Tells glibc's allocator, where there is one, to keep what is freed, in one arena.

    By default every large tensor is mapped anew and unmapped when freed, so that the kernel clears its pages again at
    each use; feature maps of 3D volumes pay more for that than for their arithmetic outside convolutions.
    """
    M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # parameters of mallopt(3)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)) if mallopt else ():
        mallopt(parameter, value)


def cpu_has_bfloat16() -> bool:
    """Whether oneDNN has bfloat16 kernels for this CPU; elsewhere it falls back to code many times slower."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and torch.cpu._is_avx512_bf16_supported()


def _cuda(precision: Precision) -> Device:
    # TF32 for what stays float32; whoever asks for float32 gets it, with figures that other machines have too.
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    torch.backends.cudnn.benchmark = True  # fixed shapes: the search is paid once
    if precision != "float32" and torch.backends.cudnn.version() < 91500:
        why = "is older than 9.15: bfloat16 conv3d is wrong or slow in it (pytorch issues 163539, 166122)"
        hint = "Install nvidia-cudnn >= 9.15, or use --precision float32."
        raise InputError(f"cuDNN {torch.backends.cudnn.version()} {why}. {hint}")
    fast = precision != "float32" and torch.cuda.is_bf16_supported(including_emulation=False)
    kind = torch.device("cuda", distributed.local_rank())
    return Device(kind, torch.bfloat16 if fast else torch.float32)
